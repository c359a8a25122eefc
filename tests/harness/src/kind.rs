use std::time::Duration;

use expediter_fleet::merchants::{Behaviour, RateLimit};
use expediter_types::{Idempotency, Ordering};

/// A kind of merchant, for worlds that are broken.
#[derive(Debug, Clone)]
pub struct Kind {
    pub name: &'static str,
    pub idempotency: Idempotency,
    pub ordering: Ordering,
    pub behaviour: Behaviour,
}

impl Kind {
    /// All kinds: a third without idempotency, half of them in order of keys or in one line; fast, slow,
    /// flaky, and refusing above 60 orders a second.
    #[must_use]
    pub fn all() -> [Self; 12] {
        use Idempotency::{Native, None as Never};
        let fast = Behaviour::fast;
        let slow = || Behaviour {
            latency: Duration::from_millis(300),
            ..Behaviour::default()
        };
        let limiting = Behaviour {
            rate_limit: Some(RateLimit {
                per_second: 60.0,
                retry_after: Duration::from_secs(1),
            }),
            ..Behaviour::fast()
        };
        let (any, keys, line) = (Ordering::None, Ordering::Order, Ordering::Merchant);
        [
            ("native-fast", Native, any, fast()),
            ("native-slow", Native, any, slow()),
            ("native-flaky", Native, any, Behaviour::flaky()),
            ("native-limiting", Native, any, limiting),
            ("native-keys", Native, keys, fast()),
            ("native-keys-flaky", Native, keys, Behaviour::flaky()),
            ("native-queue", Native, line, fast()),
            ("native-queue-flaky", Native, line, Behaviour::flaky()),
            ("none-fast", Never, any, fast()),
            ("none-slow", Never, any, slow()),
            ("none-keys-flaky", Never, keys, Behaviour::flaky()),
            ("none-queue", Never, line, fast()),
        ]
        .map(|(name, idempotency, ordering, behaviour)| Self {
            name,
            idempotency,
            ordering,
            behaviour,
        })
    }
}
