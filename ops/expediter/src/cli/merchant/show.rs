use expediter_nats::{Registry, RegistryChange, RegistryEntry};
use expediter_types::{MerchantId, Ordering};
use expediter_wire::Rfc3339;
use expediter_wire::control::{MerchantState, MerchantStatus};
use expediter_wire::manifest;
use serde::Serialize;
use serde_json::value::RawValue;

use super::existing;
use super::scope::{Row, shared_by};
use crate::cli::error::note;
use crate::cli::job;
use crate::cli::out::Out;
use crate::cli::owners::Owners;
use crate::cli::table::table;
use crate::cli::text::{ago, clean, counted, now, when, when_and_ago};
use crate::cli::{Error, Global};

/// Revisions that the registry keeps of a merchant.
const KEPT: usize = 16;

const EXAMPLES: &str = "\
Without --json the manifest is printed as TOML which `merchant apply` reads; secrets appear as the
references that they are registered with.

Examples:
  expediter merchant show luigis
  expediter merchant show luigis --history
  expediter merchant show luigis --json | jq .status.backlog";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The merchant
    id: MerchantId,
    /// Show its revisions, with who made them and when, instead
    #[arg(long)]
    history: bool,
}

#[derive(Debug, Serialize)]
struct Shown {
    manifest: Box<RawValue>,
    revision: u64,
    actor: String,
    at: Rfc3339,
    #[serde(skip_serializing_if = "Option::is_none")]
    rolled_back_from: Option<u64>,
    /// `None`: no node answers.
    status: Option<MerchantStatus>,
    /// Limits of its group and credential.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shares: Vec<Row>,
    /// Its recurring jobs, with their last and next run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    jobs: Vec<job::Row>,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    if args.history {
        let changes = super::registry(&connection)
            .await?
            .history(&args.id)
            .await?;
        return history(global, &args.id, changes);
    }
    let entry = existing(&connection, &args.id).await?;
    let owners = Owners::of(&connection).await?;
    let registry = Registry::new(&connection);
    let shares = shared_by(&registry, &entry.registration.merchant);
    let merchants = [&entry.registration.merchant];
    let jobs = job::rows(&connection, &merchants, Some(&args.id));
    let (status, shares, jobs) = futures::join!(owners.status(&args.id), shares, jobs);
    let (shares, jobs) = (shares?, jobs?);
    let mut out = Out::stdout();
    if global.json {
        let status = status.ok();
        return out.json(&shown(entry, status, shares, jobs)?);
    }
    let registration = &entry.registration;
    let mut text = format!(
        "# Revision {} by {}, {}\n",
        entry.revision,
        clean(&registration.actor),
        when_and_ago(registration.at, now())
    );
    match &status {
        Ok(status) => status_lines(status)
            .iter()
            .for_each(|line| text.push_str(&format!("# {line}\n"))),
        Err(error) => note(&format!("how it stands is not known: {error}")),
    }
    for row in &shares {
        text.push_str(&format!("# {}\n", row.line()));
    }
    for job in &jobs {
        text.push_str(&format!("# {}\n", job.line()));
    }
    text.push('\n');
    text.push_str(&manifest::to_toml(&registration.merchant));
    out.text(&text)
}

fn shown(
    entry: RegistryEntry,
    status: Option<MerchantStatus>,
    shares: Vec<Row>,
    jobs: Vec<job::Row>,
) -> Result<Shown, Error> {
    let RegistryEntry {
        registration,
        revision,
    } = entry;
    let manifest = manifest::to_json(&registration.merchant);
    Ok(Shown {
        manifest: RawValue::from_string(manifest).map_err(anyhow::Error::from)?,
        revision,
        actor: registration.actor,
        at: Rfc3339(registration.at),
        rolled_back_from: registration.rolled_back_from,
        status,
        shares,
        jobs,
    })
}

