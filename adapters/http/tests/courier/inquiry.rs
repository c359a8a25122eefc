//! A merchant is asked before an order is repeated that it may have.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use expediter_ports::{AttemptRequest, Courier};
use expediter_types::{
    Answer, AttemptClass, Idempotency, Lookup, LookupRule, LookupVerdict, Merchant, Predicate,
    Secret, SecretRef,
};
use tokio::net::TcpStream;

use crate::support::*;

/// Answers look-ups so, and orders with 200.
async fn server(answer: String) -> Server {
    Server::start(move |mut stream: TcpStream, got: Arc<Mutex<Vec<Got>>>| {
        let answer = answer.clone();
        async move {
            while let Some(request) = read_request(&mut stream).await {
                let asks = request.line.starts_with("GET ");
                got.lock().unwrap().push(request);
                let taken = response(200, &[], "{}");
                write(&mut stream, if asks { &answer } else { &taken }).await;
            }
        }
    })
    .await
}

fn asked(server: &Server) -> Merchant {
    let mut merchant = merchant(&server.url());
    merchant.adapter.idempotency = Idempotency::Lookup;
    merchant.adapter.lookup = Some(Box::new(Lookup {
        url: format!("{}/{{id}}", server.url()),
        after: None,
        rules: Vec::new(),
    }));
    merchant
}

async fn look_first(merchant: Merchant, id: &str) -> Answer {
    let mut options = options();
    options.secrets = Secrets::with(&[("env:KEY", "s3cret")]);
    let courier = expediter_http::HttpCourier::new(options).unwrap();
    let request = AttemptRequest {
        merchant: merchant.shared(),
        order: order_of(envelope(id), b"{}"),
        number: 2,
        look_first: true,
        may_leave: expediter_ports::MayLeave::always(),
    };
    courier.attempt(request).await
}

fn lines(server: &Server) -> Vec<String> {
    let requests = server.requests();
    requests.into_iter().map(|request| request.line).collect()
}

#[tokio::test]
async fn what_the_merchant_has_is_not_sent() {
    let server = server(response(200, &[], "{}")).await;
    let mut merchant = asked(&server);
    let key = Secret::Reference(SecretRef::Env("KEY".to_owned()));
    merchant.adapter.headers = vec![("x-key".to_owned(), key)];
    let answer = look_first(merchant, "a/b?c%").await;
    assert_eq!(answer.class, AttemptClass::AlreadyDone, "{answer:?}");
    assert!(!answer.absent);
    assert_eq!(lines(&server), ["GET /orders/a%2Fb%3Fc%25 HTTP/1.1"]);
    let got = server.requests().remove(0);
    assert_eq!(got.header("x-key"), Some("s3cret"));
    assert_eq!(got.header("expediter-order-id"), Some("a/b?c%"));
}

#[tokio::test]
async fn what_the_merchant_has_not_is_sent() {
    for status in [404, 410] {
        let server = server(response(status, &[], "{}")).await;
        let answer = look_first(asked(&server), "o-1").await;
        assert_eq!(
            (answer.class, answer.absent),
            (AttemptClass::Delivered, true)
        );
        let lines = lines(&server);
        assert_eq!(lines, ["GET /orders/o-1 HTTP/1.1", "POST /orders HTTP/1.1"]);
    }
}

