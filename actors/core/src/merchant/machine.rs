//! The machine's orders: taken in, started, expired.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use expediter_types::{
    ClosedBecause, DeadReason, Idempotency, Merchant, Now, OutcomeKind, Seq, UnixMillis,
};

use super::adaptive::Adaptive;
use super::breaker::Health;
use super::budget::Budget;
use super::limits::{Rates, Ready};
use super::schedule::Pace;
use super::select::{Contest, Rank};
use super::{Accepting, Closure, Effect, Next, Offer, SHORT_CLOSURE, Wait, expiry, millis};
use crate::quota::Quotas;

#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub(super) offer: Offer,
    /// Number of the running attempt.
    pub(super) running: Option<u32>,
    /// Taken over while it ran: what else waits for it or before it is not known.
    pub(super) adopted: bool,
    /// It was started to find out whether the merchant is back.
    pub(super) probe: bool,
    /// It runs under a manifest without idempotency, whatever the manifest says since.
    pub(super) nameless: bool,
}

impl Slot {
    fn rank(&self) -> Rank {
        Rank {
            priority: self.offer.priority,
            repeat: self.offer.attempts > 0,
        }
    }
}

/// One merchant's machine.
#[derive(Debug)]
pub struct MerchantMachine {
    pub(super) merchant: Arc<Merchant>,
    pub(super) rates: Rates,
    pub(super) concurrency: Adaptive,
    pub(super) health: Health,
    pub(super) budget: Budget,
    pub(super) pace: Pace,
    pub(super) slots: BTreeMap<Seq, Slot>,
    /// Heads of their keys and orders without one, not running.
    ready: Contest,
    pub(super) keys: HashMap<u64, VecDeque<Seq>>,
    pub(super) deadlines: BTreeSet<(UnixMillis, Seq)>,
    pub(super) running: u32,
    pub(super) closure: Option<Closure>,
    /// The merchant asked to wait until then; a closure for another cause may hide it.
    pub(super) asked_until: UnixMillis,
    /// Our own fault: nothing starts before this monotonic time.
    pub(super) paused_until: u64,
    halted: bool,
    pub(super) effects: Vec<Effect>,
    /// Orders given back so far.
    pub(super) returns: u64,
    /// Keys of which orders were given back, and `returns` after that. What the partition offered
    /// before it heard of them is younger and must not overtake them.
    pub(super) returned: HashMap<u64, u64>,
}

