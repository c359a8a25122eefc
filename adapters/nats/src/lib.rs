//! expediter-nats
