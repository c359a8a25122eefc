use std::collections::BTreeSet;

use expediter_nats::{OutcomeItem, find_outcome};
use expediter_types::{MerchantId, OrderId, OutcomeKind, UnixMillis};
use expediter_wire::Rfc3339;
use expediter_wire::control::{MerchantState, MerchantStatus, OrderStatus, Place};
use serde::Serialize;

use crate::cli::error::note;
use crate::cli::merchant::standing;
use crate::cli::out::Out;
use crate::cli::outcome::{Attempt, Ended};
use crate::cli::owners::Owners;
use crate::cli::table::table;
use crate::cli::text::{clean, clean_lines, counted, now, span, when, when_and_ago};
use crate::cli::{Error, Global};

const EXAMPLES: &str = "\
The node that works on the merchant is asked first; what it does not know is looked for in OUTCOMES,
which keeps outcomes for 7 days and dead letters for 30 unless configured otherwise.

Examples:
  expediter order show 4711 --merchant luigis
  expediter order show 4711 --merchant luigis --json | jq .attempts";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The order's id
    id: OrderId,
    /// Its merchant
    #[arg(long, short, value_name = "ID")]
    merchant: MerchantId,
}

/// An order for machines.
#[derive(Debug, Serialize)]
struct Shown {
    merchant: String,
    id: String,
    partition: u16,
    #[serde(rename = "where")]
    place: Place,
    seq: Option<u64>,
    generation: Option<u32>,
    created: Option<Rfc3339>,
    /// Its next attempt.
    due: Option<Rfc3339>,
    deadline: Option<Rfc3339>,
    /// The newest attempt may have been received.
    ambiguous: bool,
    /// `None`: not finished, or not written down yet.
    outcome: Option<&'static str>,
    reason: Option<&'static str>,
    ended: Option<Rfc3339>,
    detail: String,
    attempts: Vec<Attempt>,
    excerpt: Option<String>,
    /// Repeats of its publisher that were closed without an attempt.
    repeats: usize,
    /// How its merchant stands, while it waits.
    merchant_status: Option<MerchantStatus>,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    let owners = Owners::of(&connection).await?;
    let status = owners.order(&args.merchant, &args.id).await;
    let waits = status.as_ref().is_ok_and(is_waiting);
    let items = match waits {
        true => Vec::new(),
        false => find_outcome(&connection, &args.merchant, &args.id).await?,
    };
    let partition = owners.partition(&args.merchant).0;
    let Some(mut shown) = shown(&args, partition, status.as_ref().ok(), items) else {
        return Err(not_found(&args, status));
    };
    if waits {
        // It only explains; without it the rest is still worth telling.
        shown.merchant_status = owners.status(&args.merchant).await.ok();
    }
    if let Err(error) = &status {
        note(&format!("no node could be asked: {error}"));
    }
    let mut out = Out::stdout();
    match global.json {
        true => out.json(&shown),
        false => out.text(&text(&shown, now())),
    }
}

fn is_waiting(status: &OrderStatus) -> bool {
    matches!(
        status.place,
        Place::InFlight | Place::Mailbox | Place::Store
    )
}

fn not_found(args: &Args, status: Result<OrderStatus, Error>) -> Error {
    let Args { id, merchant } = args;
    match status {
        Ok(status) => Error::NotFound(format!(
            "no order {id} of {merchant}: not among the orders up to sequence {} that a node knows, \
             and no outcome of it is kept",
            status.seen
        )),
        Err(error) => Error::failed(format!(
            "no outcome of order {id} of {merchant}, and {error}"
        )),
    }
}

