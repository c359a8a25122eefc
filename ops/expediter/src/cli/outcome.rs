//! `expediter outcome …`, and outcomes as all verbs show them.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use expediter_nats::{OutcomeItem, TailFrom, tail_outcomes};
use expediter_types::{AttemptRecord, MerchantId, OutcomeKind, parse_duration};
use expediter_wire::Rfc3339;
use serde::Serialize;
use tokio::sync::mpsc;

use super::follow::{BUFFERED, Printer, follow};
use super::global::block_on;
use super::text::{clean, counted, now, span, when};
use super::{Error, Global};

const EXAMPLES: &str = "\
Follows until Ctrl-C, until nobody reads its output any more, or for --limit outcomes.

Examples:
  expediter outcome tail
  expediter outcome tail --merchant luigis --since 1h
  expediter outcome tail --kind dead_lettered --kind rejected --from-start --json";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Follow how orders end
    #[command(after_help = EXAMPLES)]
    Tail(Args),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only of this merchant; can be repeated
    #[arg(long, short, value_name = "ID")]
    merchant: Vec<MerchantId>,
    /// Only of this kind; can be repeated
    #[arg(long, value_enum)]
    kind: Vec<Kind>,
    /// Begin with what ended so long ago, such as 10m
    #[arg(long, value_parser = parse_duration, value_name = "DURATION", conflicts_with = "from_start")]
    since: Option<Duration>,
    /// Begin with the oldest outcome that is kept
    #[arg(long)]
    from_start: bool,
    /// End after so many
    #[arg(long, short = 'n', value_name = "COUNT")]
    limit: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Kind {
    Delivered,
    Rejected,
    Expired,
    DeadLettered,
    Cancelled,
    Duplicate,
}

impl Kind {
    fn of(kind: OutcomeKind) -> Self {
        match kind {
            OutcomeKind::Delivered => Self::Delivered,
            OutcomeKind::Rejected => Self::Rejected,
            OutcomeKind::Expired => Self::Expired,
            OutcomeKind::DeadLettered(_) => Self::DeadLettered,
            OutcomeKind::Cancelled => Self::Cancelled,
            OutcomeKind::Duplicate => Self::Duplicate,
        }
    }
}

/// An outcome for machines.
#[derive(Debug, Serialize)]
pub(super) struct Ended {
    pub(super) merchant: String,
    pub(super) id: String,
    pub(super) generation: u32,
    pub(super) outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
    pub(super) created: Rfc3339,
    pub(super) at: Rfc3339,
    pub(super) partition: u16,
    /// In ORDERS.
    pub(super) seq: u64,
    /// In OUTCOMES.
    pub(super) record: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) test: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) detail: String,
    pub(super) attempts: Vec<Attempt>,
    /// Of a dead letter: beginning of the merchant's last answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) excerpt: Option<String>,
    /// Of a dead letter, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) payload_bytes: Option<usize>,
}

/// An attempt for machines.
#[derive(Debug, Serialize)]
pub(super) struct Attempt {
    pub(super) n: u32,
    pub(super) at: Rfc3339,
    pub(super) class: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<u16>,
    pub(super) ms: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) detail: String,
}

impl From<AttemptRecord> for Attempt {
    fn from(from: AttemptRecord) -> Self {
        Self {
            n: from.number,
            at: Rfc3339(from.at),
            class: from.class.as_str(),
            status: from.status,
            ms: from.took_ms,
            detail: from.detail,
        }
    }
}

impl From<OutcomeItem> for Ended {
    fn from(item: OutcomeItem) -> Self {
        let OutcomeItem {
            partition,
            record,
            outcome,
            dead,
            ..
        } = item;
        let envelope = outcome.envelope;
        let reason = match outcome.kind {
            OutcomeKind::DeadLettered(reason) => Some(reason.as_str()),
            _ => None,
        };
        let excerpt = dead
            .as_ref()
            .map(|(_, excerpt)| excerpt)
            .filter(|excerpt| !excerpt.is_empty());
        Self {
            merchant: envelope.merchant.to_string(),
            id: envelope.id.to_string(),
            generation: envelope.generation,
            outcome: outcome.kind.as_str(),
            reason,
            created: Rfc3339(envelope.created),
            at: Rfc3339(outcome.at),
            partition: partition.0,
            seq: outcome.seq,
            record,
            key: envelope.key.map(|key| key.to_string()),
            test: envelope.test,
            detail: outcome.detail,
            attempts: outcome.attempts.into_iter().map(Attempt::from).collect(),
            excerpt: excerpt.map(|excerpt| String::from_utf8_lossy(excerpt).into_owned()),
            payload_bytes: dead.as_ref().map(|(payload, _)| payload.len()),
        }
    }
}

pub(crate) fn run(global: &Global, verb: Verb) -> Result<(), Error> {
    let Verb::Tail(args) = verb;
    block_on(async { Box::pin(tail(global, args)).await })
}

