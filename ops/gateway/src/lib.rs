//! expediter-gateway
