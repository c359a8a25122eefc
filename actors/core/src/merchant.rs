//! A merchant's state machine: which of the orders in its mailbox goes next, and what an answer
//! means for the order and for the merchant.
//!
//! Constraints: it holds no payload and no attempt history (the partition does), so that it can be
//! rebuilt at any moment from the partition's window. Its orders are either ready, behind an older
//! order of their key, or running. What has to wait longer leaves it by an [`Effect`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use expediter_types::{
    AttemptClass, ClosedBecause, DeadReason, Idempotency, Merchant, Now, OutcomeKind, Seq,
    UnixMillis,
};

use crate::{backoff, limiter::Limiter};

/// A merchant closed for longer than this gives its waiting orders back.
const SHORT_CLOSURE: Duration = Duration::from_secs(2);
/// A suspended or misconfigured merchant is probed with one order so often.
pub const PROBE_EVERY: Duration = Duration::from_secs(60);
/// How long our own fault holds a merchant's orders back.
const LOCAL_PAUSE: Duration = Duration::from_secs(1);
/// For a 429 without a Retry-After that the adapter filled in.
const DEFAULT_CLOSURE: Duration = Duration::from_secs(1);

/// An order as the machine sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    pub seq: Seq,
    /// Orders of one key go in sequence; the partition decides what the key is.
    pub key: Option<u64>,
    pub deadline: UnixMillis,
    /// Counted so far.
    pub attempts: u32,
    pub first_attempt: Option<UnixMillis>,
    /// An attempt may have been received.
    pub ambiguous: bool,
    /// How many orders this machine gave back ([`Effect::Defer`], [`Effect::Return`]) as far as
    /// the partition had heard when it offered this one.
    pub returns: u64,
}

/// What the partition has to do about an order, or has to know of the merchant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The order ended and left.
    Finish { seq: Seq, kind: OutcomeKind },
    /// The order left and waits for a time.
    Defer {
        seq: Seq,
        due: UnixMillis,
        counted: bool,
        ambiguous: bool,
    },
    /// The order left; it could go when the merchant can take it.
    Return { seq: Seq },
    /// The order stays, its attempt ended without counting.
    Again { seq: Seq },
    /// The order was asked back before it was sent, and left.
    Withdrawn { seq: Seq },
    /// The order that just ended is parked, and those that share its key wait for a person.
    Hold,
    /// The merchant closed or opened.
    Closure(Option<Closure>),
}

/// The merchant takes nothing for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closure {
    pub because: ClosedBecause,
    /// It opens (rate limited), or is probed, by the wall clock.
    pub until: UnixMillis,
}

/// What could happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This order may start now.
    Start(Seq),
    /// Nothing before this time of the monotonic clock.
    At(u64),
    /// Nothing until an input.
    Idle,
}

/// How many more orders the merchant wants in its mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepting {
    /// Up to its mailbox.
    Open,
    /// None before this time of the wall clock.
    ClosedUntil(UnixMillis),
    /// One, to find out whether the merchant is back.
    Probe,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    offer: Offer,
    /// Number of the running attempt.
    running: Option<u32>,
    /// Taken over while it ran: what else waits for it or before it is not known.
    adopted: bool,
}

/// One merchant's machine.
#[derive(Debug)]
pub struct MerchantMachine {
    merchant: Arc<Merchant>,
    limiter: Limiter,
    slots: BTreeMap<Seq, Slot>,
    /// Heads of their keys and orders without one, not running.
    ready: BTreeSet<Seq>,
    keys: HashMap<u64, VecDeque<Seq>>,
    deadlines: BTreeSet<(UnixMillis, Seq)>,
    running: u32,
    closure: Option<Closure>,
    /// The merchant asked to wait until then; a closure for another cause may hide it.
    asked_until: UnixMillis,
    /// Our own fault: nothing starts before this monotonic time.
    paused_until: u64,
    halted: bool,
    effects: Vec<Effect>,
    /// Orders given back so far.
    returns: u64,
    /// Keys of which orders were given back, and `returns` after that. What the partition offered
    /// before it heard of them is younger and must not overtake them.
    returned: HashMap<u64, u64>,
}

