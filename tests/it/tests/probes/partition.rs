//! The partition that the broker computes for a merchant, and what its subject transform does to
//! publishers and readers.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use async_nats::jetstream::{
    consumer::{AckPolicy, pull},
    context::PublishErrorKind,
    stream::{self, SubjectTransform},
};
use expediter_types::Partition;
use expediter_wire::subjects::{orders_transform, partition_of};
use futures::StreamExt as _;

use super::{Broker, at_one_and_three_replicas, body, publish, take};

at_one_and_three_replicas!(publishers_and_readers_of_a_partition);

/// Publishers write `orders.<merchant>` and get their acknowledgement; the stream has
/// `orders.<p>.<merchant>`, and that is what a reader filters by. Publishing to the stored subject
/// is refused, for no stream takes it.
async fn publishers_and_readers_of_a_partition(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let js = &broker.js;
    let stream = broker.orders().await?;
    let mut expected = Vec::new();
    for i in 0..64 {
        let merchant = format!("m{i}");
        let ack = publish(js, format!("orders.{merchant}"), body("order")).await?;
        assert_eq!(ack.stream, "ORDERS");
        if partition_of(&merchant, 16) == Partition(3) {
            expected.push((ack.sequence, format!("orders.3.{merchant}")));
        }
    }
    ensure!(
        expected.len() > 1,
        "no merchant of partition 3 among the names"
    );

    let consumer = stream
        .create_consumer(pull::Config {
            filter_subject: "orders.3.*".to_owned(),
            ack_policy: AckPolicy::None,
            ..Default::default()
        })
        .await?;
    let mut got = Vec::new();
    for message in take(&consumer, expected.len()).await? {
        let info = message.info().map_err(anyhow::Error::from_boxed)?;
        got.push((info.stream_sequence, message.subject.to_string()));
    }
    assert_eq!(got, expected);

    // The publisher's form of the subject selects nothing.
    let published_form = stream.info_builder().subjects("orders.*").fetch().await?;
    assert_eq!(published_form.count().await, 0);

    for subject in ["orders.3.x", "orders", "orders.a.b"] {
        let error = publish(js, subject, body("no"))
            .await
            .expect_err("no stream takes it");
        assert_eq!(error.kind(), PublishErrorKind::StreamNotFound, "{subject}");
    }
    Ok(())
}

/// The product computes the broker's partition, for names of every length and alphabet that a
/// merchant's id may have.
#[tokio::test]
async fn partition_of_is_the_brokers() -> Result<()> {
    let broker = Broker::start(1).await?;
    let names = names(200);
    for partitions in [1, 7, 16, 64, 1000] {
        let stream = broker
            .stream(stream::Config {
                name: "ORDERS".to_owned(),
                subjects: vec!["orders.*".to_owned()],
                subject_transform: Some(SubjectTransform {
                    source: "orders.*".to_owned(),
                    destination: orders_transform(partitions),
                }),
                ..Default::default()
            })
            .await?;
        let mut used = BTreeSet::new();
        for name in &names {
            let ack = publish(&broker.js, format!("orders.{name}"), body("")).await?;
            let stored = stream.get_raw_message(ack.sequence).await?;
            let p = partition_of(name, partitions);
            assert_eq!(stored.subject.as_str(), format!("orders.{p}.{name}"));
            used.insert(p);
        }
        assert!(
            used.len() >= usize::from(partitions).min(16),
            "{partitions}: {used:?}"
        );
        broker.js.delete_stream("ORDERS").await?;
    }
    Ok(())
}

/// `count` different names of 1 to 64 characters, the same in every run.
fn names(count: usize) -> BTreeSet<String> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as usize
    };
    let mut names = BTreeSet::new();
    while names.len() < count {
        let length = 1 + random() % 64;
        names.insert(
            (0..length)
                .map(|_| char::from(ALPHABET[random() % 64]))
                .collect(),
        );
    }
    names
}
