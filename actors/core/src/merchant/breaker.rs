//! The circuit breaker: when a merchant counts as failing.
//!
//! It only judges; what an open breaker means (a [`Closure`](super::Closure), probes one at a
//! time) is the machine's business.

use std::collections::VecDeque;
use std::time::Duration;

use expediter_types::Breaker;

/// Slices of the sliding window.
const SLICES: u64 = 10;

/// How attempts ended within one slice.
#[derive(Debug, Clone, Copy)]
struct Slice {
    since: u64,
    all: u32,
    failed: u32,
}

/// What the breaker remembers.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    /// Failures since the last answer that shows the merchant alive.
    in_a_row: u32,
    window: VecDeque<Slice>,
    /// Probes that succeeded since it opened.
    probes: u32,
}

impl Health {
    /// The merchant answered sensibly.
    pub(super) fn alive(&mut self, settings: &Breaker, now: u64) {
        self.in_a_row = 0;
        self.count(settings, now, 0);
    }

    /// An attempt failed. True: the breaker has to open.
    pub(super) fn failed(&mut self, settings: &Breaker, now: u64) -> bool {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.count(settings, now, 1);
        let all: u32 = self.window.iter().map(|slice| slice.all).sum();
        let failed: u32 = self.window.iter().map(|slice| slice.failed).sum();
        let in_a_row = settings.consecutive > 0 && self.in_a_row >= settings.consecutive;
        let enough = settings.min_samples > 0 && all >= settings.min_samples;
        in_a_row || (enough && f64::from(failed) >= settings.ratio * f64::from(all))
    }

    fn count(&mut self, settings: &Breaker, now: u64, failed: u32) {
        let window = u64::try_from(settings.window.as_micros()).unwrap_or(u64::MAX);
        let over = |slice: &Slice| slice.since.saturating_add(window) <= now;
        while self.window.front().is_some_and(over) {
            self.window.pop_front();
        }
        let width = window / SLICES;
        match self.window.back_mut() {
            Some(slice) if now < slice.since.saturating_add(width) => {
                slice.all = slice.all.saturating_add(1);
                slice.failed = slice.failed.saturating_add(failed);
            }
            _ => self.window.push_back(Slice {
                since: now,
                all: 1,
                failed,
            }),
        }
    }

    /// A probe succeeded. True: the breaker closes.
    pub(super) fn probed(&mut self, settings: &Breaker) -> bool {
        self.probes += 1;
        self.probes >= settings.probes
    }

    /// The breaker opened, or closed: count anew.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// How long it stays open the `times`th time in a row (from 1): doubled each time up to
/// `max_open`, less up to a fifth by `random`, so that merchants that failed together are not
/// probed together.
pub(super) fn stays_open(settings: &Breaker, times: u32, random: u64) -> Duration {
    let doublings = times.saturating_sub(1).min(30);
    let longest = settings.max_open.max(settings.open);
    let wait = settings.open.saturating_mul(1 << doublings).min(longest);
    let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(millis - random % (millis / 5 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Breaker {
        Breaker {
            consecutive: 5,
            ratio: 0.5,
            min_samples: 10,
            ..Breaker::default()
        }
    }

    #[test]
    fn failures_in_a_row_open_it() {
        let mut health = Health::default();
        for _ in 0..4 {
            assert!(!health.failed(&settings(), 0));
        }
        health.alive(&settings(), 0);
        for _ in 0..4 {
            assert!(!health.failed(&settings(), 0));
        }
        assert!(health.failed(&settings(), 0));
    }

    #[test]
    fn a_share_of_failures_opens_it_once_there_are_enough_samples() {
        let only_ratio = Breaker {
            consecutive: 0,
            ..settings()
        };
        let mut health = Health::default();
        for n in 0..4 {
            health.alive(&only_ratio, n);
            assert!(!health.failed(&only_ratio, n), "too few samples");
        }
        health.alive(&only_ratio, 5);
        assert!(health.failed(&only_ratio, 6));
        // What is older than the window does not count.
        assert!(!health.failed(&only_ratio, 200_000_000));
        let off = Breaker {
            min_samples: 0,
            ..only_ratio
        };
        assert!(!(0..1_000).any(|n| health.failed(&off, n)));
    }

    #[test]
    fn it_stays_open_for_longer_each_time() {
        for random in [0, 1, 77, u64::MAX] {
            for (times, most) in [(1, 5), (2, 10), (3, 20), (4, 40), (5, 60), (900, 60)] {
                let wait = stays_open(&Breaker::default(), times, random);
                let most = Duration::from_secs(most);
                assert!(wait <= most && wait >= most * 4 / 5, "{times}: {wait:?}");
            }
        }
    }
}
