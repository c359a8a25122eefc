//! When an order is tried again: exponential with full jitter.

use std::time::Duration;

use expediter_types::Retry;

/// The wait before the next attempt after `attempts` counted ones (at least 1): evenly spread over
/// `0..=min(max, initial * multiplier^(attempts - 1))` by `random`, any 64 bits.
#[must_use]
pub fn wait(retry: &Retry, attempts: u32, random: u64) -> Duration {
    let bound = bound(retry, attempts);
    let millis = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(if millis == u64::MAX {
        random
    } else {
        random % (millis + 1)
    })
}

/// The longest such wait.
#[must_use]
pub fn bound(retry: &Retry, attempts: u32) -> Duration {
    let power = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
    let grown = retry.initial.as_secs_f64() * retry.multiplier.powi(power);
    if grown >= retry.max.as_secs_f64() {
        retry.max
    } else {
        Duration::from_secs_f64(grown)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_grow_and_stay_inside(
            initial in 10_u64..3_600_000, more in 0_u64..86_400_000, multiplier in 1.0_f64..10.0,
            attempts in 1_u32..2_000, random: u64,
        ) {
            let retry = Retry {
                initial: Duration::from_millis(initial),
                max: Duration::from_millis(initial + more),
                multiplier,
                ..Retry::default()
            };
            prop_assert!(wait(&retry, attempts, random) <= bound(&retry, attempts));
            prop_assert!(bound(&retry, attempts) <= retry.max);
            prop_assert!(bound(&retry, attempts) >= retry.initial.min(retry.max));
            prop_assert!(bound(&retry, attempts) <= bound(&retry, attempts + 1));
        }
    }
}
