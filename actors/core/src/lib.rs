//! The decisions of the platform, without a clock, randomness, async or I/O.
//!
//! Inputs and [`Now`](expediter_types::Now) go in, effects and commands come out. What runs here in
//! production runs unchanged in the seeded simulation.

pub mod backoff;
pub mod invariants;
pub mod jobs;
pub mod ledger;
pub mod limiter;
mod log;
pub mod merchant;
mod order;
pub mod partition;
pub mod quota;
pub mod recovery;
pub mod repeats;
pub mod scopes;
pub mod slices;
pub mod store;

pub use log::{IntakeSource, LogMessage, Undecodable};
pub use order::{Order, OrderState, Stored, key_hash, payload_hash};
