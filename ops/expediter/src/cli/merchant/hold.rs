//! Pause, drain, resume: decisions that stay until the next one, on whichever node a merchant is.

use std::time::Duration;

use expediter_nats::{Connection, Registry};
use expediter_ports::DecisionSubject;
use expediter_types::MerchantId;
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
    #[arg(long, value_name = "TEXT")]
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
    #[arg(long, default_value = "resumed by an operator", value_name = "TEXT")]
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
    let decide = decide(&connection, &owners, &subject, &decision);
    let ((revision, not_confirmed), recorded) = operator.run(deed, decide).await?;
    if state == Decision::Draining && not_confirmed.is_empty() {
        in_flight_ends(&connection, &owners, &subject).await?;
        action = "drained";
    }
    told(global, subject, action, revision, not_confirmed, None)?;
    recorded
}

pub(super) async fn resume(global: &Global, args: ResumeArgs) -> Result<(), Error> {
    let connection = global.connect().await?;
    let subject = args.target.subject(&connection).await?;
    let owners = Owners::of(&connection).await?;
    let before = match &subject {
        DecisionSubject::Merchant(id) => owners.status(id).await.ok(),
        DecisionSubject::Group(_) => None,
    };
    let (held, revision) = Registry::new(&connection).decision(&subject).await?;
    let held = held.is_some_and(|held| matches!(held.state, Decision::Paused | Decision::Draining));
    if let Some(status) = &before
        && let Some(hold) = status.hold.as_ref().filter(|hold| hold.scope == "group")
    {
        note(&format!(
            "its group is held by {}: {}; see `expediter merchant resume --group`",
            clean(&hold.actor),
            clean(&hold.reason)
        ));
    }
    let before_state = before.as_ref().map(|status| status.state);
    if !held && before.as_ref().is_some_and(|status| !is_stopped(status)) {
        note("nothing holds it that could be ended");
        return told(
            global,
            subject,
            "unchanged",
            revision,
            Vec::new(),
            before_state,
        );
    }
    if !held && matches!(subject, DecisionSubject::Group(_)) {
        note("the group is not paused");
        return told(global, subject, "unchanged", revision, Vec::new(), None);
    }
    let operator = Operator::new(&connection, &args.actor).await?;
    let deed = Deed::new("merchant.resume", target(&subject)).because(&args.reason);
    let decision = decision(Decision::Resumed, &args.reason, operator.actor());
    let decide = decide(&connection, &owners, &subject, &decision);
    let ((revision, not_confirmed), recorded) = operator.run(deed, decide).await?;
    told(
        global,
        subject,
        "resumed",
        revision,
        not_confirmed,
        before_state,
    )?;
    recorded
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

/// Writes the decision, then waits until the owners concerned follow it.
async fn decide(
    connection: &Connection,
    owners: &Owners,
    subject: &DecisionSubject,
    decision: &MerchantDecision,
) -> Result<Effect<(u64, Vec<u16>)>, Error> {
    let registry = Registry::new(connection);
    let (_, replaces) = registry.decision(subject).await?;
    let revision = registry.decide(subject, decision, replaces).await?;
    let concerned = match subject {
        DecisionSubject::Merchant(id) => vec![owners.partition(id)],
        DecisionSubject::Group(_) => Vec::new(),
    };
    let silent = owners.following(revision, concerned).await;
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

/// Waits until no attempt of the merchants runs.
async fn in_flight_ends(
    connection: &Connection,
    owners: &Owners,
    subject: &DecisionSubject,
) -> Result<(), Error> {
    let members: Vec<MerchantId> = match subject {
        DecisionSubject::Merchant(id) => vec![id.clone()],
        DecisionSubject::Group(group) => {
            let entries = registry(connection).await?.list().await?;
            let of_group = |entry: &&expediter_nats::RegistryEntry| {
                entry.registration.merchant.group == *group
            };
            let members = entries.iter().filter(of_group);
            members
                .map(|entry| entry.registration.merchant.id.clone())
                .collect()
        }
    };
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").map_err(anyhow::Error::from)?);
    loop {
        let running = match &*members {
            [one] => owners.status(one).await?.in_flight,
            _ => {
                let busy = owners.busy().await;
                let running = members.iter().filter_map(|id| busy.merchants.get(id));
                running.map(|status| status.in_flight).sum()
            }
        };
        if running == 0 {
            bar.finish_and_clear();
            return Ok(());
        }
        bar.set_message(format!("{running} attempts in flight"));
        bar.tick();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn is_stopped(status: &MerchantStatus) -> bool {
    matches!(
        status.state,
        MerchantState::Quarantined
            | MerchantState::Closed
            | MerchantState::Paused
            | MerchantState::Draining
    )
}

fn told(
    global: &Global,
    subject: DecisionSubject,
    action: &'static str,
    revision: u64,
    not_confirmed: Vec<u16>,
    before: Option<MerchantState>,
) -> Result<(), Error> {
    let (merchant, group) = match subject {
        DecisionSubject::Merchant(id) => (Some(id.to_string()), None),
        DecisionSubject::Group(group) => (None, Some(group)),
    };
    let mut out = Out::stdout();
    if global.json {
        return out.json(&Decided {
            merchant,
            group,
            action,
            revision,
            not_confirmed,
            before,
        });
    }
    match (merchant, group) {
        (Some(id), _) => out.line(format_args!("{action}  {id}")),
        (None, group) => out.line(format_args!(
            "{action}  group {}",
            clean(&group.unwrap_or_default())
        )),
    }
}
