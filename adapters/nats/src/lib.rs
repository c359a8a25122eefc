//! The broker's side of a node: streams, leases, claims, recovery, intake, fenced writes.
//!
//! Constraints: all of it is NATS; no state of its own that a restart would miss. What it promises
//! is the protocol of one partition: a claim is the right to work, every write carries it, and
//! nothing is deleted from the log that a durable mark does not call finished. Every task ends with
//! its owner; none outlives [`Node::leave`].

mod broker;
mod clock;
mod connect;
mod error;
mod follow;
mod lease;
mod map;
mod members;
mod reader;
mod streams;

pub use connect::{ConnectOptions, Connection, ConnectionState, Credentials, Tls};
pub use error::{Difference, Error};
pub use streams::{Topology, ensure, partitions};
