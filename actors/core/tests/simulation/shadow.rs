//! The judge: it knows what was published, what every merchant saw and what is durable, and names
//! the promise that is broken. Nothing of it is taken from the machines under test.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use expediter_core::{Order, Undecodable};
use expediter_types::{
    AttemptClass, Idempotency, Merchant, MerchantId, Now, OrderId, Ordering, OutcomeKind, Rate,
    Seq, UnixMillis,
};

use crate::actor::Begun;
use crate::fleet::Looked;
use crate::plan::surely_not;

/// Starts of a merchant that are looked back at.
const STARTS: usize = 200;
/// Repeats are noticed for so long at least, by any owner; milliseconds (ARCHITECTURE.md).
const REPEATS_NOTICED: u64 = 600_000;
/// Starts that reach the partition later are left out of quotas, in microseconds.
const REPORTED_WITHIN: u64 = 1_000_000;

/// A promise is broken: the run ends here.
macro_rules! broken {
    ($promise:literal, $($what:tt)+) => {
        panic!(concat!($promise, ": {}"), format_args!($($what)+))
    };
}
pub(crate) use broken;

/// A published message.
/// A merchant's actor has heard by then that it is held, in microseconds.
const HEARD: u64 = 5_000_000;

#[derive(Debug)]
pub(crate) struct Truth {
    pub(crate) merchant: MerchantId,
    pub(crate) order: Result<Arc<Order>, Undecodable>,
}

/// A request that left.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) seq: Seq,
    pub(crate) token: Seq,
    at: u64,
    /// The concurrency that it began under.
    concurrency: u32,
    /// A later owner that did not know of it marked: its successors count from that mark.
    marked_over: bool,
    /// `None`: nobody knows yet, or ever.
    pub(crate) class: Option<AttemptClass>,
    /// A look-up after it said that the merchant has not got the order.
    settled: bool,
}

impl Sent {
    pub(crate) fn maybe_received(&self) -> bool {
        !self.settled && !self.class.is_some_and(surely_not)
    }
}

/// The outcome that counts.
#[derive(Debug)]
pub(crate) struct Done {
    /// Its sequence in OUTCOMES.
    pub(crate) at: Seq,
    pub(crate) kind: OutcomeKind,
    /// By the wall clock.
    pub(crate) decided: UnixMillis,
    pub(crate) record: (Seq, u64),
}

/// A request that is about to leave.
#[derive(Debug)]
pub(crate) struct Launching<'a> {
    pub(crate) token: Seq,
    pub(crate) standing: Seq,
    pub(crate) merchant: &'a Merchant,
    pub(crate) order: &'a Order,
    pub(crate) begun: &'a Begun,
    pub(crate) now: Now,
    /// Of the same owner to the same merchant, before this one.
    pub(crate) in_flight: usize,
    /// The merchant was asked just before, and has not got the order.
    pub(crate) absent: bool,
    /// Another attempt of the order may still reach the merchant.
    pub(crate) on_wire: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Shadow {
    /// A look-up found them at their merchants.
    pub(crate) found: BTreeSet<(MerchantId, OrderId)>,
    /// Attempts that ended with a look-up which decided nothing.
    pub(crate) undecided: BTreeMap<Seq, usize>,
    pub(crate) truth: BTreeMap<Seq, Truth>,
    pub(crate) same_id: BTreeMap<(MerchantId, OrderId), Vec<Seq>>,
    /// Orders without a durable outcome.
    pub(crate) open: BTreeSet<Seq>,
    pub(crate) done: BTreeMap<Seq, Done>,
    pub(crate) sent: BTreeMap<(MerchantId, OrderId), Vec<Sent>>,
    /// Named by an attempt mark or a release: parked for good reason.
    pub(crate) listed: BTreeSet<Seq>,
    /// Under one limit, by the monotonic clock.
    starts: BTreeMap<MerchantId, (Rate, u32, VecDeque<u64>)>,
    /// Under one list of rates, over all owners.
    quotas: BTreeMap<MerchantId, (Vec<Rate>, Vec<u64>)>,
    asked: BTreeMap<(Seq, MerchantId), (u64, UnixMillis)>,
    pub(crate) quarantined: BTreeSet<(Seq, MerchantId)>,
    /// Since when an owner knows that an operator holds a merchant, by the monotonic clock.
    held: BTreeMap<(Seq, MerchantId), u64>,
    /// Epochs in which nothing may be sent, because owners crashed.
    pub(crate) paused: BTreeSet<Seq>,
    pub(crate) condemned: BTreeSet<MerchantId>,
    /// Orders that an operator asked back.
    pub(crate) cancels: BTreeSet<(MerchantId, OrderId)>,
    /// Orders that may have arrived, and ended as such; true: a person has resolved it.
    pub(crate) parked: BTreeMap<Seq, (Arc<Order>, bool)>,
    /// Another manifest was valid before: nobody can tell under which one an order was parked.
    changed: BTreeSet<MerchantId>,
    /// Merchants that have, or had, a quota of waiting orders.
    pub(crate) bounded: BTreeSet<MerchantId>,
    /// Not registered at some time.
    pub(crate) strangers: BTreeSet<MerchantId>,
    poison: BTreeSet<Seq>,
    /// The largest mailbox and the fewest attempts that a manifest ever allowed.
    bounds: BTreeMap<MerchantId, (u32, u32)>,
    pub(crate) specs: BTreeMap<MerchantId, Merchant>,
    pub(crate) launched: u64,
    /// Keys are forgotten: what may have been sent long ago is parked.
    pub(crate) forgetful: bool,
    /// The wall clock jumps: when something was decided says little about it.
    pub(crate) jumps: bool,
}

