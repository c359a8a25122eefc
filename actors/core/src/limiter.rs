//! The generic cell rate algorithm: a rate with a burst in one number.
//!
//! Orders conform when they come no earlier than the theoretical arrival time less the burst's
//! tolerance. In any window of length `w` at most `burst + w / interval` orders pass.

use expediter_types::Rate;

/// A merchant's rate limit. Times are microseconds of the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limiter {
    /// Nanoseconds between two orders; 0: unlimited.
    interval: u64,
    /// `(burst - 1) * interval`.
    tolerance: u64,
    /// When the next order would come if all came evenly spaced; nanoseconds.
    theoretical: u64,
}

impl Limiter {
    /// A limiter that is empty at `since`: its first order may go one interval later, and the
    /// burst fills up from there. Starting empty keeps the limit over restarts and hand-overs,
    /// since a former owner may have spent all of it just before.
    #[must_use]
    pub fn empty_since(rate: Option<Rate>, burst: u32, since: u64) -> Self {
        let (interval, tolerance) = Self::terms(rate, burst);
        let theoretical = since
            .saturating_mul(1_000)
            .saturating_add(tolerance)
            .saturating_add(interval);
        Self {
            interval,
            tolerance,
            theoretical,
        }
    }

    fn terms(rate: Option<Rate>, burst: u32) -> (u64, u64) {
        let interval = rate.map_or(0, |rate| rate.interval_ns());
        (
            interval,
            interval.saturating_mul(u64::from(burst.max(1) - 1)),
        )
    }

    /// Another limit, at once: what was spent stays spent, at the new pace.
    pub fn change(&mut self, rate: Option<Rate>, burst: u32, now: u64) {
        let (interval, tolerance) = Self::terms(rate, burst);
        if (interval, tolerance) == (self.interval, self.tolerance) {
            return;
        }
        let now = now.saturating_mul(1_000);
        // An order that just went under the old limit still counts under the new one.
        let fullest = now.saturating_add(tolerance).saturating_add(interval);
        let was_idle = self.interval == 0 || self.theoretical <= now;
        self.theoretical = if was_idle {
            fullest
        } else {
            self.theoretical.min(fullest)
        };
        (self.interval, self.tolerance) = (interval, tolerance);
    }

    /// The earliest time an order may go; at or before `now`: it may go now.
    #[must_use]
    pub fn ready_at(&self) -> u64 {
        self.theoretical
            .saturating_sub(self.tolerance)
            .div_ceil(1_000)
    }

    /// One order goes at `now`, which is not before [`Limiter::ready_at`].
    pub fn take(&mut self, now: u64) {
        self.theoretical = self
            .theoretical
            .max(now.saturating_mul(1_000))
            .saturating_add(self.interval);
    }

    /// The whole burst is available: forgetting this limiter forgets nothing.
    #[must_use]
    pub fn is_full(&self, now: u64) -> bool {
        self.interval == 0 || self.theoretical <= now.saturating_mul(1_000)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// No window of any length sees more than burst + length / interval.
        #[test]
        fn never_above_the_limit(
            count in 1_u32..200, period_s in 1_u64..100, burst in 1_u32..50,
            gaps in proptest::collection::vec(0_u64..2_000_000, 1..300),
        ) {
            let rate = Rate::new(count, std::time::Duration::from_secs(period_s)).unwrap();
            let mut limiter = Limiter::empty_since(Some(rate), burst, 0);
            let (mut now, mut went) = (0_u64, Vec::new());
            for gap in gaps {
                now += gap;
                while limiter.ready_at() <= now {
                    limiter.take(now);
                    went.push(now);
                }
            }
            for (i, from) in went.iter().enumerate() {
                for (j, to) in went.iter().enumerate().skip(i) {
                    let allowed = u64::from(burst) + (to - from) * 1_000 / rate.interval_ns();
                    prop_assert!((j - i + 1) as u64 <= allowed, "{} in {}", j - i + 1, to - from);
                }
            }
        }
    }

    #[test]
    fn starts_empty_and_fills_to_the_burst() {
        let rate = Rate::new(10, std::time::Duration::from_secs(1));
        let mut limiter = Limiter::empty_since(rate, 3, 1_000_000);
        assert_eq!(limiter.ready_at(), 1_100_000);
        assert!(limiter.is_full(1_300_000));
        for _ in 0..3 {
            assert!(limiter.ready_at() <= 5_000_000);
            limiter.take(5_000_000);
        }
        assert_eq!(limiter.ready_at(), 5_100_000);
    }

    #[test]
    fn a_change_acts_at_once() {
        let slow = Rate::new(1, std::time::Duration::from_secs(60));
        let fast = Rate::new(10, std::time::Duration::from_secs(1));
        let mut limiter = Limiter::empty_since(slow, 1, 0);
        assert_eq!(limiter.ready_at(), 60_000_000);
        limiter.change(fast, 1, 1_000_000);
        assert_eq!(limiter.ready_at(), 1_100_000);
        limiter.change(None, 1, 1_000_000);
        assert!(limiter.ready_at() <= 1_000_000);
    }
}
