use std::collections::{BTreeMap, VecDeque};

use expediter_wire::Rfc3339;
use serde::Serialize;

use super::select::{Letter, Selection, State};
use crate::cli::out::Out;
use crate::cli::outcome::Ended;
use crate::cli::table::table;
use crate::cli::text::{clean, count, counted, when};
use crate::cli::{Error, Global};

const EXAMPLES: &str = "\
A dead letter is open until it is replayed, discarded or resolved. The newest come last.

Examples:
  expediter deadletter list --since 2h
  expediter deadletter list --group sandwiches --reason ambiguous --reason attempts_exhausted
  expediter deadletter list --count
  expediter deadletter list --state replayed --json | jq .id";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
    /// How they stand; can be repeated [default: open]
    #[arg(long, value_enum)]
    state: Vec<State>,
    /// Whatever their state
    #[arg(long, conflicts_with = "state")]
    all: bool,
    /// Only the newest so many
    #[arg(long, short = 'n', default_value_t = 200, value_name = "COUNT")]
    limit: usize,
    /// Only count them, by merchant and reason
    #[arg(long)]
    count: bool,
}

#[derive(Debug, Serialize)]
struct Line {
    #[serde(flatten)]
    ended: Ended,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<Done>,
}

/// What was done about it.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    verb: String,
    actor: String,
    at: Rfc3339,
    reason: String,
}

impl Done {
    pub(super) fn of(letter: &Letter) -> Option<Self> {
        let record = &letter.done.as_ref()?.record;
        Some(Self {
            verb: record.verb.clone(),
            actor: record.actor.clone(),
            at: record.at,
            reason: record.reason.clone(),
        })
    }
}

#[derive(Debug, Serialize)]
struct Counted {
    merchant: String,
    reason: &'static str,
    count: u64,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    let states = match (args.all, &args.state[..]) {
        (true, _) => Vec::new(),
        (false, []) => vec![State::Open],
        (false, named) => named.to_vec(),
    };
    let mut out = Out::stdout();
    if args.count {
        let mut counts: BTreeMap<(String, &'static str), u64> = BTreeMap::new();
        let take = |letter: Letter| {
            let merchant = letter.item.outcome.envelope.merchant.to_string();
            *counts
                .entry((merchant, letter.reason.as_str()))
                .or_default() += 1;
            true
        };
        args.selection.each(&connection, &states, take).await?;
        if global.json {
            for ((merchant, reason), count) in counts {
                out.json(&Counted {
                    merchant,
                    reason,
                    count,
                })?;
            }
            return Ok(());
        }
        let total: u64 = counts.values().sum();
        let rows = counts
            .iter()
            .map(|((merchant, reason), n)| vec![merchant.clone(), (*reason).to_owned(), count(*n)]);
        out.text(&table(&["MERCHANT", "REASON", ">COUNT"], rows))?;
        return out.line(counted(total, "dead letter"));
    }
    let (mut newest, mut total): (VecDeque<Letter>, u64) = (VecDeque::new(), 0);
    let take = |letter| {
        total += 1;
        newest.push_back(letter);
        if newest.len() > args.limit {
            newest.pop_front();
        }
        true
    };
    args.selection.each(&connection, &states, take).await?;
    if global.json {
        for letter in newest {
            let done = Done::of(&letter);
            let state = letter.state.as_str();
            let ended = Ended::from(letter.item);
            out.json(&Line { ended, state, done })?;
        }
        return Ok(());
    }
    let rows = newest.iter().map(|letter| {
        let outcome = &letter.item.outcome;
        vec![
            when(outcome.at),
            outcome.envelope.merchant.to_string(),
            letter.name(),
            outcome.envelope.generation.to_string(),
            letter.reason.to_string(),
            letter.state.as_str().to_owned(),
            outcome.attempts.len().to_string(),
            clean(&outcome.detail).chars().take(60).collect(),
        ]
    });
    let header = [
        "ENDED",
        "MERCHANT",
        "ORDER",
        ">GEN",
        "REASON",
        "STATE",
        ">ATTEMPTS",
        "DETAIL",
    ];
    out.text(&table(&header, rows))?;
    let shown = newest.len() as u64;
    match total > shown {
        true => out.line(format_args!(
            "the newest {} of {}; --limit shows more",
            count(shown),
            counted(total, "dead letter")
        )),
        false => out.line(counted(total, "dead letter")),
    }
}