fn shown(
    args: &Args,
    partition: u16,
    status: Option<&OrderStatus>,
    items: Vec<OutcomeItem>,
) -> Option<Shown> {
    let total = items.len();
    let (repeats, outcomes): (Vec<_>, Vec<_>) = items
        .into_iter()
        .partition(|item| item.outcome.kind == OutcomeKind::Duplicate);
    // The newest generation; its first outcome is the one that counts.
    let newest = outcomes
        .iter()
        .map(|item| item.outcome.envelope.generation)
        .max();
    let mut outcomes = outcomes.into_iter();
    let ended = outcomes.find(|item| Some(item.outcome.envelope.generation) == newest);
    let mut shown = Shown {
        merchant: args.merchant.to_string(),
        id: args.id.to_string(),
        partition,
        place: Place::Finished,
        seq: None,
        generation: None,
        created: None,
        due: None,
        deadline: None,
        ambiguous: false,
        outcome: None,
        reason: None,
        ended: None,
        detail: String::new(),
        attempts: Vec::new(),
        excerpt: None,
        repeats: repeats.len(),
        merchant_status: None,
    };
    if let Some(item) = ended {
        let deadline = item.outcome.envelope.deadline;
        let ended = Ended::from(item);
        return Some(Shown {
            seq: Some(ended.seq),
            generation: Some(ended.generation),
            created: Some(ended.created),
            deadline: deadline.map(Rfc3339),
            outcome: Some(ended.outcome),
            reason: ended.reason,
            ended: Some(ended.at),
            detail: ended.detail,
            attempts: ended.attempts,
            excerpt: ended.excerpt,
            ..shown
        });
    }
    match status.filter(|status| status.found) {
        Some(status) => {
            shown.place = status.place;
            shown.seq = status.seq;
            shown.generation = status.generation;
            shown.created = status.created;
            shown.due = status.due;
            shown.deadline = status.deadline;
            shown.ambiguous = status.ambiguous;
            shown.attempts = status.attempts.iter().cloned().map(Attempt::from).collect();
            Some(shown)
        }
        None if total > 0 => Some(shown),
        None => None,
    }
}

fn text(shown: &Shown, now: UnixMillis) -> String {
    let place = match (shown.place, shown.outcome) {
        (_, Some(outcome)) => match shown.reason {
            Some(reason) => format!("{outcome} ({reason})"),
            None => outcome.to_owned(),
        },
        (Place::InFlight, _) => "an attempt is under way".to_owned(),
        (Place::Mailbox, _) => "waits in memory".to_owned(),
        (Place::Store, _) => "waits in the store".to_owned(),
        (Place::Finished, _) => {
            "finished; its outcome is being written or no longer kept".to_owned()
        }
        (Place::Unknown, _) => "unknown".to_owned(),
    };
    let mut lines = vec![format!("order {} of {}: {place}", shown.id, shown.merchant)];
    let mut fact = |name: &str, value: Option<String>| {
        lines.extend(value.map(|value| format!("{name:<10} {value}")));
    };
    let time = |at: Option<Rfc3339>| at.map(|at| when_and_ago(at.0, now));
    let sequence = shown
        .seq
        .map(|seq| format!("partition {}, sequence {seq}", shown.partition));
    fact("log", sequence);
    fact(
        "generation",
        shown.generation.filter(|n| *n > 1).map(|n| n.to_string()),
    );
    fact("published", time(shown.created));
    fact(
        "merchant",
        shown.merchant_status.as_ref().and_then(hindrance),
    );
    fact("next try", time(shown.due.filter(|due| due.0 > now)));
    fact("deadline", time(shown.deadline));
    fact("ended", time(shown.ended));
    fact(
        "detail",
        Some(clean(&shown.detail)).filter(|detail| !detail.is_empty()),
    );
    let doubt = "the newest attempt may have been received".to_owned();
    fact("doubt", shown.ambiguous.then_some(doubt));
    let repeats = counted(shown.repeats as u64, "repeat");
    fact(
        "repeats",
        (shown.repeats > 0).then(|| format!("{repeats} closed without an attempt")),
    );
    let mut text = lines.join("\n") + "\n";
    if !shown.attempts.is_empty() {
        let rows = shown.attempts.iter().map(|attempt| {
            vec![
                attempt.n.to_string(),
                when(attempt.at.0),
                attempt.class.to_owned(),
                attempt
                    .status
                    .map_or_else(|| "-".to_owned(), |status| status.to_string()),
                span(std::time::Duration::from_millis(u64::from(attempt.ms))),
                clean(&attempt.detail),
            ]
        });
        text.push('\n');
        text.push_str(&table(
            &[">ATTEMPT", "AT", "CLASS", ">STATUS", ">TOOK", "DETAIL"],
            rows,
        ));
        let left_out = left_out(&shown.attempts);
        if left_out > 0 {
            let count = counted(left_out, "further attempt");
            text.push_str(&format!("{count} not kept\n"));
        }
    }
    if let Some(excerpt) = &shown.excerpt {
        text.push_str("\nthe merchant's last answer begins:\n");
        clean_lines(excerpt)
            .lines()
            .for_each(|line| text.push_str(&format!("  | {line}\n")));
    }
    text
}