/// When an order with a deadline of its own gives up; what the merchant's policy says changes.
pub(crate) fn gives_up(merchant: &Merchant, order: &Order) -> Option<UnixMillis> {
    let deadline = order.envelope.deadline?;
    let quarter = deadline.saturating_sub(order.envelope.created) / 4;
    Some(deadline - quarter.min(merchant.retry.margin.as_millis() as u64))
}

impl Shadow {
    pub(crate) fn new(forgetful: bool, jumps: bool) -> Self {
        Self {
            forgetful,
            jumps,
            ..Self::default()
        }
    }

    pub(crate) fn published(&mut self, seq: Seq, truth: Truth, poison: bool) {
        if let Ok(order) = &truth.order {
            let id = (truth.merchant.clone(), order.envelope.id.clone());
            self.same_id.entry(id).or_default().push(seq);
        }
        if poison {
            self.poison.insert(seq);
        }
        self.open.insert(seq);
        self.truth.insert(seq, truth);
    }

    pub(crate) fn is_poison(&self, seq: Seq) -> bool {
        self.poison.contains(&seq)
    }

    pub(crate) fn cured(&mut self) {
        self.poison.clear();
    }

    /// A manifest is valid from now on; its limits begin anew.
    pub(crate) fn registered(&mut self, merchant: &Merchant) {
        if self
            .specs
            .insert(merchant.id.clone(), merchant.clone())
            .is_some()
        {
            self.changed.insert(merchant.id.clone());
        }
        let limits = &merchant.limits;
        let size = limits.mailbox.max(limits.concurrency);
        let attempts = merchant.retry.max_attempts;
        if limits.backlog.is_some() {
            self.bounded.insert(merchant.id.clone());
        }
        let bounds = self
            .bounds
            .entry(merchant.id.clone())
            .or_insert((size, attempts));
        *bounds = (bounds.0.max(size), bounds.1.min(attempts));
        self.starts.remove(&merchant.id);
        self.quotas.remove(&merchant.id);
    }

    pub(crate) fn mailbox_bound(&self, merchant: &MerchantId) -> u32 {
        self.bounds.get(merchant).map_or(0, |bounds| bounds.0)
    }

    pub(crate) fn fewest_attempts(&self, merchant: &MerchantId) -> u32 {
        self.bounds.get(merchant).map_or(0, |bounds| bounds.1)
    }

    pub(crate) fn asked_to_wait(
        &mut self,
        token: Seq,
        merchant: &MerchantId,
        asked: (u64, UnixMillis),
    ) {
        let known = self.asked.entry((token, merchant.clone())).or_insert(asked);
        if asked.1 > known.1 {
            *known = asked;
        }
    }

