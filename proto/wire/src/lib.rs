//! Everything that crosses a wire: subjects, headers, records, registry values, manifests.
//!
//! Constraints: no I/O and no clock; bytes in, the values of `expediter-types` out, and back.
//! Every format carries `"v":1` and is frozen by the golden vectors under `vectors/`: readers ignore
//! fields they do not know and refuse a `v` above the one they know. No reader panics on any input.

mod error;
mod json;
mod time;

pub mod audit;
pub mod control;
pub mod explain;
pub mod job;
pub mod manifest;
pub mod nodes;
pub mod notification;
pub mod order;
pub mod records;
pub mod registry;
pub mod schedule;
pub mod slices;
pub mod subjects;
pub mod zone;

pub use error::WireError;
pub use time::{MAX_MILLIS, Rfc3339, parse_rfc3339};

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod schema_tests;