#[tokio::test]
async fn without_an_answer_nothing_is_sent_and_nothing_is_ambiguous() {
    for (status, headers, class) in [
        (500, &[][..], AttemptClass::Retry),
        (408, &[], AttemptClass::Retry),
        (400, &[], AttemptClass::Retry),
        (503, &["retry-after: 7"], AttemptClass::RateLimited),
        (429, &[], AttemptClass::RateLimited),
        (401, &[], AttemptClass::Suspended),
        (405, &[], AttemptClass::Misconfigured),
        (302, &[], AttemptClass::Misconfigured),
    ] {
        let server = server(response(status, headers, "{}")).await;
        let answer = look_first(asked(&server), "o-1").await;
        assert_eq!(answer.class, class, "{status}: {answer:?}");
        assert!(answer.detail.starts_with("look-up: "), "{answer:?}");
        assert!(!answer.absent);
        assert_eq!(server.requests().len(), 1, "{status}");
    }
    // Hangs, closes, is not there.
    let hangs = Server::start(|stream, _| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await;
    let mut merchant = asked(&hangs);
    merchant.adapter.timeout = Duration::from_secs(1);
    let answer = look_first(merchant, "o-1").await;
    assert_eq!(answer.class, AttemptClass::Retry, "{answer:?}");
    let closes = Server::start(|mut stream, _| async move {
        drop(read_request(&mut stream).await);
    })
    .await;
    let answer = look_first(asked(&closes), "o-1").await;
    assert_eq!(answer.class, AttemptClass::Retry, "{answer:?}");
    let gone = asked(&closes);
    drop(closes);
    let answer = look_first(gone, "o-1").await;
    assert_eq!(answer.class, AttemptClass::Retry, "{answer:?}");
}

#[tokio::test]
async fn rules_decide_before_the_status() {
    let rule = |path: &str, text: &str, verdict| LookupRule {
        when: vec![
            Predicate::Status(200, 200),
            Predicate::Json(path.to_owned(), Some(text.to_owned())),
        ],
        verdict,
    };
    let rules = vec![
        rule("$.total", "0", LookupVerdict::Absent),
        rule("$.total", "1", LookupVerdict::Found),
    ];
    for (body, class, absent) in [
        (r#"{"total":0}"#, AttemptClass::Delivered, true),
        (r#"{"total":1}"#, AttemptClass::AlreadyDone, false),
    ] {
        let server = server(response(200, &[], body)).await;
        let mut merchant = asked(&server);
        merchant
            .adapter
            .lookup
            .as_mut()
            .unwrap()
            .rules
            .clone_from(&rules);
        let answer = look_first(merchant, "o-1").await;
        assert_eq!((answer.class, answer.absent), (class, absent), "{body}");
    }
    // Cut in the middle it says nothing.
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"total\":0";
    let server = Server::start(move |mut stream, got| async move {
        if let Some(request) = read_request(&mut stream).await {
            got.lock().unwrap().push(request);
            write(&mut stream, cut).await;
        }
    })
    .await;
    let mut merchant = asked(&server);
    merchant.adapter.lookup.as_mut().unwrap().rules = rules;
    let answer = look_first(merchant, "o-1").await;
    assert_eq!(answer.class, AttemptClass::Retry, "{answer:?}");
}

#[tokio::test]
async fn an_id_names_an_order_and_no_other_server_or_resource() {
    let server = server(response(200, &[], "{}")).await;
    let mut elsewhere = asked(&server);
    elsewhere.adapter.lookup.as_mut().unwrap().url = "http://{id}.example/orders".to_owned();
    let answer = look_first(elsewhere, "evil").await;
    assert_eq!(answer.class, AttemptClass::Misconfigured, "{answer:?}");
    let answer = look_first(asked(&server), "..").await;
    assert_eq!(answer.class, AttemptClass::Misconfigured, "{answer:?}");
    let mut private = asked(&server);
    private.adapter.lookup.as_mut().unwrap().url = "http://10.0.0.1/{id}".to_owned();
    let answer = look_first(private, "o-1").await;
    assert_eq!(answer.class, AttemptClass::Misconfigured, "{answer:?}");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_used_up_limit_closes_and_the_order_counts_as_delivered() {
    for headers in [
        &["ratelimit: \"default\";r=0;t=20"][..],
        &["ratelimit-remaining: 0", "ratelimit-reset: 20"],
        &["x-ratelimit-remaining: 0", "x-ratelimit-reset: 20"],
    ] {
        let server = Server::answering(response(200, headers, "{}")).await;
        let answer = once(merchant(&server.url())).await;
        assert_eq!(answer.class, AttemptClass::Delivered);
        assert_eq!(
            answer.retry_after,
            Some(Duration::from_secs(20)),
            "{headers:?}"
        );
    }
    let both = [
        "retry-after: 3",
        "x-ratelimit-remaining: 0",
        "x-ratelimit-reset: 99999",
    ];
    let server = Server::answering(response(429, &both, "{}")).await;
    let answer = once(merchant(&server.url())).await;
    assert_eq!(answer.retry_after, Some(Duration::from_secs(3)));
}
