//! A merchant's actor without actix: its mailbox, its machine, its timer, and its panics.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use expediter_core::merchant::{Accepting, Closure, Ended, MerchantMachine, Next, Offer};
use expediter_core::partition::Report;
use expediter_core::quota::Quotas;
use expediter_types::{AttemptClass, Limits, Merchant, Now, Seq, UnixMillis};

use crate::env::{Env, Plant};

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Offer(Offer),
    Answer { seq: Seq, number: u32, ended: Ended },
    Change(Arc<Merchant>),
    Halt,
    Withdraw(Seq),
    Poke,
    Capacity { small: bool },
    Release,
}

/// When the machine let an order go, and under which manifest.
#[derive(Debug, Clone)]
pub(crate) struct Begun {
    pub(crate) seq: Seq,
    pub(crate) at: Now,
    pub(crate) limits: Limits,
}

/// A report on its way to the partition, with what the judge wants to know.
#[derive(Debug)]
pub(crate) struct Reported {
    pub(crate) report: Report,
    pub(crate) begun: Vec<Begun>,
    /// The merchant asked to be left alone: since when, until when by the wall clock.
    pub(crate) asked: Option<(u64, UnixMillis)>,
}

/// What a step led to.
#[derive(Debug)]
pub(crate) enum Stepped {
    Quiet,
    Report(Reported),
    Panicked { answering: Option<Seq> },
    Ended,
}

/// Places for attempts in the process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    pub(crate) used: usize,
    pub(crate) limit: usize,
}

/// Holding fewer than this, a merchant may use the reserved fifth.
const SMALL: u32 = 4;

impl Places {
    fn take(&mut self, held: u32) -> bool {
        let bound = match held < SMALL {
            true => self.limit,
            false => self.limit - self.limit / 5,
        };
        let free = self.used < bound;
        self.used += usize::from(free);
        free
    }
}

#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) merchant: Arc<Merchant>,
    pub(crate) incarnation: u64,
    pub(crate) machine: MerchantMachine,
    pub(crate) mailbox: VecDeque<Step>,
    pub(crate) timer: Option<u64>,
    pub(crate) waits: [bool; 2],
    pub(crate) asks: Vec<bool>,
    told: Option<Accepting>,
}

impl Actor {
    pub(crate) fn new(
        merchant: Arc<Merchant>,
        incarnation: u64,
        limits_since: u64,
        spent: Quotas,
        closure: Option<Closure>,
        window: Vec<(Offer, Option<u32>)>,
        env: &Env,
    ) -> Self {
        let limits_since = match env.plant {
            Some(Plant::ForgetLimits) => 0,
            _ => limits_since,
        };
        let mut machine = MerchantMachine::new(Arc::clone(&merchant), limits_since, spent, closure);
        for (offer, running) in window {
            machine.offer(planted(offer, env));
            if let Some(number) = running {
                machine.adopt(offer.seq, number);
            }
        }
        machine.check();
        let mut mailbox = VecDeque::new();
        if !machine.is_empty() {
            mailbox.push_back(Step::Poke);
        }
        Self {
            merchant,
            incarnation,
            machine,
            mailbox,
            timer: None,
            waits: [false; 2],
            asks: Vec::new(),
            told: None,
        }
    }

    /// Something is to be done now.
    pub(crate) fn is_busy(&self, mono: u64) -> bool {
        !self.mailbox.is_empty() || self.timer.is_some_and(|at| at <= mono)
    }

    pub(crate) fn step(&mut self, env: &mut Env, places: Places) -> Stepped {
        let step = match self.mailbox.pop_front() {
            Some(Step::Release) => return Stepped::Ended,
            Some(step) => step,
            None => {
                self.timer = None;
                Step::Poke
            }
        };
        let answering = match &step {
            Step::Answer { seq, .. } => Some(*seq),
            _ => None,
        };
        let poisoned = answering.is_some_and(|seq| env.shadow.is_poison(seq));
        let panics = poisoned || env.rng.chance(env.plan.panics);
        // Before the step, or after it with everything it did lost.
        if panics && env.rng.chance(500) {
            return Stepped::Panicked { answering };
        }
        let asked_to_wait = match &step {
            Step::Answer { ended, .. } if ended.class == AttemptClass::RateLimited => {
                Some(ended.retry_after.unwrap_or(Duration::from_secs(1)))
            }
            Step::Answer { ended, .. } => ended.retry_after,
            _ => None,
        };
        let now = env.now();
        let asked = asked_to_wait.map(|wait| (now.mono, now.wall + wait.as_millis() as u64));
        let stepped = self.run(step, env, places, asked);
        self.machine.check();
        if panics {
            return Stepped::Panicked { answering };
        }
        stepped
    }

    fn run(
        &mut self,
        step: Step,
        env: &mut Env,
        places: Places,
        asked: Option<(u64, UnixMillis)>,
    ) -> Stepped {
        let now = env.now();
        match step {
            Step::Offer(offer) => self.machine.offer(planted(offer, env)),
            Step::Answer { seq, number, ended } => {
                let random = env.rng.next();
                self.machine.answer(seq, number, ended, now, random);
            }
            Step::Change(merchant) => {
                self.merchant = Arc::clone(&merchant);
                self.machine.change(merchant, now);
            }
            Step::Halt => self.machine.halt(),
            Step::Withdraw(seq) => self.machine.take_back(seq),
            Step::Capacity { small } => self.waits[usize::from(small)] = false,
            Step::Poke | Step::Release => {}
        }
        let begun = self.advance(places, now);
        let effects = self.machine.take_effects();
        let accepting = self.machine.accepting(now);
        if begun.is_empty() && effects.is_empty() && self.told == Some(accepting) {
            return Stepped::Quiet;
        }
        self.told = Some(accepting);
        let report = Report {
            merchant: self.merchant.id.clone(),
            incarnation: self.incarnation,
            starts: begun
                .iter()
                .map(|(begun, number)| (begun.seq, *number))
                .collect(),
            effects,
            accepting,
        };
        let begun = begun.into_iter().map(|(begun, _)| begun).collect();
        Stepped::Report(Reported {
            report,
            begun,
            asked,
        })
    }

    fn advance(&mut self, mut places: Places, now: Now) -> Vec<(Begun, u32)> {
        let mut begun = Vec::new();
        loop {
            match self.machine.next(now) {
                Next::Start(seq) => {
                    let held = self.machine.running();
                    if !places.take(held) {
                        let small = held < SMALL;
                        if !std::mem::replace(&mut self.waits[usize::from(small)], true) {
                            self.asks.push(small);
                        }
                        break;
                    }
                    crate::machine::judge_start(&self.machine, now);
                    let Some(number) = self.machine.start(seq, now) else {
                        break;
                    };
                    let limits = self.merchant.limits.clone();
                    begun.push((
                        Begun {
                            seq,
                            at: now,
                            limits,
                        },
                        number,
                    ));
                }
                Next::At(at) => {
                    assert!(at > now.mono, "a machine wants to be woken in the past");
                    let at = at.min(now.mono + 60_000_000);
                    self.timer = Some(self.timer.map_or(at, |armed| armed.min(at)));
                    break;
                }
                Next::Idle => break,
            }
        }
        begun
    }
}

fn planted(offer: Offer, env: &Env) -> Offer {
    match env.plant {
        Some(Plant::ForgetKeys) => Offer { key: None, ..offer },
        _ => offer,
    }
}
