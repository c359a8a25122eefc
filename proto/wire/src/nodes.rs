//! A node: its lease in the KV bucket NODES, whose key is the node's name, and what it says of itself.

use bytes::Bytes;
use expediter_types::{NodeName, Partition, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::control::PartitionState;
use crate::json::{self, V1, as_text};
use crate::{Rfc3339, WireError};

/// What a node says of itself each second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    pub node: NodeName,
    /// Differs for each start of the process.
    pub instance: String,
    /// Of the program.
    pub version: String,
    pub started: UnixMillis,
    /// Those it holds a claim on.
    pub partitions: Vec<Partition>,
    /// Takes no more partitions and gives back those it has.
    pub leaving: bool,
}

#[derive(Serialize, Deserialize)]
struct NodeJson {
    v: V1,
    #[serde(with = "as_text")]
    node: NodeName,
    instance: String,
    version: String,
    started: Rfc3339,
    partitions: Vec<u16>,
    leaving: bool,
}

/// Writes a lease.
#[must_use]
pub fn encode_node(node: &NodeRecord) -> Bytes {
    json::encode_bytes(&NodeJson {
        v: V1,
        node: node.node.clone(),
        instance: node.instance.clone(),
        version: node.version.clone(),
        started: Rfc3339(node.started),
        partitions: node.partitions.iter().map(|p| p.0).collect(),
        leaving: node.leaving,
    })
}

/// Reads what [`encode_node`] writes.
pub fn decode_node(bytes: &[u8]) -> Result<NodeRecord, WireError> {
    let node: NodeJson = json::decode("node", bytes)?;
    Ok(NodeRecord {
        node: node.node,
        instance: node.instance,
        version: node.version,
        started: node.started.0,
        partitions: node.partitions.into_iter().map(Partition).collect(),
        leaving: node.leaving,
    })
}

/// How a node stands, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    #[serde(with = "as_text")]
    pub node: NodeName,
    /// As in its lease.
    pub instance: String,
    /// Of the program.
    pub version: String,
    /// What the map gives it, and what it still gives away.
    pub partitions: Vec<NodePartition>,
    /// Nodes that it sees, itself included.
    pub live_nodes: u64,
    /// Attempts in flight.
    pub in_flight: u64,
    /// Attempts that may be in flight at the same time.
    pub capacity: u64,
    /// It could deliver an order that comes now.
    pub ready: bool,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<FailingCheck>,
    /// The node's clock when it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Rfc3339>,
    /// Orders that it took and that are neither finished nor waiting; anything but 0 is a fault.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unaccounted: i64,
    /// Changes that wait to be written into its store.
    #[serde(default)]
    pub store_waiting: u64,
    /// The store's size on disk.
    #[serde(default)]
    pub store_bytes: u64,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// A partition of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePartition {
    pub partition: u16,
    pub state: PartitionState,
}

/// A check of a node's readiness that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingCheck {
    /// As `/readyz` names it.
    pub check: String,
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_read_back() {
        let node = NodeRecord {
            node: NodeName::new("kitchen-1").unwrap(),
            instance: "a1".into(),
            version: "0.1.0".into(),
            started: 1_770_000_000_000,
            partitions: vec![Partition(0), Partition(15)],
            leaving: true,
        };
        assert_eq!(decode_node(&encode_node(&node)).unwrap(), node);
        assert!(decode_node(b"{\"v\":1,\"node\":\"a b\"}").is_err());
    }
}
