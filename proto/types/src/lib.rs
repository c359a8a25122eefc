//! expediter-types
