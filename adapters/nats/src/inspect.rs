//! What the broker keeps for the platform, for people who look at it: asks, and changes nothing.

use std::time::Duration;

use async_nats::jetstream::consumer::AckPolicy;
use expediter_types::{ClaimState, NodeName, Partition, Seq, UnixMillis};
use expediter_wire::nodes::{NodeRecord, decode_node};
use expediter_wire::records::decode_claim;
use expediter_wire::subjects::{self, OutcomesSubject};
use futures::TryStreamExt;

use crate::broker::Broker;
use crate::reader::{Delivered, From, Reader, ReaderOptions};
use crate::streams::{self, bucket_stream};
use crate::{Connection, Difference, Error};

/// A stream of the platform.
#[derive(Debug, Clone)]
pub struct StreamReport {
    pub name: String,
    /// `None`: there is no such stream.
    pub found: Option<StreamFacts>,
    /// Where its settings are not as a node makes them.
    pub differences: Vec<Difference>,
}

/// How a stream stands, as its leader says.
#[derive(Debug, Clone)]
pub struct StreamFacts {
    pub messages: u64,
    pub bytes: u64,
    /// So many bytes may it hold; `None` without a bound.
    pub max_bytes: Option<u64>,
    pub last: Seq,
    pub replicas: usize,
    /// `None` on a server that is no cluster's, and while there is none.
    pub leader: Option<String>,
    /// Besides the leader.
    pub peers: Vec<Peer>,
}

/// A server that has a copy of a stream.
#[derive(Debug, Clone)]
pub struct Peer {
    pub server: String,
    /// It has everything.
    pub current: bool,
    pub offline: bool,
    /// Since it was heard.
    pub silent: Duration,
}

/// A consumer of a stream.
#[derive(Debug, Clone)]
pub struct ConsumerFacts {
    pub name: String,
    /// It survives its client.
    pub durable: bool,
    /// It wants acknowledgements, which no reader of the platform does.
    pub acknowledges: bool,
    pub pending: u64,
}

/// A node's lease.
#[derive(Debug, Clone)]
pub struct NodeEntry {
    pub record: NodeRecord,
    /// By the broker's clock.
    pub renewed: UnixMillis,
}

/// The newest claim of a partition.
#[derive(Debug, Clone)]
pub struct ClaimEntry {
    pub partition: Partition,
    pub node: NodeName,
    /// False: it was given back, and nobody took it since.
    pub held: bool,
    /// Its sequence in OUTCOMES.
    pub epoch: Seq,
    /// By the broker's clock.
    pub at: UnixMillis,
}

/// The streams and buckets, as they are and as a node of this version would make them, with the
/// partitions, copies, sizes and retention that they have.
///
/// # Errors
/// The broker does not answer.
pub async fn inspect_streams(connection: &Connection) -> Result<Vec<StreamReport>, Error> {
    let broker = Broker::new(connection);
    let mut reports = Vec::new();
    for config in streams::wanted(&broker).await? {
        let name = config.name.clone();
        let Some(info) = broker.info(&name).await? else {
            reports.push(StreamReport {
                name,
                found: None,
                differences: Vec::new(),
            });
            continue;
        };
        let cluster = info.cluster.unwrap_or_default();
        let peers = cluster.replicas.into_iter().map(|peer| Peer {
            server: peer.name,
            current: peer.current,
            offline: peer.offline,
            silent: peer.active,
        });
        reports.push(StreamReport {
            name,
            differences: streams::differences(config, &info.config),
            found: Some(StreamFacts {
                messages: info.state.messages,
                bytes: info.state.bytes,
                max_bytes: u64::try_from(info.config.max_bytes).ok(),
                last: info.state.last_sequence,
                replicas: info.config.num_replicas,
                leader: cluster.leader.filter(|leader| !leader.is_empty()),
                peers: peers.collect(),
            }),
        });
    }
    Ok(reports)
}

/// Everybody who reads a stream now.
///
/// # Errors
/// The broker does not answer.
pub async fn consumers(connection: &Connection, stream: &str) -> Result<Vec<ConsumerFacts>, Error> {
    let stream = Broker::new(connection).stream(stream).await?;
    let facts = stream.consumers().map_ok(|info| ConsumerFacts {
        durable: info.config.durable_name.is_some(),
        acknowledges: info.config.ack_policy != AckPolicy::None,
        pending: info.num_pending,
        name: info.name,
    });
    let facts = facts.try_collect().await;
    facts.map_err(Error::broker("listing consumers"))
}

/// The nodes that live, by name.
///
/// # Errors
/// The broker does not answer, or has no NODES.
pub async fn nodes(connection: &Connection) -> Result<Vec<NodeEntry>, Error> {
    let options = ReaderOptions {
        stream: bucket_stream(subjects::NODES),
        filters: vec![format!("$KV.{}.n.>", subjects::NODES)],
        from: From::Newest,
        name: "nodes".to_owned(),
    };
    let reader = Reader::open(&Broker::new(connection), &options).await?;
    let mut entries = Vec::new();
    let take = |message: Delivered| {
        // What was deleted or has expired has no value.
        let record = decode_node(&message.payload).ok();
        entries.extend(record.map(|record| NodeEntry {
            record,
            renewed: message.at,
        }));
    };
    reader.drain(take).await?;
    entries.sort_by(|a, b| a.record.node.cmp(&b.record.node));
    Ok(entries)
}

/// The broker's clock, of the server that leads ORDERS: that by which durations in headers count.
///
/// # Errors
/// The broker does not answer, or has no ORDERS.
pub async fn broker_time(connection: &Connection) -> Result<UnixMillis, Error> {
    #[derive(serde::Deserialize)]
    struct Answer {
        ts: Option<String>,
    }
    let subject = format!("$JS.API.STREAM.INFO.{}", subjects::ORDERS);
    let asked = connection.client().request(subject, "".into()).await;
    let answer = asked.map_err(Error::broker("asking for the broker's time"))?;
    let answer: Option<Answer> = serde_json::from_slice(&answer.payload).ok();
    answer
        .and_then(|answer| answer.ts)
        .and_then(|text| expediter_wire::parse_rfc3339(&text).ok())
        .ok_or_else(|| Error::plain("the broker does not tell its time"))
}

/// The newest claim of each partition that was ever claimed: who took it or gave it back, and when.
///
/// # Errors
/// The broker does not answer, or has no OUTCOMES.
pub async fn claims(connection: &Connection) -> Result<Vec<ClaimEntry>, Error> {
    let options = ReaderOptions {
        stream: subjects::OUTCOMES.to_owned(),
        filters: vec!["claim.*".to_owned()],
        from: From::Newest,
        name: "claims".to_owned(),
    };
    let reader = Reader::open(&Broker::new(connection), &options).await?;
    let mut entries = Vec::new();
    let take = |message: Delivered| {
        let Some(OutcomesSubject::Claim(partition)) = OutcomesSubject::parse(&message.subject)
        else {
            return;
        };
        let claim = decode_claim(&message.payload).ok();
        entries.extend(claim.map(|claim| ClaimEntry {
            partition,
            node: claim.node,
            held: claim.state == ClaimState::Held,
            epoch: message.seq,
            at: message.at,
        }));
    };
    reader.drain(take).await?;
    entries.sort_by_key(|entry| entry.partition);
    Ok(entries)
}
