//! What the probes say.

use std::sync::{Arc, OnceLock};

use expediter_gateway::{Check, Health};
use expediter_nats::Node;
use expediter_runtime::Platform;

use super::events::Events;

/// Live while the store works; ready while the node could deliver an order that comes now.
#[derive(Debug)]
pub(crate) struct NodeHealth {
    pub(crate) events: Arc<Events>,
    pub(crate) platform: Platform,
    /// Empty until NATS answered.
    pub(crate) node: Arc<OnceLock<Arc<Node>>>,
}

/// So many changes may wait for the store before the node calls itself behind.
const STORE_BEHIND: usize = 50_000;

impl Health for NodeHealth {
    fn live(&self) -> Result<(), String> {
        self.events.has_failed().map_or(Ok(()), Err)
    }

    fn ready(&self) -> Vec<Check> {
        let check = |name, holds: bool, otherwise: &str| Check {
            name,
            result: if holds {
                Ok(())
            } else {
                Err(otherwise.to_owned())
            },
        };
        let Some(node) = self.node.get() else {
            return vec![check("nats", false, "waiting for NATS")];
        };
        let status = node.status();
        let snapshot = self.platform.snapshot();
        let starting = status
            .partitions
            .iter()
            .filter(|(_, phase)| *phase != expediter_nats::PartitionPhase::Running)
            .count();
        vec![
            check("nats", status.connected, "the connection to NATS is lost"),
            check(
                "registry",
                status.registry_loaded,
                "the registry is not loaded yet",
            ),
            check("lease", status.lease_fresh, "the node's lease is not fresh"),
            check(
                "partitions",
                starting == 0,
                &format!("{starting} partitions are not running yet"),
            ),
            check(
                "store",
                snapshot.store_waiting < STORE_BEHIND,
                "the store is behind",
            ),
            check(
                "local",
                !self.events.local_fault(),
                "attempts fail by the node's own fault",
            ),
            check(
                "outcomes",
                !self.events.outcomes_full(),
                "OUTCOMES takes no more",
            ),
        ]
    }
}
