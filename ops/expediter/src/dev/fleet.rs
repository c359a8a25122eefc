//! The demonstration's merchants: one of each kind that on-call people know.

use std::time::Duration;

use expediter_fleet::merchants::{Behaviour, Fleet, FleetHandle, Options, RateLimit, Record};
use expediter_nats::{Connection, Registry};
use expediter_runtime::Clock;
use expediter_types::{Idempotency, Merchant, MerchantId};
use expediter_wire::registry::Registration;

/// Id, name, and share of the orders in parts of 100.
pub(super) const MERCHANTS: [(&str, &str, u32); 6] = [
    ("fast", "Luigi's Sandwiches", 50),
    ("slow", "Slow Food Kitchen", 8),
    ("flaky", "Patchy Pizza", 16),
    ("rate-limiting", "Eight a Second Sushi", 16),
    ("hung", "Never Answers Noodles", 4),
    ("rejecting", "Sold Out Salads", 6),
];

/// Of the demonstration's merchants; others are left alone.
pub(super) const GROUP: &str = "demo";

/// The rate-limiting merchant's limit, a little below its share of the default flow.
const RATE_LIMIT: f64 = 8.0;

/// Starts the fleet on a free port of the loopback interface.
pub(super) fn start() -> anyhow::Result<FleetHandle> {
    let fleet = Fleet::start(Options {
        record: Record::Counts,
        ..Options::default()
    })?;
    for (id, _, _) in MERCHANTS {
        let behaviour = match id {
            "fast" => Behaviour::fast(),
            "slow" => Behaviour::slow(),
            "flaky" => Behaviour::flaky(),
            "rate-limiting" => Behaviour {
                rate_limit: Some(RateLimit {
                    per_second: RATE_LIMIT,
                    retry_after: Duration::from_secs(1),
                }),
                ..Behaviour::rate_limiting()
            },
            "hung" => Behaviour::hung(),
            _ => Behaviour::rejecting(),
        };
        fleet.set(id, behaviour)?;
    }
    Ok(fleet)
}

/// Registers the merchants as `expediter merchant apply` would.
pub(super) async fn register(connection: &Connection, fleet: &FleetHandle) -> anyhow::Result<()> {
    let registry = Registry::new(connection);
    for (id, name, _) in MERCHANTS {
        let id = MerchantId::new(id)?;
        let mut merchant = Merchant::to(id.clone(), &fleet.url(id.as_str()));
        merchant.name = name.to_owned();
        merchant.group = GROUP.to_owned();
        merchant.adapter.idempotency = Idempotency::Native;
        merchant.adapter.timeout = Duration::from_secs(5);
        merchant.adapter.rejected = vec![422];
        merchant.limits.concurrency = 16;
        merchant.retry.max = Duration::from_secs(10);
        merchant.retry.deadline = Duration::from_secs(600);
        let found = registry.get(&id).await?;
        if let Some(entry) = &found {
            let group = &entry.registration.merchant.group;
            anyhow::ensure!(
                group == GROUP,
                "a merchant {id} of group {group} is registered at this server: the demonstration \
                 would replace it. Use another server, or run without --nats"
            );
        }
        let revision = found.map_or(0, |entry| entry.revision);
        let registration = Registration {
            merchant,
            actor: "expediter dev".to_owned(),
            at: Clock::now().wall,
            rolled_back_from: None,
        };
        registry.put(&registration, revision).await?;
    }
    Ok(())
}
