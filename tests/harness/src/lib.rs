//! What tests need beside the product: real brokers and real nodes as child processes, merchants
//! that remember, and a judge.
//!
//! A test makes a [`World`], registers merchants, starts nodes ([`NodeProcess`] is the real binary),
//! publishes, breaks something, waits until the world is [`World::settled`], and lets the
//! [`Oracle`] compare what was acknowledged with what merchants and OUTCOMES saw.
//!
//! Constraints: deadlines on conditions, no sleeps that hope, no retries; every process dies with the
//! test's, however that ends.

mod kind;
mod ledger;
mod link;
mod load;
mod log;
mod nats;
mod node;
mod oracle;
mod outcomes;
mod publisher;
mod wait;
mod world;

pub use kind::Kind;
pub use ledger::{Accepted, Ledger};
pub use link::Link;
pub use load::Load;
pub use log::{LogLine, NodeLog};
pub use nats::Brokers;
pub use node::{NodeOptions, NodeProcess, binary, get};
pub use oracle::{Oracle, Verdict};
pub use outcomes::{Claimed, Outcomes, Recorded};
pub use publisher::{NewOrder, Publisher};
pub use wait::eventually;
pub use world::World;
