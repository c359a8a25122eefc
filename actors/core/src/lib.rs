//! The decisions of the platform, without a clock, randomness, async or I/O.
//!
//! Inputs and [`Now`](expediter_types::Now) go in, effects and commands come out. What runs here in
//! production runs unchanged in the seeded simulation.

mod order;
pub mod recovery;
pub mod store;

pub use order::{Order, OrderState, Stored, key_hash, payload_hash};
