//! What the node tells people and machines about itself: logs, traces and metrics.
//!
//! Constraints: nothing of a payload and no secret leaves through here. Labels have values that are
//! known beforehand, so that a hundred thousand merchants cost no more series than one. A slow or
//! failing collector never slows an order down.

mod courier;
mod error;
mod export;
pub mod logs;
pub mod metrics;
mod trace;

pub use courier::TracedCourier;
pub use error::Error;
pub use metrics::Metrics;
pub use trace::{AttemptSpan, Tracing};
