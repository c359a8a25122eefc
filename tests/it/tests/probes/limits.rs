//! Sizes, numbers of consumers, reading single messages, and who answers.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use async_nats::{
    HeaderMap,
    jetstream::{
        consumer::{AckPolicy, pull},
        context::PublishErrorKind,
        message::PublishMessage,
        stream::{self, ConsumerErrorKind},
    },
};
use futures::{StreamExt as _, stream as streams};
use tokio::time::timeout;

use super::{
    Broker, at_one_and_three_replicas, body, connect, context, publish, refused, step_down,
};

at_one_and_three_replicas!(
    the_largest_message,
    the_number_of_consumers,
    a_message_read_by_its_sequence,
);

const MESSAGE_TOO_LARGE: u64 = 10054;
const HEADERS_TOO_LARGE: u64 = 10097;
const TOO_MANY_CONSUMERS: u64 = 10026;

/// A message of `total` bytes as sizes are counted: the block of headers as it is on the wire, and
/// the payload.
fn message(headers: &[(&str, &str)], total: usize) -> PublishMessage {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, *value);
    }
    body(vec![b'x'; total - wire_length(headers)]).headers(map)
}

fn wire_length(headers: &[(&str, &str)]) -> usize {
    let lines: usize = headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + 4)
        .sum();
    "NATS/1.0\r\n".len() + lines + "\r\n".len()
}

/// `max_msg_size` counts headers and payload, and neither subject nor what the broker adds on disk.
/// So does the server's `max_payload` (1 MiB unless set), which the client checks before it sends.
/// The headers of a stored message have at most 65,535 bytes.
async fn the_largest_message(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let js = &broker.js;
    broker
        .stream(stream::Config {
            name: "SMALL".to_owned(),
            subjects: vec!["small.*".to_owned()],
            max_message_size: 1000,
            ..Default::default()
        })
        .await?;
    let headers = [("ce-id", "order-1"), ("Expediter-Key", "table 7")];
    publish(js, "small.a", body(vec![b'x'; 1000])).await?;
    publish(js, "small.a", message(&headers, 1000)).await?;
    for large in [body(vec![b'x'; 1001]), message(&headers, 1001)] {
        assert_eq!(
            refused(publish(js, "small.a", large).await)?.0,
            MESSAGE_TOO_LARGE
        );
    }

    broker
        .stream(stream::Config {
            name: "LARGE".to_owned(),
            subjects: vec!["large.*".to_owned()],
            ..Default::default()
        })
        .await?;
    let max = broker.client.max_payload();
    assert_eq!(max, 1 << 20);
    publish(js, "large.a", message(&headers, max)).await?;
    let error = publish(js, "large.a", message(&headers, max + 1))
        .await
        .expect_err("too large");
    assert_eq!(error.kind(), PublishErrorKind::MaxPayloadExceeded);

    let value = "v".repeat(65_535 - wire_length(&[("a", "")]));
    publish(js, "large.a", message(&[("a", &value)], 70_000)).await?;
    let value = format!("{value}v");
    let (code, _) = refused(publish(js, "large.a", message(&[("a", &value)], 70_000)).await)?;
    assert_eq!(code, HEADERS_TOO_LARGE);
    Ok(())
}

/// A stream that does not say how many consumers it may have gets 1,000, and shows -1.
async fn the_number_of_consumers(replicas: usize) -> Result<()> {
    const TRIED: usize = 1010;
    let broker = Broker::start(replicas).await?;
    for (name, max, shown, made) in [
        ("UNSET", 0, -1, 1000),
        ("UNLIMITED", -1, -1, 1000),
        ("SET", 2000, 2000, TRIED),
    ] {
        let stream = broker
            .stream(stream::Config {
                name: name.to_owned(),
                subjects: vec![format!("{name}.*")],
                max_consumers: max,
                max_bytes: 16 << 20,
                ..Default::default()
            })
            .await?;
        assert_eq!(stream.get_info().await?.config.max_consumers, shown);
        let stream = &stream;
        let mut answers = streams::iter(0..TRIED)
            .map(|i| {
                stream.create_consumer(pull::Config {
                    name: Some(format!("c{i}")),
                    ack_policy: AckPolicy::None,
                    memory_storage: true,
                    num_replicas: 1,
                    ..Default::default()
                })
            })
            .buffer_unordered(32);
        let mut created = 0;
        while let Some(answer) = answers.next().await {
            match answer.map_err(|error| error.kind()) {
                Ok(_) => created += 1,
                Err(ConsumerErrorKind::JetStream(error)) => {
                    assert_eq!(error.error_code().0, TOO_MANY_CONSUMERS);
                }
                Err(kind) => bail!("{kind}"),
            }
        }
        assert_eq!(created, made, "{name}");
    }
    Ok(())
}

/// Without `allow_direct` a message is read from the stream's leader, whichever server the client
/// has: what was acknowledged is there. Direct get has nobody who answers. Number and time of a
/// message stay what they were over a restart, and with another leader.
async fn a_message_read_by_its_sequence(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let stream = broker.orders().await?;
    assert!(!stream.cached_info().config.allow_direct);
    let mut views = Vec::new();
    for server in broker.servers() {
        views.push(
            context(connect(&[server.url()]).await?)
                .get_stream("ORDERS")
                .await?,
        );
    }
    let mut times = Vec::new();
    for i in 0..100 {
        let ack = publish(&broker.js, "orders.a", body(format!("{i}"))).await?;
        for view in &views {
            let stored = view.get_raw_message(ack.sequence).await?;
            assert_eq!(stored.payload, format!("{i}"));
            times.push((ack.sequence, stored.time));
        }
    }
    let direct = timeout(Duration::from_secs(2), stream.direct_get(1)).await;
    assert!(!matches!(direct, Ok(Ok(_))), "{direct:?}");

    if replicas == 1 {
        broker.servers()[0].kill9();
        broker.servers()[0].restart().await?;
    } else {
        step_down(&broker.client, "ORDERS").await?;
    }
    for (sequence, time) in times {
        assert_eq!(stream.get_raw_message(sequence).await?.time, time);
    }
    Ok(())
}

/// A stream's leader says since when it leads: the same in each of its answers, another after the
/// next election, also when it is elected again.
#[tokio::test]
async fn each_election_has_a_time_of_its_own() -> Result<()> {
    let broker = Broker::start(3).await?;
    let stream = broker.orders().await?;
    let mut elections = Vec::new();
    for _ in 0..4 {
        let mut answers = Vec::new();
        for _ in 0..3 {
            let info = stream.get_info().await?;
            let cluster = info.cluster.context("it is replicated")?;
            answers.push((cluster.leader, cluster.leader_since));
        }
        answers.dedup();
        let [(Some(leader), Some(since))] = answers.as_slice() else {
            bail!("{answers:?}");
        };
        elections.push((leader.clone(), *since));
        step_down(&broker.client, "ORDERS").await?;
    }
    let times: BTreeSet<_> = elections.iter().map(|(_, since)| *since).collect();
    assert_eq!(times.len(), elections.len(), "{elections:?}");
    Ok(())
}
