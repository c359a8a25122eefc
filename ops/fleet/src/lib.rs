//! expediter-fleet
