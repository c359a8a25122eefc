//! The reader of a partition: an ephemeral consumer in memory without acknowledgements.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, Consumer, DeliverPolicy, pull, pull::MessagesErrorKind},
    context::ConsumerInfoErrorKind,
    stream::{RawMessageErrorKind, Stream},
};
use expediter_types::Partition;
use expediter_wire::subjects::partition_of;
use futures::StreamExt as _;
use tokio::time::timeout;

use super::{
    Broker, at_one_and_three_replicas, body, connect, context, eventually, leader, publish, take,
};

at_one_and_three_replicas!(
    the_consumer_sequence_counts_deliveries,
    a_delivery_that_went_elsewhere_is_noticed,
    a_deleted_consumer_ends_its_stream,
    nothing_more_for_the_partition,
);

const P: u16 = 3;
const FILTER: &str = "orders.3.*";
const HEARTBEAT: Duration = Duration::from_millis(500);

/// A subject of partition [`P`], and one of another.
fn subjects() -> (String, String) {
    let name = |wanted: bool| {
        (0..)
            .map(|i| format!("m{i}"))
            .find(|merchant| (partition_of(merchant, 16) == Partition(P)) == wanted)
            .unwrap_or_default()
    };
    (
        format!("orders.{}", name(true)),
        format!("orders.{}", name(false)),
    )
}

struct Reader {
    consumer: Consumer<pull::Config>,
    messages: pull::Stream,
    /// The consumer's server is known to ours.
    heard: bool,
}

#[derive(Debug, PartialEq)]
enum Event {
    /// Consumer and stream sequence.
    Message(u64, u64),
    Error(MessagesErrorKind),
    End,
    Silence,
}

impl Reader {
    async fn open(js: &jetstream::Context, start: u64) -> Result<Self> {
        let consumer = create(&js.get_stream_no_info("ORDERS").await?, start).await?;
        Self::of(consumer).await
    }

    async fn of(consumer: Consumer<pull::Config>) -> Result<Self> {
        let messages = messages(&consumer).await?;
        Ok(Self {
            consumer,
            messages,
            heard: false,
        })
    }

    /// A reader whose consumer is on the leader of the stream, or on another server.
    async fn placed(broker: &Broker, on_the_leader: bool) -> Result<(Self, String)> {
        let head = leader(&broker.js, "ORDERS").await?;
        loop {
            let reader = Self::open(&broker.js, 1).await?;
            let info = reader.consumer.cached_info();
            let at = info
                .cluster
                .as_ref()
                .and_then(|c| c.leader.clone())
                .context("no place")?;
            if (at == head) == on_the_leader {
                return Ok((reader, at));
            }
        }
    }

    /// In a cluster the first request for messages may come to a server that has not heard of the
    /// new consumer yet, and finds nobody; it is made again.
    async fn event(&mut self, limit: Duration) -> Result<Event> {
        let start = Instant::now();
        loop {
            let left = limit.saturating_sub(start.elapsed());
            let event = match timeout(left, self.messages.next()).await {
                Ok(Some(Ok(message))) => {
                    let info = message.info().map_err(anyhow::Error::from_boxed)?;
                    Event::Message(info.consumer_sequence, info.stream_sequence)
                }
                Ok(Some(Err(error))) => Event::Error(error.kind()),
                Ok(None) => Event::End,
                Err(_) => Event::Silence,
            };
            let nobody = event == Event::Error(MessagesErrorKind::NoResponders);
            if nobody && !self.heard {
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.messages = messages(&self.consumer).await?;
                continue;
            }
            self.heard |= matches!(event, Event::Message(..));
            return Ok(event);
        }
    }

    /// The next message; anything else is an error.
    async fn message(&mut self) -> Result<(u64, u64)> {
        match self.event(Duration::from_secs(10)).await? {
            Event::Message(consumer, stream) => Ok((consumer, stream)),
            other => anyhow::bail!("{other:?} instead of a message"),
        }
    }