/// Whether a merchant takes orders, and when it is tried again if not.
pub(in crate::cli) fn standing(status: &MerchantStatus) -> String {
    let mut state = state_name(status.state).to_owned();
    if let Some(because) = status.closed_because {
        state = format!("closed: {}", because.as_str());
    }
    if let Some(until) = status.closed_until {
        let what = match status.closed_because {
            Some(expediter_types::ClosedBecause::RateLimited) => "opens",
            _ => "is probed",
        };
        state = format!("{state}, {what} {}", ago(until.0, now()));
    }
    if let Some(hold) = &status.hold {
        let whose = match hold.scope.as_str() {
            "group" => " with its group",
            _ => "",
        };
        state = format!(
            "{state}{whose} by {} {}: {}",
            clean(&hold.actor),
            ago(hold.at.0, now()),
            clean(&hold.reason)
        );
    }
    if status.state == MerchantState::OutsideHours {
        state = match status.opens {
            Some(opens) => format!("outside its hours, opens {}", ago(opens.0, now())),
            None => "outside its hours, which never open it".to_owned(),
        };
    }
    state
}

/// How a merchant stands, for people.
pub(super) fn status_lines(status: &MerchantStatus) -> Vec<String> {
    let state = standing(status);
    let mut lines = vec![format!(
        "{state}; {} unfinished, {} in flight, {} in memory",
        counted(status.backlog, "order"),
        status.in_flight,
        status.mailbox
    )];
    lines.extend(
        status
            .last_error
            .as_ref()
            .map(|error| format!("last error: {}", clean(error))),
    );
    lines
}

fn history(global: &Global, id: &MerchantId, changes: Vec<RegistryChange>) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Change {
        revision: u64,
        action: &'static str,
        actor: String,
        at: Rfc3339,
        #[serde(skip_serializing_if = "Option::is_none")]
        rolled_back_from: Option<u64>,
        changes: Vec<manifest::Change>,
    }
    if changes.is_empty() {
        return Err(Error::NotFound(format!(
            "no merchant {id} was ever registered"
        )));
    }
    // What is older than a full history is not known: its first revision is shown without changes.
    let is_whole = changes.len() < KEPT;
    let mut lines = Vec::new();
    let mut before = None;
    for (n, change) in changes.into_iter().enumerate() {
        let (action, keys) = match (&before, &change.merchant) {
            (_, None) => ("deleted", Vec::new()),
            (Some(old), Some(new)) => ("changed", manifest::diff(old, new)),
            (None, Some(_)) if n > 0 || is_whole => ("created", Vec::new()),
            (None, Some(_)) => ("changed", Vec::new()),
        };
        let action = if change.rolled_back_from.is_some() {
            "rolled back"
        } else {
            action
        };
        lines.push(Change {
            revision: change.revision,
            action,
            actor: change.actor,
            at: Rfc3339(change.at),
            rolled_back_from: change.rolled_back_from,
            changes: keys,
        });
        before = change.merchant;
    }
    let mut out = Out::stdout();
    if global.json {
        for line in &lines {
            out.buffer_json(line)?;
        }
        return out.flush();
    }
    let rows = lines.iter().rev().map(|line| {
        let value = |value: &Option<String>| {
            value
                .as_deref()
                .map_or_else(|| "(absent)".to_owned(), clean)
        };
        let changes = line
            .changes
            .iter()
            .map(|c| format!("{}: {} -> {}", clean(&c.key), value(&c.from), value(&c.to)));
        vec![
            line.revision.to_string(),
            when(line.at.0),
            clean(&line.actor),
            line.action.to_owned(),
            changes.collect::<Vec<_>>().join("; "),
        ]
    });
    out.text(&table(
        &[">REVISION", "AT", "BY", "ACTION", "CHANGES"],
        rows,
    ))
}

/// As in manifests.
pub(super) fn ordering_name(ordering: Ordering) -> &'static str {
    match ordering {
        Ordering::None => "none",
        Ordering::Order => "order",
        Ordering::Merchant => "merchant",
    }
}

/// As in JSON.
pub(super) fn state_name(state: MerchantState) -> &'static str {
    match state {
        MerchantState::Idle => "idle",
        MerchantState::Active => "active",
        MerchantState::Closed => "closed",
        MerchantState::Quarantined => "quarantined",
        MerchantState::Unknown => "unknown",
        MerchantState::Paused => "paused",
        MerchantState::Draining => "draining",
        MerchantState::OutsideHours => "outside_hours",
    }
}
