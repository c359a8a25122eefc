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

/// What an order still has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left {
    /// Attempts; 0 for none.
    pub(super) attempts: u32,
    /// The first attempt began then.
    pub(super) since: UnixMillis,
    /// Nothing may be sent before.
    pub(super) from: UnixMillis,
    /// The last attempt that still ends in time starts no later.
    pub(super) to: UnixMillis,
}

/// Full jitter after `attempts` counted ones; but the attempts that are left reach to the end of the
/// time that is left: each wait is at least three quarters of that in a geometric series which ends
/// there. When the order would give up before, one last attempt is put in the last quarter of its
/// time.
pub(super) fn again(
    retry: &Retry,
    attempts: u32,
    left: Left,
    now: UnixMillis,
    random: u64,
) -> Again {
    let stretched = stretched(left, millis(retry.initial), now);
    let stretched = stretched - random % (stretched / 4 + 1);
    let wait = millis(backoff::wait(retry, attempts, random)).max(stretched);
    let due = now.saturating_add(wait).max(left.from);
    if due <= left.to {
        Again::At(due)
    } else if left.to > now.max(left.from) {
        let spread = (left.to - now.max(left.from)) / 4;
        Again::At(left.to - random % (spread + 1))
    } else {
        Again::Never
    }
}

/// The next wait of a series over `left.attempts` that began with `initial`, in milliseconds.
fn stretched(left: Left, initial: u64, now: UnixMillis) -> u64 {
    if left.attempts == 0 || left.to <= now {
        return 0;
    }
    let passed = now.saturating_sub(left.since).max(initial) as f64;
    let growth = ((left.to - now) as f64 / passed + 1.0).powf(1.0 / f64::from(left.attempts));
    (passed * (growth - 1.0)) as u64
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
            settled in 0_u64..60_000, more in 0_u32..80, passed in 0_u64..900_000, random: u64,
        ) {
            let retry = Retry { initial: Duration::from_millis(initial), ..Retry::default() };
            let now = 1_700_000_000_000;
            let to = now + left;
            let settled = now + settled;
            match again(&retry, attempts, Left { attempts: more, since: now - passed, from: settled, to }, now, random) {
                Again::At(due) => {
                    prop_assert!(due >= settled && due <= to);
                    let free = now + millis(backoff::wait(&retry, attempts, random));
                    prop_assert!(due >= free || due >= settled + (to - settled) / 4 * 3);
                }
                Again::Never => prop_assert!(to <= settled),
            }
        }

        /// However few attempts there are, they reach to the end, and the first of many are not
        /// kept waiting for that.
        #[test]
        fn attempts_are_spread_over_the_time(count in 2_u32..40, hours in 1_u64..48, seed: u64) {
            let retry = Retry { max_attempts: count, ..Retry::default() };
            let to = hours * 3_600_000;
            let (mut now, mut random) = (0, seed);
            for attempts in 1..count {
                let left = Left { attempts: count - attempts, since: 0, from: now, to };
                let Again::At(due) = again(&retry, attempts, left, now, random) else {
                    break;
                };
                let many = count - attempts >= 20;
                prop_assert!(!many || due <= now + 600_000.max(now), "{due} after {now}");
                now = due;
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            }
            prop_assert!(now >= to / 4 * 3, "the last one after {now} of {to} ms");
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
            let left = |attempts, from| Left { attempts: 1_000 - attempts, since: 0, from, to };
            while let Again::At(due) = again(&retry, attempts, left(attempts, now), now, random) {
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