    /// What happens within `limit`, each kind of error once.
    async fn errors(&mut self, limit: Duration) -> Result<Vec<Event>> {
        let start = Instant::now();
        let mut seen = Vec::new();
        while let Some(left) = limit.checked_sub(start.elapsed()) {
            let event = self.event(left).await?;
            let end = event == Event::End;
            if !seen.contains(&event) {
                println!("{:?}: {event:?}", start.elapsed());
                seen.push(event);
            }
            if end {
                break;
            }
        }
        Ok(seen)
    }
}

async fn create(stream: &Stream<()>, start: u64) -> Result<Consumer<pull::Config>> {
    let config = pull::Config {
        filter_subject: FILTER.to_owned(),
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: start,
        },
        ack_policy: AckPolicy::None,
        memory_storage: true,
        num_replicas: 1,
        inactive_threshold: Duration::from_secs(60),
        ..Default::default()
    };
    Ok(stream.create_consumer(config).await?)
}

async fn messages(consumer: &Consumer<pull::Config>) -> Result<pull::Stream> {
    let builder = consumer.stream().max_messages_per_batch(1000);
    Ok(builder
        .expires(Duration::from_secs(2))
        .heartbeat(HEARTBEAT)
        .messages()
        .await?)
}

/// The recipe after any error: another consumer after the last message taken, as often as needed.
/// A creation is given up soon, for the broker may place it on a server that has just died.
async fn recover(js: &jetstream::Context, taken: &mut Vec<u64>, until: u64) -> Result<()> {
    let start = Instant::now();
    let mut tries = 0;
    while taken.last() != Some(&until) {
        ensure!(
            start.elapsed() < Duration::from_secs(60),
            "not recovered: {taken:?}"
        );
        tries += 1;
        let next = taken.last().map_or(1, |last| last + 1);
        let Ok(Ok(mut reader)) = timeout(Duration::from_secs(1), Reader::open(js, next)).await
        else {
            continue;
        };
        let mut expected = 1;
        while let Event::Message(consumer, stream) = reader.event(3 * HEARTBEAT).await? {
            if consumer != expected {
                break;
            }
            expected += 1;
            taken.push(stream);
        }
    }
    println!("recovered after {:?}, {tries} readers", start.elapsed());
    Ok(())
}

/// Publishes until it is acknowledged; the id makes a repeat harmless.
async fn publish_surely(js: &jetstream::Context, subject: &str, id: &str) -> Result<u64> {
    eventually("acknowledged", Duration::from_secs(60), || async {
        let ack = publish(js, subject, body(id.to_owned()).message_id(id)).await?;
        Ok(Some(ack.sequence))
    })
    .await
}

/// The consumer sequence starts at 1 and rises by one with each message of the partition, whatever
/// lies between in the stream; also when the start was purged.
async fn the_consumer_sequence_counts_deliveries(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let js = &broker.js;
    let stream = broker.orders().await?;
    let (mine, other) = subjects();
    for i in 0..30 {
        publish(
            js,
            if i % 3 == 0 {
                mine.clone()
            } else {
                other.clone()
            },
            body(""),
        )
        .await?;
    }
    // 1, 4, 7 … 28 are of the partition.
    let mut reader = Reader::open(js, 1).await?;
    for k in 0..10 {
        assert_eq!(reader.message().await?, (k + 1, 3 * k + 1));
    }
    let info = reader.consumer.get_info().await?;
    assert_eq!(
        (info.delivered.consumer_sequence, info.num_pending),
        (10, 0)
    );
    // The last delivered, not how far the broker has looked.
    assert_eq!(info.delivered.stream_sequence, 28);

    let mut after = Reader::open(js, 14).await?;
    assert_eq!(after.message().await?, (1, 16));
    stream.purge().sequence(20).await?;
    let mut from_the_start = Reader::open(js, 1).await?;
    assert_eq!(from_the_start.message().await?, (1, 22));
    // A start that does not exist yet is waited for, not rounded down.
    let mut ahead = Reader::open(js, 33).await?;
    for _ in 0..4 {
        publish(js, mine.clone(), body("")).await?;
    }
    assert_eq!(ahead.message().await?, (1, 33));
    Ok(())
}

