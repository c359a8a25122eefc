//! expediter-runtime
