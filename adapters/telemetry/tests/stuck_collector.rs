//! A collector that takes connections and never answers costs the orders nothing.

mod fixture;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use expediter_telemetry::logs;
use expediter_types::AttemptClass;
use fixture::{request, run};

#[test]
fn a_stuck_collector_stops_neither_attempts_nor_the_shutdown() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let options = logs::Options {
        filter: "warn".to_owned(),
        otlp_endpoint: Some(endpoint),
        ..logs::Options::default()
    };
    let guard = logs::init(&options).unwrap();
    let run = run(guard.tracing(), AttemptClass::Delivered);
    // More than the queue holds.
    let attempts = 10_000;
    let start = Instant::now();
    for number in 0..attempts {
        assert!(
            run.attempt(request(&format!("order-{number}"), 1, None))
                .is_some()
        );
    }
    assert_eq!(
        run.metrics.attempts.of(AttemptClass::Delivered).get(),
        attempts
    );
    guard.shutdown(Duration::from_millis(200));
    // One stuck request alone takes ten seconds.
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
    drop(listener);
}
