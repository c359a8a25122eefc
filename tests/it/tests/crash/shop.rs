//! Merchants of all kinds, and a flow of orders to them.

use anyhow::Result;
use expediter_harness::{Kind, Load, NewOrder, World};
use expediter_types::Merchant;

/// How many merchants there are.
pub(crate) const COUNT: usize = 12;

/// Registers a merchant of each kind.
pub(crate) async fn open(world: &World) -> Result<()> {
    let kinds: [Kind; COUNT] = Kind::all();
    for kind in kinds {
        world.fleet.set(kind.name, kind.behaviour)?;
        let mut merchant: Merchant = world.merchant(kind.name);
        merchant.adapter.idempotency = kind.idempotency;
        merchant.limits.ordering = kind.ordering;
        world.register(&merchant).await?;
    }
    Ok(())
}

/// Orders for all of them in turn, each with one of five keys.
pub(crate) fn rush(world: &World, per_second: u32) -> Load {
    let ids = Kind::all().map(|kind| kind.name);
    Load::start(&world.publisher(), per_second, move |number| {
        let count = ids.len() as u64;
        let id = ids[usize::try_from(number % count).unwrap_or(0)];
        NewOrder::to(id).key(format!("table-{}", number / count % 5))
    })
}
