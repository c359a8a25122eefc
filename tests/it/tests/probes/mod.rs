//! Facts about the broker on which the protocol of a partition rests, asked of the pinned
//! nats-server with one replica and with three.
//!
//! A probe that fails after an upgrade of the broker or of its client says which rule of the
//! protocol has lost its ground.

mod consumer;
mod dedup;
mod fence;
mod lease;
mod limits;
mod partition;
mod purge;

use std::{
    fmt::Debug,
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use async_nats::{
    Client, ConnectOptions,
    jetstream::{
        self,
        consumer::{Consumer, pull},
        context::{ContextBuilder, PublishError},
        message::PublishMessage,
        publish::PublishAck,
        stream::{self, DiscardPolicy, RetentionPolicy, StorageType, SubjectTransform},
    },
};
use bytes::Bytes;
use expediter_fleet::nats_server::{NatsCluster, NatsServer};
use expediter_harness::Brokers;
use expediter_wire::subjects;
use futures::TryStreamExt as _;
use tempfile::TempDir;

const EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// `wrong last sequence: <actual>`: the condition was compared and does not hold.
const WRONG_LAST_SEQUENCE: u64 = 10071;
/// `wrong last sequence`: refused without a comparison.
const WRONG_LAST_SEQUENCE_CONSTANT: u64 = 10164;

/// Makes of each `async fn name(replicas: usize) -> Result<()>` a test with one replica and one
/// with three.
macro_rules! at_one_and_three_replicas {
    ($($name:ident),+ $(,)?) => {
        mod one_replica {
            $(#[tokio::test]
            async fn $name() -> anyhow::Result<()> {
                super::$name(1).await
            })+
        }
        mod three_replicas {
            $(#[tokio::test]
            async fn $name() -> anyhow::Result<()> {
                super::$name(3).await
            })+
        }
    };
}
use at_one_and_three_replicas;

/// A broker of one or three servers, and a client of it.
struct Broker {
    nodes: NatsCluster,
    client: Client,
    js: jetstream::Context,
    replicas: usize,
    _dir: TempDir,
}

impl Broker {
    async fn start(replicas: usize) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let brokers = Brokers {
            servers: replicas,
            ..Brokers::default()
        };
        let nodes = brokers.start(dir.path()).await?;
        let client = connect(&nodes.urls()).await?;
        let js = context(client.clone());
        Ok(Self {
            nodes,
            client,
            js,
            replicas,
            _dir: dir,
        })
    }

    fn servers(&self) -> &[NatsServer] {
        self.nodes.members()
    }

    /// The server with that name.
    fn server(&self, name: &str) -> &NatsServer {
        let named = self
            .servers()
            .iter()
            .find(|server| server.server_name() == name);
        named.expect("a server of this broker")
    }

    /// ORDERS as a node makes it.
    async fn orders(&self) -> Result<stream::Stream> {
        self.stream(stream::Config {
            name: "ORDERS".to_owned(),
            subjects: vec!["orders.*".to_owned()],
            subject_transform: Some(SubjectTransform {
                source: "orders.*".to_owned(),
                destination: subjects::orders_transform(16),
            }),
            ..Default::default()
        })
        .await
    }

    /// OUTCOMES as a node makes it.
    async fn outcomes(&self) -> Result<stream::Stream> {
        let subjects = [
            "outcomes.*",
            "dead.*.*",
            "claim.*",
            "mark.>",
            "attempt.*.*",
            "shift.*",
        ];
        self.stream(stream::Config {
            name: "OUTCOMES".to_owned(),
            subjects: subjects.map(str::to_owned).to_vec(),
            ..Default::default()
        })
        .await
    }

    /// A stream with the settings that ORDERS and OUTCOMES share.
    async fn stream(&self, config: stream::Config) -> Result<stream::Stream> {
        let config = stream::Config {
            retention: RetentionPolicy::Limits,
            storage: StorageType::File,
            discard: DiscardPolicy::New,
            max_bytes: 256 << 20,
            duplicate_window: Duration::from_secs(120),
            deny_delete: true,
            num_replicas: self.replicas,
            ..config
        };
        let stream = self.js.create_stream(&config).await?;
        for subject in &config.subjects {
            self.heard(&subject.replace(['*', '>'], "x")).await?;
        }
        Ok(stream)
    }

    /// Waits until publishers at every server reach the stream that has the subject. Just after its
    /// creation, and after a change of its leader, a cluster may answer that nobody listens, which
    /// the client calls `StreamNotFound`.
    async fn heard(&self, subject: &str) -> Result<()> {
        for server in self.servers() {
            let js = context(connect(&[server.url()]).await?);
            eventually("heard", Duration::from_secs(30), || async {
                // Refused by whoever hears it.
                let message = body("").expected_stream("NONE");
                Ok(publish(&js, subject, message)
                    .await
                    .is_err_and(|e| refusal(&e).is_some())
                    .then_some(()))
            })
            .await?;
        }
        Ok(())
    }
}