impl MerchantMachine {
    /// An idle machine. `limits_since`: start of the epoch by the monotonic clock; nothing of the
    /// pace is available at it. What was spent of the quotas and a closure that still holds are
    /// taken over.
    #[must_use]
    pub fn new(
        merchant: Arc<Merchant>,
        limits_since: u64,
        spent: Quotas,
        closure: Option<Closure>,
    ) -> Self {
        let limits = &merchant.limits;
        Self {
            rates: Rates::begin(limits, limits_since, spent),
            concurrency: Adaptive::new(limits),
            health: Health::default(),
            budget: Budget::full(limits_since),
            pace: Pace::default(),
            merchant,
            slots: BTreeMap::new(),
            ready: Contest::default(),
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
                probe: false,
                nameless: false,
            },
        );
        self.deadlines.insert((offer.deadline, offer.seq));
        match offer.key {
            None => {
                self.enter(offer.seq);
            }
            Some(key) => {
                let queue = self.keys.entry(key).or_default();
                let old_head = queue.front().copied();
                let place = queue.partition_point(|seq| *seq < offer.seq);
                queue.insert(place, offer.seq);
                if place == 0 {
                    // A head that runs keeps its turn; the older order follows when it ends.
                    let head_waits = old_head.is_none_or(|head| self.withdraw(head));
                    if head_waits {
                        self.enter(offer.seq);
                    }
                }
            }
        }
    }

    /// An order may start.
    pub(super) fn enter(&mut self, seq: Seq) {
        if let Some(slot) = self.slots.get(&seq) {
            self.ready.insert(seq, slot.rank());
        }
    }

    /// It may not, after all. True: it could.
    pub(super) fn withdraw(&mut self, seq: Seq) -> bool {
        let slot = self.slots.get(&seq);
        slot.is_some_and(|slot| self.ready.remove(seq, slot.rank()))
    }

    /// Takes over an attempt that is running: the machine was rebuilt.
    pub fn adopt(&mut self, seq: Seq, number: u32) {
        if self
            .slots
            .get(&seq)
            .is_none_or(|slot| slot.running.is_some())
        {
            return;
        }
        self.withdraw(seq);
        if let Some(slot) = self.slots.get_mut(&seq) {
            slot.running = Some(number);
            slot.adopted = true;
            slot.nameless = self.merchant.adapter.idempotency == Idempotency::None;
            self.running += 1;
            self.deadlines.remove(&(slot.offer.deadline, seq));
            let queue = slot.offer.key.and_then(|key| self.keys.get(&key));
            if let Some(head) = queue.and_then(|queue| queue.front()).copied() {
                self.withdraw(head);
            }
        }
    }

    /// Another manifest: limits act at once, and a suspended merchant gets another chance.
    pub fn change(&mut self, merchant: Arc<Merchant>, now: Now) {
        self.rates.change(&merchant.limits, now.mono);
        self.concurrency.change(&merchant.limits);
        let reopens = self
            .closure
            .is_some_and(|c| c.because != ClosedBecause::RateLimited);
        if reopens {
            self.health.reset();
            self.open(now);
        }
        self.merchant = merchant;
    }

    /// Gives a waiting order back for good. One that runs stays: it is too late.
    pub fn take_back(&mut self, seq: Seq) {
        let waits = |slot: &Slot| slot.running.is_none();
        if self.slots.get(&seq).is_some_and(waits) {
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
        let earliest = self.rates.ready_at(now.mono).at.max(self.paused_until);
        let paid = self.budget.ready_at(now.mono);
        while !self.ready.is_empty() && self.running < self.concurrency() {
            if earliest > now.mono {
                return at(earliest);
            }
            let Some(seq) = self.ready.next(paid <= now.mono) else {
                return at(paid);
            };
            if !self.forgotten(seq, now) {
                return Next::Start(seq);
            }
            self.finish(seq, OutcomeKind::DeadLettered(DeadReason::Ambiguous));
        }
        waiting
    }

    /// What keeps the mailbox waiting; [`Wait::Capacity`] when nothing of the machine does.
    #[must_use]
    pub fn waits(&self, now: Now) -> Wait {
        if self.slots.len() <= self.running as usize {
            return Wait::Nothing;
        }
        if self.halted {
            return Wait::Halted;
        }
        let concurrency = self.concurrency();
        match self.closure {
            Some(closure) if closure.until > now.wall => return Wait::Closed,
            Some(closure) if closure.because != ClosedBecause::RateLimited && self.running > 0 => {
                return Wait::Closed;
            }
            _ => {}
        }
        let rates = self.rates.ready_at(now.mono);
        if self.ready.is_empty() {
            Wait::Key
        } else if self.running >= concurrency {
            Wait::Concurrency(concurrency)
        } else if self.paused_until > now.mono {
            Wait::Local
        } else if let Some(rate) = rates.holds.filter(|_| rates.at > now.mono) {
            Wait::Rate(rate)
        } else if self
            .ready
            .next(self.budget.ready_at(now.mono) <= now.mono)
            .is_none()
        {
            Wait::Budget
        } else {
            Wait::Capacity
        }
    }

    /// Attempts that may be in flight now.
    #[must_use]
    pub fn concurrency(&self) -> u32 {
        self.concurrency.limit(&self.merchant.limits)
    }

    /// When the rates let the next order go, and the rate that holds it until then.
    #[must_use]
    pub fn rate_ready(&self, now: Now) -> Ready {
        self.rates.ready_at(now.mono)
    }

    /// Why the merchant takes nothing, if so.
    #[must_use]
    pub fn closure(&self) -> Option<Closure> {
        self.closure
    }

    /// The merchant may have the order, and would not know it again: its manifest says so since, or
    /// the key is too old.
    pub(super) fn forgotten(&self, seq: Seq, now: Now) -> bool {
        if self.merchant.adapter.idempotency == Idempotency::Lookup {
            return false;
        }
        let adapter = &self.merchant.adapter;
        let window = millis(adapter.idempotency_window);
        self.slots.get(&seq).is_some_and(|slot| {
            let first = slot.offer.first_attempt.unwrap_or(now.wall);
            let over = first.saturating_add(window) <= now.wall;
            slot.offer.ambiguous && (adapter.idempotency == Idempotency::None || over)
        })
    }

    /// Starts what [`MerchantMachine::next`] named, and gives the attempt's number.
    pub fn start(&mut self, seq: Seq, now: Now) -> Option<u32> {
        if !self.withdraw(seq) {
            return None;
        }
        self.check_start(seq, now);
        let slot = self.slots.get_mut(&seq)?;
        let number = slot.offer.attempts + 1;
        slot.running = Some(number);
        slot.offer.first_attempt.get_or_insert(now.wall);
        slot.nameless = self.merchant.adapter.idempotency == Idempotency::None;
        slot.probe = self
            .closure
            .is_some_and(|c| c.because != ClosedBecause::RateLimited);
        self.deadlines.remove(&(slot.offer.deadline, seq));
        let rank = slot.rank();
        self.ready.went(rank.priority);
        match rank.repeat {
            true => self.budget.take(now.mono),
            false => self.budget.first(self.merchant.retry.budget),
        }
        self.rates.take(now.mono);
        self.running += 1;
        if self.running >= self.concurrency() {
            self.concurrency.reached();
        }
        Some(number)
    }

    /// The oldest order of a key may start, unless one of them runs.
    pub(super) fn ready_head(&mut self, key: u64) {
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
            self.enter(head);
        }
    }

    pub(super) fn finish(&mut self, seq: Seq, kind: OutcomeKind) {
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
    pub(super) fn leave(&mut self, seq: Seq) {
        self.withdraw(seq);
        let Some(slot) = self.slots.remove(&seq) else {
            return;
        };
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
    pub(super) fn leave_with_followers(&mut self, seq: Seq) {
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
            None => self.accepting_repeats(now),
            Some(c) if c.until > now.wall.saturating_add(millis(SHORT_CLOSURE)) => {
                Accepting::ClosedUntil(c.until)
            }
            Some(c) if c.because == ClosedBecause::RateLimited => self.accepting_repeats(now),
            Some(_) => Accepting::Probe,
        }
    }

    /// Orders that wait for the retry budget must not crowd the others out of the mailbox.
    fn accepting_repeats(&self, now: Now) -> Accepting {
        let limits = &self.merchant.limits;
        if self.budget.is_ample(now.mono) {
            Accepting::Open
        } else if self.ready.repeats() as u32 >= crate::merchant::share_of_repeats(limits) {
            Accepting::Fresh
        } else {
            Accepting::Short
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
        for seq in self.ready.iter() {
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

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
