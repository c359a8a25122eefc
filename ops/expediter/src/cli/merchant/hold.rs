//! Pause, drain, resume: decisions that stay until the next one, on whichever node a merchant is.

use std::time::{Duration, Instant};

use expediter_nats::{Connection, Registry};
use expediter_ports::DecisionSubject;
use expediter_types::{MerchantId, Partition};
use expediter_wire::Rfc3339;
use expediter_wire::audit::AuditTarget;
use expediter_wire::control::{Decision, MerchantDecision, MerchantState, MerchantStatus};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{existing, registry};
use crate::cli::error::note;
use crate::cli::operator::{Actor, Deed, Effect, Operator};
use crate::cli::out::Out;
use crate::cli::owners::Owners;
use crate::cli::text::{clean, now};
use crate::cli::{Error, Global};

/// A partition that moves to another node is without an owner for a moment.
const MOVE: Duration = Duration::from_secs(15);

const PAUSE_EXAMPLES: &str = "\
New orders are taken into the backlog and none is started; attempts in flight end. Nothing is lost,
and nothing expires later or earlier than it would. `drain` also waits until no attempt is in flight.
The decision stays until `merchant resume`, over restarts and hand-overs.

Examples:
  expediter merchant pause luigis --reason 'kitchen fire'
  expediter merchant pause --group sandwiches --reason 'POS vendor upgrades'
  expediter merchant drain luigis --reason 'they change their API at 15:00'
  expediter merchant resume luigis";

const RESUME_EXAMPLES: &str = "\
Ends a pause or a drain. A merchant is quarantined when its actor crashes too often, and closed when
it fails, refuses our credentials, its endpoint is wrong, or it asked to wait: these end, too.

Examples:
  expediter merchant resume luigis
  expediter merchant resume --group sandwiches --reason 'the upgrade is done'";

#[derive(Debug, clap::Args)]
#[command(after_help = PAUSE_EXAMPLES)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    target: Target,
    /// Why, for those who look later
    #[arg(long, value_parser = crate::cli::operator::reason, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    actor: Actor,
}

#[derive(Debug, clap::Args)]
#[command(after_help = RESUME_EXAMPLES)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    target: Target,
    /// Why, for those who look later
    #[arg(
        long,
        default_value = "resumed by an operator",
        value_parser = crate::cli::operator::reason,
        value_name = "TEXT"
    )]
    reason: String,
    #[command(flatten)]
    actor: Actor,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// The merchant
    id: Option<MerchantId>,
    /// All merchants of this group
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
}

impl Target {
    /// Whom it means, if that exists.
    async fn subject(&self, connection: &Connection) -> Result<DecisionSubject, Error> {
        if let Some(id) = &self.id {
            existing(connection, id).await?;
            return Ok(DecisionSubject::Merchant(id.clone()));
        }
        let group = self.group.clone().unwrap_or_default();
        let entries = registry(connection).await?.list().await?;
        if !entries
            .iter()
            .any(|entry| entry.registration.merchant.group == group)
        {
            return Err(Error::NotFound(format!(
                "no registered merchant is of group {}",
                clean(&group)
            )));
        }
        Ok(DecisionSubject::Group(group))
    }
}

#[derive(Debug, Serialize)]
struct Decided {
    #[serde(skip_serializing_if = "Option::is_none")]
    merchant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    /// `paused`, `draining`, `drained`, `resumed`, or `unchanged`.
    action: &'static str,
    /// Of the decision in CONTROL; 0 when there is none.
    revision: u64,
    /// Partitions whose owner does not answer, or does not follow yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_confirmed: Vec<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<MerchantState>,
    /// Of the group: those that were closed or quarantined, and go on now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    merchants: Vec<String>,
}

impl Decided {
    fn of(subject: DecisionSubject, action: &'static str, revision: u64) -> Self {
        let (merchant, group) = match subject {
            DecisionSubject::Merchant(id) => (Some(id.to_string()), None),
            DecisionSubject::Group(group) => (None, Some(group)),
        };
        Self {
            merchant,
            group,
            action,
            revision,
            not_confirmed: Vec::new(),
            before: None,
            merchants: Vec::new(),
        }
    }
}