/// A long history is kept in part. Several attempts may have one number: some use none up.
fn left_out(attempts: &[Attempt]) -> u64 {
    let kept: BTreeSet<u32> = attempts.iter().map(|attempt| attempt.n).collect();
    let made = kept.last().copied().unwrap_or(0);
    u64::from(made).saturating_sub(kept.len() as u64)
}

/// Why no order of the merchant is sent now, where it is the merchant's state.
fn hindrance(status: &MerchantStatus) -> Option<String> {
    match status.state {
        MerchantState::Idle | MerchantState::Active => None,
        MerchantState::Closed
        | MerchantState::Paused
        | MerchantState::Draining
        | MerchantState::OutsideHours => Some(standing(status)),
        MerchantState::Quarantined => {
            let resume = format!("expediter merchant resume {}", status.merchant);
            Some(format!("{}; let it go on: {resume}", standing(status)))
        }
        MerchantState::Unknown => Some(
            "not registered; its orders become dead letters after orders.unknown_merchant_grace"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use expediter_types::DeadReason;

    use super::*;
    use crate::cli::outcome::tests::item;

    fn args() -> Args {
        Args {
            id: OrderId::new("4711").unwrap(),
            merchant: MerchantId::new("luigis").unwrap(),
        }
    }

    #[test]
    fn the_outcome_counts_and_repeats_are_counted() {
        let items = vec![
            item(12, OutcomeKind::DeadLettered(DeadReason::Invalid)),
            item(13, OutcomeKind::Duplicate),
            item(14, OutcomeKind::Duplicate),
        ];
        let shown = shown(&args(), 3, None, items).unwrap();
        assert_eq!(
            (shown.outcome, shown.reason),
            (Some("dead_lettered"), Some("invalid"))
        );
        assert_eq!(
            text(&shown, 1_770_000_061_500),
            "order 4711 of luigis: dead_lettered (invalid)\n\
             log        partition 3, sequence 9\n\
             published  2026-02-02 02:40:00Z (1 min 1 s ago)\n\
             ended      2026-02-02 02:40:01Z (1 min ago)\n\
             detail     HTTP 422\u{fffd}\n\
             repeats    2 repeats closed without an attempt\n\
             \nthe merchant's last answer begins:\n  | no\n"
        );
    }

    #[test]
    fn what_a_history_leaves_out_is_counted() {
        let attempt = |n| Attempt {
            n,
            at: Rfc3339(1),
            class: "retry",
            status: None,
            ms: 1,
            detail: String::new(),
        };
        // The second one used no attempt up, and was repeated under its number.
        let numbers = |numbers: &[u32]| numbers.iter().copied().map(attempt).collect::<Vec<_>>();
        assert_eq!(left_out(&numbers(&[])), 0);
        assert_eq!(left_out(&numbers(&[1, 2, 2, 3])), 0);
        assert_eq!(left_out(&numbers(&[1, 2, 39, 40, 40])), 36);
    }

    #[test]
    fn what_nobody_knows_is_not_found() {
        assert!(shown(&args(), 3, None, Vec::new()).is_none());
    }
}
