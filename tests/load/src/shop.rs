//! The merchants, and the flow of orders to them.

use std::collections::HashMap;

use anyhow::Result;
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{Kind, Load, NewOrder, Publisher, World};
use expediter_types::{Idempotency, Merchant, Ordering, Partition};
use expediter_wire::subjects;

/// How many merchants of each kind there are.
const OF_EACH: usize = 4;
/// Keys of a merchant's orders.
const KEYS: u64 = 5;
/// The kind that allows a rate.
const LIMITED: &str = "limited";
/// What limited merchants allow, and how many at once.
const RATE: u32 = 30;
const BURST: u32 = 5;
/// How many orders run at a merchant at most.
pub(crate) const CONCURRENCY: u32 = 16;

/// Merchants of all kinds, more than a quarter of them without idempotency, and in each partition one that no
/// fault hits.
#[derive(Debug)]
pub struct Shop {
    merchants: Vec<(Merchant, Behaviour)>,
    /// In each partition one; they come last.
    steady: usize,
    partitions: u16,
}

/// A rate that a merchant asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    /// Orders a second.
    pub(crate) rate: f64,
    pub(crate) burst: f64,
}

/// All of the harness's, and one that allows a rate.
fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::from(Kind::all());
    kinds.push(Kind {
        name: LIMITED,
        idempotency: Idempotency::Native,
        ordering: Ordering::None,
        behaviour: Behaviour::fast(),
    });
    kinds
}

impl Shop {
    /// Registers all of them.
    ///
    /// # Errors
    /// The broker does not take one.
    pub async fn open(world: &World, partitions: u16) -> Result<Self> {
        let mut merchants = Vec::new();
        for number in 0..OF_EACH {
            for kind in kinds() {
                let mut merchant = world.merchant(&format!("{}-{number}", kind.name));
                merchant.adapter.idempotency = kind.idempotency;
                merchant.limits.ordering = kind.ordering;
                merchant.limits.concurrency = CONCURRENCY;
                if kind.name == LIMITED {
                    let rate = format!("{RATE}/s").parse().map_err(anyhow::Error::msg)?;
                    merchant.limits.rates = vec![rate];
                    merchant.limits.burst = BURST;
                }
                merchants.push((merchant, kind.behaviour));
            }
        }
        let mut uncovered: Vec<Partition> = (0..partitions).map(Partition).collect();
        let mut number = 0;
        while !uncovered.is_empty() {
            let id = format!("steady-{number}");
            number += 1;
            let partition = subjects::partition_of(&id, partitions);
            if let Some(place) = uncovered.iter().position(|p| *p == partition) {
                uncovered.swap_remove(place);
                merchants.push((world.merchant(&id), Behaviour::fast()));
            }
        }
        let shop = Self {
            steady: usize::from(partitions),
            merchants,
            partitions,
        };
        for (merchant, behaviour) in &shop.merchants {
            world.fleet.set(merchant.id.as_str(), behaviour.clone())?;
            world.register(merchant).await?;
        }
        Ok(shop)
    }

    /// Orders for all of them in turn.
    #[must_use]
    pub fn rush(&self, publisher: &Publisher, per_second: u32) -> Load {
        let ids: Vec<String> = self
            .merchants
            .iter()
            .map(|(m, _)| m.id.to_string())
            .collect();
        Load::start(publisher, per_second, move |number| {
            let count = ids.len() as u64;
            let id = &ids[usize::try_from(number % count).unwrap_or(0)];
            NewOrder::to(id).key(format!("table-{}", number / count % KEYS))
        })
    }

    /// Those that faults may hit, with their ordinary behaviour.
    pub(crate) fn vulnerable(&self) -> &[(Merchant, Behaviour)] {
        &self.merchants[..self.merchants.len() - self.steady]
    }

    /// Merchants by their partition.
    pub(crate) fn partitions(&self) -> HashMap<String, Partition> {
        let partition = |id: &str| subjects::partition_of(id, self.partitions);
        let ids = self.merchants.iter().map(|(merchant, _)| &merchant.id);
        ids.map(|id| (id.to_string(), partition(id.as_str())))
            .collect()
    }

    pub(crate) fn limits(&self) -> HashMap<String, Limit> {
        let limited = self
            .merchants
            .iter()
            .filter(|(merchant, _)| !merchant.limits.rates.is_empty());
        let limit = Limit {
            rate: f64::from(RATE),
            burst: f64::from(BURST),
        };
        limited
            .map(|(merchant, _)| (merchant.id.to_string(), limit))
            .collect()
    }
}
