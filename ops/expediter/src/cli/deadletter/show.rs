use expediter_types::{MerchantId, OrderId};
use serde::Serialize;

use super::list::Done;
use super::select::{Letter, Selection};
use crate::cli::out::Out;
use crate::cli::outcome::{Attempt, Ended};
use crate::cli::table::table;
use crate::cli::text::{ago, clean, clean_lines, now, span, when, when_and_ago};
use crate::cli::{Error, Global};

const EXAMPLES: &str = "\
Secrets were taken out of the merchant's answers before they were kept.

Examples:
  expediter deadletter show 4711 --merchant luigis
  expediter deadletter show 4711 --merchant luigis --payload > order.json";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The order's id
    id: OrderId,
    /// Its merchant
    #[arg(long, short, value_name = "ID")]
    merchant: MerchantId,
    /// Which time it was published [default: the newest that is a dead letter]
    #[arg(long, value_name = "NUMBER")]
    generation: Option<u32>,
    /// Write the payload to stdout as it came, and nothing else
    #[arg(long, conflicts_with = "json")]
    payload: bool,
}

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    ended: Ended,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<Done>,
    /// As text; what is not UTF-8 is replaced.
    payload: String,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    let selection = Selection {
        merchant: vec![args.merchant.clone()],
        ..Selection::default()
    };
    let mut found: Option<Letter> = None;
    let take = |letter: Letter| {
        let envelope = &letter.item.outcome.envelope;
        let wanted = args.generation.is_none_or(|n| n == envelope.generation);
        // Another order that was published under the same id does not hide it.
        let hides =
            found.as_ref().is_some_and(|found| !found.is_conflict()) && letter.is_conflict();
        if letter.is_called(&args.id) && wanted && !hides {
            found = Some(letter);
        }
        true
    };
    selection.each(&connection, &[], take).await?;
    let Some(letter) = found else {
        return Err(Error::NotFound(format!(
            "no dead letter {} of {} is kept; `expediter order show` tells how it ended",
            args.id, args.merchant
        )));
    };
    let payload = letter
        .item
        .dead
        .as_ref()
        .map(|(payload, _)| payload.clone());
    let payload = payload.unwrap_or_default();
    let mut out = Out::stdout();
    if args.payload {
        return out.bytes(&payload);
    }
    let (state, done) = (letter.state.as_str(), Done::of(&letter));
    let text_of_payload = String::from_utf8_lossy(&payload).into_owned();
    if global.json {
        let ended = Ended::from(letter.item);
        return out.json(&Shown {
            ended,
            state,
            done,
            payload: text_of_payload,
        });
    }
    out.text(&text(letter, &text_of_payload))
}

fn text(letter: Letter, payload: &str) -> String {
    let now = now();
    let (reason, state) = (letter.reason, letter.state.as_str());
    let done = letter.done.clone();
    let ended = Ended::from(letter.item);
    let mut text = format!(
        "order {} of {}, generation {}: dead_lettered ({reason}), {state}\n",
        ended.id, ended.merchant, ended.generation
    );
    let mut fact = |name: &str, value: String| text.push_str(&format!("{name:<10} {value}\n"));
    fact("published", when_and_ago(ended.created.0, now));
    fact("ended", when_and_ago(ended.at.0, now));
    if !ended.detail.is_empty() {
        fact("detail", clean(&ended.detail));
    }
    if let Some(done) = done {
        let record = done.record;
        let (actor, reason) = (clean(&record.actor), clean(&record.reason));
        fact(
            "since",
            format!(
                "{} by {actor} {}: {reason}",
                record.verb,
                ago(record.at.0, now)
            ),
        );
    }
    if !ended.attempts.is_empty() {
        let rows = ended.attempts.iter().map(|attempt: &Attempt| {
            vec![
                attempt.n.to_string(),
                when(attempt.at.0),
                attempt.class.to_owned(),
                attempt
                    .status
                    .map_or_else(|| "-".to_owned(), |s| s.to_string()),
                span(std::time::Duration::from_millis(u64::from(attempt.ms))),
                clean(&attempt.detail),
            ]
        });
        text.push('\n');
        let header = [">ATTEMPT", "AT", "CLASS", ">STATUS", ">TOOK", "DETAIL"];
        text.push_str(&table(&header, rows));
    }
    let mut quote = |what: &str, quoted: &str| {
        text.push_str(&format!("\n{what}:\n"));
        for line in clean_lines(quoted).lines() {
            text.push_str(&format!("  | {line}\n"));
        }
    };
    if let Some(excerpt) = &ended.excerpt {
        quote("the merchant's last answer begins", excerpt);
    }
    let pretty = serde_json::from_str::<serde_json::Value>(payload)
        .and_then(|value| serde_json::to_string_pretty(&value));
    quote("payload", pretty.as_deref().unwrap_or(payload));
    text
}
