//! expediter
fn main() {}
