//! expediter-store
