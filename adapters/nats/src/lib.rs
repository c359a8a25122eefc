//! The broker's side of a node: streams, leases, claims, recovery, intake, fenced writes.
//!
//! Constraints: all of it is NATS; no state of its own that a restart would miss. What it promises
//! is the protocol of one partition: a claim is the right to work, every write carries it, and
//! nothing is deleted from the log that a durable mark does not call finished. Every task ends with
//! its owner; none outlives [`Node::leave`].

mod audit;
mod books;
mod broker;
mod claim;
mod clock;
mod compaction;
mod connect;
mod control;
mod directory;
mod error;
mod events;
mod follow;
mod identity;
mod inspect;
mod instance;
mod intake;
mod jobs;
mod lease;
mod log;
mod map;
mod members;
mod node;
mod outcomes;
mod ownership;
mod partition;
mod publisher;
mod quiet;
mod reader;
mod recovery;
mod registry;
mod slices;
mod streams;
mod writer;

pub use audit::{Audit, AuditFilter, AuditItem};
pub use books::{Books, books};
pub use connect::{ConnectOptions, Connection, ConnectionState, Credentials, Tls};
pub use control::{request, request_node};
pub use error::{Difference, Error};
pub use events::{ControlHandler, NodeEvents};
pub use inspect::{
    ClaimEntry, ConsumerFacts, NodeEntry, Peer, StreamFacts, StreamReport, broker_time, claims,
    consumers, inspect_streams, nodes,
};
pub use jobs::{JobEntry, Jobs};
pub use node::{Node, NodeStatus, Options};
pub use outcomes::{
    OutcomeItem, TailFrom, dead_letter, find_outcome, newest_outcome, read_dead_letters,
    tail_outcomes,
};
pub use partition::PartitionPhase;
pub use publisher::{OrderPublisher, PendingAck, Published};
pub use registry::{Registry, RegistryChange, RegistryEntry, ScopeEntry};
pub use streams::{Topology, ensure, largest_order, partitions};
