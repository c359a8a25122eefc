use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal as _;
use std::time::Duration;

use expediter_nats::{Connection, OrderPublisher, Registry};
use expediter_types::{MerchantId, OrderId, Priority, Rate, UnixMillis};
use expediter_wire::audit::AuditTarget;
use expediter_wire::order::parse_moment;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::discard::Chosen;
use super::select::Letter;
use crate::cli::dead::{self, Next, RECORD};
use crate::cli::error::note;
use crate::cli::operator::{Actor, Deed, Effect, Operator};
use crate::cli::out::Out;
use crate::cli::table::table;
use crate::cli::text::{about, count, counted, now};
use crate::cli::{Error, Global};

const EXAMPLES: &str = "\
Publishes open dead letters again, each as the next generation of its order: with the same id,
payload and idempotency key, and with low priority, so that fresh orders go first. What is past its
deadline, was replayed already, or has no merchant any more is left out. Ctrl-C stops between two;
the same command goes on where it stopped.

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
    /// At most so many, over all merchants [default: half of the slowest merchant's rate, 10/s at most]
    #[arg(long, value_name = "RATE")]
    rate: Option<Rate>,
    /// At most so many in all, the oldest first
    #[arg(long, short = 'n', value_name = "COUNT")]
    limit: Option<usize>,
    /// They expire then: RFC 3339, or a duration from now such as 30m [default: their own deadline]
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
    left_out: BTreeMap<String, usize>,
    /// Planned and not done: it was stopped.
    left: usize,
    per_second: f64,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let next = Next {
        deadline: deadline(args.deadline.as_deref())?,
        priority: Some(args.priority),
    };
    let connection = global.connect().await?;
    let letters = args
        .selection
        .letters(&connection, args.id.as_ref())
        .await?;
    let mut summary = Summary {
        dry_run: args.dry_run,
        ..Summary::default()
    };
    let (planned, counts, slowest) =
        plan(&connection, letters, next, args.limit, &mut summary).await?;
    let rate = args.rate.unwrap_or(slowest);
    let pause = Duration::from_nanos(rate.interval_ns());
    summary.per_second = 1.0 / pause.as_secs_f64();
    let mut out = Out::stdout();
    if args.dry_run {
        summary.left = planned.len();
        return match global.json {
            true => out.json(&summary),
            false => out.text(&plan_text(&counts, &summary, planned.len(), rate)),
        };
    }
    let operator = Operator::new(&connection, &args.actor).await?;
    let why = args.why.as_deref().unwrap_or_default().trim();
    let stopped = send(
        &connection,
        &operator,
        &planned,
        next,
        why,
        pause,
        &mut summary,
    )
    .await;
    summary.left = planned.len() - summary.replayed - summary.already;
    match global.json {
        true => out.json(&summary)?,
        false => out.line(done_line(&summary))?,
    }
    stopped
}

fn deadline(text: Option<&str>) -> Result<Option<UnixMillis>, Error> {
    let Some(text) = text else { return Ok(None) };
    let moment = parse_moment(text, now());
    let moment = moment.map_err(|wrong| Error::Usage(format!("--deadline {text:?}: {wrong}")))?;
    Ok(Some(moment))
}

type Counts = BTreeMap<(MerchantId, &'static str), usize>;

/// What can be sent again, how much of each kind, and the pace that no merchant minds.
async fn plan(
    connection: &Connection,
    letters: Vec<Letter>,
    next: Next,
    limit: Option<usize>,
    summary: &mut Summary,
) -> Result<(Vec<Letter>, Counts, Rate), Error> {
    let registry = Registry::new(connection);
    let mut known: HashMap<MerchantId, Option<Option<Rate>>> = HashMap::new();
    let ten = Rate::new(10, Duration::from_secs(1));
    let mut slowest = ten.ok_or_else(|| Error::failed("10/s is a rate"))?;
    let (mut planned, mut counts) = (Vec::new(), Counts::new());
    for letter in letters {
        let merchant = &letter.item.outcome.envelope.merchant;
        if !known.contains_key(merchant) {
            let entry = registry.get(merchant).await?;
            let rate = entry.map(|e| e.registration.merchant.limits.rates.first().copied());
            known.insert(merchant.clone(), rate);
        }
        let mut leave_out = |why: &str| {
            *summary.left_out.entry(why.to_owned()).or_default() += 1;
        };
        let Some(rate) = known.get(merchant).copied().flatten() else {
            leave_out("the merchant is not registered");
            continue;
        };
        if let Err(why) = dead::next_generation(&letter.item, next, now()) {
            leave_out(match why.starts_with("its deadline") {
                true => "past its deadline (--deadline gives another one)",
                false => "it could not be read as an order",
            });
            continue;
        }
        if limit.is_some_and(|limit| planned.len() >= limit) {
            leave_out("above --limit");
            continue;
        }
        let half = rate.and_then(|rate| Rate::new(rate.count(), rate.period() * 2));
        if let Some(half) = half.filter(|half| half.interval_ns() > slowest.interval_ns()) {
            slowest = half;
        }
        *counts
            .entry((merchant.clone(), letter.reason.as_str()))
            .or_default() += 1;
        planned.push(letter);
    }
    Ok((planned, counts, slowest))
}

async fn send(
    connection: &Connection,
    operator: &Operator,
    planned: &[Letter],
    next: Next,
    why: &str,
    pause: Duration,
    summary: &mut Summary,
) -> Result<(), Error> {
    let publisher = OrderPublisher::new(connection, 1);
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new(planned.len() as u64),
        false => ProgressBar::hidden(),
    };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} replayed, {eta} left");
    bar.set_style(style.map_err(anyhow::Error::from)?);
    let mut tick = tokio::time::interval(pause);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for letter in planned {
        tick.tick().await;
        let envelope = match dead::next_generation(&letter.item, next, now()) {
            Ok(envelope) => envelope,
            // Its deadline passed while it waited for its turn.
            Err(why) => {
                *summary.left_out.entry(why).or_default() += 1;
                continue;
            }
        };
        let deed = Deed::new(
            "deadletter.replay",
            AuditTarget::order(&envelope.merchant, &envelope.id),
        )
        .because(why)
        .detail("generation", letter.item.outcome.envelope.generation)
        .detail(RECORD, letter.item.record)
        .detail("next", envelope.generation);
        let sending = async {
            let sent = dead::publish(connection, &publisher, &envelope, &letter.item).await?;
            Ok(Effect::new(sent.duplicate)
                .detail("seq", sent.seq)
                .detail("duplicate", sent.duplicate))
        };
        let (duplicate, recorded) = match operator.run(deed, sending).await {
            Ok(done) => done,
            Err(error) => {
                bar.abandon();
                note("stopped; the same command goes on where it stopped");
                return Err(error);
            }
        };
        match duplicate {
            true => summary.already += 1,
            false => summary.replayed += 1,
        }
        bar.inc(1);
        recorded?;
    }
    bar.finish_and_clear();
    Ok(())
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
    if summary.left > 0 {
        line.push_str(&format!(", {} left", count(summary.left as u64)));
    }
    line
}
