//! `expediter merchant scope …`, and the part of `apply` that concerns them.

use std::io::IsTerminal;

use clap::Subcommand;
use expediter_nats::{Connection, Registry, RegistryEntry, ScopeEntry};
use expediter_types::{LimitScope, Merchant, Rate, Scope};
use expediter_wire::Rfc3339;
use expediter_wire::audit::AuditTarget;
use expediter_wire::manifest::{self, Change, Manifest};
use expediter_wire::registry::{ScopeRegistration, parse_scope_key, scope_key};
use serde::Serialize;

use super::apply::{Action, Applied, What};
use crate::cli::error::note;
use crate::cli::operator::{Actor, Deed, Effect, Operator};
use crate::cli::out::Out;
use crate::cli::table::table;
use crate::cli::text::{clean, counted, now, when};
use crate::cli::{Error, Global};

const LIST: &str = "\
Limits are made by [[group]] and [[credential]] in files for `expediter merchant apply`.

Examples:
  expediter merchant scope list
  expediter merchant scope list --json | jq -r 'select(.merchants == 0) | .scope'";

const DELETE: &str = "\
The merchants keep their own limits. To bring the shared ones back, apply the file again.

Examples:
  expediter merchant scope delete group/sandwiches
  expediter merchant scope delete credential/pos-vendor --yes";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List the limits of groups and credentials
    List(List),
    /// Delete the limits of a group or credential
    Delete(Delete),
}

#[derive(Debug, clap::Args)]
#[command(after_help = LIST)]
pub(crate) struct List {}

#[derive(Debug, clap::Args)]
#[command(after_help = DELETE)]
pub(crate) struct Delete {
    /// group/NAME or credential/NAME
    #[arg(value_name = "SCOPE", value_parser = key)]
    scope: (LimitScope, String),
    /// Do not ask on a terminal
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    actor: Actor,
}

fn key(text: &str) -> Result<(LimitScope, String), String> {
    match parse_scope_key(text) {
        Some((kind, id)) => Ok((kind, id.to_owned())),
        None => Err("write group/NAME or credential/NAME".to_owned()),
    }
}

pub(super) async fn run(global: &Global, verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::List(List {}) => Box::pin(list(global)).await,
        Verb::Delete(args) => delete(global, args).await,
    }
}

/// Limits as people read them and as machines do.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// `group/<name>` or `credential/<name>`.
    scope: String,
    rates: Vec<String>,
    burst: u32,
    concurrency: Option<u32>,
    /// How many share them.
    #[serde(skip_serializing_if = "Option::is_none")]
    merchants: Option<usize>,
    revision: u64,
    actor: String,
    at: Rfc3339,
}

impl Row {
    fn of(entry: ScopeEntry) -> Self {
        let ScopeEntry {
            registration,
            revision,
        } = entry;
        let scope = registration.scope;
        Self {
            scope: scope_key(scope.kind, &scope.id),
            rates: scope.rates.iter().map(Rate::to_string).collect(),
            burst: scope.burst,
            concurrency: scope.concurrency,
            merchants: None,
            revision,
            actor: registration.actor,
            at: Rfc3339(registration.at),
        }
    }

    /// In a line, for a merchant that shares them.
    pub(super) fn line(&self) -> String {
        let mut limits = self.rates.clone();
        limits.extend((self.burst > 1).then(|| format!("burst {}", self.burst)));
        limits.extend(self.concurrency.map(|n| format!("{n} attempts in flight")));
        if limits.is_empty() {
            limits.push("no limit".to_owned());
        }
        format!("shares the limits of {}: {}", self.scope, limits.join(", "))
    }
}

async fn list(global: &Global) -> Result<(), Error> {
    let connection = global.connect().await?;
    let registry = super::registry(&connection).await?;
    let (scopes, merchants) = futures::try_join!(registry.scopes(), registry.list())?;
    let rows = scopes.into_iter().map(|entry| {
        let scope = &entry.registration.scope;
        let members = merchants
            .iter()
            .map(|entry: &RegistryEntry| &entry.registration.merchant);
        let count = members.filter(|merchant| shares(merchant, scope)).count();
        Row {
            merchants: Some(count),
            ..Row::of(entry)
        }
    });
    let rows: Vec<Row> = rows.collect();
    let mut out = Out::stdout();
    if global.json {
        for row in &rows {
            out.buffer_json(row)?;
        }
        return out.flush();
    }
    let absent = || "-".to_owned();
    let cells = rows.iter().map(|row| {
        let rates = Some(row.rates.join(", ")).filter(|rates| !rates.is_empty());
        vec![
            row.scope.clone(),
            rates.unwrap_or_else(absent),
            row.burst.to_string(),
            row.concurrency.map_or_else(absent, |n| n.to_string()),
            row.merchants.unwrap_or(0).to_string(),
            row.revision.to_string(),
            clean(&row.actor),
            when(row.at.0),
        ]
    });
    let header = [
        "SCOPE",
        "RATE",
        ">BURST",
        ">CONC",
        ">MERCHANTS",
        ">REV",
        "BY",
        "AT",
    ];
    out.text(&table(&header, cells))
}

fn shares(merchant: &Merchant, scope: &Scope) -> bool {
    match scope.kind {
        LimitScope::Group => merchant.group == scope.id,
        LimitScope::Credential => merchant.adapter.credential.as_ref() == Some(&scope.id),
        LimitScope::Merchant => false,
    }
}

