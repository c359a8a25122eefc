//! expediter-wire