/// A delivery that never arrived shows as a jump of the consumer sequence, and when nothing follows,
/// as a count of deliveries above the last one seen.
async fn a_delivery_that_went_elsewhere_is_noticed(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let js = &broker.js;
    broker.orders().await?;
    let (mine, _) = subjects();
    let consumer = create(&js.get_stream_no_info("ORDERS").await?, 1).await?;
    publish(js, mine.clone(), body("taken away")).await?;
    assert_eq!(take(&consumer, 1).await?.len(), 1);

    let mut reader = Reader::of(consumer).await?;
    assert_eq!(reader.event(HEARTBEAT).await?, Event::Silence);
    let info = reader.consumer.get_info().await?;
    assert_eq!((info.delivered.consumer_sequence, info.num_pending), (1, 0));
    publish(js, mine, body("next")).await?;
    assert_eq!(reader.message().await?, (2, 2));
    Ok(())
}

/// The stream of a consumer that is deleted says so at once, and ends.
async fn a_deleted_consumer_ends_its_stream(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let js = &broker.js;
    let stream = broker.orders().await?;
    let (mine, _) = subjects();
    publish(js, mine, body("")).await?;
    let mut reader = Reader::open(js, 1).await?;
    assert_eq!(reader.message().await?, (1, 1));
    stream
        .delete_consumer(&reader.consumer.cached_info().name)
        .await?;
    let deleted = Event::Error(MessagesErrorKind::ConsumerDeleted);
    assert_eq!(reader.event(Duration::from_secs(1)).await?, deleted);
    assert_eq!(reader.event(Duration::from_secs(1)).await?, Event::End);
    Ok(())
}

/// How a reader learns that everything up to a sequence of the stream was delivered to it: the
/// stream's last sequence, and then the leader's answer that no message of the partition follows the
/// last one seen. `num_pending == 0` says less: see
/// [`a_consumer_on_a_lagging_replica_has_nothing_pending`].
async fn nothing_more_for_the_partition(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let stream = broker.orders().await?;
    let (mine, _) = subjects();
    let done = AtomicBool::new(false);
    let publisher = async {
        while !done.load(Ordering::Relaxed) {
            for _ in 0..4 {
                publish(&broker.js, mine.clone(), body("")).await?;
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        anyhow::Ok(())
    };
    let observer = async {
        let mut reader = Reader::open(&broker.js, 1).await?;
        let mut answers = BTreeMap::<&str, usize>::new();
        // Consumer and stream sequence of the last message.
        let (mut count, mut last) = (0, 0);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            while let Event::Message(consumer, stream) =
                reader.event(Duration::from_millis(1)).await?
            {
                (count, last) = (consumer, stream);
            }
            // All messages of the stream are of the partition.
            let head = stream.get_info().await?.state.last_sequence;
            let info = reader.consumer.get_info().await?;
            if info.num_pending == 0 && info.delivered.consumer_sequence == count {
                let more = if last < head {
                    "pending 0, but more"
                } else {
                    "pending 0"
                };
                *answers.entry(more).or_default() += 1;
            }
            let head = stream.get_info().await?.state.last_sequence;
            let next = stream
                .raw_message_builder()
                .sequence(last + 1)
                .next_by_subject(FILTER);
            match next.send().await {
                Ok(next) => {
                    *answers.entry("next").or_default() += 1;
                    ensure!(
                        next.sequence == last + 1,
                        "{} follows {last}",
                        next.sequence
                    );
                }
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                    *answers.entry("none").or_default() += 1;
                    ensure!(last >= head, "none after {last}, but the stream had {head}");
                }
                Err(error) => return Err(error.into()),
            }
        }
        done.store(true, Ordering::Relaxed);
        println!("{replicas} replicas, {last} published meanwhile: {answers:?}");
        anyhow::Ok(())
    };
    tokio::try_join!(publisher, observer)?;
    let info = stream.get_info().await?;
    let after_all = stream
        .raw_message_builder()
        .sequence(info.state.last_sequence + 1)
        .next_by_subject(FILTER)
        .send()
        .await;
    assert_eq!(
        after_all.expect_err("none").kind(),
        RawMessageErrorKind::NoMessageFound
    );
    Ok(())
}