    /// An owner knows that an operator holds the merchant, or does not.
    pub(crate) fn holds(&mut self, token: Seq, merchant: &MerchantId, held: bool, now: Now) {
        let key = (token, merchant.clone());
        match held {
            true => drop(self.held.entry(key).or_insert(now.mono)),
            false => drop(self.held.remove(&key)),
        }
    }

    /// An operator says that it can go on.
    pub(crate) fn resumed(&mut self, token: Seq, merchant: &MerchantId) {
        self.asked.remove(&(token, merchant.clone()));
        self.quarantined.remove(&(token, merchant.clone()));
    }

    /// A request leaves. `decided`: this owner has decided that order already.
    pub(crate) fn launch(&mut self, launching: &Launching<'_>, decided: impl Fn(Seq) -> bool) {
        let Launching {
            token,
            merchant,
            order,
            begun,
            now,
            ..
        } = *launching;
        let (seq, envelope) = (order.seq, &order.envelope);
        let id = (merchant.id.clone(), envelope.id.clone());
        if token != launching.standing {
            broken!(
                "OWN-1",
                "the owner {token} sends order {seq} under {}",
                launching.standing
            );
        }
        // Of whichever epoch: all of them are read before the first request of one.
        if let Some(done) = self.done.get(&seq) {
            broken!(
                "ORD-1",
                "I3: order {seq} is sent after its outcome {:?}",
                done.kind
            );
        }
        let published = self
            .truth
            .get(&seq)
            .and_then(|truth| truth.order.as_ref().ok());
        if published.map(|order| &order.envelope) != Some(envelope) {
            broken!(
                "ORD-1",
                "I4: what is sent as {seq} was published as {published:?}"
            );
        }
        if decided(seq) {
            broken!("ORD-1", "order {seq} is sent after its outcome was decided");
        }
        self.judge_repeats(launching, &id);
        self.judge_order(launching, decided);
        self.judge_holds(launching);
        self.judge_limits(launching);
        if gives_up(merchant, order).is_some_and(|end| end <= now.wall) {
            broken!("ORD-1", "order {seq} is sent after it gave up");
        }
        let early = envelope
            .not_before
            .is_some_and(|not_before| not_before > begun.at.wall);
        if early && !self.jumps {
            broken!("ORD-1", "order {seq} is sent before its time");
        }
        let held = self.held.get(&(token, merchant.id.clone()));
        if held.is_some_and(|since| begun.at.mono > since + HEARD) {
            broken!("DUR-1", "order {seq} is sent while its merchant is held");
        }
        if self.paused.contains(&token) {
            broken!("ISO-1", "order {seq} is sent by {token}, which is paused");
        }
        if self.quarantined.contains(&(token, merchant.id.clone())) {
            broken!("ISO-1", "order {seq} is sent to a quarantined merchant");
        }
        self.launched += 1;
        let sent = Sent {
            seq,
            token,
            at: now.mono,
            concurrency: begun.limits.concurrency,
            marked_over: false,
            class: None,
            settled: false,
        };
        let all = self.sent.entry(id).or_default();
        if launching.absent {
            all.iter_mut().for_each(|before| before.settled = true);
        }
        all.push(sent);
    }

    fn judge_repeats(&self, launching: &Launching<'_>, id: &(MerchantId, OrderId)) {
        let Launching {
            token,
            merchant,
            order,
            begun,
            ..
        } = *launching;
        let seq = order.seq;
        let window = merchant.adapter.idempotency_window.as_micros() as u64;
        for sent in self.sent.get(id).into_iter().flatten() {
            if sent.token == token && sent.class.is_none() {
                broken!(
                    "ORD-2",
                    "order {seq} is sent while it is on the wire ({})",
                    sent.seq
                );
            }
            if !sent.maybe_received() {
                continue;
            }
            if merchant.adapter.idempotency == Idempotency::None {
                broken!(
                    "ORD-3",
                    "order {seq} is sent again after {:?} ({})",
                    sent.class,
                    sent.seq
                );
            }
            if merchant.adapter.idempotency == Idempotency::Lookup {
                let blind = !launching.absent || (launching.on_wire && !self.jumps);
                if blind {
                    broken!("ORD-3", "order {seq} is sent again blindly ({})", sent.seq);
                }
                continue;
            }
            // Over several crashes the first attempt's time may be known too late (ARCHITECTURE.md).
            if sent.token == token && begun.at.mono >= sent.at + window && !sent.marked_over {
                broken!(
                    "ORD-3",
                    "order {seq} is sent again after its key was forgotten"
                );
            }
        }
    }

