//! expediter-ports
