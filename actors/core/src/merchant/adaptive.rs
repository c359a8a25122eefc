//! Adaptive concurrency: additive increase, multiplicative decrease.
//!
//! Answers are judged in rounds of about one round trip of all that is in flight. A round that is
//! slower than the best, by more than chance explains, or an error in it, decreases the limit, once a
//! round; a quick one that used the limit up raises it by one. What a round at the minimum takes is
//! no sign of load: it is the best, and now and then a short one finds out whether that is still so.
//! What is only ever measured under load grows with the load, and hides it.

use std::time::Duration;

use expediter_types::Limits;

/// A round is slow when its mean is so many times the best.
const SLOW: f64 = 1.5;
/// What a decrease leaves; at most `1 / SLOW`, so that it leads below the knee.
const DECREASE: f64 = 0.6;
/// Answers in a round, at least: a single one says little.
const ROUND: u32 = 5;
/// Answers in the round that seeks the best, of a merchant that always takes as long; and at most,
/// of an erratic one.
const SEEKING_ROUND: u32 = 3;
const LONG_ROUND: u32 = 12;
/// A mean is known well enough when its standard error is such a part of it.
const SURE: f64 = 0.2;
/// So many standard errors are no chance.
const CHANCE: f64 = 3.0;
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
    /// Of `answers`, in seconds; and the sum of the squares.
    took: f64,
    squares: f64,
    /// The limit was used up in this round.
    reached: bool,
    /// Mean of the best round, in seconds, and its standard error.
    best: f64,
    best_error: f64,
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
            squares: 0.0,
            reached: false,
            best: f64::INFINITY,
            best_error: 0.0,
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
        let took = took.as_secs_f64();
        self.answers += 1;
        self.took += took;
        self.squares += took * took;
        let at_least = match self.seeking {
            Some(_) => SEEKING_ROUND,
            None => ROUND.max(self.limit as u32),
        };
        if self.answers < at_least {
            return;
        }
        let count = f64::from(self.answers);
        let mean = self.took / count;
        let variance = (self.squares / count - mean * mean).max(0.0) / (count - 1.0);
        let error = variance.sqrt();
        let at_minimum = self.limit <= f64::from(low);
        if at_minimum && error > SURE * mean && self.answers < LONG_ROUND {
            return;
        }
        if let Some(limit) = self.seeking.take() {
            (self.best, self.best_error, self.rounds) = (mean, error, 0);
            return self.set(limit, now);
        }
        self.rounds += 1;
        let beyond_chance = |than: f64, its: f64| than > CHANCE * error.hypot(its);
        if at_minimum || beyond_chance(self.best - mean, self.best_error) {
            (self.best, self.best_error) = (mean, error);
        }
        if beyond_chance(mean - self.best * SLOW, self.best_error * SLOW) {
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
        (self.answers, self.took, self.squares) = (0, 0.0, 0.0);
        self.reached = false;
    }
}

fn bounds(limits: &Limits) -> Option<(u32, u32)> {
    let low = limits.min_concurrency?.min(limits.concurrency);
    Some((low.max(1), limits.concurrency.max(1)))
}
