//! Adaptive concurrency: additive increase, multiplicative decrease.
//!
//! Answers are judged in rounds of about one round trip of all that is in flight. A round that is
//! clearly slower than the best, or an error in it, decreases the limit, once a round; a quick one
//! that used the limit up raises it by one. Now and then a short round at the minimum finds out what
//! the best is: what is only ever measured under load grows with the load, and hides it.

use std::time::Duration;

use expediter_types::Limits;

/// A round is slow when its mean is so many times the best.
const SLOW: f64 = 1.5;
/// What a decrease leaves; at most `1 / SLOW`, so that it leads below the knee.
const DECREASE: f64 = 0.6;
/// Answers in a round, at least: a single one says little.
const ROUND: u32 = 5;
/// Answers in the round that seeks the best.
const SEEKING_ROUND: u32 = 3;
/// Rounds until the best is sought anew; some 2 % of the throughput.
const ROUNDS: u32 = 200;

/// The limit in force, between the minimum and the maximum of a manifest.
#[derive(Debug, Clone)]
pub(super) struct Adaptive {
    bounds: Option<(u32, u32)>,
    limit: f64,
    /// Answers to attempts that began before say nothing about this limit.
    since: u64,
    answers: u32,
    /// Of `answers`, in seconds.
    took: f64,
    /// The limit was used up in this round.
    reached: bool,
    /// Mean of the best round, in seconds.
    best: f64,
    rounds: u32,
    /// Seeking the best: where the limit was, and goes back to.
    seeking: Option<f64>,
}

impl Adaptive {
    /// Begins at the minimum.
    pub(super) fn new(limits: &Limits) -> Self {
        let bounds = bounds(limits);
        Self {
            bounds,
            limit: bounds.map_or(0.0, |(low, _)| f64::from(low)),
            since: 0,
            answers: 0,
            took: 0.0,
            reached: false,
            best: f64::INFINITY,
            rounds: 0,
            seeking: None,
        }
    }

    /// Another manifest: the limit stays where it is, inside the new bounds.
    pub(super) fn change(&mut self, limits: &Limits) {
        match (self.bounds, bounds(limits)) {
            (Some(_), Some((low, high))) => {
                self.bounds = Some((low, high));
                self.limit = self.limit.clamp(f64::from(low), f64::from(high));
                self.seeking = None;
            }
            _ => *self = Self::new(limits),
        }
    }

    /// Attempts that may be in flight.
    pub(super) fn limit(&self, limits: &Limits) -> u32 {
        match self.bounds {
            Some((low, high)) => (self.limit as u32).clamp(low, high),
            None => limits.concurrency,
        }
    }

    /// An attempt starts and uses the limit up.
    pub(super) fn reached(&mut self) {
        self.reached = true;
    }

    /// The merchant took or judged an order.
    pub(super) fn answered(&mut self, took: Duration, now: u64) {
        let Some((low, high)) = self.bounds else {
            return;
        };
        if self.is_old(took, now) {
            return;
        }
        self.answers += 1;
        self.took += took.as_secs_f64();
        let round = match self.seeking {
            Some(_) => SEEKING_ROUND,
            None => ROUND.max(self.limit as u32),
        };
        if self.answers < round {
            return;
        }
        let mean = self.took / f64::from(self.answers);
        if let Some(limit) = self.seeking.take() {
            (self.best, self.rounds) = (mean, 0);
            return self.set(limit, now);
        }
        self.best = self.best.min(mean);
        self.rounds += 1;
        if mean > self.best * SLOW {
            self.decrease(now);
        } else if self.reached {
            self.limit = (self.limit + 1.0).min(f64::from(high));
        }
        if self.rounds >= ROUNDS && low < high {
            self.seeking = Some(self.limit);
            return self.set(f64::from(low), now);
        }
        self.begin_round();
    }

    /// An attempt failed, or the merchant asked to wait.
    pub(super) fn failed(&mut self, took: Duration, now: u64) {
        if self.bounds.is_some() && !self.is_old(took, now) {
            self.decrease(now);
        }
    }

    fn is_old(&self, took: Duration, now: u64) -> bool {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        now.saturating_sub(took) < self.since
    }

    fn decrease(&mut self, now: u64) {
        let low = f64::from(self.bounds.map_or(1, |(low, _)| low));
        let less = |limit: f64| (limit * DECREASE).max(low);
        self.seeking = self.seeking.map(less);
        self.set(less(self.limit), now);
    }

    /// What began under another limit says nothing about this one.
    fn set(&mut self, limit: f64, now: u64) {
        (self.limit, self.since) = (limit, now);
        self.begin_round();
    }

    fn begin_round(&mut self) {
        (self.answers, self.took, self.reached) = (0, 0.0, false);
    }
}

fn bounds(limits: &Limits) -> Option<(u32, u32)> {
    let low = limits.min_concurrency?.min(limits.concurrency);
    Some((low.max(1), limits.concurrency.max(1)))
}