async fn connect(urls: &[String]) -> Result<Client> {
    let options = ConnectOptions::new()
        .ping_interval(Duration::from_secs(5))
        .reconnect_delay_callback(|_| Duration::from_millis(50));
    Ok(options.connect(urls).await?)
}

fn context(client: Client) -> jetstream::Context {
    context_with_timeout(client, Duration::from_secs(5))
}

fn context_with_timeout(client: Client, timeout: Duration) -> jetstream::Context {
    ContextBuilder::new().timeout(timeout).build(client)
}

/// Publishes `message` and waits for the answer.
async fn publish(
    js: &jetstream::Context,
    subject: impl Into<String>,
    message: PublishMessage,
) -> Result<PublishAck, PublishError> {
    js.send_publish(subject.into(), message).await?.await
}

fn body(payload: impl Into<Bytes>) -> PublishMessage {
    PublishMessage::build().payload(payload.into())
}

/// A write of the owner of partition `p` in the epoch `token`.
fn fenced(p: u16, token: u64, payload: impl Into<Bytes>) -> PublishMessage {
    body(payload)
        .expected_last_subject_sequence(token)
        .header(EXPECTED_SUBJECT, format!("claim.{p}").as_str())
}

/// Takes partition `p` from the claim at `previous` (0: there is none).
async fn claim(js: &jetstream::Context, p: u16, previous: u64) -> Result<u64, PublishError> {
    let message = body("claim").expected_last_subject_sequence(previous);
    Ok(publish(js, format!("claim.{p}"), message).await?.sequence)
}

/// The broker's error code of a refusal, and its text.
fn refusal(error: &PublishError) -> Option<(u64, String)> {
    let error = std::error::Error::source(error)?.downcast_ref::<jetstream::Error>()?;
    Some((error.error_code().0, error.to_string()))
}

/// The refusal of a publish that must not succeed.
fn refused<T: Debug>(result: Result<T, PublishError>) -> Result<(u64, String)> {
    match result {
        Ok(ack) => bail!("not refused: {ack:?}"),
        Err(error) => refusal(&error).with_context(|| format!("no answer of the broker: {error}")),
    }
}

/// The next `count` messages of a consumer. In a cluster the first request may come to a server that
/// has not heard of a new consumer yet; it is made again.
async fn take(consumer: &Consumer<pull::Config>, count: usize) -> Result<Vec<jetstream::Message>> {
    eventually("messages", Duration::from_secs(30), || async {
        let request = consumer
            .batch()
            .max_messages(count)
            .expires(Duration::from_secs(10));
        let batch = request.messages().await?.map_err(anyhow::Error::from_boxed);
        Ok(Some(batch.try_collect().await?))
    })
    .await
}

/// The server that leads a replicated stream.
async fn leader(js: &jetstream::Context, stream: &str) -> Result<String> {
    eventually("a leader", Duration::from_secs(30), || async {
        let info = js.get_stream_no_info(stream).await?.get_info().await?;
        Ok(info.cluster.and_then(|cluster| cluster.leader))
    })
    .await
}

/// Has the leader of a replicated stream hand over to another server; returns when that leads.
async fn step_down(client: &Client, stream: &str) -> Result<()> {
    // Who has just ceased to lead does not answer: ask again soon.
    let js = context_with_timeout(client.clone(), Duration::from_millis(300));
    let before = leader(&js, stream).await?;
    let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}");
    client.request(subject, Bytes::new()).await?;
    eventually("another leader", Duration::from_secs(30), || async {
        Ok((leader(&js, stream).await? != before).then_some(()))
    })
    .await
}

/// Repeats `ask` until it gives a value.
async fn eventually<T, F>(what: &str, limit: Duration, mut ask: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let start = Instant::now();
    loop {
        let last = match ask().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() > limit {
            bail!("{what}: not within {limit:?}, last error {last:?}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