/// A consumer with one replica is on any of the stream's servers, and counts what that server has
/// applied: `num_pending` is 0 there while the leader has acknowledged messages of the partition.
/// So it must not be compared with a sequence that the leader gave.
#[tokio::test]
async fn a_consumer_on_a_lagging_replica_has_nothing_pending() -> Result<()> {
    let broker = Broker::start(3).await?;
    broker.orders().await?;
    let (mine, _) = subjects();
    let head = leader(&broker.js, "ORDERS").await?;
    let (reader, at) = Reader::placed(&broker, false).await?;
    let on_leader = context(connect(&[broker.server(&head).url()]).await?);
    let on_replica = context(connect(&[broker.server(&at).url()]).await?);
    let replica = broker.server(&at);

    let name = reader.consumer.cached_info().name.as_str();
    let mut stale = None;
    for _ in 0..20 {
        replica.pause()?;
        let mut last = 0;
        for _ in 0..100 {
            last = publish(&on_leader, mine.clone(), body("")).await?.sequence;
        }
        let ask = on_replica.get_consumer_from_stream::<pull::Config, _, _>(name, "ORDERS");
        let resume = async {
            // The question is in its socket when it wakes up.
            tokio::time::sleep(Duration::from_millis(50)).await;
            replica.resume()
        };
        let (consumer, resumed) = tokio::join!(ask, resume);
        resumed?;
        let info = consumer?.cached_info().clone();
        if info.delivered.stream_sequence + info.num_pending < last {
            stale = Some((last, info.num_pending));
            break;
        }
    }
    println!("last sequence at the leader, pending at the replica: {stale:?}");
    ensure!(stale.is_some(), "never behind the leader");
    Ok(())
}

/// The only server is killed and comes back: the stream of messages reports missing heartbeats for
/// ever, does not end, and does not say that the consumer is gone. Another one after the last
/// message loses nothing.
#[tokio::test]
async fn the_only_server_restarts() -> Result<()> {
    let broker = Broker::start(1).await?;
    broker.orders().await?;
    let (mine, _) = subjects();
    let mut reader = Reader::open(&broker.js, 1).await?;
    let mut taken = Vec::new();
    for i in 1..=5 {
        publish_surely(&broker.js, &mine, &format!("before-{i}")).await?;
        assert_eq!(reader.message().await?, (i, i));
        taken.push(i);
    }
    broker.servers()[0].kill9();
    broker.servers()[0].restart().await?;
    for i in 6..=10 {
        assert_eq!(
            publish_surely(&broker.js, &mine, &format!("after-{i}")).await?,
            i
        );
    }
    let events = reader.errors(Duration::from_secs(3)).await?;
    let missing = Event::Error(MessagesErrorKind::MissingHeartbeat);
    assert!(
        events.iter().all(|e| *e == missing || *e == Event::Silence),
        "{events:?}"
    );
    assert!(events.contains(&missing));
    let error = reader
        .consumer
        .get_info()
        .await
        .expect_err("it was in memory");
    assert_eq!(error.kind(), ConsumerInfoErrorKind::NotFound);

    recover(&broker.js, &mut taken, 10).await?;
    assert_eq!(taken, (1..=10).collect::<Vec<_>>());
    Ok(())
}

