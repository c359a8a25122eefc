//! The promises as names, so that a broken one says which.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A promise of the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Promise {
    /// An acknowledged order reaches exactly one outcome.
    Ord1,
    /// At most one attempt of an order is in flight.
    Ord2,
    /// An attempt that may have been received is never repeated blindly.
    Ord3,
    /// Orders that share a key are sent in publish order.
    Ord4,
    /// A merchant costs bounded memory and changes nobody's latency.
    Iso1,
    /// Limits hold over restarts and hand-overs.
    Rate1,
    /// A partition has one owner.
    Own1,
    /// Deleting a node's data loses nothing.
    Dur1,
}

impl Promise {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Ord1,
        Self::Ord2,
        Self::Ord3,
        Self::Ord4,
        Self::Iso1,
        Self::Rate1,
        Self::Own1,
        Self::Dur1,
    ];

    /// As written in ARCHITECTURE.md.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ord1 => "ORD-1",
            Self::Ord2 => "ORD-2",
            Self::Ord3 => "ORD-3",
            Self::Ord4 => "ORD-4",
            Self::Iso1 => "ISO-1",
            Self::Rate1 => "RATE-1",
            Self::Own1 => "OWN-1",
            Self::Dur1 => "DUR-1",
        }
    }
}

static VIOLATIONS: [AtomicU64; Promise::ALL.len()] = [const { AtomicU64::new(0) }; 8];

/// What was seen and not told yet; the count goes on when it is full.
static SEEN: Mutex<Vec<(Promise, String)>> = Mutex::new(Vec::new());
const MOST_SEEN: usize = 64;

/// Counts a violation and keeps its words for the log; [`check_invariant!`](crate::check_invariant)
/// calls it.
pub fn violated(promise: Promise, what: std::fmt::Arguments<'_>) {
    VIOLATIONS[promise as usize].fetch_add(1, Ordering::Relaxed);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.len() < MOST_SEEN {
        seen.push((promise, what.to_string()));
    }
}

/// The words of the violations since the last call, 64 of them at most.
pub fn take_seen() -> Vec<(Promise, String)> {
    std::mem::take(&mut *SEEN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Violations of this promise since the process started.
#[must_use]
pub fn violations(promise: Promise) -> u64 {
    VIOLATIONS[promise as usize].load(Ordering::Relaxed)
}

/// Checks a promise: panics in debug builds and tests, counts in release builds.
#[macro_export]
macro_rules! check_invariant {
    ($promise:ident, $holds:expr, $($what:tt)+) => {
        if !$holds {
            $crate::invariants::violated(
                $crate::invariants::Promise::$promise,
                format_args!($($what)+),
            );
            if cfg!(debug_assertions) {
                panic!(
                    "{} is broken: {}",
                    $crate::invariants::Promise::$promise.as_str(),
                    format_args!($($what)+)
                );
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_is_counted_and_told_once() {
        let before = violations(Promise::Dur1);
        for n in 0..MOST_SEEN + 9 {
            violated(Promise::Dur1, format_args!("order {n}"));
        }
        assert_eq!(violations(Promise::Dur1), before + MOST_SEEN as u64 + 9);
        let seen = take_seen();
        assert_eq!(seen.len(), MOST_SEEN);
        assert_eq!(seen[7], (Promise::Dur1, "order 7".to_owned()));
        assert!(take_seen().is_empty());
    }
}