    /// Whatever is older and shares the key is over before.
    fn judge_order(&self, launching: &Launching<'_>, decided: impl Fn(Seq) -> bool) {
        let Launching {
            merchant, order, ..
        } = *launching;
        let key = order.envelope.key.as_ref();
        let ordering = merchant.limits.ordering;
        if ordering == Ordering::None || (ordering == Ordering::Order && key.is_none()) {
            return;
        }
        for older in self.open.range(..order.seq) {
            let truth = &self.truth[older];
            let Ok(other) = &truth.order else { continue };
            let shares = ordering == Ordering::Merchant || other.envelope.key.as_ref() == key;
            if truth.merchant == merchant.id && shares && !decided(*older) {
                broken!(
                    "ORD-4",
                    "order {} is sent before the older {older}",
                    order.seq
                );
            }
        }
    }

    /// Nothing goes past a parked order that nobody has resolved.
    fn judge_holds(&self, launching: &Launching<'_>) {
        let Launching {
            merchant, order, ..
        } = *launching;
        let unsure = [&self.changed, &self.strangers];
        if !merchant.holds_on_park() || unsure.iter().any(|set| set.contains(&merchant.id)) {
            return;
        }
        let key = order.envelope.key.as_ref();
        // An older one may be in its mailbox when a later one turns out to be in doubt.
        for (seq, (parked, resolved)) in self.parked.range(..order.seq) {
            let shares = match merchant.limits.ordering {
                Ordering::Merchant => true,
                _ => key.is_some() && parked.envelope.key.as_ref() == key,
            };
            if !resolved && parked.envelope.merchant == merchant.id && shares {
                broken!(
                    "ORD-4",
                    "order {} is sent past {seq}, which is parked",
                    order.seq
                );
            }
        }
    }

    fn judge_limits(&mut self, launching: &Launching<'_>) {
        let Launching {
            token,
            merchant,
            order,
            begun,
            in_flight,
            ..
        } = *launching;
        let seq = order.seq;
        // Each may have begun under another manifest.
        let running = self.sent.iter().filter(|((of, _), _)| *of == merchant.id);
        let running = running.flat_map(|(_, sent)| sent);
        let running = running.filter(|sent| sent.token == token && sent.class.is_none());
        let allowed = running
            .map(|sent| sent.concurrency)
            .chain([begun.limits.concurrency, merchant.limits.concurrency])
            .max()
            .unwrap_or(0);
        if in_flight >= allowed as usize {
            broken!(
                "RATE-1",
                "order {seq} is the {}th of {allowed} in flight",
                in_flight + 1
            );
        }
        if let Some((since, until)) = self.asked.get(&(token, merchant.id.clone()))
            && begun.at.mono > *since
            && begun.at.wall < *until
            && !self.jumps
        {
            broken!(
                "RATE-1",
                "order {seq} is sent although {} asked to wait",
                merchant.id
            );
        }
        self.judge_quotas(launching);
        let (Some(rate), burst) = (begun.limits.rates.first().copied(), begun.limits.burst) else {
            return;
        };
        let fresh = || (rate, burst, VecDeque::new());
        let known = self.starts.entry(merchant.id.clone()).or_insert_with(fresh);
        if (known.0, known.1) != (rate, burst) {
            *known = fresh();
        }
        let starts = &mut known.2;
        let at = begun.at.mono;
        let place = starts.partition_point(|other| *other <= at);
        starts.insert(place, at);
        if starts.len() > STARTS {
            starts.pop_front();
        }
        for (first, since) in starts.iter().enumerate() {
            for (last, until) in starts.iter().enumerate().skip(first.max(place)) {
                let allowed = u64::from(burst) + (until - since) * 1_000 / rate.interval_ns();
                if (last - first) as u64 + 1 > allowed {
                    let span = until - since;
                    broken!(
                        "RATE-1",
                        "{} starts in {span}us to {}",
                        last - first + 1,
                        merchant.id
                    );
                }
            }
        }
    }

