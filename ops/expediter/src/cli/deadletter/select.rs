//! Which dead letters are meant, and how each stands.

use std::collections::HashSet;

use clap::ValueEnum;
use expediter_nats::{Audit, AuditItem, Connection, OutcomeItem, Registry, read_dead_letters};
use expediter_types::{DeadReason, MerchantId, OrderId, OutcomeKind, UnixMillis};
use tokio::sync::mpsc;

use crate::cli::Error;
use crate::cli::dead::{letter, resolutions};
use crate::cli::text::{clean, past};

/// A choice among all dead letters.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Selection {
    /// Only of this merchant; can be repeated
    #[arg(long, short, value_name = "ID")]
    pub(super) merchant: Vec<MerchantId>,
    /// Only of merchants of this group
    #[arg(long, value_name = "NAME", conflicts_with = "merchant")]
    pub(super) group: Option<String>,
    /// Only with this reason, such as ambiguous; can be repeated
    #[arg(long, value_parser = reason, value_name = "REASON")]
    pub(super) reason: Vec<DeadReason>,
    /// Only what ended since then: so long ago, such as 2h, or RFC 3339
    #[arg(long, value_parser = past, value_name = "WHEN")]
    pub(super) since: Option<UnixMillis>,
    /// Only what ended before then
    #[arg(long, value_parser = past, value_name = "WHEN")]
    pub(super) until: Option<UnixMillis>,
}

/// How a dead letter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum State {
    /// Nothing was done about it
    Open,
    /// It was sent again
    Replayed,
    /// It is not to be sent again
    Discarded,
    /// A person said what became of it
    Resolved,
}

impl State {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Replayed => "replayed",
            Self::Discarded => "discarded",
            Self::Resolved => "resolved",
        }
    }

    fn of(done: Option<&AuditItem>) -> Self {
        match done.map(|item| item.record.verb.as_str()) {
            None => Self::Open,
            Some("deadletter.replay") => Self::Replayed,
            Some("deadletter.discard") => Self::Discarded,
            Some(_) => Self::Resolved,
        }
    }
}

/// A dead letter, and what was done about it.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    pub(super) item: OutcomeItem,
    pub(super) reason: DeadReason,
    pub(super) state: State,
    pub(super) done: Option<AuditItem>,
}

impl Letter {
    /// It is another order than the one whose id it has.
    pub(super) fn is_conflict(&self) -> bool {
        self.reason == DeadReason::IdConflict
    }

    /// The order's id; `<id>@<sequence>` for one whose id is another order's.
    pub(super) fn name(&self) -> String {
        let outcome = &self.item.outcome;
        match self.is_conflict() {
            true => format!("{}@{}", outcome.envelope.id, outcome.seq),
            false => outcome.envelope.id.to_string(),
        }
    }

    /// It has this id or name.
    pub(super) fn is_called(&self, id: &OrderId) -> bool {
        self.item.outcome.envelope.id == *id || self.name() == id.as_str()
    }
}

pub(super) fn reason(text: &str) -> Result<DeadReason, String> {
    DeadReason::from_name(text).ok_or_else(|| {
        let names: Vec<_> = DeadReason::ALL.iter().map(|r| r.as_str()).collect();
        format!("is none of {}", names.join(", "))
    })
}

impl Selection {
    /// Nothing narrows it.
    pub(super) fn is_everything(&self) -> bool {
        self.merchant.is_empty()
            && self.group.is_none()
            && self.reason.is_empty()
            && self.since.is_none()
            && self.until.is_none()
    }

    async fn merchants(&self, connection: &Connection) -> Result<Vec<MerchantId>, Error> {
        let Some(group) = &self.group else {
            let mut named = self.merchant.clone();
            named.sort_unstable();
            named.dedup();
            return Ok(named);
        };
        let entries = Registry::new(connection).list().await?;
        let members = entries
            .into_iter()
            .map(|entry| entry.registration.merchant)
            .filter(|merchant| merchant.group == *group);
        let members: Vec<MerchantId> = members.map(|merchant| merchant.id).collect();
        match members.is_empty() {
            true => Err(Error::NotFound(format!(
                "no registered merchant is of group {}",
                clean(group)
            ))),
            false => Ok(members),
        }
    }

    /// Those of these states, oldest first; `take` says whether it wants more.
    pub(super) async fn each(
        &self,
        connection: &Connection,
        states: &[State],
        mut take: impl FnMut(Letter) -> bool,
    ) -> Result<(), Error> {
        let merchants = self.merchants(connection).await?;
        let audit = Audit::open(connection).await?;
        // The broker takes a few filters, not thousands.
        let filters = if merchants.len() > 50 {
            &[]
        } else {
            &merchants[..]
        };
        let mut done = resolutions(&audit, filters, self.since).await?;
        let wanted: HashSet<&MerchantId> = merchants.iter().collect();
        let (sink, mut letters) = mpsc::channel(256);
        let reading = async {
            let read = read_dead_letters(connection, filters, self.since, &sink).await;
            drop(sink);
            read
        };
        let taking = async {
            while let Some(item) = letters.recv().await {
                let OutcomeKind::DeadLettered(reason) = item.outcome.kind else {
                    continue;
                };
                let merchant = &item.outcome.envelope.merchant;
                let done = done.remove(&letter(&item));
                let state = State::of(done.as_ref());
                let fits = (wanted.is_empty() || wanted.contains(merchant))
                    && (self.reason.is_empty() || self.reason.contains(&reason))
                    && self.since.is_none_or(|since| item.outcome.at >= since)
                    && self.until.is_none_or(|until| item.outcome.at < until)
                    && (states.is_empty() || states.contains(&state));
                let letter = Letter {
                    item,
                    reason,
                    state,
                    done,
                };
                if fits && !take(letter) {
                    break;
                }
            }
            drop(letters);
        };
        let (read, ()) = futures::join!(reading, taking);
        Ok(read?)
    }

    /// The open ones, or the one of this id. Payloads and all attempts but the first are left in
    /// OUTCOMES: of many they would fill the memory.
    pub(super) async fn open(
        &self,
        connection: &Connection,
        id: Option<&OrderId>,
    ) -> Result<Vec<Letter>, Error> {
        let mut found: Vec<Letter> = Vec::new();
        self.each(connection, &[State::Open], |mut letter| {
            letter.item.dead = None;
            letter.item.outcome.attempts.truncate(1);
            if id.is_none_or(|id| letter.is_called(id)) {
                found.push(letter);
            }
            true
        })
        .await?;
        if id.is_some() && found.iter().any(|letter| !letter.is_conflict()) {
            found.retain(|letter| !letter.is_conflict());
        }
        Ok(found)
    }
}
