//! `expediter deadletter replay`

mod plan;
mod send;

use std::collections::BTreeMap;
use std::time::Duration;

use expediter_nats::{Audit, OrderPublisher};
use expediter_types::{DeadReason, OrderId, Priority, Rate, UnixMillis};
use expediter_wire::order::parse_moment;
use serde::Serialize;

use self::plan::{Counts, Plan, not_again};
use self::send::Sending;
use super::discard::Chosen;
use crate::cli::dead::NotAgain;
use crate::cli::operator::{Actor, Operator};
use crate::cli::out::Out;
use crate::cli::owners::Owners;
use crate::cli::table::table;
use crate::cli::text::{about, count, counted, now};
use crate::cli::{Error, Global};

const LATE: &str = "past its deadline (--deadline gives another one)";

const EXAMPLES: &str = "\
Publishes open dead letters again, each as the next generation of its order: with the same id,
payload and idempotency key, and with low priority, so that fresh orders go first. An order keeps its
deadline; without one of its own that is the merchant's, from its first publish. What is past it, was
published again already, has no merchant any more, or may have been received by one that would not know
it again (without idempotency, or after idempotency_window) is left out; of the latter, --reason-is
ambiguous or an id says that they are meant. To a merchant the next ones go only while it is open and
has done nearly all that it has, so that a fresh order waits for few of them.
Ctrl-C stops between two; the same command goes on where it stopped.

Examples:
  expediter deadletter replay 4711 --merchant luigis --reason 'their POS is back'
  expediter deadletter replay --group sandwiches --since 3h --dry-run
  expediter deadletter replay --merchant luigis --reason-is attempts_exhausted --rate 5/s \\
      --deadline 30m --reason 'their POS is back'";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// One order's; needs --merchant
    id: Option<OrderId>,
    #[command(flatten)]
    selection: Chosen,
    /// Why, for those who look later
    #[arg(
        long = "reason",
        value_name = "TEXT",
        required_unless_present = "dry_run"
    )]
    why: Option<String>,
    /// Only plan: count what would be replayed and what is left out
    #[arg(long)]
    dry_run: bool,
    /// At most so many, over all merchants [default: half of what the slowest one's limits allow,
    /// 10/s at most]
    #[arg(long, value_name = "RATE")]
    rate: Option<Rate>,
    /// At most so many in all, the oldest first
    #[arg(long, short = 'n', value_name = "COUNT")]
    limit: Option<usize>,
    /// They expire then: RFC 3339, or a duration from now such as 30m [default: the deadline they had]
    #[arg(long, value_name = "WHEN")]
    deadline: Option<String>,
    /// Before or after fresh orders
    #[arg(long, default_value = "low", value_parser = priority, value_name = "CLASS")]
    priority: Priority,
    #[command(flatten)]
    actor: Actor,
}

fn priority(text: &str) -> Result<Priority, String> {
    Priority::from_name(text).ok_or_else(|| "is not high, normal or low".to_owned())
}

/// What became of it, or would.
#[derive(Debug, Default, Serialize)]
struct Summary {
    dry_run: bool,
    replayed: usize,
    /// Somebody had published the next generation just before.
    already: usize,
    /// By cause.
    left_out: BTreeMap<&'static str, usize>,
    /// Not published; still open.
    failed: usize,
    /// Planned and not tried: it was stopped.
    left: usize,
    per_second: f64,
}

impl Summary {
    fn leave_out(&mut self, why: &'static str) {
        *self.left_out.entry(why).or_default() += 1;
    }

    fn refused(&mut self, why: NotAgain) {
        self.leave_out(match why {
            NotAgain::Late(_) => LATE,
            NotAgain::Undecodable => "it could not be read as an order",
            NotAgain::IdConflict => "its id is another order's",
        });
    }
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let deadline = deadline(args.deadline.as_deref())?;
    let connection = global.connect().await?;
    let doubtful = args.id.is_some() || args.selection.asks_for(DeadReason::Ambiguous);
    let letters = args
        .selection
        .letters(&connection, args.id.as_ref())
        .await?;
    let mut summary = Summary {
        dry_run: args.dry_run,
        ..Summary::default()
    };
    let mut plan = Plan::new(deadline, args.priority, doubtful)?;
    let letters = not_again(&connection, letters, &mut summary).await?;
    plan.fill(&connection, letters, args.limit, &mut summary)
        .await?;
    let rate = args.rate.unwrap_or(plan.pace);
    let pause = Duration::from_nanos(rate.interval_ns());
    summary.per_second = 1.0 / pause.as_secs_f64();
    let mut out = Out::stdout();
    if args.dry_run {
        summary.left = plan.letters.len();
        return match global.json {
            true => out.json(&summary),
            false => out.text(&plan_text(&plan.counts, &summary, plan.letters.len(), rate)),
        };
    }
    let operator = Operator::new(&connection, &args.actor).await?;
    let sending = Sending {
        publisher: OrderPublisher::new(&connection, 1),
        audit: Audit::open(&connection).await?,
        owners: Owners::of(&connection).await?,
        connection: &connection,
        operator: &operator,
        why: args.why.as_deref().unwrap_or_default().trim(),
    };
    let ended = Box::pin(sending.all(&plan, pause, &mut summary)).await;
    match global.json {
        true => out.json(&summary)?,
        false => out.line(done_line(&summary))?,
    }
    ended
}

fn deadline(text: Option<&str>) -> Result<Option<UnixMillis>, Error> {
    let Some(text) = text else { return Ok(None) };
    let moment = parse_moment(text, now());
    let moment = moment.map_err(|wrong| Error::Usage(format!("--deadline {text:?}: {wrong}")))?;
    Ok(Some(moment))
}

fn plan_text(counts: &Counts, summary: &Summary, planned: usize, rate: Rate) -> String {
    let rows = counts.iter().map(|((merchant, reason), n)| {
        vec![merchant.to_string(), (*reason).to_owned(), count(*n as u64)]
    });
    let mut text = table(&["MERCHANT", "REASON", ">COUNT"], rows);
    for (why, n) in &summary.left_out {
        text.push_str(&format!("left out: {} {why}\n", count(*n as u64)));
    }
    let nanos = rate.interval_ns().saturating_mul(planned as u64);
    text.push_str(&format!(
        "would replay {} at {rate}, which takes {}\n",
        counted(planned as u64, "dead letter"),
        about(Duration::from_nanos(nanos))
    ));
    text
}

fn done_line(summary: &Summary) -> String {
    let mut line = format!(
        "replayed {}",
        counted(summary.replayed as u64, "dead letter")
    );
    if summary.already > 0 {
        line.push_str(&format!(
            ", {} had been before",
            count(summary.already as u64)
        ));
    }
    for (why, n) in &summary.left_out {
        line.push_str(&format!(", left out {} ({why})", count(*n as u64)));
    }
    if summary.failed > 0 {
        line.push_str(&format!(", {} failed", count(summary.failed as u64)));
    }
    if summary.left > 0 {
        line.push_str(&format!(", {} left", count(summary.left as u64)));
    }
    line
}
