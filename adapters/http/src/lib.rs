//! expediter-http
