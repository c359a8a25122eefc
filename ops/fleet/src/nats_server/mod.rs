//! A real nats-server as a child process, for demos, benchmarks and tests.
//!
//! Constraints: it listens on 127.0.0.1 only; it dies with this process, whatever kills this process
//! (see [`crate::spawn_bound`]); it is in a process group of its own, so that a terminal's Ctrl-C
//! reaches this process alone, which can then drain before it stops its broker; one store has one
//! server.

mod binary;
mod cluster;
mod config;
mod ports;
mod probe;
mod server;
#[cfg(test)]
mod tests;

pub use binary::{MIN_VERSION, Version};
pub use cluster::{ClusterOptions, NatsCluster};
pub use config::ClusterMember;
pub use server::{NatsServer, Options};