impl MerchantMachine {
    /// An idle machine. `limits_since`: start of the epoch by the monotonic clock; nothing of the
    /// rate is available at it. A closure that still holds is taken over.
    #[must_use]
    pub fn new(merchant: Arc<Merchant>, limits_since: u64, closure: Option<Closure>) -> Self {
        let limits = &merchant.limits;
        Self {
            limiter: Limiter::empty_since(
                limits.rates.first().copied(),
                limits.burst,
                limits_since,
            ),
            merchant,
            slots: BTreeMap::new(),
            ready: BTreeSet::new(),
            keys: HashMap::new(),
            deadlines: BTreeSet::new(),
            running: 0,
            asked_until: closure
                .filter(|closure| closure.because == ClosedBecause::RateLimited)
                .map_or(0, |closure| closure.until),
            closure,
            paused_until: 0,
            halted: false,
            effects: Vec::new(),
            returns: 0,
            returned: HashMap::new(),
        }
    }

    /// Takes an order into the mailbox. One it already has is ignored.
    pub fn offer(&mut self, offer: Offer) {
        if self.slots.contains_key(&offer.seq) {
            return;
        }
        self.returned.retain(|_, returns| *returns > offer.returns);
        if let Some(key) = offer.key.filter(|key| self.returned.contains_key(key)) {
            return self.give_back(offer.seq, Some(key));
        }
        self.slots.insert(
            offer.seq,
            Slot {
                offer,
                running: None,
                adopted: false,
            },
        );
        self.deadlines.insert((offer.deadline, offer.seq));
        match offer.key {
            None => {
                self.ready.insert(offer.seq);
            }
            Some(key) => {
                let queue = self.keys.entry(key).or_default();
                let old_head = queue.front().copied();
                let place = queue.partition_point(|seq| *seq < offer.seq);
                queue.insert(place, offer.seq);
                if place == 0 {
                    // A head that runs keeps its turn; the older order follows when it ends.
                    let head_waits = old_head.is_none_or(|head| self.ready.remove(&head));
                    if head_waits {
                        self.ready.insert(offer.seq);
                    }
                }
            }
        }
    }

    /// Takes over an attempt that is running: the machine was rebuilt.
    pub fn adopt(&mut self, seq: Seq, number: u32) {
        if let Some(slot) = self.slots.get_mut(&seq)
            && slot.running.is_none()
        {
            slot.running = Some(number);
            slot.adopted = true;
            self.running += 1;
            self.ready.remove(&seq);
            self.deadlines.remove(&(slot.offer.deadline, seq));
            let queue = slot.offer.key.and_then(|key| self.keys.get(&key));
            if let Some(head) = queue.and_then(|queue| queue.front()) {
                self.ready.remove(head);
            }
        }
    }

    /// Another manifest: limits act at once, and a suspended merchant gets another chance.
    pub fn change(&mut self, merchant: Arc<Merchant>, now: Now) {
        let limits = &merchant.limits;
        self.limiter
            .change(limits.rates.first().copied(), limits.burst, now.mono);
        let reopens = self
            .closure
            .is_some_and(|c| c.because != ClosedBecause::RateLimited);
        if reopens {
            self.open(now);
        }
        self.merchant = merchant;
    }

    /// Gives a waiting order back for good. One that runs stays: it is too late.
    pub fn withdraw(&mut self, seq: Seq) {
        if self
            .slots
            .get(&seq)
            .is_some_and(|slot| slot.running.is_none())
        {
            self.effects.push(Effect::Withdrawn { seq });
            self.leave(seq);
        }
    }

    /// Starts nothing more; running attempts end.
    pub fn halt(&mut self) {
        self.halted = true;
    }

    /// What could be done now. Expires what is past its deadline on the way, and gives back what
    /// waits while the merchant is closed for long.
    pub fn next(&mut self, now: Now) -> Next {
        self.expire(now);
        // Not at once when an order is offered: a machine that is rebuilt takes over what runs just
        // after, and that must not go back.
        if self.returns_waiting(now) {
            self.return_all();
        }
        if self.halted {
            return Next::Idle;
        }
        let wake = |wall: UnixMillis| {
            now.mono
                .saturating_add(wall.saturating_sub(now.wall).saturating_mul(1_000))
                .max(now.mono + 1)
        };
        let deadline = self.deadlines.first().map(|(deadline, _)| wake(*deadline));
        let at = |time: u64| Next::At(deadline.map_or(time, |d| d.min(time)));
        let waiting = deadline.map_or(Next::Idle, Next::At);
        if let Some(closure) = self.closure {
            if closure.until > now.wall {
                return at(wake(closure.until));
            }
            match closure.because {
                ClosedBecause::RateLimited => self.open(now),
                // One probe at a time; its answer decides.
                _ if self.running > 0 => return waiting,
                _ => {}
            }
        }
        let Some(seq) = self.ready.first().copied() else {
            return waiting;
        };
        if self.running >= self.merchant.limits.concurrency {
            return waiting;
        }
        let earliest = self.limiter.ready_at().max(self.paused_until);
        if earliest > now.mono {
            return at(earliest);
        }
        if self.forgotten(seq, now) {
            self.finish(seq, OutcomeKind::DeadLettered(DeadReason::Ambiguous));
            return self.next(now);
        }
        Next::Start(seq)
    }

