//! The working copy of what waits, on sled.
//!
//! Constraints:
//!
//! - It is a copy: all it holds can be rebuilt from the log. So a broken store is moved aside and
//!   never repaired, and any error while running ends the process.
//! - The engine's `flush` is not an fsync on Linux. Every commit is one batch, one flush and one
//!   `fdatasync` of our own; in emulated power cuts nothing less kept a store whole.
//! - The engine puts pages above 128 KiB into files that it never syncs, so values are small and
//!   records lie in parts (`frame`).
//! - Orders waiting are reached by seeking in keys (`keys`), never by reading from the beginning:
//!   the cost of a call does not grow with the backlog.
//! - All calls block.

#[cfg(not(unix))]
compile_error!("the store syncs and locks files the Unix way");

mod check;
mod codec;
mod fault;
mod files;
mod frame;
mod keys;
mod lock;
mod open;
mod read;
mod store;
mod write;

pub use open::{Aside, OpenError, Opened, Options, open};
pub use store::SledStore;
