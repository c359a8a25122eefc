//! `expediter audit`: who did what.

use std::collections::VecDeque;
use std::time::Duration;

use expediter_nats::{Audit, AuditFilter, AuditItem, TailFrom};
use expediter_types::{MerchantId, parse_duration};
use expediter_wire::Rfc3339;
use expediter_wire::audit::{AuditDetails, AuditResult};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::error::note;
use super::follow::{BUFFERED, Printer, follow};
use super::global::block_on;
use super::out::Out;
use super::table::table;
use super::text::{clean, count, now, when};
use super::{Error, Global};

/// Of all that is kept, so many are shown when nothing says how many are wanted.
const NEWEST: u64 = 100;

const EXAMPLES: &str = "\
The oldest is printed first. With --follow what is done from now on, or since --since, is printed
as it happens, until Ctrl-C, until nobody reads the output any more, or for --limit records.

Examples:
  expediter audit
  expediter audit --since 1d --merchant luigis
  expediter audit --verb merchant.delete --verb order --actor ann@kitchen
  expediter audit --follow --json | jq -r '[.at, .actor, .verb, .id] | @tsv'";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only what was done since so long ago, such as 1d
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    since: Option<Duration>,
    /// Only about this merchant and what belongs to it; can be repeated
    #[arg(long, short, value_name = "ID")]
    merchant: Vec<MerchantId>,
    /// Only this verb, such as merchant.apply, or all verbs of an object, such as merchant; can be
    /// repeated
    #[arg(long, value_name = "VERB")]
    verb: Vec<String>,
    /// Only by this actor; can be repeated
    #[arg(long, value_name = "NAME")]
    actor: Vec<String>,
    /// Wait for what is done next
    #[arg(long, short = 'f')]
    follow: bool,
    /// Only the newest so many; with --follow: end after so many [default: 100 without --since and
    /// --follow]
    #[arg(long, short = 'n', value_name = "COUNT")]
    limit: Option<u64>,
}

/// A record for machines.
#[derive(Debug, Serialize)]
struct Done {
    at: Rfc3339,
    actor: String,
    verb: String,
    kind: String,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    merchant: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    details: AuditDetails,
    /// In AUDIT.
    seq: u64,
}

impl From<AuditItem> for Done {
    fn from(item: AuditItem) -> Self {
        let AuditItem { seq, record, .. } = item;
        let (result, error) = match record.result {
            AuditResult::Ok => ("ok", None),
            AuditResult::Failed(error) => ("failed", Some(error)),
        };
        Self {
            at: record.at,
            actor: record.actor,
            verb: record.verb,
            kind: record.target.kind,
            id: record.target.id,
            merchant: record.target.merchant.map(|id| id.to_string()),
            reason: record.reason,
            result,
            error,
            details: record.details,
            seq,
        }
    }
}

pub(crate) fn run(global: &Global, args: Args) -> Result<(), Error> {
    block_on(async { Box::pin(show(global, args)).await })
}

async fn show(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    let audit = Audit::open(&connection).await?;
    let filter = AuditFilter {
        merchants: args.merchant,
        verbs: args.verb,
        actors: args.actor,
    };
    let since = args.since.map(|since| {
        let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        TailFrom::Since(now().saturating_sub(since))
    });
    let (sink, items) = mpsc::channel(BUFFERED);
    if args.follow {
        let from = since.unwrap_or(TailFrom::Now);
        let following = Box::pin(audit.follow(&filter, from, &sink));
        let mut printer = Printer::new(global.json, args.limit);
        return follow(following, items, |item, flush| {
            printer.print(Some(Done::from(item)), line, flush)
        })
        .await;
    }
    let limit = args.limit.or(since.is_none().then_some(NEWEST));
    let from = since.unwrap_or(TailFrom::After(0));
    let reading = async {
        let read = audit.read(&filter, from, &sink).await;
        drop(sink);
        read
    };
    let (read, (kept, older)) = tokio::join!(reading, newest(items, limit));
    read?;
    print(global.json, kept)?;
    if older > 0 {
        let more = count(older);
        note(&format!(
            "{more} older records are not shown: --limit or --since shows them"
        ));
    }
    Ok(())
}

/// The newest so many, and how many were older.
async fn newest(mut items: mpsc::Receiver<AuditItem>, limit: Option<u64>) -> (VecDeque<Done>, u64) {
    let (mut kept, mut older) = (VecDeque::new(), 0);
    while let Some(item) = items.recv().await {
        kept.push_back(Done::from(item));
        if limit.is_some_and(|limit| kept.len() as u64 > limit) {
            kept.pop_front();
            older += 1;
        }
    }
    (kept, older)
}

