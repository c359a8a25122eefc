//! expediter-telemetry
