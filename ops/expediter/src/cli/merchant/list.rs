use expediter_nats::{Registry, RegistryEntry};
use expediter_types::Rate;
use expediter_wire::Rfc3339;
use expediter_wire::control::{MerchantState, MerchantStatus};
use serde::Serialize;

use crate::cli::error::note;
use crate::cli::out::Out;
use crate::cli::owners::{Busy, Owners};
use crate::cli::table::table;
use crate::cli::text::{clean, count, counted};
use crate::cli::{Error, Global};

const EXAMPLES: &str = "\
STATE and WAITING are what the nodes say; - where no node answers.

Examples:
  expediter merchant list
  expediter merchant list --group sandwiches --waiting
  expediter merchant list --json | jq -r 'select(.state == \"closed\") | .id'";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only merchants of this group
    #[arg(long)]
    group: Option<String>,
    /// Only merchants with orders that wait, or that are closed or quarantined
    #[arg(long)]
    waiting: bool,
}

/// One merchant of the list.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    name: String,
    group: String,
    host: String,
    /// Several are separated by a comma.
    rate: Option<String>,
    burst: u32,
    concurrency: u32,
    /// `None`: `concurrency` is always in force.
    min_concurrency: Option<u32>,
    credential: Option<String>,
    ordering: &'static str,
    revision: u64,
    /// `None`: no node answers.
    state: Option<MerchantState>,
    backlog: Option<u64>,
    in_flight: Option<u64>,
    closed_because: Option<&'static str>,
    closed_until: Option<Rfc3339>,
    last_error: Option<String>,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    let owners = Owners::of(&connection).await?;
    let registry = Registry::new(&connection);
    let (entries, busy) = futures::join!(registry.list(), owners.busy());
    let entries = entries?;
    let registered = entries.len() as u64;
    let rows = entries.into_iter().map(|entry| row(entry, &busy, &owners));
    let rows = rows.filter(|row| args.group.as_ref().is_none_or(|group| row.group == *group));
    let idle = |row: &Row| matches!(row.state, None | Some(MerchantState::Idle));
    let rows: Vec<Row> = rows.filter(|row| !args.waiting || !idle(row)).collect();
    let mut out = Out::stdout();
    if global.json {
        for row in &rows {
            out.buffer_json(row)?;
        }
        out.flush()?;
    } else {
        out.text(&shown(&rows))?;
    }
    if !busy.silent.is_empty() {
        let silent = counted(busy.silent.len() as u64, "partition");
        note(&format!(
            "no node answers for {silent}: start one with `expediter serve`"
        ));
    }
    note(&match rows.len() as u64 {
        all if all == registered => counted(registered, "merchant"),
        some => format!("{} of {}", count(some), counted(registered, "merchant")),
    });
    Ok(())
}

fn row(entry: RegistryEntry, busy: &Busy, owners: &Owners) -> Row {
    let RegistryEntry {
        registration,
        revision,
    } = entry;
    let merchant = registration.merchant;
    let status: Option<&MerchantStatus> = busy.merchants.get(&merchant.id);
    let answered = !busy.silent.contains(&owners.partition(&merchant.id));
    Row {
        host: host(&merchant.adapter.url).to_owned(),
        rate: rates(&merchant.limits.rates),
        burst: merchant.limits.burst,
        concurrency: merchant.limits.concurrency,
        min_concurrency: merchant.limits.min_concurrency,
        credential: merchant.adapter.credential,
        ordering: super::show::ordering_name(merchant.limits.ordering),
        revision,
        // Owners tell only of merchants with something to do.
        state: status
            .map(|s| s.state)
            .or(answered.then_some(MerchantState::Idle)),
        backlog: status.map(|s| s.backlog).or(answered.then_some(0)),
        in_flight: status.map(|s| s.in_flight).or(answered.then_some(0)),
        closed_because: status
            .and_then(|s| s.closed_because)
            .map(|cause| cause.as_str()),
        closed_until: status.and_then(|s| s.closed_until),
        last_error: status.and_then(|s| s.last_error.clone()),
        id: merchant.id.to_string(),
        name: merchant.name,
        group: merchant.group,
    }
}

fn rates(rates: &[Rate]) -> Option<String> {
    let all: Vec<_> = rates.iter().map(Rate::to_string).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

fn shown(rows: &[Row]) -> String {
    let absent = || "-".to_owned();
    let cells = rows.iter().map(|row| {
        let state = match (row.state, row.closed_because) {
            (_, Some(because)) => format!("closed: {because}"),
            (Some(state), None) => super::show::state_name(state).to_owned(),
            (None, None) => absent(),
        };
        vec![
            row.id.clone(),
            clean(&row.name),
            clean(&row.group),
            clean(&row.host),
            row.rate.clone().unwrap_or_else(absent),
            match row.min_concurrency {
                Some(least) => format!("{least}-{}", row.concurrency),
                None => row.concurrency.to_string(),
            },
            row.ordering.to_owned(),
            row.revision.to_string(),
            row.backlog.map_or_else(absent, count),
            state,
        ]
    });
    let header = [
        "ID", "NAME", "GROUP", "HOST", ">RATE", ">CONC", "ORDER", ">REV", ">WAITING", "STATE",
    ];
    table(&header, cells)
}

/// Host and port of a URL.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    authority.rsplit('@').next().unwrap_or(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_shown_without_what_may_be_secret() {
        for (url, expected) in [
            (
                "https://pos.luigis.example/orders?key=1",
                "pos.luigis.example",
            ),
            ("http://127.0.0.1:9000", "127.0.0.1:9000"),
            ("https://user:pass@a.example:8443/x", "a.example:8443"),
        ] {
            assert_eq!(host(url), expected);
        }
    }
}
