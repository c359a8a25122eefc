//! expediter-core
