//! What the probes say, and what the node says of itself.

use std::sync::{Arc, OnceLock};

use expediter_gateway::{Check, Health};
use expediter_nats::{Node, PartitionPhase};
use expediter_ports::MerchantStore as _;
use expediter_runtime::{Clock, Platform};
use expediter_store::SledStore;
use expediter_types::NodeName;
use expediter_wire::Rfc3339;
use expediter_wire::control::PartitionState;
use expediter_wire::nodes::{FailingCheck, NodePartition, NodeStatus};

use super::events::Events;

/// Live while the store works; ready while the node could deliver an order that comes now.
#[derive(Debug)]
pub(crate) struct NodeHealth {
    pub(crate) name: NodeName,
    pub(crate) events: Arc<Events>,
    pub(crate) platform: Platform,
    pub(crate) store: Arc<SledStore>,
    /// Empty until NATS answered.
    pub(crate) node: Arc<OnceLock<Arc<Node>>>,
}

/// So many changes may wait for the store before the node calls itself behind.
const STORE_BEHIND: usize = 50_000;
/// An intake may wait so long for the store before the node calls itself behind; microseconds.
const INTAKE_STANDS: u64 = 5_000_000;

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
            .filter(|(_, phase)| *phase != PartitionPhase::Running)
            .count();
        vec![
            check("nats", status.connected, "the connection to NATS is lost"),
            check(
                "registry",
                status.registry_loaded,
                "the registry is not loaded yet",
            ),
            check(
                "map",
                status.map_applied,
                "the other nodes are not known yet",
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
                "intake",
                snapshot.intake_waits < INTAKE_STANDS,
                "the store does not keep up: no more orders are taken",
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

impl NodeHealth {
    /// `None` while the node starts.
    pub(crate) fn node_status(&self) -> Option<NodeStatus> {
        let node = self.node.get()?;
        let (status, snapshot) = (node.status(), self.platform.snapshot());
        let partitions = status.partitions.into_iter();
        let failing = self.ready().into_iter().filter_map(|check| {
            let reason = check.result.err()?;
            let check = check.name.to_owned();
            Some(FailingCheck { check, reason })
        });
        let failing: Vec<_> = failing.collect();
        Some(NodeStatus {
            node: self.name.clone(),
            instance: node.instance().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            partitions: partitions
                .map(|(partition, phase)| NodePartition {
                    partition: partition.0,
                    state: state(phase),
                })
                .collect(),
            live_nodes: status.live_nodes as u64,
            in_flight: snapshot.capacity_used as u64,
            capacity: snapshot.capacity as u64,
            ready: failing.is_empty(),
            failing,
            at: Some(Rfc3339(Clock::now().wall)),
            unaccounted: snapshot.unaccounted,
            store_waiting: snapshot.store_waiting as u64,
            store_bytes: self.store.usage().disk_bytes,
        })
    }
}

fn state(phase: PartitionPhase) -> PartitionState {
    match phase {
        PartitionPhase::Waiting => PartitionState::Waiting,
        PartitionPhase::Recovering => PartitionState::Recovering,
        PartitionPhase::Running => PartitionState::Running,
        PartitionPhase::HandingOver => PartitionState::HandingOver,
    }
}
