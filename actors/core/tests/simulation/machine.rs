//! A merchant's machine alone: thousands of inputs, a simple model of what it may do beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use expediter_core::merchant::{Closure, Effect, Ended, MerchantMachine, Next, Offer};
use expediter_core::quota::Quotas;
use expediter_types::{
    AttemptClass, ClosedBecause, Idempotency, Merchant, Now, OutcomeKind, Priority, Seq,
};

use crate::plan::Plan;
use crate::rng::Rng;

/// An order in the mailbox, as the model knows it.
#[derive(Debug)]
struct Model {
    offer: Offer,
    running: Option<u32>,
}

#[derive(Debug)]
struct Alone {
    rng: Rng,
    now: Now,
    merchant: Arc<Merchant>,
    machine: MerchantMachine,
    orders: BTreeMap<Seq, Model>,
    next_seq: Seq,
    gone: BTreeSet<Seq>,
    halted: bool,
    /// In a row, as far as this machine knows.
    failures: u32,
}

impl Alone {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng, 0);
        let merchant = Arc::clone(&rng.pick(&plan.merchants).0);
        let now = Now {
            mono: 5_000_000,
            wall: 1_700_000_000_000,
        };
        let machine =
            MerchantMachine::new(Arc::clone(&merchant), now.mono, Quotas::default(), None);
        let (orders, gone) = (BTreeMap::new(), BTreeSet::new());
        Self {
            rng,
            now,
            merchant,
            machine,
            orders,
            next_seq: 100,
            gone,
            halted: false,
            failures: 0,
        }
    }

    fn step(&mut self) {
        self.now.mono += self.rng.skewed(3_000_000);
        let passed = self.rng.skewed(3_000);
        self.now.wall += passed;
        match self.rng.weighted(&[40, 60, 2, 2, 30]) {
            0 => self.offer(),
            1 => self.answer(),
            2 => self.change(),
            3 => self.rebuild(),
            _ => {}
        }
        // What an answer ended is over before the next one starts.
        self.effects();
        self.advance();
        self.effects();
        self.machine.check();
        assert_eq!(self.machine.len(), self.orders.len());
    }

    fn offer(&mut self) {
        // Most come in sequence, some are older ones that come back.
        let seq = match self.rng.chance(850) {
            true => {
                self.next_seq += 1 + self.rng.below(3);
                self.next_seq
            }
            false => 1 + self.rng.below(self.next_seq),
        };
        if self.gone.contains(&seq) {
            return;
        }
        let offer = Offer {
            seq,
            key: self.rng.chance(700).then(|| self.rng.below(3)),
            deadline: self.now.wall + self.rng.skewed(120_000),
            priority: *self.rng.pick(&Priority::ALL),
            attempts: self.rng.below(3) as u32,
            first_attempt: None,
            ambiguous: false,
            returns: self.machine.returns(),
        };
        self.machine.offer(offer);
        self.orders.entry(seq).or_insert(Model {
            offer,
            running: None,
        });
    }

    fn answer(&mut self) {
        let running = self
            .orders
            .iter()
            .filter_map(|(seq, o)| Some((*seq, o.running?)));
        let running: Vec<(Seq, u32)> = running.collect();
        if running.is_empty() {
            return;
        }
        let (seq, number) = *self.rng.pick(&running);
        // A stale answer changes nothing.
        if self.rng.chance(50) {
            let stale = number + 1;
            let ended = Ended {
                class: AttemptClass::Delivered,
                retry_after: None,
                absent: false,
                took: Duration::ZERO,
            };
            return self.machine.answer(seq, stale, ended, self.now, 0);
        }
        let class = match self.rng.chance(500) {
            true => AttemptClass::Delivered,
            false => *self.rng.pick(&AttemptClass::ALL),
        };
        let retry_after = self
            .rng
            .chance(30)
            .then(|| Duration::from_millis(self.rng.skewed(60_000)));
        let timeout = self.merchant.adapter.timeout.as_micros() as u64;
        let ended = Ended {
            class,
            retry_after,
            absent: false,
            took: Duration::from_micros(self.rng.skewed(timeout)),
        };
        let random = self.rng.next();
        self.machine.answer(seq, number, ended, self.now, random);
        self.judge_breaker(&ended);
        if let Some(model) = self.orders.get_mut(&seq) {
            model.running = None;
        }
    }

    /// So many failures in a row close the merchant, whatever else is so.
    fn judge_breaker(&mut self, ended: &Ended) {
        use AttemptClass::{AlreadyDone, Ambiguous, Delivered, Invalid, Rejected, Retry};
        match ended.class {
            Retry | Ambiguous if ended.retry_after.is_none() => self.failures += 1,
            Delivered | AlreadyDone | Rejected | Invalid => self.failures = 0,
            _ => {}
        }
        let most = self.merchant.breaker.consecutive;
        let closure = self.machine.closure();
        assert!(
            most == 0 || self.failures < most || closure.is_some(),
            "{} failures in a row and the breaker is closed",
            self.failures
        );
        if closure.is_some_and(|c| c.because == ClosedBecause::Breaker) {
            self.failures = 0;
        }
    }

    fn change(&mut self) {
        let mut changed = Merchant::clone(&self.merchant);
        changed.limits = crate::plan::limits(&mut self.rng);
        changed.limits.ordering = self.merchant.limits.ordering;
        self.merchant = changed.shared();
        // A closed merchant gets another chance.
        self.failures = 0;
        self.machine.change(Arc::clone(&self.merchant), self.now);
    }

    /// As after a panic: a new machine takes over what the old one held.
    fn rebuild(&mut self) {
        let merchant = Arc::clone(&self.merchant);
        self.failures = 0;
        self.machine = MerchantMachine::new(merchant, self.now.mono, Quotas::default(), None);
        for (seq, model) in &self.orders {
            self.machine.offer(model.offer);
            if let Some(number) = model.running {
                self.machine.adopt(*seq, number);
            }
        }
        if self.rng.chance(100) {
            self.halted = true;
            self.machine.halt();
        } else {
            self.halted = false;
        }
    }

    fn advance(&mut self) {
        loop {
            match self.machine.next(self.now) {
                Next::Start(seq) => {
                    // What it expired on the way is over before.
                    self.effects();
                    assert!(!self.halted, "a halted machine starts {seq}");
                    judge_start(&self.machine, self.now);
                    let number = self.machine.start(seq, self.now).expect("it said so");
                    self.started(seq, number);
                }
                Next::At(at) => {
                    assert!(at > self.now.mono, "woken in the past");
                    return;
                }
                Next::Idle => return,
            }
            self.machine.check();
        }
    }

    fn started(&mut self, seq: Seq, number: u32) {
        let running = self.orders.values().filter(|o| o.running.is_some()).count();
        assert!(
            running < self.merchant.limits.concurrency as usize,
            "RATE-1: too many at once"
        );
        let model = &self.orders[&seq];
        assert_eq!(model.running, None, "ORD-2: {seq} is running");
        assert!(
            model.offer.deadline > self.now.wall,
            "{seq} starts after its deadline"
        );
        if let Some(key) = model.offer.key {
            let of_key = |o: &&Model| o.offer.key == Some(key) && o.offer.seq != seq;
            for other in self.orders.values().filter(of_key) {
                assert!(other.running.is_none(), "ORD-4: two of a key run");
                assert!(
                    other.offer.seq > seq,
                    "ORD-4: {seq} overtakes {}",
                    other.offer.seq
                );
            }
        }
        if let Some(model) = self.orders.get_mut(&seq) {
            model.running = Some(number);
        }
    }

    fn effects(&mut self) {
        for effect in self.machine.take_effects() {
            match effect {
                Effect::Finish { seq, kind } => {
                    let model = self.orders.remove(&seq).expect("only what it has can end");
                    assert!(model.running.is_none(), "{seq} ends while it runs");
                    let expired = kind == OutcomeKind::Expired;
                    // Early only after an attempt, when no further one would fit.
                    let timeout = self.merchant.adapter.timeout.as_millis() as u64;
                    let fits = self.now.wall + timeout.max(1) < model.offer.deadline;
                    assert!(!expired || !fits, "{seq} expires too early");
                    self.gone.insert(seq);
                }
                Effect::Defer {
                    seq,
                    ambiguous,
                    counted,
                    due,
                } => {
                    let model = self.orders.remove(&seq).expect("only what it has can wait");
                    assert!(model.running.is_none(), "{seq} leaves while it runs");
                    assert!(due < model.offer.deadline, "{seq} waits past its end");
                    let none = self.merchant.adapter.idempotency == Idempotency::None;
                    assert!(!(ambiguous && none), "ORD-3: {seq} would be sent again");
                    let most = self.merchant.retry.max_attempts;
                    assert!(
                        !counted || model.offer.attempts + 1 < most,
                        "too many attempts"
                    );
                }
                Effect::Withdrawn { seq } => {
                    let model = self
                        .orders
                        .remove(&seq)
                        .expect("only what it has can leave");
                    assert!(model.running.is_none(), "{seq} leaves while it runs");
                    self.gone.insert(seq);
                }
                Effect::Return { seq } => {
                    let model = self
                        .orders
                        .remove(&seq)
                        .expect("only what it has can go back");
                    assert!(
                        model.running.is_none(),
                        "ORD-2: {seq} goes back while it runs"
                    );
                }
                Effect::Again { seq } => assert!(self.orders.contains_key(&seq)),
                Effect::Hold | Effect::Closure(_) => {}
            }
        }
    }
}

/// While the breaker is open nothing starts but one probe at a time, when its time has come.
pub(crate) fn judge_start(machine: &MerchantMachine, now: Now) {
    let breaker = |c: &Closure| c.because == ClosedBecause::Breaker;
    if let Some(closure) = machine.closure().filter(breaker) {
        assert!(
            closure.until <= now.wall && machine.running() == 0,
            "an order starts although the breaker is open: {closure:?}"
        );
    }
}

#[test]
fn a_merchant_alone_keeps_its_rules() {
    for seed in 0..200 {
        let mut alone = Alone::new(seed);
        let run = std::panic::AssertUnwindSafe(|| {
            for _ in 0..1_500 {
                alone.step();
            }
        });
        assert!(
            std::panic::catch_unwind(run).is_ok(),
            "the machine alone failed at seed {seed}"
        );
    }
}
