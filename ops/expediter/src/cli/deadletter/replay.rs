use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use expediter_nats::{Audit, Connection, OrderPublisher, Registry, dead_letter};
use expediter_types::{
    DeadReason, Idempotency, Merchant, MerchantId, OrderId, Ordering, Priority, Rate, UnixMillis,
};
use expediter_wire::audit::AuditTarget;
use expediter_wire::control::MerchantState;
use expediter_wire::order::parse_moment;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::discard::Chosen;
use super::select::Letter;
use crate::cli::dead::{self, Next, NotAgain, RECORD};
use crate::cli::error::note;
use crate::cli::operator::{Actor, Deed, Effect, Operator, Recorded};
use crate::cli::out::Out;
use crate::cli::owners::Owners;
use crate::cli::table::table;
use crate::cli::text::{about, clean, count, counted, now};
use crate::cli::{Error, Global};

/// Owners are asked about so many orders at a time.
const ASKED: usize = 32;
/// So many failures one after the other are not the letters' fault.
const HOPELESS: usize = 3;
/// An owner is asked so often how much a merchant has to do.
const LOOK: Duration = Duration::from_millis(100);
/// Replayed orders that one merchant has at the same time, at most.
const AT_ONCE: u64 = 16;
/// Failures that are told one by one.
const TOLD: usize = 20;

const LATE: &str = "past its deadline (--deadline gives another one)";
const AGAIN: &str = "published again already";
const MEANWHILE: &str = "settled by somebody else meanwhile";
const DOUBTFUL: &str = "the merchant may have it and would not know it again (one by its id, or \
    --reason-is ambiguous, is meant)";

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

/// Without those of which an owner knows a later generation: one that was published by hand, or by
/// a replay that died before it could record it.
async fn not_again(
    connection: &Connection,
    letters: Vec<Letter>,
    summary: &mut Summary,
) -> Result<Vec<Letter>, Error> {
    let owners = Owners::of(connection).await?;
    let mut silent = HashSet::new();
    let mut again = Vec::with_capacity(letters.len());
    for asked in letters.chunks(ASKED) {
        let known = asked.iter().map(|letter| {
            let envelope = &letter.item.outcome.envelope;
            let partition = owners.partition(&envelope.merchant);
            let ask = !silent.contains(&partition);
            let owners = &owners;
            async move {
                match ask {
                    true => owners.order(&envelope.merchant, &envelope.id).await,
                    false => Err(Error::failed("nobody answers")),
                }
                .map_err(|_| partition)
            }
        });
        let known = futures::future::join_all(known).await;
        for (letter, known) in asked.iter().zip(known) {
            again.push(match known {
                Ok(status) => status.seq.is_some_and(|seq| seq > letter.item.outcome.seq),
                Err(partition) => {
                    silent.insert(partition);
                    false
                }
            });
        }
    }
    if !silent.is_empty() {
        note(
            "no node could be asked about some orders; one that was published again by hand ends as \
             a duplicate, and is not sent twice",
        );
    }
    let mut left = Vec::new();
    for (letter, again) in letters.into_iter().zip(again) {
        match again {
            true => summary.leave_out(AGAIN),
            false => left.push(letter),
        }
    }
    Ok(left)
}