/// The stream's leader dies with the consumer on it: missing heartbeats. Publishers get
/// `StreamNotFound` (nobody listens) or no answer until there is another leader.
#[tokio::test]
async fn the_leader_dies_with_the_consumer() -> Result<()> {
    let broker = Broker::start(3).await?;
    broker.orders().await?;
    let (mine, _) = subjects();
    let (mut reader, at) = Reader::placed(&broker, true).await?;
    assert_eq!(publish_surely(&broker.js, &mine, "first").await?, 1);
    assert_eq!(reader.message().await?, (1, 1));
    let mut taken = vec![1];

    broker.server(&at).kill9();
    let events = reader.errors(Duration::from_secs(3)).await?;
    let missing = Event::Error(MessagesErrorKind::MissingHeartbeat);
    assert!(
        events.iter().all(|e| *e == missing || *e == Event::Silence),
        "{events:?}"
    );
    assert!(events.contains(&missing));
    for i in 2..=5 {
        assert_eq!(
            publish_surely(&broker.js, &mine, &format!("after-{i}")).await?,
            i
        );
    }
    recover(&broker.js, &mut taken, 5).await?;
    assert_eq!(taken, (1..=5).collect::<Vec<_>>());
    Ok(())
}

/// The stream's leader dies, the consumer is elsewhere: no error at all, heartbeats go on, and the
/// same consumer goes on when there is another leader.
#[tokio::test]
async fn the_leader_dies_without_the_consumer() -> Result<()> {
    let broker = Broker::start(3).await?;
    broker.orders().await?;
    let (mine, _) = subjects();
    let (reader, at) = Reader::placed(&broker, false).await?;
    let head = leader(&broker.js, "ORDERS").await?;
    // A client of the consumer's server: its own connection stays up.
    let js = context(connect(&[broker.server(&at).url()]).await?);
    let name = reader.consumer.cached_info().name.clone();
    let consumer = js.get_consumer_from_stream(&name, "ORDERS").await?;
    let mut reader = Reader::of(consumer).await?;
    assert_eq!(publish_surely(&js, &mine, "first").await?, 1);
    assert_eq!(reader.message().await?, (1, 1));

    broker.server(&head).kill9();
    let start = Instant::now();
    let publisher = async {
        for i in 2..=5 {
            assert_eq!(publish_surely(&js, &mine, &format!("after-{i}")).await?, i);
            println!("{:?}: {i} acknowledged", start.elapsed());
        }
        anyhow::Ok(())
    };
    let observer = async {
        for i in 2..=5 {
            match reader.event(Duration::from_secs(60)).await? {
                Event::Message(consumer, stream) => assert_eq!((consumer, stream), (i, i)),
                other => anyhow::bail!("{other:?} after {:?}", start.elapsed()),
            }
        }
        anyhow::Ok(())
    };
    tokio::try_join!(publisher, observer)?;
    Ok(())
}

/// The consumer's server comes back with the rest of the cluster standing: the broker makes the
/// consumer anew under the same name, and the *old* stream of messages gets everything from the
/// start once more, counted from 1. So a consumer sequence that is not the last one plus one, above
/// or below, ends a reader.
#[tokio::test]
async fn the_consumers_server_restarts_in_a_cluster() -> Result<()> {
    let broker = Broker::start(3).await?;
    broker.orders().await?;
    let (mine, _) = subjects();
    let (reader, at) = Reader::placed(&broker, false).await?;
    let head = leader(&broker.js, "ORDERS").await?;
    let js = context(connect(&[broker.server(&head).url()]).await?);
    let name = reader.consumer.cached_info().name.clone();
    let consumer = js.get_consumer_from_stream(&name, "ORDERS").await?;
    let mut reader = Reader::of(consumer).await?;
    for i in 1..=3 {
        assert_eq!(publish_surely(&js, &mine, &format!("{i}")).await?, i);
        assert_eq!(reader.message().await?, (i, i));
    }

    broker.server(&at).kill9();
    broker.server(&at).restart().await?;
    let start = Instant::now();
    let first = loop {
        match reader.event(Duration::from_secs(30)).await? {
            Event::Message(consumer, stream) => break (consumer, stream),
            Event::Error(MessagesErrorKind::MissingHeartbeat) => {}
            other => anyhow::bail!("{other:?} after {:?}", start.elapsed()),
        }
    };
    println!("once more after {:?}", start.elapsed());
    assert_eq!(first, (1, 1));
    Ok(())
}