pub(super) async fn pause(global: &Global, args: PauseArgs, state: Decision) -> Result<(), Error> {
    let connection = global.connect().await?;
    let subject = args.target.subject(&connection).await?;
    let owners = Owners::of(&connection).await?;
    let operator = Operator::new(&connection, &args.actor).await?;
    let (verb, mut action) = match state {
        Decision::Draining => ("merchant.drain", "draining"),
        _ => ("merchant.pause", "paused"),
    };
    let deed = Deed::new(verb, target(&subject)).because(&args.reason);
    let decision = decision(state, &args.reason, operator.actor());
    let decide = decide(
        &connection,
        &owners,
        std::slice::from_ref(&subject),
        &decision,
    );
    let ((revision, not_confirmed), recorded) = Box::pin(operator.run(deed, decide)).await?;
    let mut left = Ok(());
    if state == Decision::Draining && !not_confirmed.is_empty() {
        left = Err(Error::failed(format!(
            "not drained: {} of its partitions did not say that they follow, so attempts may still \
             start there. It stays draining; the same command waits for them",
            not_confirmed.len()
        )));
    } else if state == Decision::Draining {
        left = tokio::select! {
            ended = in_flight_ends(&connection, &owners, &subject) => ended,
            () = operator.stopped() => Err(Error::failed(
                "stopped waiting for the attempts in flight; it stays draining",
            )),
        };
        if left.is_ok() {
            action = "drained";
        }
    }
    let mut decided = Decided::of(subject, action, revision);
    decided.not_confirmed = not_confirmed;
    told(global, decided)?;
    left.and(recorded)
}

pub(super) async fn resume(global: &Global, args: ResumeArgs) -> Result<(), Error> {
    let connection = global.connect().await?;
    let subject = args.target.subject(&connection).await?;
    let owners = Owners::of(&connection).await?;
    let (held, revision) = Registry::new(&connection).decision(&subject).await?;
    let held = held.is_some_and(|held| matches!(held.state, Decision::Paused | Decision::Draining));
    let mut decided = Decided::of(subject.clone(), "unchanged", revision);
    // Its own decision, and those merchants that the platform has stopped by itself.
    let mut subjects = Vec::new();
    subjects.extend(held.then(|| subject.clone()));
    match &subject {
        DecisionSubject::Merchant(id) => {
            let status = owners.status(id).await;
            if let Ok(status) = &status {
                decided.before = Some(status.state);
                note_group_hold(status);
            }
            // Without an answer it is tried.
            if !held && status.as_ref().map_or(true, is_stopped) {
                subjects.push(subject.clone());
            }
        }
        DecisionSubject::Group(_) => {
            let members = members(&connection, &subject).await?;
            let busy = owners.busy().await;
            if !busy.silent.is_empty() {
                note(&format!(
                    "no node answers for {} partitions: what is stopped there is left",
                    busy.silent.len()
                ));
            }
            let stopped = |id: &MerchantId| busy.merchants.get(id).is_some_and(is_stopped);
            let stopped: Vec<_> = members.into_iter().filter(stopped).collect();
            decided.merchants = stopped.iter().map(ToString::to_string).collect();
            subjects.extend(stopped.into_iter().map(DecisionSubject::Merchant));
        }
    }
    if subjects.is_empty() {
        note("nothing holds it that could be ended");
        return told(global, decided);
    }
    let operator = Operator::new(&connection, &args.actor).await?;
    let mut deed = Deed::new("merchant.resume", target(&subject)).because(&args.reason);
    if !decided.merchants.is_empty() {
        deed = deed.detail("merchants", &decided.merchants);
    }
    let decision = decision(Decision::Resumed, &args.reason, operator.actor());
    let decide = decide(&connection, &owners, &subjects, &decision);
    let ((revision, not_confirmed), recorded) = Box::pin(operator.run(deed, decide)).await?;
    decided.action = "resumed";
    (decided.revision, decided.not_confirmed) = (revision, not_confirmed);
    told(global, decided)?;
    recorded
}

fn note_group_hold(status: &MerchantStatus) {
    if let Some(hold) = status.hold.as_ref().filter(|hold| hold.scope == "group") {
        note(&format!(
            "its group is held by {}: {}; see `expediter merchant resume --group`",
            clean(&hold.actor),
            clean(&hold.reason)
        ));
    }
}

fn target(subject: &DecisionSubject) -> AuditTarget {
    match subject {
        DecisionSubject::Merchant(id) => AuditTarget::merchant(id),
        DecisionSubject::Group(group) => AuditTarget::group(group),
    }
}

