//! The promises as names, so that a broken one says which.

use std::sync::atomic::{AtomicU64, Ordering};

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

/// Counts a violation; [`check_invariant!`](crate::check_invariant) calls it in release builds.
pub fn violated(promise: Promise) {
    VIOLATIONS[promise as usize].fetch_add(1, Ordering::Relaxed);
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
            $crate::invariants::violated($crate::invariants::Promise::$promise);
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
