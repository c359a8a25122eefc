//! expediter-it