    /// The merchant may have the order, and neither remembers its key any more nor can be asked.
    fn forgotten(&self, seq: Seq, now: Now) -> bool {
        if self.merchant.adapter.idempotency == Idempotency::Lookup {
            return false;
        }
        let window = millis(self.merchant.adapter.idempotency_window);
        self.slots.get(&seq).is_some_and(|slot| {
            let first = slot.offer.first_attempt.unwrap_or(now.wall);
            slot.offer.ambiguous && first.saturating_add(window) <= now.wall
        })
    }

    /// Starts what [`MerchantMachine::next`] named, and gives the attempt's number.
    pub fn start(&mut self, seq: Seq, now: Now) -> Option<u32> {
        let slot = self.slots.get_mut(&seq)?;
        if !self.ready.remove(&seq) {
            return None;
        }
        let number = slot.offer.attempts + 1;
        slot.running = Some(number);
        slot.offer.first_attempt.get_or_insert(now.wall);
        self.deadlines.remove(&(slot.offer.deadline, seq));
        self.limiter.take(now.mono);
        self.running += 1;
        Some(number)
    }

    /// A look-up before the running attempt said that the merchant has not got the order: what
    /// former attempts left in doubt is settled. Before [`MerchantMachine::answer`].
    pub fn absent(&mut self, seq: Seq, number: u32) {
        if let Some(slot) = self.slots.get_mut(&seq)
            && slot.running == Some(number)
        {
            slot.offer.ambiguous = false;
        }
    }

    /// An attempt ended. `random`: any 64 bits, for the jitter. Stale answers are ignored.
    pub fn answer(
        &mut self,
        seq: Seq,
        number: u32,
        class: AttemptClass,
        retry_after: Option<Duration>,
        now: Now,
        random: u64,
    ) {
        let Some(slot) = self
            .slots
            .get(&seq)
            .filter(|slot| slot.running == Some(number))
        else {
            return;
        };
        let offer = slot.offer;
        self.running -= 1;
        let delivered = matches!(class, AttemptClass::Delivered | AttemptClass::AlreadyDone);
        let refused = |c: Closure| c.because != ClosedBecause::RateLimited;
        if delivered && self.closure.is_some_and(refused) {
            self.open(now);
        }
        if class == AttemptClass::RateLimited || retry_after.is_some() {
            self.close(
                ClosedBecause::RateLimited,
                retry_after.unwrap_or(DEFAULT_CLOSURE),
                now,
            );
        }
        // A merchant that asks to wait uses up no attempt.
        let counted = retry_after.is_none();
        match class {
            AttemptClass::Delivered | AttemptClass::AlreadyDone => {
                self.finish(seq, OutcomeKind::Delivered);
            }
            AttemptClass::Rejected => self.finish(seq, OutcomeKind::Rejected),
            AttemptClass::Invalid => {
                self.finish(seq, OutcomeKind::DeadLettered(DeadReason::Invalid));
            }
            AttemptClass::Retry => self.try_again(offer, false, counted, now, random),
            AttemptClass::Ambiguous => self.try_again(offer, true, counted, now, random),
            AttemptClass::RateLimited => self.again(seq),
            AttemptClass::Local => {
                self.paused_until = now
                    .mono
                    .saturating_add(u64::try_from(LOCAL_PAUSE.as_micros()).unwrap_or(0));
                self.again(seq);
            }
            AttemptClass::Suspended => {
                self.again(seq);
                self.close(ClosedBecause::Suspended, PROBE_EVERY, now);
            }
            AttemptClass::Misconfigured => {
                self.again(seq);
                self.close(ClosedBecause::Misconfigured, PROBE_EVERY, now);
            }
        }
    }

