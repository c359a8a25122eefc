//! When an order is tried again, with its give-up time in view.

use std::time::Duration;

use expediter_types::{Retry, UnixMillis};

use super::millis;
use crate::backoff;

/// When an order that failed is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    At(UnixMillis),
    /// No further attempt would end before the order gives up.
    Never,
}

/// How long an attempt takes that the merchant answers sensibly.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// Moving average, in milliseconds; 0 before the first.
    average: u64,
}

impl Pace {
    /// An attempt was answered.
    pub(super) fn learn(&mut self, took: Duration) {
        let took = millis(took).min(3_600_000);
        self.average = match self.average {
            0 => took,
            average => (average * 7 + took) / 8,
        };
    }

    /// What the next one will take, at most the timeout; milliseconds.
    pub(super) fn estimate(&self, timeout: Duration) -> u64 {
        self.average.min(millis(timeout))
    }
}

/// Full jitter after `attempts` counted ones, not before `from`, unless no attempt that starts after
/// `latest` would end in time: then one last attempt in the last quarter of the time that is left.
pub(super) fn again(
    retry: &Retry,
    attempts: u32,
    (from, latest): (UnixMillis, UnixMillis),
    now: UnixMillis,
    random: u64,
) -> Again {
    let wait = millis(backoff::wait(retry, attempts, random));
    let due = now.saturating_add(wait).max(from);
    if due <= latest {
        Again::At(due)
    } else if latest > from.max(now) {
        let spread = (latest - from.max(now)) / 4;
        Again::At(latest - random % (spread + 1))
    } else {
        Again::Never
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The last one fits; giving up early is only for those that cannot make it.
        #[test]
        fn retries_fit_before_the_order_gives_up(
            initial in 10_u64..600_000, attempts in 1_u32..50, left in 0_u64..10_000_000,
            settled in 0_u64..60_000, random: u64,
        ) {
            let retry = Retry { initial: Duration::from_millis(initial), ..Retry::default() };
            let now = 1_700_000_000_000;
            let to = now + left;
            let settled = now + settled;
            match again(&retry, attempts, (settled, to), now, random) {
                Again::At(due) => {
                    prop_assert!(due >= settled && due <= to);
                    let free = now + millis(backoff::wait(&retry, attempts, random));
                    prop_assert!(due == free.max(settled) || due >= settled + (to - settled) / 4 * 3);
                }
                Again::Never => prop_assert!(to <= settled),
            }
        }

        /// An order that always fails at once is tried near its end, whatever the back-off.
        #[test]
        fn the_last_attempt_is_near_the_end(initial in 10_u64..600_000, seed: u64, takes in 1_u64..3_000) {
            let retry = Retry {
                initial: Duration::from_millis(initial),
                max: Duration::from_secs(3_600),
                max_attempts: 1_000,
                ..Retry::default()
            };
            let to = 900_000 - takes;
            let (mut now, mut attempts, mut random) = (0, 1, seed);
            let mut last = 0;
            while let Again::At(due) = again(&retry, attempts, (now, to), now, random) {
                prop_assert!(due <= to);
                last = due;
                now = due.max(now + 1);
                attempts += 1;
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                if attempts > 900 {
                    // Waits of milliseconds: the attempts would be used up before.
                    return Ok(());
                }
            }
            prop_assert!(last >= to - 2, "{last}");
        }
    }

    #[test]
    fn the_estimate_follows_the_answers_up_to_the_timeout() {
        let mut pace = Pace::default();
        assert_eq!(pace.estimate(Duration::from_secs(30)), 0);
        for _ in 0..100 {
            pace.learn(Duration::from_millis(800));
        }
        assert!((790..=800).contains(&pace.estimate(Duration::from_secs(30))));
        assert_eq!(pace.estimate(Duration::from_millis(500)), 500);
    }
}
