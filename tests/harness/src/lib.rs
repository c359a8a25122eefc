//! What tests need beside the product: real brokers as child processes.

pub mod nats;
