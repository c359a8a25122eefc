//! Who changes something, and the record of it in AUDIT.
//!
//! Every verb that changes something does it through [`Operator::run`]:
//!
//! - Before anything is changed it is checked that there is an AUDIT.
//! - The record is written after the effect, with its result: also when the effect failed, and when
//!   Ctrl-C or SIGTERM ended it, which then leaves what was done so far.
//! - An effect whose record could not be written stands. The verb prints what it did, says on stderr
//!   what is missing, and exits with 1.
//! - A crash, or `kill -9`, between effect and record leaves an effect without a record, never a
//!   record of what was not tried. The effect itself names the actor then: the revision of a
//!   merchant, a decision in CONTROL, the detail of a dead letter.

use std::future::Future;
use std::sync::OnceLock;

use expediter_nats::{Audit, Connection};
use expediter_wire::Rfc3339;
use expediter_wire::audit::{AuditDetails, AuditRecord, AuditResult, AuditTarget};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::Error;
use super::error::note;
use super::text::now;

/// Who is written down with a change.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Actor {
    /// Who is written down with the change [default: user@host]
    #[arg(long = "actor", value_name = "NAME")]
    name: Option<String>,
}

impl Actor {
    pub(super) fn name(&self) -> String {
        let name = self.name.clone().unwrap_or_else(|| {
            let user = ["USER", "LOGNAME"]
                .into_iter()
                .find_map(|name| std::env::var(name).ok());
            let user = user
                .filter(|user| !user.is_empty())
                .unwrap_or_else(|| "somebody".to_owned());
            let host = rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned();
            format!("{user}@{host}")
        });
        name.chars().filter(|c| !c.is_control()).take(100).collect()
    }
}

/// For `--reason`: words for those who look later.
pub(super) fn reason(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("it says nothing".to_owned()),
        said => Ok(said.to_owned()),
    }
}

/// What a verb is about to do.
#[derive(Debug, Clone)]
pub(super) struct Deed {
    verb: &'static str,
    target: AuditTarget,
    reason: String,
    details: AuditDetails,
}

impl Deed {
    /// `verb` as it is typed, with a dot: `merchant.apply`.
    pub(super) fn new(verb: &'static str, target: AuditTarget) -> Self {
        let (reason, details) = (String::new(), AuditDetails::new());
        Self {
            verb,
            target,
            reason,
            details,
        }
    }

    /// In the operator's words.
    pub(super) fn because(self, reason: &str) -> Self {
        let reason = reason.to_owned();
        Self { reason, ..self }
    }

    /// A detail that is known before; what the effect tells is added to it.
    pub(super) fn detail(mut self, name: &str, detail: impl Serialize) -> Self {
        insert(&mut self.details, name, detail);
        self
    }
}

/// What a deed gave, and what to record of it besides.
#[derive(Debug)]
pub(super) struct Effect<T> {
    value: T,
    details: AuditDetails,
}

impl<T> Effect<T> {
    pub(super) fn new(value: T) -> Self {
        let details = AuditDetails::new();
        Self { value, details }
    }

    pub(super) fn detail(mut self, name: &str, detail: impl Serialize) -> Self {
        insert(&mut self.details, name, detail);
        self
    }
}

fn insert(details: &mut AuditDetails, name: &str, detail: impl Serialize) {
    let value = serde_json::to_value(detail).expect("details have texts as their keys");
    details.insert(name.to_owned(), value);
}

/// Whether a deed's record was written: what a verb ends with, after it has printed what it did.
pub(super) type Recorded = Result<(), Error>;

/// Somebody who changes things, each with its record.
#[derive(Debug)]
pub(super) struct Operator {
    audit: Audit,
    actor: String,
    /// Set by the first deed: before, signals end the process as they always do, also while it asks.
    stopped: OnceLock<watch::Receiver<bool>>,
}

impl Operator {
    /// Before anything is changed.
    ///
    /// # Errors
    /// There is no AUDIT: nothing is to be changed then.
    pub(super) async fn new(connection: &Connection, actor: &Actor) -> Result<Self, Error> {
        Ok(Self {
            audit: Audit::open(connection).await?,
            actor: actor.name(),
            stopped: OnceLock::new(),
        })
    }

    pub(super) fn actor(&self) -> &str {
        &self.actor
    }

    /// Brings about the effect, then writes its record.
    ///
    /// # Errors
    /// The effect's, which is recorded; a stop by a signal.
    pub(super) async fn run<T>(
        &self,
        deed: Deed,
        effect: impl Future<Output = Result<Effect<T>, Error>>,
    ) -> Result<(T, Recorded), Error> {
        let mut stopped = self.stopped.get_or_init(watch_signals).clone();
        if *stopped.borrow() {
            return Err(Error::failed("stopped before it began"));
        }
        let done = tokio::select! {
            done = effect => done,
            Ok(_) = stopped.wait_for(|stopped| *stopped) => {
                Err(Error::failed("stopped while it ran: a part of it may be done"))
            }
        };
        self.done(deed, done).await
    }

    /// As [`Operator::run`], but no signal cuts it short: one of many small effects, between which
    /// the verb looks at [`Operator::stopped`].
    ///
    /// # Errors
    /// The effect's, which is recorded.
    pub(super) async fn step<T>(
        &self,
        deed: Deed,
        effect: impl Future<Output = Result<Effect<T>, Error>>,
    ) -> Result<(T, Recorded), Error> {
        let done = effect.await;
        self.done(deed, done).await
    }

    async fn done<T>(
        &self,
        deed: Deed,
        done: Result<Effect<T>, Error>,
    ) -> Result<(T, Recorded), Error> {
        let mut record = AuditRecord {
            at: Rfc3339(now()),
            actor: self.actor.clone(),
            verb: deed.verb.to_owned(),
            target: deed.target,
            reason: deed.reason,
            result: AuditResult::Ok,
            details: deed.details,
        };
        match done {
            Ok(Effect { value, details }) => {
                record.details.extend(details);
                let recorded = self.record(&record).await;
                Ok((value, recorded))
            }
            Err(error) => {
                record.result = AuditResult::Failed(error.to_string());
                if let Err(unrecorded) = self.record(&record).await {
                    note(&format!("error: {unrecorded}"));
                }
                Err(error)
            }
        }
    }

    /// Returns once the process is told to end. From the first call on a signal does not end it.
    pub(super) async fn stopped(&self) {
        let mut stopped = self.stopped.get_or_init(watch_signals).clone();
        if stopped.wait_for(|stopped| *stopped).await.is_err() {
            // Nobody will tell.
            std::future::pending::<()>().await;
        }
    }

    async fn record(&self, record: &AuditRecord) -> Recorded {
        let written = self.audit.record(record).await;
        written.map(drop).map_err(|error| {
            let (verb, target) = (&record.verb, &record.target.id);
            let done = match record.result {
                AuditResult::Ok => "is done",
                AuditResult::Failed(_) => "was tried",
            };
            Error::failed(format!(
                "{verb} {target} {done}, but not recorded in AUDIT: {}",
                Error::from(error)
            ))
        })
    }
}

/// True once the process is told to end.
fn watch_signals() -> watch::Receiver<bool> {
    let (told, stopped) = watch::channel(false);
    let signals = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    tokio::spawn(async move {
        // Where signals cannot be watched, they end the process.
        if let (Ok(mut interrupt), Ok(mut terminate)) = signals {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            told.send_replace(true);
        }
        told.closed().await;
    });
    stopped
}