fn decision(state: Decision, reason: &str, actor: &str) -> MerchantDecision {
    MerchantDecision {
        state,
        reason: clean(reason).chars().take(200).collect(),
        actor: actor.to_owned(),
        at: Rfc3339(now()),
    }
}

/// Writes the decision about each, then waits until the owners concerned follow the last of them, and
/// so all. Gives its revision, and the partitions whose owners do not follow.
async fn decide(
    connection: &Connection,
    owners: &Owners,
    subjects: &[DecisionSubject],
    decision: &MerchantDecision,
) -> Result<Effect<(u64, Vec<u16>)>, Error> {
    let registry = Registry::new(connection);
    let (mut revision, mut concerned) = (0, Vec::new());
    for subject in subjects {
        let (_, replaces) = registry.decision(subject).await?;
        revision = registry.decide(subject, decision, replaces).await?;
        for id in members(connection, subject).await? {
            concerned.push(owners.partition(&id));
        }
    }
    concerned.sort_unstable();
    concerned.dedup();
    let silent = match concerned.is_empty() {
        true => Vec::new(),
        false => owners.following(revision, concerned).await,
    };
    if !silent.is_empty() {
        note(&format!(
            "the decision is kept; for {} of its partitions no node has confirmed it yet, and it \
             is in force as soon as one works on them",
            silent.len()
        ));
    }
    let silent = silent.into_iter().map(|p| p.0).collect();
    Ok(Effect::new((revision, silent)).detail("revision", revision))
}

async fn members(
    connection: &Connection,
    subject: &DecisionSubject,
) -> Result<Vec<MerchantId>, Error> {
    let group = match subject {
        DecisionSubject::Merchant(id) => return Ok(vec![id.clone()]),
        DecisionSubject::Group(group) => group,
    };
    let entries = registry(connection).await?.list().await?;
    let merchants = entries.into_iter().map(|entry| entry.registration.merchant);
    let of_group = merchants.filter(|merchant| merchant.group == *group);
    Ok(of_group.map(|merchant| merchant.id).collect())
}

/// Waits until no attempt of the merchants runs.
///
/// # Errors
/// No node answers for one of them for longer than a partition moves.
async fn in_flight_ends(
    connection: &Connection,
    owners: &Owners,
    subject: &DecisionSubject,
) -> Result<(), Error> {
    let members = members(connection, subject).await?;
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").map_err(anyhow::Error::from)?);
    let mut answered = Instant::now();
    loop {
        match in_flight(owners, &members).await {
            Ok(0) => {
                bar.finish_and_clear();
                return Ok(());
            }
            Ok(running) => {
                answered = Instant::now();
                bar.set_message(format!("{running} attempts in flight"));
            }
            Err(error) if answered.elapsed() >= MOVE => {
                bar.finish_and_clear();
                return Err(error);
            }
            Err(_) => bar.set_message("a partition's owner does not answer"),
        }
        bar.tick();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Attempts of these merchants; a partition without an answer may have some.
async fn in_flight(owners: &Owners, members: &[MerchantId]) -> Result<u64, Error> {
    if let [one] = members {
        return Ok(owners.status(one).await?.in_flight);
    }
    let busy = owners.busy().await;
    let concerned = |silent: &&Partition| members.iter().any(|id| owners.partition(id) == **silent);
    if let Some(partition) = busy.silent.iter().find(concerned) {
        return Err(Error::failed(format!(
            "no node answers for partition {partition}: whether attempts are in flight there is not \
             known; it stays draining"
        )));
    }
    let running = members.iter().filter_map(|id| busy.merchants.get(id));
    Ok(running.map(|status| status.in_flight).sum())
}

/// The platform has stopped it by itself; what a person decided is in CONTROL.
fn is_stopped(status: &MerchantStatus) -> bool {
    matches!(
        status.state,
        MerchantState::Quarantined | MerchantState::Closed
    )
}

fn told(global: &Global, decided: Decided) -> Result<(), Error> {
    let mut out = Out::stdout();
    if global.json {
        return out.json(&decided);
    }
    let action = decided.action;
    match (&decided.merchant, &decided.group) {
        (Some(id), _) => out.line(format_args!("{action}  {id}"))?,
        (None, group) => {
            let group = clean(group.as_deref().unwrap_or_default());
            out.line(format_args!("{action}  group {group}"))?;
        }
    }
    for id in &decided.merchants {
        out.line(format_args!("{action}  {id}"))?;
    }
    Ok(())
}
