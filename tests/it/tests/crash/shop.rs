//! Merchants of all kinds, and a flow of orders to them.

use std::time::Duration;

use anyhow::Result;
use expediter_fleet::merchants::{Behaviour, RateLimit};
use expediter_harness::{Load, NewOrder, World};
use expediter_types::{Idempotency, Merchant, Ordering};

/// How many merchants there are.
pub(crate) const COUNT: usize = 12;

/// Id, idempotency, ordering, behaviour.
fn kinds() -> [(&'static str, Idempotency, Ordering, Behaviour); COUNT] {
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
    [
        ("native-fast", Native, Ordering::None, fast()),
        ("native-slow", Native, Ordering::None, slow()),
        ("native-flaky", Native, Ordering::None, Behaviour::flaky()),
        ("native-limiting", Native, Ordering::None, limiting),
        ("native-keys", Native, Ordering::Order, fast()),
        (
            "native-keys-flaky",
            Native,
            Ordering::Order,
            Behaviour::flaky(),
        ),
        ("native-queue", Native, Ordering::Merchant, fast()),
        (
            "native-queue-flaky",
            Native,
            Ordering::Merchant,
            Behaviour::flaky(),
        ),
        ("none-fast", Never, Ordering::None, fast()),
        ("none-slow", Never, Ordering::None, slow()),
        (
            "none-keys-flaky",
            Never,
            Ordering::Order,
            Behaviour::flaky(),
        ),
        ("none-queue", Never, Ordering::Merchant, fast()),
    ]
}

/// Registers a merchant of each kind.
pub(crate) async fn open(world: &World) -> Result<()> {
    for (id, idempotency, ordering, behaviour) in kinds() {
        world.fleet.set(id, behaviour)?;
        let mut merchant: Merchant = world.merchant(id);
        merchant.adapter.idempotency = idempotency;
        merchant.limits.ordering = ordering;
        world.register(&merchant).await?;
    }
    Ok(())
}

/// Orders for all of them in turn, each with one of five keys.
pub(crate) fn rush(world: &World, per_second: u32) -> Load {
    let ids = kinds().map(|(id, ..)| id);
    Load::start(&world.publisher(), per_second, move |number| {
        let count = ids.len() as u64;
        let id = ids[usize::try_from(number % count).unwrap_or(0)];
        NewOrder::to(id).key(format!("table-{}", number / count % 5))
    })
}
