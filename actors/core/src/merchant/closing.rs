//! When the merchant takes nothing, and what becomes of the orders that wait for it.

use std::time::Duration;

use expediter_types::{ClosedBecause, Now, Seq};

use super::breaker;
use super::machine::MerchantMachine;
use super::{Closure, Effect, SHORT_CLOSURE, millis};

impl MerchantMachine {
    /// The circuit breaker opens, or stays open after a failed probe.
    pub(super) fn trip(&mut self, now: Now, random: u64) {
        let open = self.closure.filter(|c| c.because == ClosedBecause::Breaker);
        let times = open.map_or(0, |closure| closure.times).saturating_add(1);
        let wait = breaker::stays_open(&self.merchant.breaker, times, random);
        self.health.reset();
        self.shut(ClosedBecause::Breaker, wait, times, now);
    }

    pub(super) fn close(&mut self, because: ClosedBecause, wait: Duration, now: Now) {
        self.shut(because, wait, 0, now);
    }

    fn shut(&mut self, because: ClosedBecause, wait: Duration, times: u32, now: Now) {
        let until = now.wall.saturating_add(millis(wait));
        if because == ClosedBecause::RateLimited {
            self.asked_until = self.asked_until.max(until);
        }
        // A suspension outlasts a request to wait; of two requests to wait the later counts.
        let closure = match self.closure {
            Some(old) if because == ClosedBecause::RateLimited => Closure {
                until: old.until.max(until),
                ..old
            },
            old => Closure {
                because,
                until: old.map_or(until, |old| old.until.max(until)),
                times,
            },
        };
        if self.closure != Some(closure) {
            self.closure = Some(closure);
            self.effects.push(Effect::Closure(Some(closure)));
        }
    }

    /// The cause is over; a request to wait that still holds is not.
    pub(super) fn open(&mut self, now: Now) {
        let closure = (self.asked_until > now.wall).then_some(Closure {
            because: ClosedBecause::RateLimited,
            until: self.asked_until,
            times: 0,
        });
        if self.closure != closure {
            self.closure = closure;
            self.effects.push(Effect::Closure(closure));
        }
    }

    pub(super) fn returns_waiting(&self, now: Now) -> bool {
        self.closure
            .is_some_and(|c| c.until > now.wall.saturating_add(millis(SHORT_CLOSURE)))
    }

    pub(super) fn return_all(&mut self) {
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

    pub(super) fn give_back(&mut self, seq: Seq, key: Option<u64>) {
        self.effects.push(Effect::Return { seq });
        self.note_returned(key);
    }

    pub(super) fn note_returned(&mut self, key: Option<u64>) {
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
}