type Counts = BTreeMap<(MerchantId, &'static str), usize>;

/// What can be sent again, how much of each kind, and the pace that no merchant minds.
struct Plan {
    /// For all, instead of the one they had.
    deadline: Option<UnixMillis>,
    priority: Priority,
    /// Also those that a merchant may have, and would not know again.
    doubtful: bool,
    letters: Vec<(Letter, Next)>,
    counts: Counts,
    pace: Rate,
    /// How many orders each merchant may have unfinished.
    most: BTreeMap<MerchantId, u64>,
}

impl Plan {
    fn new(
        deadline: Option<UnixMillis>,
        priority: Priority,
        doubtful: bool,
    ) -> Result<Self, Error> {
        let most = Rate::new(10, Duration::from_secs(1));
        Ok(Self {
            deadline,
            priority,
            doubtful,
            letters: Vec::new(),
            counts: Counts::new(),
            most: BTreeMap::new(),
            pace: most.ok_or_else(|| Error::failed("10/s is a rate"))?,
        })
    }

    async fn fill(
        &mut self,
        connection: &Connection,
        letters: Vec<Letter>,
        limit: Option<usize>,
        summary: &mut Summary,
    ) -> Result<(), Error> {
        let registry = Registry::new(connection);
        let mut known: HashMap<MerchantId, Option<Merchant>> = HashMap::new();
        let mut paced: HashSet<MerchantId> = HashSet::new();
        for letter in letters {
            let envelope = &letter.item.outcome.envelope;
            let id = &envelope.merchant;
            if !known.contains_key(id) {
                let entry = registry.get(id).await?;
                known.insert(id.clone(), entry.map(|entry| entry.registration.merchant));
            }
            let Some(merchant) = known.get(id).and_then(Option::as_ref) else {
                summary.leave_out("the merchant is not registered");
                continue;
            };
            if is_doubtful(&letter, merchant, now()) && !self.doubtful {
                summary.leave_out(DOUBTFUL);
                continue;
            }
            let next = Next {
                deadline: Some(self.deadline.or(envelope.deadline).unwrap_or_else(|| {
                    let usual = merchant.retry.deadline.as_millis();
                    let usual = u64::try_from(usual).unwrap_or(u64::MAX);
                    envelope.created.saturating_add(usual)
                })),
                priority: Some(self.priority),
            };
            if let Err(why) = dead::next_generation(&letter.item, next, now()) {
                summary.refused(why);
                continue;
            }
            if limit.is_some_and(|limit| self.letters.len() >= limit) {
                summary.leave_out("above --limit");
                continue;
            }
            if paced.insert(id.clone()) {
                // In order each waits for all before it.
                let most = match merchant.limits.ordering {
                    Ordering::None => u64::from(merchant.limits.concurrency).clamp(1, AT_ONCE),
                    Ordering::Order | Ordering::Merchant => 1,
                };
                self.most.insert(id.clone(), most);
                let shared = registry.scopes_of(merchant).await?;
                let shared = shared
                    .iter()
                    .flat_map(|entry| &entry.registration.scope.rates);
                self.slow_down(half_of(merchant.limits.rates.iter().chain(shared)));
            }
            *self
                .counts
                .entry((id.clone(), letter.reason.as_str()))
                .or_default() += 1;
            self.letters.push((letter, next));
        }
        Ok(())
    }

    fn queues(&self) -> Vec<Queue<'_>> {
        let mut queues: BTreeMap<&MerchantId, Queue<'_>> = BTreeMap::new();
        for planned in &self.letters {
            let merchant = &planned.0.item.outcome.envelope.merchant;
            let queue = queues.entry(merchant).or_insert_with(|| Queue {
                merchant,
                letters: VecDeque::new(),
                most: self.most.get(merchant).copied().unwrap_or(1),
                room: 0,
                asked: None,
            });
            queue.letters.push_back(planned);
        }
        queues.into_values().collect()
    }

    fn slow_down(&mut self, to: Option<Rate>) {
        if let Some(rate) = to.filter(|rate| rate.interval_ns() > self.pace.interval_ns()) {
            self.pace = rate;
        }
    }
}

/// The merchant may have it and would not know it again: it cannot tell repeats, or could only for a
/// while. With `lookup` it is asked before.
fn is_doubtful(letter: &Letter, merchant: &Merchant, now: UnixMillis) -> bool {
    if letter.reason != DeadReason::Ambiguous {
        return false;
    }
    let adapter = &merchant.adapter;
    match adapter.idempotency {
        Idempotency::None => true,
        Idempotency::Lookup => false,
        Idempotency::Native | Idempotency::UniqueRef => {
            let outcome = &letter.item.outcome;
            let first = outcome.attempts.first().map(|attempt| attempt.at);
            let window = u64::try_from(adapter.idempotency_window.as_millis()).unwrap_or(u64::MAX);
            first
                .unwrap_or(outcome.envelope.created)
                .saturating_add(window)
                <= now
        }
    }
}

/// Half of what these limits allow in the long run; `None`: no limit.
fn half_of<'a>(rates: impl Iterator<Item = &'a Rate>) -> Option<Rate> {
    let slowest = rates.max_by_key(|rate| rate.interval_ns())?;
    let (count, period) = (slowest.count(), slowest.period());
    Rate::new(count, period * 2).or_else(|| Rate::new((count / 2).max(1), period))
}

struct Sending<'a> {
    connection: &'a Connection,
    publisher: OrderPublisher,
    operator: &'a Operator,
    audit: Audit,
    owners: Owners,
    why: &'a str,
}

/// The letters of one merchant, and how many it may get before its owner is asked again.
struct Queue<'a> {
    merchant: &'a MerchantId,
    letters: VecDeque<&'a (Letter, Next)>,
    /// Orders that may be unfinished there for another one to follow.
    most: u64,
    room: u64,
    asked: Option<Instant>,
}

impl Queue<'_> {
    /// A fresh order waits for few replayed ones: the merchant is open, and has nearly nothing to do.
    async fn has_room(&mut self, owners: &Owners) -> bool {
        if self.room == 0 && self.asked.is_none_or(|asked| asked.elapsed() >= LOOK) {
            self.asked = Some(Instant::now());
            self.room = match owners.status(self.merchant).await {
                Ok(status)
                    if matches!(status.state, MerchantState::Idle | MerchantState::Active) =>
                {
                    self.most.saturating_sub(status.backlog)
                }
                Ok(_) => 0,
                // Without an owner they wait in the log, at the pace that was asked for.
                Err(_) => 1,
            };
        }
        self.room > 0
    }
}