    /// A delivery that may have been received goes again only to a merchant that deduplicates, while
    /// it remembers the key, or that can be asked first.
    fn try_again(&mut self, offer: Offer, received: bool, counted: bool, now: Now, random: u64) {
        let ambiguous = received || offer.ambiguous;
        let adapter = &self.merchant.adapter;
        let attempts = offer.attempts + u32::from(counted);
        let wait = backoff::wait(&self.merchant.retry, attempts, random);
        let due = now.wall.saturating_add(millis(wait));
        let remembered_until = offer
            .first_attempt
            .unwrap_or(now.wall)
            .saturating_add(millis(adapter.idempotency_window));
        let repeatable = match adapter.idempotency {
            Idempotency::Native | Idempotency::UniqueRef => due < remembered_until,
            Idempotency::Lookup => true,
            Idempotency::None => false,
        };
        let exhausted = attempts >= self.merchant.retry.max_attempts;
        if ambiguous && (!repeatable || exhausted) {
            self.finish(offer.seq, OutcomeKind::DeadLettered(DeadReason::Ambiguous));
        } else if exhausted {
            self.finish(
                offer.seq,
                OutcomeKind::DeadLettered(DeadReason::AttemptsExhausted),
            );
        } else {
            self.effects.push(Effect::Defer {
                seq: offer.seq,
                due,
                counted,
                ambiguous,
            });
            self.note_returned(offer.key);
            self.leave_with_followers(offer.seq);
        }
    }

    /// The attempt does not count; the order may go as soon as the merchant can.
    fn again(&mut self, seq: Seq) {
        let Some(slot) = self.slots.get_mut(&seq) else {
            return;
        };
        slot.running = None;
        let Offer { deadline, key, .. } = slot.offer;
        let adopted = slot.adopted;
        self.deadlines.insert((deadline, seq));
        self.effects.push(Effect::Again { seq });
        match key {
            None => {
                self.ready.insert(seq);
            }
            Some(key) if adopted => {
                // It may have got its key while it ran, with older ones in the store.
                self.give_back(seq, Some(key));
                self.leave_with_followers(seq);
            }
            Some(key) => self.ready_head(key),
        }
    }

    /// The oldest order of a key may start, unless one of them runs.
    fn ready_head(&mut self, key: u64) {
        let Some(queue) = self.keys.get(&key) else {
            return;
        };
        let runs = |seq: &Seq| {
            self.slots
                .get(seq)
                .is_some_and(|slot| slot.running.is_some())
        };
        if let Some(head) = queue.front().copied()
            && !(self.running > 0 && queue.iter().any(runs))
        {
            self.ready.insert(head);
        }
    }

    fn finish(&mut self, seq: Seq, kind: OutcomeKind) {
        self.effects.push(Effect::Finish { seq, kind });
        let key = self.slots.get(&seq).and_then(|slot| slot.offer.key);
        let parked = kind == OutcomeKind::DeadLettered(DeadReason::Ambiguous);
        if parked && key.is_some() && self.merchant.holds_on_park() {
            self.effects.push(Effect::Hold);
            self.note_returned(key);
            self.leave_with_followers(seq);
        } else {
            self.leave(seq);
        }
    }

    /// Forgets an order; the next of its key becomes ready.
    fn leave(&mut self, seq: Seq) {
        let Some(slot) = self.slots.remove(&seq) else {
            return;
        };
        self.ready.remove(&seq);
        self.deadlines.remove(&(slot.offer.deadline, seq));
        let Some(key) = slot.offer.key else { return };
        let Some(queue) = self.keys.get_mut(&key) else {
            return;
        };
        queue.retain(|other| *other != seq);
        if queue.is_empty() {
            self.keys.remove(&key);
        } else {
            self.ready_head(key);
        }
    }

    /// An order leaves and others of its key must not overtake it. Those that run (taken over from
    /// before they had a key in common) stay: nobody else waits for their answers.
    fn leave_with_followers(&mut self, seq: Seq) {
        let key = self.slots.get(&seq).and_then(|slot| slot.offer.key);
        if let Some(key) = key
            && let Some(queue) = self.keys.remove(&key)
        {
            let mut running = VecDeque::new();
            for follower in queue.into_iter().filter(|other| *other != seq) {
                let slot = self.slots.get(&follower);
                if slot.is_some_and(|slot| slot.running.is_some()) {
                    running.push_back(follower);
                } else {
                    self.give_back(follower, Some(key));
                    self.leave(follower);
                }
            }
            if !running.is_empty() {
                self.keys.insert(key, running);
            }
        }
        self.leave(seq);
    }

