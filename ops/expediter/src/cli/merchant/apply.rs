use std::collections::HashMap;
use std::path::PathBuf;

use expediter_nats::{Connection, Registry, RegistryEntry};
use expediter_types::{Merchant, MerchantId};
use expediter_wire::audit::AuditTarget;
use expediter_wire::manifest::{self, Change, Manifest};
use expediter_wire::registry::Registration;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use super::effects::effects;
use super::{scope, sources};
use crate::cli::error::note;
use crate::cli::operator::{Actor, Deed, Effect, Operator, Recorded};
use crate::cli::out::Out;
use crate::cli::owners::Owners;
use crate::cli::text::{clean, count, now};
use crate::cli::{Error, Global};

/// From so many merchants on, the whole registry is read at once.
const MANY: usize = 64;
/// Requests at the same time.
const WIDTH: usize = 64;

const EXAMPLES: &str = "\
Applying twice changes nothing the second time. The whole set is refused when anything in it is
invalid. Merchants that are in no file stay as they are, and so do the limits of [[group]] and
[[credential]], which are applied before the merchants.

Examples:
  expediter merchant apply -f luigis.toml
  expediter merchant apply -f merchants/ --dry-run
  expediter merchant show luigis --json | jq .manifest | expediter merchant apply -f -";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// File or directory of TOML or JSON, or - for stdin; can be repeated
    #[arg(short = 'f', long = "file", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    /// Change nothing; tell what would change, and what it does to the orders that wait
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    actor: Actor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Action {
    Created,
    Changed,
    Unchanged,
    /// Somebody else changed it meanwhile.
    Conflict,
    Failed,
}

/// What was applied.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    Merchant(String),
    /// `group/<name>` or `credential/<name>`.
    Scope(String),
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Merchant(name) | Self::Scope(name) => f.pad(name),
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Applied {
    #[serde(flatten)]
    pub(super) what: What,
    pub(super) action: Action,
    /// Nothing was done.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) revision: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) changes: Vec<Change>,
    /// In a dry run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) effects: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// It is applied, and why AUDIT does not say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unrecorded: Option<String>,
}

/// A merchant of the files beside what is registered.
struct Planned {
    merchant: Merchant,
    current: Option<RegistryEntry>,
    changes: Vec<Change>,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let manifest = read(&args.files)?;
    let connection = global.connect().await?;
    let scopes = scope::plan(&connection, &manifest).await?;
    let planned = plan(&connection, manifest).await?;
    let mut out = Out::stdout();
    let mut counts: HashMap<&'static str, u64> = HashMap::new();
    let (mut conflicts, mut failures, mut unrecorded) = (0, 0, 0);
    let applied = if args.dry_run {
        let mut told = scope::tell(scopes);
        told.extend(tell(&connection, planned).await?);
        told
    } else {
        let operator = Operator::new(&connection, &args.actor).await?;
        let mut applied = scope::apply(&connection, scopes, &operator).await;
        applied.extend(apply(&connection, planned, &operator).await);
        applied
    };
    for one in applied {
        *counts.entry(one.action.name(false)).or_default() += 1;
        conflicts += u64::from(one.action == Action::Conflict);
        failures += u64::from(one.action == Action::Failed);
        unrecorded += u64::from(one.unrecorded.is_some());
        if let Some(why) = &one.unrecorded {
            note(&format!("error: {why}"));
        }
        match global.json {
            true => out.buffer_json(&one)?,
            false => print(&mut out, &one, args.dry_run)?,
        }
    }
    out.flush()?;
    let names = ["created", "changed", "unchanged", "conflict", "failed"];
    let summary = names
        .iter()
        .filter_map(|name| Some(format!("{} {name}", count(*counts.get(name)?))));
    let summary = summary.collect::<Vec<_>>().join(", ");
    note(&if args.dry_run {
        format!("dry run, nothing was changed: {summary}")
    } else {
        summary
    });
    match (conflicts, failures, unrecorded) {
        (0, 0, 0) => Ok(()),
        (0, 0, _) => Err(Error::failed("some are applied, but not recorded in AUDIT")),
        (_, 0, _) => Err(Error::Conflict(
            "some were changed by others meanwhile: look at them, then repeat".to_owned(),
        )),
        _ => Err(Error::failed("some merchants were not applied")),
    }
}

fn read(files: &[PathBuf]) -> Result<Manifest, Error> {
    let sources = sources::read(files)?;
    let texts = sources
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()));
    let manifest = manifest::read_all(texts).map_err(|error| {
        let problems = match error.problems.len() {
            1 => "1 problem".to_owned(),
            n => format!("{n} problems"),
        };
        Error::Usage(format!("{problems}, nothing was changed\n{error}"))
    })?;
    for warning in &manifest.warnings {
        note(&format!("warning: {warning}"));
    }
    Ok(manifest)
}

async fn plan(connection: &Connection, manifest: Manifest) -> Result<Vec<Planned>, Error> {
    let registry = super::registry(connection).await?;
    let merchants = manifest
        .merchants
        .into_iter()
        .map(|sourced| sourced.merchant);
    let merchants: Vec<Merchant> = merchants.collect();
    let mut current: HashMap<MerchantId, RegistryEntry> = HashMap::new();
    let by_id = |entry: RegistryEntry| (entry.registration.merchant.id.clone(), entry);
    if merchants.len() > MANY {
        current.extend(registry.list().await?.into_iter().map(by_id));
    } else {
        let entries = merchants.iter().map(|merchant| registry.get(&merchant.id));
        let entries: Vec<_> = futures::stream::iter(entries)
            .buffered(WIDTH)
            .try_collect()
            .await?;
        current.extend(entries.into_iter().flatten().map(by_id));
    }
    let planned = merchants.into_iter().map(|merchant| {
        let current = current.remove(&merchant.id);
        let changes = match &current {
            Some(entry) if entry.registration.merchant != merchant => {
                manifest::diff(&entry.registration.merchant, &merchant)
            }
            _ => Vec::new(),
        };
        Planned {
            merchant,
            current,
            changes,
        }
    });
    Ok(planned.collect())
}

