//! The supervised actors: the only crate that names actix.
//!
//! A [`Platform`] owns partitions. Each partition is an actor that runs the pure partition machine
//! and carries out its commands; each merchant with work is an actor beside it that runs the pure
//! merchant machine. Store calls happen on one thread of their own, requests on the process's
//! tokio runtime.

mod capacity;
mod clock;
mod gauges;
mod intake;
mod merchant_actor;
mod partition_actor;
mod platform;
mod registry;
mod scopes;
mod store_queue;
mod writer;

pub use clock::Clock;
pub use gauges::Snapshot;
pub use merchant_actor::{Step, StepHook};
pub use platform::{Error, Options, Platform, PlatformEvents};
pub use registry::MerchantDirectory;
pub use scopes::SharedStatus;
