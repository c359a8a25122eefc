//! In-memory implementations of the ports, for tests. They keep to the same contracts as the real
//! ones: where both exist, one conformance suite runs against both.

mod store;

pub use store::MemoryStore;