impl Planned {
    fn action(&self) -> Action {
        match &self.current {
            None => Action::Created,
            Some(entry) if entry.registration.merchant == self.merchant => Action::Unchanged,
            Some(_) => Action::Changed,
        }
    }
}

async fn apply(
    connection: &Connection,
    planned: Vec<Planned>,
    operator: &Operator,
) -> Vec<Applied> {
    let registry = Registry::new(connection);
    let puts = planned
        .into_iter()
        .map(|planned| put(&registry, planned, operator));
    futures::stream::iter(puts).buffered(WIDTH).collect().await
}

async fn put(registry: &Registry, planned: Planned, operator: &Operator) -> Applied {
    let action = planned.action();
    let Planned {
        merchant,
        current,
        changes,
    } = planned;
    let before = current.as_ref().map(|entry| entry.revision);
    let expected = before.unwrap_or(0);
    let id = merchant.id.clone();
    let result: Result<(u64, Recorded), Error> = if action == Action::Unchanged {
        Ok((expected, Ok(())))
    } else {
        let registration = Registration {
            merchant,
            actor: operator.actor().to_owned(),
            at: now(),
            rolled_back_from: None,
        };
        let deed = Deed::new("merchant.apply", AuditTarget::merchant(&id))
            .detail("action", action)
            .detail("before", before)
            .detail("changes", &changes);
        let effect = async {
            let revision = registry.put(&registration, expected).await?;
            Ok(Effect::new(revision).detail("revision", revision))
        };
        operator.run(deed, effect).await
    };
    let what = What::Merchant(id.to_string());
    Applied::now(what, action, changes, result)
}

impl Applied {
    /// After the registry was asked for it.
    pub(super) fn now(
        what: What,
        action: Action,
        changes: Vec<Change>,
        result: Result<(u64, Recorded), Error>,
    ) -> Self {
        let (action, revision, error, unrecorded) = match result {
            Ok((revision, recorded)) => {
                let unrecorded = recorded.err().map(|error| error.to_string());
                (action, Some(revision), None, unrecorded)
            }
            Err(error) => {
                let action = match error {
                    Error::Conflict(_) => Action::Conflict,
                    _ => Action::Failed,
                };
                (action, None, Some(error.to_string()), None)
            }
        };
        Self {
            what,
            action,
            dry_run: false,
            revision,
            changes,
            effects: Vec::new(),
            error,
            unrecorded,
        }
    }
}

/// What would happen, and what it does to the orders that wait.
async fn tell(connection: &Connection, planned: Vec<Planned>) -> Result<Vec<Applied>, Error> {
    let owners = Owners::of(connection).await?;
    let busy = if planned
        .iter()
        .any(|planned| planned.action() != Action::Unchanged)
    {
        owners.busy().await
    } else {
        crate::cli::owners::Busy::default()
    };
    if !busy.silent.is_empty() {
        note(&format!(
            "warning: no node answers for {} partitions: orders may wait there that are not counted",
            busy.silent.len()
        ));
    }
    let applied = planned.into_iter().map(|planned| {
        let status = busy.merchants.get(&planned.merchant.id);
        let old = planned
            .current
            .as_ref()
            .map(|entry| &entry.registration.merchant);
        let action = planned.action();
        let effects = match action {
            Action::Unchanged => Vec::new(),
            _ => effects(old, &planned.merchant, status),
        };
        Applied {
            what: What::Merchant(planned.merchant.id.to_string()),
            action,
            dry_run: true,
            revision: planned.current.as_ref().map(|entry| entry.revision),
            changes: planned.changes,
            effects,
            error: None,
            unrecorded: None,
        }
    });
    Ok(applied.collect())
}

impl Action {
    fn name(self, dry_run: bool) -> &'static str {
        match (self, dry_run) {
            (Self::Created, true) => "would create",
            (Self::Changed, true) => "would change",
            (Self::Created, false) => "created",
            (Self::Changed, false) => "changed",
            (Self::Unchanged, _) => "unchanged",
            (Self::Conflict, _) => "conflict",
            (Self::Failed, _) => "failed",
        }
    }
}

fn print(out: &mut Out, one: &Applied, dry_run: bool) -> Result<(), Error> {
    let width = if dry_run { 12 } else { 9 };
    let mut line = format!("{:width$}  {}", one.action.name(dry_run), one.what);
    if let (Some(revision), false) = (one.revision, dry_run) {
        line = format!("{line}  revision {revision}");
    }
    let absent = || "(absent)".to_owned();
    let shown = |value: &Option<String>| value.as_deref().map_or_else(absent, clean);
    out.buffer(&line)?;
    for Change { key, from, to } in &one.changes {
        out.buffer(&format!(
            "  {}: {} -> {}",
            clean(key),
            shown(from),
            shown(to)
        ))?;
    }
    for effect in &one.effects {
        out.buffer(&format!("  * {effect}"))?;
    }
    if let Some(error) = &one.error {
        note(&format!("{}: {error}", one.what));
    }
    Ok(())
}
