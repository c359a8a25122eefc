//! The judge of benchmarks, over the wire.

use std::time::{SystemTime, UNIX_EPOCH};

use super::super::{Behaviour, RemoteFleet, Tally, bench_body};
use super::client::Client;
use super::judging_fleet;

fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_micros() as u64
}

/// Counts alone, for comparing.
fn counts(tally: &Tally) -> Tally {
    Tally {
        latency: None,
        first_arrival_us: None,
        last_arrival_us: None,
        ..tally.clone()
    }
}

#[tokio::test]
async fn the_judge_sees_what_went_wrong() {
    let fleet = judging_fleet();
    let mut client = Client::new(fleet.addr()).await;
    let second_ago = now_us() - 1_000_000;
    for seq in [0, 1, 2, 5, 3, 2] {
        client
            .bench("good-1", &bench_body(seq, second_ago, 512))
            .await
            .expect("an answer");
    }
    for seq in 0..4 {
        client
            .bench("good-2", &bench_body(seq, second_ago, 512))
            .await
            .expect("an answer");
    }
    let mut changed = bench_body(6, second_ago, 512).to_vec();
    changed[300] ^= 1;
    client.bench("good-1", &changed).await.expect("an answer");
    client.bench("bad-1", b"{}").await.expect("an answer");

    let verdict = RemoteFleet::new(fleet.addr())
        .verdict()
        .await
        .expect("a verdict");
    assert_eq!(verdict, fleet.verdict());
    let good = Tally {
        arrived: 10,
        unique: 9,
        duplicated: 1,
        out_of_order: 1,
        taken_out_of_order: 1,
        missing: 1,
        bad_body: 1,
        ..Tally::default()
    };
    assert_eq!(counts(&verdict.groups["good"]), good);
    assert_eq!(
        verdict.groups["bad"],
        Tally {
            bad_body: 1,
            ..Tally::default()
        }
    );
    assert_eq!(
        counts(&verdict.total),
        Tally {
            bad_body: 2,
            ..good
        }
    );
    let latency = verdict.total.latency.expect("orders arrived");
    assert!(
        latency.p50_ms >= 999.0 && latency.p50_ms <= latency.max_ms,
        "{latency:?}"
    );
    assert!(verdict.total.first_arrival_us > Some(second_ago));
    assert_eq!(verdict.arrivals_per_second.iter().sum::<u64>(), 10);

    fleet.clear();
    assert_eq!(fleet.verdict().total, Tally::default());
}

#[tokio::test]
async fn repeats_of_refused_orders_are_no_duplicates() {
    let fleet = judging_fleet();
    fleet
        .set(
            "acme",
            Behaviour {
                fail_ratio: 0.5,
                ..Behaviour::default()
            },
        )
        .expect("valid");
    let mut client = Client::new(fleet.addr()).await;
    for seq in 0..100 {
        let body = bench_body(seq, now_us(), 200);
        while client.bench("acme", &body).await.expect("an answer").status != 200 {}
    }
    let tally = fleet.verdict().total;
    let expected = Tally {
        arrived: 199,
        unique: 100,
        repeated: 99,
        ..Tally::default()
    };
    assert_eq!(counts(&tally), expected);
}

/// Two threads and many connections lose and double nothing.
#[tokio::test]
async fn concurrent_arrivals_add_up() {
    let fleet = judging_fleet();
    let mut clients = Vec::new();
    for merchant in 0..20 {
        let addr = fleet.addr();
        clients.push(tokio::spawn(async move {
            let mut client = Client::new(addr).await;
            for seq in 1..=100 {
                let body = bench_body(seq, now_us(), 1024);
                client
                    .bench(&format!("m-{merchant}"), &body)
                    .await
                    .expect("an answer");
            }
        }));
    }
    for client in clients {
        client.await.expect("no panic");
    }
    let verdict = fleet.verdict();
    let expected = Tally {
        arrived: 2000,
        unique: 2000,
        ..Tally::default()
    };
    assert_eq!(counts(&verdict.total), expected);
    assert_eq!(fleet.stats().arrived, 2000);
}