impl Sending<'_> {
    /// One after the other, until it is told to stop. One that cannot be sent holds up no other, nor
    /// does a merchant that has enough to do.
    async fn all(&self, plan: &Plan, pause: Duration, summary: &mut Summary) -> Result<(), Error> {
        let bar = match std::io::stderr().is_terminal() {
            true => ProgressBar::new(plan.letters.len() as u64),
            false => ProgressBar::hidden(),
        };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} replayed, {eta} left {msg}");
        bar.set_style(style.map_err(anyhow::Error::from)?);
        let mut tick = tokio::time::interval(pause);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut in_a_row = 0;
        summary.left = plan.letters.len();
        let mut queues = plan.queues();
        while !queues.is_empty() {
            let next = async {
                tick.tick().await;
                loop {
                    for (place, queue) in queues.iter_mut().enumerate() {
                        if queue.has_room(&self.owners).await {
                            return place;
                        }
                    }
                    bar.set_message("(the merchants have enough to do, or are closed)");
                    tokio::time::sleep(LOOK).await;
                }
            };
            let next = tokio::select! {
                biased;
                () = self.operator.stopped() => None,
                place = next => Some(place),
            };
            let Some(place) = next.filter(|_| in_a_row < HOPELESS) else {
                bar.abandon();
                let cause = if next.is_none() {
                    "stopped"
                } else {
                    "given up"
                };
                return Err(Error::failed(format!(
                    "{cause}; the same command goes on where it stopped"
                )));
            };
            bar.set_message("");
            // In turn: the others come before it next time.
            let mut queue = queues.remove(place);
            queue.room -= 1;
            let Some((letter, next)) = queue.letters.pop_front() else {
                continue;
            };
            if !queue.letters.is_empty() {
                queues.push(queue);
            }
            summary.left -= 1;
            bar.inc(1);
            match self.one(letter, *next, summary).await {
                Ok(recorded) => {
                    in_a_row = 0;
                    recorded?;
                }
                Err(error) => {
                    in_a_row += 1;
                    summary.failed += 1;
                    if summary.failed <= TOLD {
                        let envelope = &letter.item.outcome.envelope;
                        let error = clean(&error.to_string());
                        let told = format!("{} of {}: {error}", envelope.id, envelope.merchant);
                        bar.suspend(|| note(&told));
                    }
                }
            }
        }
        bar.finish_and_clear();
        match summary.failed {
            0 => Ok(()),
            failed => Err(Error::failed(format!(
                "not replayed: {}",
                counted(failed as u64, "dead letter")
            ))),
        }
    }

    async fn one(
        &self,
        letter: &Letter,
        next: Next,
        summary: &mut Summary,
    ) -> Result<Recorded, Error> {
        let envelope = match dead::next_generation(&letter.item, next, now()) {
            Ok(envelope) => envelope,
            // Its deadline passed while it waited for its turn.
            Err(why) => {
                summary.refused(why);
                return Ok(Ok(()));
            }
        };
        let Some(whole) = dead_letter(self.connection, letter.item.record).await? else {
            summary.leave_out("not kept any more");
            return Ok(Ok(()));
        };
        let target = AuditTarget::order(&envelope.merchant, &envelope.id);
        // It may be long since the plan was made.
        if dead::is_resolved_by(self.audit.newest(&target).await?.as_ref(), &letter.item) {
            summary.leave_out(MEANWHILE);
            return Ok(Ok(()));
        }
        let deed = Deed::new("deadletter.replay", target)
            .because(self.why)
            .detail("generation", letter.item.outcome.envelope.generation)
            .detail(RECORD, letter.item.record)
            .detail("next", envelope.generation);
        let sending = async {
            let sent = dead::publish(self.connection, &self.publisher, &envelope, &whole).await?;
            Ok(Effect::new(sent.duplicate)
                .detail("seq", sent.seq)
                .detail("duplicate", sent.duplicate))
        };
        let (duplicate, recorded) = self.operator.step(deed, sending).await?;
        match duplicate {
            true => summary.already += 1,
            false => summary.replayed += 1,
        }
        Ok(recorded)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_half_of_the_limit_that_takes_longest() {
        let mut merchant = Merchant::to(MerchantId::new("luigis").unwrap(), "https://a.example/");
        let mut half = |rates: &[&str]| {
            merchant.limits.rates = rates.iter().map(|rate| rate.parse().unwrap()).collect();
            half_of(merchant.limits.rates.iter()).map(|rate| rate.to_string())
        };
        assert_eq!(half(&[]), None);
        assert_eq!(half(&["3/s"]).as_deref(), Some("3/2s"));
        assert_eq!(half(&["20/s", "900/15min"]).as_deref(), Some("900/30min"));
        // There is no period of two days.
        assert_eq!(half(&["1001/24h"]).as_deref(), Some("500/d"));
    }
}
