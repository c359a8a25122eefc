//! Node leases in a KV bucket, and when a watch has given the whole bucket.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use async_nats::jetstream::{
    kv::{self, Entry, Operation, Store, Watch},
    message::PublishMessage,
    stream::StorageType,
};
use futures::StreamExt as _;
use tokio::time::timeout;

use super::{Broker, WRONG_LAST_SEQUENCE, at_one_and_three_replicas, body, publish, refused};

at_one_and_three_replicas!(
    a_lease_is_renewed_by_compare_and_swap,
    a_lease_expires_with_a_marker,
    a_watch_gives_the_whole_bucket,
);

const KEY: &str = "$KV.NODES.n.a";

async fn bucket(broker: &Broker, name: &str, markers: Option<Duration>) -> Result<Store> {
    let config = kv::Config {
        bucket: name.to_owned(),
        history: 1,
        storage: StorageType::File,
        num_replicas: broker.replicas,
        limit_markers: markers,
        ..Default::default()
    };
    let store = broker.js.create_key_value(config).await?;
    broker.heard(&format!("$KV.{name}.x")).await?;
    Ok(store)
}

/// A lease of `seconds` that replaces revision `previous`.
fn lease(seconds: u64, previous: u64) -> PublishMessage {
    body("a")
        .ttl(Duration::from_secs(seconds))
        .expected_last_subject_sequence(previous)
}

async fn entry(watch: &mut Watch) -> Result<Entry> {
    let entry = timeout(Duration::from_secs(10), watch.next())
        .await
        .context("no entry")?;
    Ok(entry.context("the watch ended")??)
}

/// A renewal states the revision that it replaces and starts the time anew; one that states another
/// revision is refused.
async fn a_lease_is_renewed_by_compare_and_swap(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let nodes = bucket(&broker, "NODES", Some(Duration::from_secs(60))).await?;
    let mut watch = nodes.watch("n.>").await?;

    let mut revision = publish(&broker.js, KEY, lease(2, 0)).await?.sequence;
    let (code, _) = refused(publish(&broker.js, KEY, lease(2, 0)).await)?;
    assert_eq!(code, WRONG_LAST_SEQUENCE);
    assert_eq!(entry(&mut watch).await?.operation, Operation::Put);

    // Longer than the lease lives without a renewal.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(3500) {
        let previous = revision;
        revision = publish(&broker.js, KEY, lease(2, previous)).await?.sequence;
        let (code, text) = refused(publish(&broker.js, KEY, lease(2, previous)).await)?;
        assert_eq!(code, WRONG_LAST_SEQUENCE);
        assert!(text.contains(&revision.to_string()), "{text}");
        let entry = entry(&mut watch).await?;
        assert_eq!(
            (entry.operation, entry.revision),
            (Operation::Put, revision)
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

/// The end of a lease reaches a watch as a `Purge` entry, whose revision is what the next lease has
/// to state; a lease over the marker expires as well. When the marker is gone too, the next lease
/// states 0.
async fn a_lease_expires_with_a_marker(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let js = &broker.js;
    let nodes = bucket(&broker, "NODES", Some(Duration::from_secs(3))).await?;
    let mut watch = nodes.watch("n.>").await?;

    let mut previous = 0;
    for round in 0..2 {
        let published = Instant::now();
        let revision = publish(js, KEY, lease(1, previous)).await?.sequence;
        assert_eq!(entry(&mut watch).await?.revision, revision);
        let marker = entry(&mut watch).await?;
        let lived = published.elapsed();
        println!("{replicas} replicas: a lease of 1 s was gone after {lived:?}");
        assert_eq!(
            (marker.key.as_str(), marker.operation),
            ("n.a", Operation::Purge)
        );
        assert!(marker.revision > revision);
        assert!(
            lived >= Duration::from_millis(990) && lived < Duration::from_secs(5),
            "{lived:?}"
        );
        if round == 0 {
            for stale in [0, revision] {
                let (code, _) = refused(publish(js, KEY, lease(1, stale)).await)?;
                assert_eq!(code, WRONG_LAST_SEQUENCE);
            }
        }
        previous = marker.revision;
    }
    let stream = js.get_stream("KV_NODES").await?;
    super::eventually("the marker goes", Duration::from_secs(10), || async {
        Ok((stream.get_info().await?.state.messages == 0).then_some(()))
    })
    .await?;
    let silence = timeout(Duration::from_millis(100), watch.next()).await;
    assert!(silence.is_err(), "the end of a marker is told: {silence:?}");
    let (code, _) = refused(publish(js, KEY, lease(1, previous)).await)?;
    assert_eq!(code, WRONG_LAST_SEQUENCE);
    publish(js, KEY, lease(1, 0)).await?;
    Ok(())
}

/// A watch of an empty bucket stays silent. Of another it gives each key's newest entry in the order
/// of revisions, deletions included. It is complete when it gave the last sequence that the bucket's
/// stream had *before* the watch: that is the leader's answer, while the watch may read from a replica
/// that lags, which `seen_current` does not know of.
async fn a_watch_gives_the_whole_bucket(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let store = bucket(&broker, "MERCHANTS", None).await?;

    assert_eq!(store.stream.get_info().await?.state.messages, 0);
    let mut watch = store.watch_with_history(">").await?;
    let silence = timeout(Duration::from_millis(300), watch.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    // What comes later is current at once.
    let revision = store.put("m0", "0".into()).await?;
    let first = entry(&mut watch).await?;
    assert_eq!((first.revision, first.seen_current), (revision, true));

    for round in 0..3 {
        for i in 0..20 {
            store
                .put(format!("m{i}"), format!("{round}").into())
                .await?;
        }
    }
    store.delete("m7").await?;
    store.purge("m8").await?;
    store.put("m3", "last".into()).await?;

    // `Store::status` asks nobody: it repeats what was true when the store was opened.
    assert_eq!(store.status().await?.values(), 0);
    let state = store.stream.get_info().await?.state;
    assert_eq!(state.messages, 20, "deletions count");
    let last = state.last_sequence;
    let mut watch = store.watch_with_history(">").await?;
    let mut state = BTreeMap::new();
    let mut revision = 0;
    while revision < last {
        let entry = entry(&mut watch).await?;
        assert!(entry.revision > revision);
        revision = entry.revision;
        assert!(entry.seen_current || revision < last);
        state.insert(entry.key.clone(), entry);
    }
    assert_eq!(state.len(), 20);
    assert_eq!(state["m7"].operation, Operation::Delete);
    assert_eq!(state["m8"].operation, Operation::Purge);
    assert_eq!(state["m3"].value, "last");
    assert_eq!(state["m4"].value, "2");
    Ok(())
}
