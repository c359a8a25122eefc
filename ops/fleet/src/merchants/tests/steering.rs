//! What a test or a benchmark does with a fleet.

use std::time::Duration;

use super::super::{Arrival, Behaviour, Fleet, Options, Record, RemoteFleet, Step};
use super::client::Client;
use super::{DEADLINE, fleet};

#[tokio::test]
async fn arrivals_are_recorded() {
    let fleet = fleet();
    fleet
        .set(
            "acme",
            Behaviour::default().scripted(vec![Step::status(503)]),
        )
        .expect("valid");
    let mut client = Client::new(fleet.addr()).await;
    for id in ["o-1", "o-1", "o-2"] {
        client.order("acme", id).await.expect("an answer");
    }
    let arrivals = fleet.arrivals("acme");
    let seen: Vec<_> = arrivals
        .iter()
        .map(|a| (a.order_id.as_str(), a.answered))
        .collect();
    assert_eq!(
        seen,
        [("o-1", Some(503)), ("o-1", Some(200)), ("o-2", Some(200))]
    );
    let [refused, taken, _] = &arrivals[..] else {
        panic!("three arrivals")
    };
    assert!(!refused.is_taken() && taken.is_taken() && taken.is_answered_2xx());
    assert_eq!(taken.idempotency_key.as_deref(), Some("\"k-o-1\""));
    assert_eq!((taken.attempt, taken.body_len), (2, 2));
    assert_eq!(taken.body_hash, xxhash_rust::xxh3::xxh3_64(b"{}"));
    assert!(refused.at_us <= taken.at_us && taken.at_us > 1_700_000_000_000_000);
    let stats = fleet.merchant_stats("acme");
    assert_eq!(
        (stats.arrived, stats.answered_2xx(), stats.max_in_flight),
        (3, 2, 1)
    );

    fleet.clear();
    assert!(fleet.arrivals("acme").is_empty());
    assert_eq!(fleet.merchant_stats("acme").arrived, 0);
}

#[tokio::test]
async fn orders_can_be_looked_up() {
    let fleet = fleet();
    fleet
        .set(
            "acme",
            Behaviour::default().scripted(vec![Step::status(503)]),
        )
        .expect("valid");
    let mut client = Client::new(fleet.addr()).await;
    client.order("acme", "refused").await.expect("an answer");
    client.order("acme", "taken").await.expect("an answer");
    for (path, status) in [
        ("/m/acme/orders/taken", 200),
        ("/m/acme/orders/refused", 404),
        ("/m/other/orders/taken", 404),
        ("/m/acme/orders", 404),
    ] {
        let answer = client.send("GET", path, "", b"").await.expect("an answer");
        assert_eq!(answer.status, status, "{path}");
    }
    assert_eq!(
        fleet.merchant_stats("acme").arrived,
        2,
        "a look-up is no arrival"
    );
}

#[tokio::test]
async fn behaviour_changes_live() {
    let fleet = fleet();
    let mut client = Client::new(fleet.addr()).await;
    let mut status = async |merchant: &str| {
        client
            .order(merchant, "o-1")
            .await
            .expect("an answer")
            .status
    };
    assert_eq!((status("acme").await, status("other").await), (200, 200));
    fleet.set("acme", Behaviour::status(422)).expect("valid");
    fleet.set_default(Behaviour::status(503)).expect("valid");
    assert_eq!((status("acme").await, status("other").await), (422, 503));
    assert_eq!(status("never-seen").await, 503);
    fleet.unset("acme").expect("valid");
    assert_eq!(status("acme").await, 503);
    assert!(fleet.set("no.dots", Behaviour::default()).is_err());
    assert!(fleet.set("acme", Behaviour::status(99)).is_err());
}

