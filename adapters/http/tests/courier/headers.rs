use std::sync::Arc;

use expediter_http::{Egress, HttpCourier};
use expediter_ports::{AttemptRequest, Courier};
use expediter_types::{AttemptClass, Secret, SecretRef};

use crate::support::*;

fn plain(name: &str, value: &str) -> (String, Secret) {
    (name.to_owned(), Secret::Plain(value.to_owned()))
}

fn env(name: &str, variable: &str) -> (String, Secret) {
    (
        name.to_owned(),
        Secret::Reference(SecretRef::Env(variable.to_owned())),
    )
}

fn file(name: &str, path: &str) -> (String, Secret) {
    (
        name.to_owned(),
        Secret::Reference(SecretRef::File(path.to_owned())),
    )
}

#[tokio::test]
async fn a_request_says_what_it_is() {
    let server = Server::answering(response(200, &[], "")).await;
    let mut merchant = native(&server.url());
    merchant.adapter.method = "PUT".to_owned();
    merchant.adapter.headers = vec![plain("x-shop", "7"), plain("Expediter-Order-Id", "spoofed")];
    let mut envelope = envelope("o-1/a");
    envelope.generation = 2;
    envelope.event_type = Some("order.placed".into());
    envelope.source = Some("/shop".into());
    envelope.time = Some("2026-01-01T00:00:00Z".into());
    envelope.content_type = Some("application/vnd.order+json".into());
    envelope.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    envelope.test = true;
    let order = order_of(envelope, b"{\"a\":1}");
    let request = AttemptRequest {
        merchant: merchant.shared(),
        order,
        number: 3,
        look_first: false,
        may_leave: expediter_ports::MayLeave::always(),
    };
    assert_eq!(
        courier().attempt(request).await.class,
        AttemptClass::Delivered
    );

    let got = server.requests().remove(0);
    assert_eq!(got.line, "PUT /orders HTTP/1.1");
    assert_eq!(got.body, b"{\"a\":1}");
    for (name, value) in [
        ("host", server.address.to_string().as_str()),
        (
            "user-agent",
            concat!("expediter/", env!("CARGO_PKG_VERSION")),
        ),
        ("x-shop", "7"),
        ("expediter-order-id", "o-1/a"),
        ("expediter-merchant", "luigis"),
        ("expediter-attempt", "3"),
        ("expediter-generation", "2"),
        ("expediter-test", "true"),
        ("idempotency-key", "luigis/o-1/a"),
        ("ce-specversion", "1.0"),
        ("ce-id", "o-1/a"),
        ("ce-type", "order.placed"),
        ("ce-source", "/shop"),
        ("ce-time", "2026-01-01T00:00:00Z"),
        ("content-type", "application/vnd.order+json"),
        ("content-length", "7"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ] {
        assert_eq!(got.header(name), Some(value), "{name}");
    }
    let twice = got
        .headers
        .iter()
        .filter(|(name, _)| name == "expediter-order-id")
        .count();
    assert_eq!(twice, 1);
}

#[tokio::test]
async fn what_is_absent_or_illegal_is_left_out() {
    let server = Server::answering(response(200, &[], "")).await;
    let mut envelope = envelope("o-1");
    envelope.event_type = Some("evil\r\nx-injected: 1".into());
    envelope.traceparent = Some("\u{0}".into());
    let request = AttemptRequest {
        merchant: merchant(&server.url()).shared(),
        order: order_of(envelope, b""),
        number: 1,
        look_first: false,
        may_leave: expediter_ports::MayLeave::always(),
    };
    assert_eq!(
        courier().attempt(request).await.class,
        AttemptClass::Delivered
    );
    let got = server.requests().remove(0);
    assert_eq!(got.header("content-type"), Some("application/json"));
    assert_eq!(got.header("content-length"), Some("0"));
    let absent = [
        "idempotency-key",
        "expediter-generation",
        "expediter-test",
        "x-injected",
    ];
    for name in absent
        .into_iter()
        .chain(["ce-type", "ce-source", "traceparent", "cookie"])
    {
        assert_eq!(got.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn secrets_are_sent_and_never_shown() {
    // Sends everything back that it got, in body and headers.
    let server = Server::start(|mut stream, got| async move {
        while let Some(request) = read_request(&mut stream).await {
            let key = request.header("x-api-key").unwrap_or_default().to_owned();
            let token = request
                .header("authorization")
                .unwrap_or_default()
                .to_owned();
            let body = format!("{token} {key} {}", key.split_at(6).0);
            let line = format!("location: http://{key}.example/");
            write(&mut stream, &response(302, &[&line], &body)).await;
            got.lock().unwrap().push(request);
        }
    })
    .await;
    let secrets = Secrets::with(&[
        ("env:KEY", "k3y-of-luigi\n"),
        ("file:/run/token", "Bearer abcdefgh12"),
    ]);
    let mut options = options();
    options.secrets = Arc::clone(&secrets) as _;
    let courier = HttpCourier::new(options).unwrap();
    let mut merchant = merchant(&server.url());
    merchant.adapter.headers = vec![env("x-api-key", "KEY"), file("authorization", "/run/token")];
    let merchant = merchant.shared();
    let answer = attempt(&courier, &merchant, "o").await;
    assert_eq!(answer.class, AttemptClass::Misconfigured);
    assert_eq!(String::from_utf8_lossy(&answer.excerpt), "*** *** k3y-of");
    let shown = format!("{answer:?}");
    assert!(
        !shown.contains("k3y-of-luigi") && !shown.contains("abcdefgh12"),
        "{shown}"
    );
    let got = server.requests().remove(0);
    assert_eq!(got.header("x-api-key"), Some("k3y-of-luigi"));
    assert_eq!(got.header("authorization"), Some("Bearer abcdefgh12"));

    // A new revision looks at once; without one it is noticed within seconds.
    secrets
        .0
        .lock()
        .unwrap()
        .insert("env:KEY".to_owned(), "another".to_owned());
    attempt(&courier, &merchant, "o").await;
    attempt(&courier, &(*merchant).clone().shared(), "o").await;
    let keys: Vec<_> = server
        .requests()
        .iter()
        .map(|r| r.header("x-api-key").unwrap().to_owned())
        .collect();
    assert_eq!(keys, ["k3y-of-luigi", "k3y-of-luigi", "another"]);
    assert!(!format!("{courier:?}").contains("another"));
}

#[tokio::test]
async fn a_manifest_that_cannot_work_is_misconfigured() {
    let server = Server::answering(response(200, &[], "")).await;
    let secrets = Secrets::with(&[("env:BAD", "line\nbreak")]);
    let mut options = options();
    options.secrets = secrets;
    let courier = HttpCourier::new(options).unwrap();
    let good = server.url();
    let with = |url: &str, headers: Vec<(String, Secret)>| {
        let mut merchant = merchant(url);
        merchant.adapter.headers = headers;
        merchant
    };
    for (merchant, detail) in [
        (
            with(&good, vec![env("x-api-key", "NONE")]),
            "secret env:NONE of header x-api-key: it does not exist",
        ),
        (
            with(&good, vec![file("x-k", "/none")]),
            "secret file:/none of header x-k: it does not exist",
        ),
        (
            with(&good, vec![env("x-k", "BAD")]),
            "secret env:BAD: no legal value of header x-k",
        ),
        (
            with(&good, vec![plain("x y", "1")]),
            "header \"x y\": not a legal name",
        ),
        (
            with(&good, vec![plain("x-y", "1\n2")]),
            "header x-y: not a legal value",
        ),
        (
            with(&good, vec![plain("Content-Length", "1")]),
            "header Content-Length: belongs to the connection",
        ),
        (
            with("ftp://127.0.0.1/", vec![]),
            "url: scheme ftp is not http or https",
        ),
        (with("http://", vec![]), "url: empty host"),
        (
            with("http://u:p4ss@127.0.0.1/", vec![]),
            "url: credentials belong in a header with a secret reference",
        ),
    ] {
        let answer = attempt(&courier, &merchant.shared(), "o").await;
        assert_eq!(
            (answer.class, answer.detail.as_str()),
            (AttemptClass::Misconfigured, detail)
        );
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn addresses_that_are_not_listed_are_not_dialled() {
    let server = Server::answering(response(200, &[], "")).await;
    let port = server.address.port();
    let mut options = options();
    options.egress = Egress::public_only();
    let closed = HttpCourier::new(options.clone()).unwrap();
    for (host, shown, kind) in [
        ("127.0.0.1", "127.0.0.1", "loopback"),
        ("2130706433", "127.0.0.1", "loopback"),
        ("0x7f.1", "127.0.0.1", "loopback"),
        ("[::1]", "::1", "loopback"),
        ("[::ffff:127.0.0.1]", "::ffff:127.0.0.1", "loopback"),
        ("[64:ff9b::7f00:1]", "64:ff9b::7f00:1", "loopback"),
        ("10.0.0.1", "10.0.0.1", "private"),
        ("169.254.169.254", "169.254.169.254", "link-local"),
    ] {
        let url = format!("http://{host}:{port}/");
        let answer = attempt(&closed, &merchant(&url).shared(), "o").await;
        assert_eq!(answer.class, AttemptClass::Misconfigured, "{host}");
        let start = format!("address {shown} of host ");
        assert!(answer.detail.starts_with(&start), "{}", answer.detail);
        let end = format!(" is {kind}: egress.allow does not list it");
        assert!(answer.detail.ends_with(&end), "{}", answer.detail);
    }
    let by_name = merchant(&format!("http://localhost:{port}/")).shared();
    let answer = attempt(&closed, &by_name, "o").await;
    assert_eq!(answer.class, AttemptClass::Misconfigured);
    assert!(
        answer.detail.contains("of host localhost is loopback"),
        "{}",
        answer.detail
    );
    assert_eq!(server.connections(), 0);

    options.egress = Egress::new(&["LocalHost"]).unwrap();
    let open = HttpCourier::new(options).unwrap();
    assert_eq!(
        attempt(&open, &by_name, "o").await.class,
        AttemptClass::Delivered
    );
}
