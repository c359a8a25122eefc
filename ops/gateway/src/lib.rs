//! The node's HTTP side: `/livez`, `/readyz` and `/metrics`.
//!
//! Constraints: it runs on threads of its own, so that a busy node still answers its probes, and a
//! flood of probes takes no time from orders. What it serves comes through [`Health`] and a closure:
//! it knows nothing of partitions or merchants.

mod gateway;
mod routes;

pub use gateway::{Error, Gateway, Handle, Options};
pub use routes::{Check, Health, RenderMetrics};
