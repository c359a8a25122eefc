//! Integration tests against real brokers; they are in `tests/`, in one binary.
