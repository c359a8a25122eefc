//! Prints the reference page of all metrics.

fn main() {
    print!("{}", expediter_telemetry::metrics::page());
}