async fn tail(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    let from = match (args.since, args.from_start) {
        (Some(since), _) => {
            let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
            TailFrom::Since(now().saturating_sub(since))
        }
        (None, true) => TailFrom::After(0),
        (None, false) => TailFrom::Now,
    };
    let (sink, items) = mpsc::channel(BUFFERED);
    let following = Box::pin(tail_outcomes(&connection, from, sink));
    let mut printer = Printer::new(global.json, args.limit);
    follow(following, items, |item, flush| {
        let wanted = is_wanted(&args, &item).then(|| Ended::from(item));
        printer.print(wanted, line, flush)
    })
    .await
}

fn is_wanted(args: &Args, item: &OutcomeItem) -> bool {
    let merchant = &item.outcome.envelope.merchant;
    (args.merchant.is_empty() || args.merchant.contains(merchant))
        && (args.kind.is_empty() || args.kind.contains(&Kind::of(item.outcome.kind)))
}

/// One line for people.
fn line(ended: &Ended, colourful: bool) -> String {
    let outcome = match ended.reason {
        Some(reason) => format!("{} ({reason})", ended.outcome),
        None => ended.outcome.to_owned(),
    };
    let outcome = match (colourful, ended.outcome) {
        (true, "delivered") => format!("\u{1b}[32m{outcome}\u{1b}[0m"),
        (true, "duplicate") => format!("\u{1b}[2m{outcome}\u{1b}[0m"),
        (true, _) => format!("\u{1b}[31m{outcome}\u{1b}[0m"),
        (false, _) => outcome,
    };
    let took = ended.at.0.saturating_sub(ended.created.0);
    let mut line = format!(
        "{}  {}  {}  {outcome}  after {}",
        when(ended.at.0),
        ended.merchant,
        ended.id,
        span(Duration::from_millis(took)),
    );
    if ended.attempts.len() > 1 || ended.outcome != "delivered" && !ended.attempts.is_empty() {
        line = format!(
            "{line}, {}",
            counted(ended.attempts.len() as u64, "attempt")
        );
    }
    if !ended.detail.is_empty() {
        line = format!("{line}: {}", clean(&ended.detail));
    }
    line
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;
    use expediter_types::{DeadReason, Envelope, OrderId, Outcome, Partition};

    use super::*;

    pub(crate) fn item(record: u64, kind: OutcomeKind) -> OutcomeItem {
        let merchant = MerchantId::new("luigis").unwrap();
        let envelope = Envelope {
            id: OrderId::new("4711").unwrap(),
            merchant,
            generation: 1,
            created: 1_770_000_000_000,
            deadline: None,
            not_before: None,
            key: None,
            priority: expediter_types::Priority::Normal,
            event_type: None,
            source: None,
            time: None,
            content_type: None,
            traceparent: None,
            test: false,
            origin: None,
        };
        let outcome = Outcome {
            seq: 9,
            envelope,
            kind,
            payload_hash: 1,
            at: 1_770_000_001_500,
            attempts: Vec::new(),
            detail: "HTTP 422\u{1b}".to_owned(),
        };
        let dead = matches!(kind, OutcomeKind::DeadLettered(_));
        let dead = dead.then(|| (Bytes::from_static(b"{}"), Bytes::from_static(b"no")));
        OutcomeItem {
            partition: Partition(3),
            record,
            recorded: outcome.at,
            outcome,
            dead,
        }
    }

    #[test]
    fn an_outcome_is_one_line_or_one_object() {
        let ended = Ended::from(item(12, OutcomeKind::DeadLettered(DeadReason::Invalid)));
        assert_eq!(
            line(&ended, false),
            "2026-02-02 02:40:01Z  luigis  4711  dead_lettered (invalid)  after 1.5 s: HTTP 422\u{fffd}"
        );
        let json = serde_json::to_value(&ended).unwrap();
        assert_eq!(json["reason"], "invalid");
        assert_eq!(
            (json["payload_bytes"].as_u64(), json["excerpt"].as_str()),
            (Some(2), Some("no"))
        );
    }

    #[test]
    fn only_what_is_asked_for_is_wanted() {
        let args = |merchant: &[&str], kind: &[Kind]| Args {
            merchant: merchant
                .iter()
                .map(|id| MerchantId::new(id).unwrap())
                .collect(),
            kind: kind.to_vec(),
            since: None,
            from_start: false,
            limit: None,
        };
        let item = item(1, OutcomeKind::Delivered);
        assert!(is_wanted(&args(&[], &[]), &item));
        assert!(is_wanted(
            &args(&["a", "luigis"], &[Kind::Delivered]),
            &item
        ));
        assert!(!is_wanted(&args(&["a"], &[]), &item));
        assert!(!is_wanted(&args(&[], &[Kind::Rejected]), &item));
    }
}