/// The registered limits that a merchant shares.
pub(super) async fn shared_by(registry: &Registry, merchant: &Merchant) -> Result<Vec<Row>, Error> {
    let group = registry.scope(LimitScope::Group, &merchant.group);
    let credential = async {
        match &merchant.adapter.credential {
            Some(id) => registry.scope(LimitScope::Credential, id).await,
            None => Ok(None),
        }
    };
    let (group, credential) = futures::try_join!(group, credential)?;
    Ok(group.into_iter().chain(credential).map(Row::of).collect())
}

async fn delete(global: &Global, args: Delete) -> Result<(), Error> {
    let connection = global.connect().await?;
    let registry = super::registry(&connection).await?;
    let operator = Operator::new(&connection, &args.actor).await?;
    let (kind, id) = &args.scope;
    let key = scope_key(*kind, id);
    let Some(entry) = registry.scope(*kind, id).await? else {
        return Err(Error::NotFound(format!("{key} has no limits")));
    };
    let merchants = registry.list().await?;
    let members = merchants.iter().map(|entry| &entry.registration.merchant);
    let scope = &entry.registration.scope;
    let count = members.filter(|merchant| shares(merchant, scope)).count();
    let told = counted(count as u64, "merchant");
    if !args.yes && std::io::stdin().is_terminal() {
        super::delete::ask(&format!("Delete the limits of {key}, shared by {told}?"))?;
    }
    let deed = Deed::new("merchant.scope.delete", target(scope))
        .detail("before", entry.revision)
        .detail("merchants", count);
    let effect = async {
        let deleted = registry.delete_scope(*kind, id, operator.actor(), entry.revision);
        Ok(Effect::new(deleted.await?))
    };
    let ((), recorded) = operator.run(deed, effect).await?;
    let mut out = Out::stdout();
    if global.json {
        let deleted = serde_json::json!({"scope": key, "action": "deleted", "merchants": count});
        out.json(&deleted)?;
        return recorded;
    }
    out.line(format_args!("deleted  {key}"))?;
    note(&format!("{told} shared it"));
    recorded
}

/// Limits of the files beside what is registered.
pub(super) struct Planned {
    scope: Scope,
    current: Option<ScopeEntry>,
}

pub(super) async fn plan(
    connection: &Connection,
    manifest: &Manifest,
) -> Result<Vec<Planned>, Error> {
    if manifest.scopes.is_empty() {
        return Ok(Vec::new());
    }
    let registered = super::registry(connection).await?.scopes().await?;
    let planned = manifest.scopes.iter().map(|sourced| {
        let scope = sourced.scope.clone();
        let same = |entry: &&ScopeEntry| {
            let other = &entry.registration.scope;
            (other.kind, &other.id) == (scope.kind, &scope.id)
        };
        let current = registered.iter().find(same).cloned();
        Planned { scope, current }
    });
    Ok(planned.collect())
}

impl Planned {
    fn what(&self) -> What {
        What::Scope(scope_key(self.scope.kind, &self.scope.id))
    }

    fn action(&self) -> Action {
        match &self.current {
            None => Action::Created,
            Some(entry) if entry.registration.scope == self.scope => Action::Unchanged,
            Some(_) => Action::Changed,
        }
    }

    fn changes(&self) -> Vec<Change> {
        let old = self.current.as_ref();
        old.map_or_else(Vec::new, |entry| {
            manifest::diff_scopes(&entry.registration.scope, &self.scope)
        })
    }
}

/// What would happen.
pub(super) fn tell(planned: Vec<Planned>) -> Vec<Applied> {
    let told = planned.into_iter().map(|planned| Applied {
        what: planned.what(),
        action: planned.action(),
        dry_run: true,
        revision: planned.current.as_ref().map(|entry| entry.revision),
        changes: planned.changes(),
        effects: Vec::new(),
        error: None,
        unrecorded: None,
    });
    told.collect()
}

/// Puts them into the registry.
pub(super) async fn apply(
    connection: &Connection,
    planned: Vec<Planned>,
    operator: &Operator,
) -> Vec<Applied> {
    let registry = Registry::new(connection);
    let mut applied = Vec::new();
    for planned in planned {
        let (what, action, changes) = (planned.what(), planned.action(), planned.changes());
        let before = planned.current.as_ref().map(|entry| entry.revision);
        let expected = before.unwrap_or(0);
        let result = if action == Action::Unchanged {
            Ok((expected, Ok(())))
        } else {
            let deed = Deed::new("merchant.apply", target(&planned.scope))
                .detail("action", action)
                .detail("before", before)
                .detail("changes", &changes);
            let registration = ScopeRegistration {
                scope: planned.scope,
                actor: operator.actor().to_owned(),
                at: now(),
            };
            let effect = async {
                let revision = registry.put_scope(&registration, expected).await?;
                Ok(Effect::new(revision).detail("revision", revision))
            };
            operator.run(deed, effect).await
        };
        applied.push(Applied::now(what, action, changes, result));
    }
    applied
}

fn target(scope: &Scope) -> AuditTarget {
    match scope.kind {
        LimitScope::Group => AuditTarget::group(&scope.id),
        LimitScope::Credential => AuditTarget::credential(&scope.id),
        LimitScope::Merchant => AuditTarget::alone("merchant", &scope.id),
    }
}