fn print(json: bool, kept: VecDeque<Done>) -> Result<(), Error> {
    let mut out = Out::stdout();
    if json {
        for done in &kept {
            out.buffer_json(done)?;
        }
        return out.flush();
    }
    if kept.is_empty() {
        note("no record matches");
        return Ok(());
    }
    let rows = kept.iter().map(|done| {
        vec![
            when(done.at.0),
            clean(&done.actor),
            clean(&done.verb),
            target(done),
            done.result.to_owned(),
            told(done),
        ]
    });
    out.text(&table(
        &["AT", "BY", "VERB", "TARGET", "RESULT", "WHAT"],
        rows,
    ))
}

/// One line for people.
fn line(done: &Done, colourful: bool) -> String {
    let result = match (colourful, done.error.is_some()) {
        (true, true) => "\u{1b}[31mfailed\u{1b}[0m",
        (_, _) => done.result,
    };
    let line = format!(
        "{}  {}  {}  {}  {result}",
        when(done.at.0),
        clean(&done.actor),
        clean(&done.verb),
        target(done)
    );
    match told(done) {
        told if told.is_empty() => line,
        told => format!("{line}: {told}"),
    }
}

fn target(done: &Done) -> String {
    let id = clean(&done.id);
    match (&done.merchant, done.kind.as_str()) {
        (_, "merchant") => id,
        (Some(merchant), kind) => format!("{merchant} {} {id}", clean(kind)),
        (None, kind) => format!("{} {id}", clean(kind)),
    }
}

/// The error, the reason, the details.
fn told(done: &Done) -> String {
    let mut parts: Vec<String> = done.error.iter().map(|error| clean(error)).collect();
    if !done.reason.is_empty() {
        parts.push(clean(&done.reason));
    }
    for (name, value) in &done.details {
        parts.extend(match value {
            Value::Null => None,
            Value::Array(changes) if name == "changes" => {
                let changes: Vec<_> = changes.iter().map(change).collect();
                (!changes.is_empty()).then(|| changes.join("; "))
            }
            value => Some(format!("{} {}", clean(name), shown(value))),
        });
    }
    parts.join("; ")
}

/// As `merchant apply` prints it.
fn change(change: &Value) -> String {
    let side = |name| change.get(name).filter(|value| !value.is_null());
    let side = |name| side(name).map_or_else(|| "(absent)".to_owned(), shown);
    let key = change.get("key").map(shown).unwrap_or_default();
    format!("{key}: {} -> {}", side("from"), side("to"))
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => clean(text),
        other => clean(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use expediter_types::OrderId;
    use expediter_wire::audit::{AuditRecord, AuditTarget};
    use serde_json::json;

    use super::*;

    fn done(target: AuditTarget, result: AuditResult, details: Value) -> Done {
        Done::from(AuditItem {
            seq: 7,
            recorded: 1,
            record: AuditRecord {
                at: Rfc3339(1_770_000_000_000),
                actor: "ann\u{1b}@kitchen".into(),
                verb: "merchant.apply".into(),
                target,
                reason: String::new(),
                result,
                details: details.as_object().cloned().unwrap_or_default(),
            },
        })
    }

    #[test]
    fn a_record_is_one_line_without_control_characters() {
        let merchant = MerchantId::new("luigis").unwrap();
        let changes = json!({
            "changes": [{"key": "limits.rate", "from": null, "to": "5/s"}], "revision": 12
        });
        let applied = done(AuditTarget::merchant(&merchant), AuditResult::Ok, changes);
        assert_eq!(
            line(&applied, false),
            "2026-02-02 02:40:00Z  ann\u{fffd}@kitchen  merchant.apply  luigis  ok: \
             limits.rate: (absent) -> 5/s; revision 12"
        );
        let order = AuditTarget::order(&merchant, &OrderId::new("A-17").unwrap());
        let failed = AuditResult::Failed("a\nb".into());
        let failed = done(order, failed, json!({"changes": []}));
        assert!(
            line(&failed, false).ends_with("luigis order A-17  failed: a\u{fffd}b"),
            "{}",
            line(&failed, false)
        );
        assert!(line(&failed, true).contains("\u{1b}[31mfailed"));
    }

    #[tokio::test]
    async fn only_the_newest_are_kept_and_the_others_counted() {
        let (sink, items) = mpsc::channel(8);
        let target = AuditTarget::group("g");
        for seq in 1..=5 {
            let mut item = AuditItem {
                seq,
                recorded: 1,
                record: AuditRecord {
                    at: Rfc3339(1),
                    actor: String::new(),
                    verb: String::new(),
                    target: target.clone(),
                    reason: String::new(),
                    result: AuditResult::Ok,
                    details: AuditDetails::new(),
                },
            };
            item.recorded = seq;
            sink.send(item).await.unwrap();
        }
        drop(sink);
        let (kept, older) = newest(items, Some(2)).await;
        let seqs: Vec<u64> = kept.iter().map(|done| done.seq).collect();
        assert_eq!((seqs, older), (vec![4, 5], 3));
    }
}