#[tokio::test]
async fn a_fleet_elsewhere_is_steered_over_http() {
    let fleet = fleet();
    let remote = RemoteFleet::new(fleet.addr());
    remote
        .set("acme", &Behaviour::rejecting())
        .await
        .expect("set");
    remote
        .set_default(&Behaviour::status(204))
        .await
        .expect("set");
    let mut client = Client::new(fleet.addr()).await;
    for number in 0..1200 {
        client
            .order("acme", &format!("o-{number}"))
            .await
            .expect("an answer");
    }
    client.order("other", "o-1").await.expect("an answer");
    assert_eq!(
        remote.stats().await.expect("stats").merchants["acme"].answered[&422],
        1200
    );
    let arrivals: Vec<Arrival> = remote.all_arrivals().await.expect("arrivals");
    assert_eq!(arrivals, fleet.all_arrivals());
    assert_eq!(
        (arrivals.len(), arrivals[1200].merchant.as_str()),
        (1201, "other")
    );
    assert_eq!(
        remote.verdict().await.expect("a verdict").total.arrived,
        0,
        "it does not judge"
    );

    let put = client
        .send(
            "PUT",
            "/control/acme",
            "",
            br#"{"preset":"fast","status":202}"#,
        )
        .await;
    assert_eq!(put.expect("an answer").status, 200);
    let get = client
        .send("GET", "/control/acme", "", b"")
        .await
        .expect("an answer");
    assert!(
        get.body.contains(r#""latency":"5ms""#) && get.body.contains("202"),
        "{}",
        get.body
    );
    let bad = client
        .send("PUT", "/control/acme", "", br#"{"stauts":202}"#)
        .await;
    let bad = bad.expect("an answer");
    assert!(bad.status == 400 && bad.body.contains("stauts"), "{bad:?}");
    let delete = client
        .send("DELETE", "/control/acme", "", b"")
        .await
        .expect("an answer");
    assert_eq!(delete.status, 200);
    assert_eq!(
        client.order("acme", "o-1").await.expect("an answer").status,
        204
    );
    remote.clear().await.expect("cleared");
    assert_eq!(fleet.stats().arrived, 0);
    assert!(remote.set("no.dots", &Behaviour::default()).await.is_err());
}

#[tokio::test]
async fn many_connections_are_open_at_once() {
    const COUNT: u64 = 1500;
    let options = Options {
        threads: 2,
        behaviour: Behaviour::hung(),
        ..Options::default()
    };
    let fleet = Fleet::start(options).expect("the fleet starts");
    let mut clients = Vec::new();
    for _ in 0..COUNT {
        let mut client = Client::new(fleet.addr()).await;
        client
            .write("POST", "/m/acme/orders", "", b"{}")
            .await
            .expect("sent");
        clients.push(client);
    }
    assert!(
        fleet.wait_arrived("acme", COUNT, DEADLINE).await,
        "{:?}",
        fleet.stats()
    );
    let stats = fleet.stats();
    assert_eq!(stats.connections, COUNT);
    assert_eq!(u64::from(stats.merchants["acme"].max_in_flight), COUNT);
}

#[tokio::test]
async fn nothing_is_left_when_the_last_handle_is_dropped() {
    let fleet = fleet();
    let other = fleet.clone();
    let addr = fleet.addr();
    fleet.set("acme", Behaviour::hung()).expect("valid");
    let mut client = Client::new(addr).await;
    client
        .write("POST", "/m/acme/orders", "", b"{}")
        .await
        .expect("sent");
    assert!(fleet.wait_arrived("acme", 1, DEADLINE).await);
    drop(fleet);
    assert_eq!(other.stats().connections, 1);
    drop(other);
    let end = tokio::time::timeout(DEADLINE, client.answer())
        .await
        .expect("in time");
    assert!(end.is_err(), "{end:?}");
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn with_recording_off_nothing_is_counted() {
    let options = Options {
        record: Record::Off,
        ..Options::default()
    };
    let fleet = Fleet::start(options).expect("the fleet starts");
    let mut client = Client::new(fleet.addr()).await;
    assert_eq!(
        client.order("acme", "o-1").await.expect("an answer").status,
        200
    );
    assert_eq!(fleet.stats().arrived, 0);
    assert!(
        !fleet
            .wait_arrived("acme", 1, Duration::from_millis(20))
            .await
    );
    let look_up = client
        .send("GET", "/m/acme/orders/o-1", "", b"")
        .await
        .expect("an answer");
    assert_eq!(look_up.status, 501);
}