    fn close(&mut self, because: ClosedBecause, wait: Duration, now: Now) {
        let until = now.wall.saturating_add(millis(wait));
        if because == ClosedBecause::RateLimited {
            self.asked_until = self.asked_until.max(until);
        }
        // A suspension outlasts a request to wait; of two requests to wait the later counts.
        let closure = match self.closure {
            Some(old) if because == ClosedBecause::RateLimited => Closure {
                because: old.because,
                until: old.until.max(until),
            },
            Some(old) => Closure {
                because,
                until: old.until.max(until),
            },
            None => Closure { because, until },
        };
        if self.closure != Some(closure) {
            self.closure = Some(closure);
            self.effects.push(Effect::Closure(Some(closure)));
        }
    }

    /// The cause is over; a request to wait that still holds is not.
    fn open(&mut self, now: Now) {
        let closure = (self.asked_until > now.wall).then_some(Closure {
            because: ClosedBecause::RateLimited,
            until: self.asked_until,
        });
        if self.closure != closure {
            self.closure = closure;
            self.effects.push(Effect::Closure(closure));
        }
    }

    fn returns_waiting(&self, now: Now) -> bool {
        self.closure
            .is_some_and(|c| c.until > now.wall.saturating_add(millis(SHORT_CLOSURE)))
    }

    fn return_all(&mut self) {
        let waiting: Vec<(Seq, Option<u64>)> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.running.is_none())
            .map(|(seq, slot)| (*seq, slot.offer.key))
            .collect();
        for (seq, key) in waiting {
            self.give_back(seq, key);
            self.leave(seq);
        }
    }

    fn give_back(&mut self, seq: Seq, key: Option<u64>) {
        self.effects.push(Effect::Return { seq });
        self.note_returned(key);
    }

    fn note_returned(&mut self, key: Option<u64>) {
        self.returns += 1;
        if let Some(key) = key {
            self.returned.insert(key, self.returns);
        }
    }

    /// Orders given back so far: effects [`Effect::Defer`] and [`Effect::Return`].
    #[must_use]
    pub fn returns(&self) -> u64 {
        self.returns
    }

    fn expire(&mut self, now: Now) {
        while let Some((deadline, seq)) = self.deadlines.first().copied() {
            if deadline > now.wall {
                return;
            }
            let ambiguous = self
                .slots
                .get(&seq)
                .is_some_and(|slot| slot.offer.ambiguous);
            self.finish(seq, expiry(ambiguous));
        }
    }

    /// What the machine wants of the partition since the last call.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Whether more orders are wanted.
    #[must_use]
    pub fn accepting(&self, now: Now) -> Accepting {
        match self.closure {
            None => Accepting::Open,
            Some(c) if c.until > now.wall.saturating_add(millis(SHORT_CLOSURE)) => {
                Accepting::ClosedUntil(c.until)
            }
            Some(c) if c.because == ClosedBecause::RateLimited => Accepting::Open,
            Some(_) => Accepting::Probe,
        }
    }

    /// Attempts in flight.
    #[must_use]
    pub fn running(&self) -> u32 {
        self.running
    }

    /// Orders in the mailbox, running ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// No order is in the mailbox.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// It may be let go: rebuilding it later gives the same.
    #[must_use]
    pub fn is_idle(&self, now: Now) -> bool {
        self.slots.is_empty() && self.limiter.is_full(now.mono)
    }

    /// Panics on states that cannot be, in tests and simulations.
    pub fn check(&self) {
        let running = self
            .slots
            .values()
            .filter(|slot| slot.running.is_some())
            .count();
        assert_eq!(
            running, self.running as usize,
            "running attempts are miscounted"
        );
        for seq in &self.ready {
            let slot = self
                .slots
                .get(seq)
                .expect("ready orders are in the mailbox");
            assert!(slot.running.is_none(), "a running order is ready");
            if let Some(queue) = slot.offer.key.and_then(|key| self.keys.get(&key)) {
                assert_eq!(
                    queue.front(),
                    Some(seq),
                    "ORD-4: a ready order is behind its key"
                );
            }
        }
        for queue in self.keys.values() {
            assert!(
                queue.iter().is_sorted(),
                "ORD-4: a key's orders are out of sequence"
            );
        }
    }
}

/// How an order ends whose time is over.
#[must_use]
pub fn expiry(ambiguous: bool) -> OutcomeKind {
    if ambiguous {
        OutcomeKind::DeadLettered(DeadReason::Ambiguous)
    } else {
        OutcomeKind::Expired
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