    /// A merchant was asked for an order that may have been received.
    pub(crate) fn looked(&mut self, order: &Order, looked: Looked) {
        let id = (order.envelope.merchant.clone(), order.envelope.id.clone());
        match looked {
            Looked::Found => drop(self.found.insert(id)),
            Looked::Undecided(_) => *self.undecided.entry(order.seq).or_default() += 1,
            Looked::Absent => {}
        }
    }

    /// No window of any quota sees more, whoever owned the partition.
    fn judge_quotas(&mut self, launching: &Launching<'_>) {
        let Launching {
            merchant,
            begun,
            now,
            ..
        } = *launching;
        // What an owner did long before it left counts when its successor looks; with a clock that
        // jumps nobody can tell how long ago anything was.
        if self.jumps || now.mono > begun.at.mono + REPORTED_WITHIN {
            return;
        }
        let rates = &begun.limits.rates;
        let known = self.quotas.entry(merchant.id.clone()).or_default();
        if known.0 != *rates {
            *known = (rates.clone(), Vec::new());
        }
        let starts = &mut known.1;
        let place = starts.partition_point(|other| *other <= begun.at.mono);
        starts.insert(place, begun.at.mono);
        for quota in rates.iter().skip(1) {
            let period = quota.period().as_micros() as u64;
            // Windows that this start is in: those that end with it or with a later one.
            for (last, until) in starts.iter().enumerate().skip(place) {
                let first = starts.partition_point(|other| *other + period <= *until);
                let went = last + 1 - first;
                if went > quota.count() as usize {
                    broken!("RATE-1", "{went} of {quota} to {} in a window", merchant.id);
                }
            }
        }
    }

    /// A merchant answered, whoever hears it.
    pub(crate) fn answered(&mut self, order: &Order, token: Seq, class: AttemptClass) {
        let id = (order.envelope.merchant.clone(), order.envelope.id.clone());
        let mut all = self.sent.get_mut(&id).into_iter().flatten();
        if let Some(sent) =
            all.find(|s| s.token == token && s.seq == order.seq && s.class.is_none())
        {
            sent.class = Some(class);
        }
    }

    /// An owner's mark is durable.
    pub(crate) fn marked_by(&mut self, token: Seq) {
        for sent in self.sent.values_mut().flatten() {
            sent.marked_over |= sent.token < token;
        }
    }

    /// These are gone from the log.
    pub(crate) fn purged(&self, seqs: &[Seq]) {
        for seq in seqs {
            if !self.done.contains_key(seq) {
                broken!("ORD-1", "I1: order {seq} is purged without an outcome");
            }
        }
    }

    /// Every order has its outcome, and each id was finished for real once.
    pub(crate) fn all_over(&self) {
        for (id, seqs) in &self.same_id {
            let kinds: Vec<OutcomeKind> = seqs.iter().map(|seq| self.done[seq].kind).collect();
            let closes = |kind: &&OutcomeKind| {
                matches!(
                    kind,
                    OutcomeKind::Duplicate
                        | OutcomeKind::DeadLettered(expediter_types::DeadReason::IdConflict)
                )
            };
            let real = kinds.len() - kinds.iter().filter(closes).count();
            // A repeat that is taken so late may meet an owner without the store of its predecessor.
            let decided = || seqs.iter().map(|seq| self.done[seq].decided);
            let apart = decided().max().unwrap_or(0) - decided().min().unwrap_or(0);
            if real == 0 || (real > 1 && apart < REPEATS_NOTICED) {
                broken!("ORD-1", "{id:?} at {seqs:?} ended {real} times: {kinds:?}");
            }
        }
    }
}
