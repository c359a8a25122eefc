//! The gateway over real TCP.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use expediter_gateway::{Check, Error, Gateway, Handle, Health, Options};

#[derive(Debug)]
struct Node {
    live: Mutex<Result<(), String>>,
    ready: Mutex<Vec<Check>>,
}

impl Health for Node {
    fn live(&self) -> Result<(), String> {
        self.live.lock().unwrap().clone()
    }

    fn ready(&self) -> Vec<Check> {
        self.ready.lock().unwrap().clone()
    }
}

fn anywhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn start(options: &Options) -> Result<(Handle, Arc<Node>), Error> {
    let node = Arc::new(Node {
        live: Mutex::new(Ok(())),
        ready: Mutex::new(Vec::new()),
    });
    let metrics = Arc::new(|| "expediter_orders_taken_total 5\n".to_owned());
    Ok((Gateway::start(options, node.clone(), metrics)?, node))
}

struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    fn json(&self) -> serde_json::Value {
        assert!(
            self.head.contains("content-type: application/json"),
            "{}",
            self.head
        );
        serde_json::from_str(&self.body).unwrap()
    }
}

fn ask(addr: SocketAddr, method: &str, path: &str) -> Response {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Response {
        status,
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

#[tokio::test]
async fn probes_say_which_check_fails() {
    let (handle, node) = start(&Options::at(anywhere())).unwrap();
    let addr = handle.addr();
    assert_ne!(addr.port(), 0);

    let live = ask(addr, "GET", "/livez");
    assert_eq!(live.status, 200);
    assert_eq!(live.json()["status"], "ok");
    *node.live.lock().unwrap() = Err("store failed".to_owned());
    let live = ask(addr, "GET", "/livez");
    assert_eq!(
        (live.status, &live.json()["checks"][0]["error"]),
        (503, &"store failed".into())
    );

    *node.ready.lock().unwrap() = vec![
        Check {
            name: "nats",
            result: Ok(()),
        },
        Check {
            name: "registry",
            result: Err("é".repeat(1000)),
        },
    ];
    let ready = ask(addr, "GET", "/readyz");
    assert_eq!(ready.status, 503);
    let report = ready.json();
    assert_eq!(report["status"], "failing");
    assert_eq!(
        report["checks"][0],
        serde_json::json!({ "name": "nats", "ok": true })
    );
    assert_eq!(report["checks"][1]["name"], "registry");
    assert_eq!(
        report["checks"][1]["error"]
            .as_str()
            .unwrap()
            .chars()
            .count(),
        500
    );
    node.ready.lock().unwrap().pop();
    assert_eq!(ask(addr, "GET", "/readyz").status, 200);
    handle.stop().await;
}

#[tokio::test]
async fn metrics_are_served_as_prometheus_wants_them() {
    let (handle, _node) = start(&Options::at(anywhere())).unwrap();
    let metrics = ask(handle.addr(), "GET", "/metrics");
    assert_eq!(metrics.status, 200);
    assert!(
        metrics
            .head
            .contains("content-type: text/plain; version=0.0.4; charset=utf-8")
    );
    assert_eq!(metrics.body, "expediter_orders_taken_total 5\n");
    let head = ask(handle.addr(), "HEAD", "/metrics");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    handle.stop().await;
}

#[tokio::test]
async fn anything_else_is_refused_in_json() {
    let (handle, _node) = start(&Options::at(anywhere())).unwrap();
    for path in ["/", "/metrics/", "/livez/x", "/%2e%2e/etc/passwd"] {
        let response = ask(handle.addr(), "GET", path);
        assert_eq!(
            (response.status, &response.json()["error"]),
            (404, &"no such path".into())
        );
    }
    let response = ask(handle.addr(), "POST", "/livez");
    assert_eq!(response.status, 405);
    assert!(response.head.contains("allow: get, head") && response.json().is_object());
    handle.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_a_clear_error() {
    let taken = TcpListener::bind(anywhere()).unwrap();
    let listen = taken.local_addr().unwrap();
    let error = start(&Options::at(listen)).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {listen}"));
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.to_string().contains("in use"), "{source}");
    let none = Options {
        listen: anywhere(),
        workers: 0,
    };
    assert!(matches!(start(&none), Err(Error::Workers(0))));
}

#[tokio::test]
async fn stopped_it_gives_the_port_back() {
    let (handle, _node) = start(&Options::at(anywhere())).unwrap();
    let addr = handle.addr();
    // A client that says nothing must not hold the shutdown up for long.
    let idle = TcpStream::connect(addr).unwrap();
    let start_of_stop = Instant::now();
    handle.stop().await;
    assert!(start_of_stop.elapsed() < Duration::from_secs(10));
    let (again, _node) = start(&Options::at(addr)).unwrap();
    assert_eq!(ask(addr, "GET", "/livez").status, 200);
    again.stop().await;
    drop(idle);
}

#[test]
fn dropped_it_stops_too() {
    let (handle, _node) = start(&Options::at(anywhere())).unwrap();
    let addr = handle.addr();
    drop(handle);
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(addr).is_ok() {
        assert!(Instant::now() < deadline, "still listens");
        std::thread::yield_now();
    }
}

#[test]
fn a_client_that_never_finishes_its_request_is_cut_off() {
    let (handle, _node) = start(&Options::at(anywhere())).unwrap();
    let mut slow = TcpStream::connect(handle.addr()).unwrap();
    slow.set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost:").unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}
