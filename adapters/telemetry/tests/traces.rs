//! Attempts as a collector sees them, over real HTTP.

mod fixture;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use expediter_ports::Courier;
use expediter_telemetry::{Tracing, logs};
use expediter_types::AttemptClass;
use fixture::{request, run};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const NOT_SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

/// Takes OTLP requests and answers with a status.
struct Collector {
    endpoint: String,
    requests: Receiver<(String, Vec<u8>)>,
}

fn collector(status: &'static str) -> Collector {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let sender = sender.clone();
            std::thread::spawn(move || serve(stream.unwrap(), status, &sender));
        }
    });
    Collector { endpoint, requests }
}

fn serve(mut stream: TcpStream, status: &str, sender: &Sender<(String, Vec<u8>)>) {
    let mut taken = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let head = taken.windows(4).position(|end| end == b"\r\n\r\n");
        if let Some(head) = head {
            let text = String::from_utf8(taken[..head].to_vec()).unwrap();
            let length: usize = text
                .lines()
                .find_map(|line| {
                    line.to_lowercase()
                        .strip_prefix("content-length: ")
                        .map(str::to_owned)
                })
                .map_or(0, |length| length.parse().unwrap());
            if taken.len() >= head + 4 + length {
                let body = taken[head + 4..head + 4 + length].to_vec();
                let _ = sender.send((text, body));
                taken.clear();
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).unwrap();
                continue;
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(n) => taken.extend_from_slice(&chunk[..n]),
        }
    }
}

fn holds(body: &[u8], part: impl AsRef<[u8]>) -> bool {
    body.windows(part.as_ref().len())
        .any(|window| window == part.as_ref())
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).unwrap() as u8;
    text.as_bytes()
        .chunks(2)
        .map(|pair| digit(&pair[0]) << 4 | digit(&pair[1]))
        .collect()
}

#[test]
fn without_an_endpoint_an_order_passes_untouched_and_is_counted() {
    let run = run(Tracing::off(), AttemptClass::Ambiguous);
    assert_eq!(
        run.attempt(request("a", 1, Some(SAMPLED))).as_deref(),
        Some(SAMPLED)
    );
    assert_eq!(run.attempt(request("a", 2, None)), None);
    assert_eq!(run.metrics.attempts.of(AttemptClass::Ambiguous).get(), 2);
    assert_eq!(run.metrics.attempts.of(AttemptClass::Delivered).get(), 0);
    assert_eq!(run.metrics.attempt_duration.count(), 2);
    assert_eq!(
        run.metrics.publish_to_start.count(),
        1,
        "of first attempts alone"
    );
}

/// One test, because a process sets its log up once.
#[test]
fn attempts_reach_the_collector_under_the_publishers_trace() {
    let collector = collector("200 OK");
    let options = logs::Options {
        filter: "warn".to_owned(),
        otlp_endpoint: Some(collector.endpoint.clone()),
        service_instance: "node-a".to_owned(),
        ..logs::Options::default()
    };
    let guard = logs::init(&options).unwrap();
    assert!(matches!(
        logs::init(&options),
        Err(expediter_telemetry::Error::AlreadySet(_))
    ));
    assert!(guard.tracing().enabled());
    let run = run(guard.tracing(), AttemptClass::Delivered);

    let outgoing = run.attempt(request("order-1", 1, Some(SAMPLED))).unwrap();
    assert_ne!(outgoing, SAMPLED);
    assert!(outgoing.starts_with(&format!("00-{TRACE}-")) && outgoing.ends_with("-01"));
    let span = outgoing.split('-').nth(2).unwrap().to_owned();

    let unsampled = run.attempt(request("order-2", 1, Some(NOT_SAMPLED)));
    assert_eq!(
        unsampled.as_deref(),
        Some(NOT_SAMPLED),
        "the publisher decided"
    );

    let trace = |traceparent: &str| traceparent.split('-').nth(1).unwrap().to_owned();
    let first = run.attempt(request("order-3", 1, None)).unwrap();
    let again = run
        .attempt(request("order-3", 2, Some("no trace context")))
        .unwrap();
    let other = run.attempt(request("order-4", 1, None)).unwrap();
    assert_eq!(
        trace(&first),
        trace(&again),
        "one trace for all attempts of an order"
    );
    assert_ne!(first, again);
    assert_ne!(trace(&first), trace(&other));

    // Dropped before it ended.
    drop(run.courier.attempt(request("order-5", 1, None)));

    guard.shutdown(Duration::from_secs(10));
    let (head, body) = collector
        .requests
        .recv_timeout(Duration::from_secs(10))
        .unwrap();
    assert!(head.starts_with("POST /v1/traces "), "{head}");
    for part in [
        "expediter",
        "node-a",
        "forward orders.{merchant}",
        "messaging.system",
        "messaging.operation.name",
        "order-1",
        "order-3",
        "order-5",
        "luigis",
        "pos.example",
        "POST",
        "http.response.status_code",
        "http.request.resend_count",
        "expediter.attempt.class",
        "delivered",
        "abandoned",
    ] {
        assert!(holds(&body, part), "{part}");
    }
    for id in [TRACE, "b7ad6b7169203331", &span, &trace(&first)] {
        assert!(holds(&body, hex(id)), "{id}");
    }
    assert!(!holds(&body, "order-2"), "not sampled");
    assert!(!holds(&body, "secret"), "neither payloads nor secrets");
    assert!(collector.requests.try_recv().is_err(), "one batch");
}
