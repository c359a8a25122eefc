//! expediter-harness
