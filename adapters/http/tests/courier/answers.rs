use std::sync::Arc;
use std::time::Duration;

use expediter_http::HttpCourier;
use expediter_types::{AttemptClass, ClassifyRule, Predicate};

use crate::support::*;

#[tokio::test]
async fn redirects_are_not_followed() {
    let other = Server::answering(response(200, &[], "")).await;
    let location = format!("location: {}?token=1", other.url());
    for status in [301, 302, 303, 307, 308] {
        let server = Server::answering(response(status, &[&location], "")).await;
        let answer = once(merchant(&server.url())).await;
        assert_eq!(
            (answer.class, answer.status),
            (AttemptClass::Misconfigured, Some(status))
        );
        let expected = "redirects to 127.0.0.1, which is not followed";
        assert!(answer.detail.ends_with(expected), "{}", answer.detail);
    }
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn waits_are_read_and_clamped() {
    let mut options = options();
    options.retry_after_min = Duration::from_secs(2);
    options.retry_after_max = Duration::from_secs(600);
    options.rate_limited_default = Duration::from_secs(5);
    let courier = HttpCourier::new(options).unwrap();
    let limited = AttemptClass::RateLimited;
    for (status, value, class, wait) in [
        (429, None, limited, Some(5)),
        (429, Some("30"), limited, Some(30)),
        (429, Some("0"), limited, Some(2)),
        (429, Some("86400"), limited, Some(600)),
        (429, Some("Sun, 06 Nov 1994 08:49:37 GMT"), limited, Some(2)),
        (
            429,
            Some("Tue, 31 Dec 2999 23:59:59 GMT"),
            limited,
            Some(600),
        ),
        (429, Some("soon"), limited, Some(5)),
        (503, Some("7"), limited, Some(7)),
        (425, Some("7"), limited, Some(7)),
        (503, None, AttemptClass::Retry, None),
        (503, Some("-7"), AttemptClass::Retry, None),
        (500, Some("7"), AttemptClass::Ambiguous, Some(7)),
        (422, Some("7"), AttemptClass::Invalid, Some(7)),
        (200, None, AttemptClass::Delivered, None),
    ] {
        let line = value.map(|value| format!("Retry-After: {value}"));
        let server = Server::answering(response(status, line.as_deref().as_slice(), "")).await;
        let answer = attempt(&courier, &merchant(&server.url()).shared(), "o").await;
        let expected = (class, wait.map(Duration::from_secs));
        assert_eq!(
            (answer.class, answer.retry_after),
            expected,
            "{status} {value:?}"
        );
    }
}

#[tokio::test]
async fn rules_look_into_the_body() {
    let throttled = ClassifyRule {
        when: vec![
            Predicate::Status(200, 299),
            Predicate::Json("$.result.state".to_owned(), Some("THROTTLED".to_owned())),
        ],
        class: AttemptClass::RateLimited,
    };
    let known = ClassifyRule {
        when: vec![Predicate::Status(409, 409)],
        class: AttemptClass::AlreadyDone,
    };
    let closed = ClassifyRule {
        when: vec![Predicate::Header("x-closed".to_owned(), None)],
        class: AttemptClass::Rejected,
    };
    let mut options = options();
    options.max_response_bytes = 4 << 10;
    let courier = HttpCourier::new(options).unwrap();
    let filler = "x".repeat(5_000);
    let long = format!(r#"{{"filler":"{filler}","result":{{"state":"THROTTLED"}}}}"#);
    for (response, class, excerpt) in [
        (
            response(200, &[], r#"{"result":{"state":"THROTTLED"}}"#),
            AttemptClass::RateLimited,
            32,
        ),
        (
            response(200, &[], r#"{"result":{"state":"taken"}}"#),
            AttemptClass::Delivered,
            0,
        ),
        (response(200, &[], "not json"), AttemptClass::Delivered, 0),
        (response(200, &[], &long), AttemptClass::Delivered, 0),
        (response(409, &[], "had it"), AttemptClass::AlreadyDone, 0),
        (
            response(200, &["x-closed: 1"], "no lunch"),
            AttemptClass::Rejected,
            8,
        ),
        (
            response(409, &["x-closed: 1"], "had it"),
            AttemptClass::AlreadyDone,
            0,
        ),
    ] {
        let server = Server::answering(response).await;
        let mut merchant = merchant(&server.url());
        merchant.adapter.classify = vec![known.clone(), closed.clone(), throttled.clone()];
        let answer = attempt(&courier, &merchant.shared(), "o").await;
        assert_eq!(
            (answer.class, answer.excerpt.len()),
            (class, excerpt),
            "{answer:?}"
        );
        assert_eq!(
            answer.detail.contains("classify rule"),
            class != AttemptClass::Delivered
        );
    }
}

#[tokio::test]
async fn the_beginning_of_a_refusal_is_kept() {
    let server = Server::answering(response(422, &[], &"é".repeat(5_000))).await;
    let mut merchant = merchant(&server.url());
    let answer = once(merchant.clone()).await;
    assert_eq!(
        (answer.class, answer.excerpt.len()),
        (AttemptClass::Invalid, 2048)
    );
    assert_eq!(answer.detail, "HTTP 422 Unprocessable Entity");
    merchant.adapter.rejected = vec![422];
    assert_eq!(once(merchant).await.class, AttemptClass::Rejected);
}

#[tokio::test]
async fn a_test_exchange_shows_all_but_secrets() {
    let server = Server::answering(response(201, &["x-id: 7", "x-echo: s3cret-key"], "made")).await;
    let mut options = options();
    options.secrets = Secrets::with(&[("env:KEY", "s3cret-key")]);
    let courier = HttpCourier::new(options).unwrap();
    let mut merchant = native(&format!("{}?k=v#f", server.url()));
    let reference = expediter_types::SecretRef::Env("KEY".to_owned());
    let header = expediter_types::Secret::Reference(reference);
    merchant.adapter.headers = vec![("x-api-key".to_owned(), header)];
    let mut envelope = envelope("t-1");
    envelope.test = true;
    let order = order_of(envelope, b"{}");
    let exchange = courier
        .test_exchange(merchant.clone().shared(), Arc::clone(&order))
        .await;
    assert_eq!(
        (exchange.method.as_str(), exchange.version.as_str()),
        ("POST", "HTTP/1.1")
    );
    assert_eq!(exchange.url, format!("{}?***", server.url()));
    let has = |headers: &[(String, String)], name: &str, value: &str| {
        assert!(
            headers.contains(&(name.to_owned(), value.to_owned())),
            "{name} in {headers:?}"
        );
    };
    has(&exchange.request_headers, "x-api-key", "***");
    has(&exchange.request_headers, "expediter-test", "true");
    has(&exchange.request_headers, "idempotency-key", "luigis/t-1");
    has(&exchange.response_headers, "x-id", "7");
    has(&exchange.response_headers, "x-echo", "***");
    assert_eq!(&exchange.body[..], b"made");
    assert_eq!(exchange.answer.class, AttemptClass::Delivered);
    assert!(exchange.sent_after <= exchange.answered_after && exchange.sent_after.is_some());
    assert_eq!(server.requests()[0].header("x-api-key"), Some("s3cret-key"));
    assert_eq!(server.requests()[0].line, "POST /orders?k=v HTTP/1.1");

    drop(server);
    merchant.adapter.url = "http://127.0.0.1:1/".to_owned();
    let exchange = courier.test_exchange(merchant.shared(), order).await;
    assert_eq!(exchange.answer.class, AttemptClass::Retry, "{exchange:?}");
    assert_eq!((exchange.sent_after, exchange.answered_after), (None, None));
}
