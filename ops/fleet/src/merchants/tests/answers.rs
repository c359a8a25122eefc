//! What a client of a merchant sees.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::super::{Behaviour, Ending, Step};
use super::client::{Answer, Client};
use super::{DEADLINE, fleet, merchant};

async fn statuses(client: &mut Client, count: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(client.order("acme", "o-1").await.expect("an answer").status);
    }
    statuses
}

async fn timed(behaviour: Behaviour) -> (Answer, Duration) {
    let fleet = merchant(behaviour);
    let mut client = Client::new(fleet.addr()).await;
    let start = Instant::now();
    let answer = client.order("acme", "o-1").await.expect("an answer");
    (answer, start.elapsed())
}

#[tokio::test]
async fn fast_and_slow_take_their_time() {
    let (answer, took) = timed(Behaviour::fast()).await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, r#"{"status":"accepted"}"#)
    );
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(took >= Duration::from_millis(5), "{took:?}");
    let (answer, took) = timed(Behaviour::slow()).await;
    assert_eq!(answer.status, 200);
    assert!(took >= Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn flaky_fails_every_fifth() {
    let fleet = merchant(Behaviour::flaky());
    let mut client = Client::new(fleet.addr()).await;
    let statuses = statuses(&mut client, 10).await;
    assert_eq!(statuses, [200, 200, 200, 200, 503, 200, 200, 200, 200, 503]);
}

#[tokio::test]
async fn rate_limiting_asks_to_stay_away() {
    let fleet = merchant(Behaviour::rate_limiting());
    let mut clients = Vec::new();
    for _ in 0..60 {
        clients.push(Client::new(fleet.addr()).await);
    }
    // All at once: the bucket of 20 cannot be refilled to 60 before they have arrived.
    for client in &mut clients {
        client
            .write("POST", "/m/acme/orders", "", b"{}")
            .await
            .expect("it takes the order");
    }
    let (mut accepted, mut limited) = (0, 0);
    for client in &mut clients {
        let answer = client.answer().await.expect("an answer");
        match answer.status {
            200 => accepted += 1,
            _ => {
                assert_eq!(
                    (answer.status, answer.header("retry-after")),
                    (429, Some("1"))
                );
                limited += 1;
            }
        }
    }
    assert!(
        accepted >= 20 && limited > 0,
        "{accepted} accepted, {limited} limited"
    );
    let stats = fleet.merchant_stats("acme");
    assert_eq!(stats.answered[&429], limited);
    assert!(stats.too_early > 0, "{stats:?}");
}

#[tokio::test]
async fn rejecting_says_why() {
    let (answer, _) = timed(Behaviour::rejecting()).await;
    assert_eq!(answer.status, 422);
    let error: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(error["error"]["code"], "item_unavailable");
}

#[tokio::test]
async fn hung_never_answers_and_lets_go_when_the_client_does() {
    let fleet = merchant(Behaviour::hung());
    let mut client = Client::new(fleet.addr()).await;
    let nothing = timeout(Duration::from_millis(300), client.order("acme", "o-1")).await;
    assert!(nothing.is_err(), "{nothing:?}");
    assert!(fleet.wait_arrived("acme", 1, DEADLINE).await);
    assert_eq!(fleet.merchant_stats("acme").in_flight, 1);
    drop(client);
    let gone = fleet.wait_until(DEADLINE, |stats| {
        stats.merchants["acme"].in_flight == 0 && stats.connections == 0
    });
    assert!(gone.await, "{:?}", fleet.stats());
    assert!(fleet.merchant_stats("acme").answered.is_empty());
}

#[tokio::test]
async fn reset_and_close_come_after_the_order() {
    for (ending, expected) in [
        (Ending::Reset, ErrorKind::ConnectionReset),
        (Ending::Close, ErrorKind::UnexpectedEof),
    ] {
        let fleet = merchant(Behaviour {
            ending,
            ..Behaviour::default()
        });
        let mut client = Client::new(fleet.addr()).await;
        let error = client.order("acme", "o-1").await.expect_err("no answer");
        assert_eq!(error.kind(), expected, "{ending:?}");
        let [arrival] = &fleet.arrivals("acme")[..] else {
            panic!("one arrival")
        };
        assert!(
            arrival.is_taken() && arrival.answered.is_none(),
            "{arrival:?}"
        );
        assert_eq!(fleet.merchant_stats("acme").unanswered, 1);
    }
}

#[tokio::test]
async fn bodies_are_cut_trickle_or_never_end() {
    let body = "0123456789".to_owned();
    let with = |ending| Behaviour {
        ending,
        body: body.clone(),
        ..Behaviour::default()
    };

    let fleet = merchant(with(Ending::Cut));
    let error = Client::new(fleet.addr())
        .await
        .order("acme", "o-1")
        .await
        .expect_err("cut");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);

    let (answer, took) = timed(with(Ending::Trickle(Duration::from_millis(20)))).await;
    assert_eq!(answer.body, body);
    assert!(took >= Duration::from_millis(200), "{took:?}");

    let fleet = merchant(with(Ending::Endless));
    let mut client = Client::new(fleet.addr()).await;
    let answer = client.order("acme", "o-1").await.expect("a head");
    assert_eq!(
        (answer.status, answer.header("transfer-encoding")),
        (200, Some("chunked"))
    );
    let mut sink = tokio::io::sink();
    let read = &mut tokio::io::AsyncReadExt::take(&mut client.stream, 4 << 20);
    let read = tokio::io::copy(read, &mut sink)
        .await
        .expect("more and more");
    assert_eq!(read, 4 << 20);
}

#[tokio::test]
async fn a_script_is_played_once_in_order() {
    let fleet = merchant(Behaviour::status(201).scripted(vec![
        Step::status(503).header("retry-after", "7"),
        Step::ending(Ending::Close),
        Step::status(409).after(Duration::from_millis(50)),
    ]));
    let mut client = Client::new(fleet.addr()).await;
    let first = client.order("acme", "o-1").await.expect("an answer");
    assert_eq!(
        (first.status, first.header("retry-after")),
        (503, Some("7"))
    );
    assert!(client.order("acme", "o-1").await.is_err());
    let mut client = Client::new(fleet.addr()).await;
    assert_eq!(statuses(&mut client, 3).await, [409, 201, 201]);
}

#[tokio::test]
async fn only_orders_for_valid_merchants_are_taken() {
    let fleet = fleet();
    let mut client = Client::new(fleet.addr()).await;
    for path in ["/m/no.dots/orders", "/m//orders", "/elsewhere", "/"] {
        let answer = client
            .send("POST", path, "", b"{}")
            .await
            .expect("an answer");
        assert_eq!(answer.status, 404, "{path}");
    }
    assert_eq!(fleet.stats().arrived, 0);
    // A client that goes away in the middle of its order.
    let head = "POST /m/acme/orders HTTP/1.1\r\nhost: fleet\r\ncontent-length: 100\r\n\r\n{";
    let mut client = Client::new(fleet.addr()).await;
    tokio::io::AsyncWriteExt::write_all(&mut client.stream, head.as_bytes())
        .await
        .expect("sent");
    drop(client);
    let counted = fleet.wait_until(DEADLINE, |stats| {
        stats
            .merchants
            .get("acme")
            .is_some_and(|acme| acme.incomplete == 1)
    });
    assert!(counted.await, "{:?}", fleet.stats());
    assert_eq!(fleet.stats().arrived, 0);
}
