//! This node's key in NODES: who sees it knows that the node lives.
//!
//! The key is published raw: the client's `create_with_ttl` loses the time to live over a marker,
//! and the lease would never end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use bytes::Bytes;
use expediter_types::{NodeName, Seq};
use expediter_wire::nodes::{NodeRecord, decode_node, encode_node};
use expediter_wire::subjects;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Error;
use crate::broker::{Broker, NoAck};
use crate::clock::{boot, wall};
use crate::instance;
use crate::ownership::Board;
use crate::streams::bucket_stream;

/// A node that was not heard for so long is dead.
pub(crate) const TTL: Duration = Duration::from_secs(3);
const RENEWAL: Duration = Duration::from_secs(1);
/// Requests that are written just before the end of the lease are on the wire a little longer.
const MARGIN: Duration = Duration::from_millis(750);

/// `n.<name>`
pub(crate) fn key(node: &NodeName) -> String {
    format!("n.{node}")
}

fn subject(node: &NodeName) -> String {
    format!("$KV.{}.{}", subjects::NODES, key(node))
}

/// How fresh the lease is, for everything that must not act without one.
#[derive(Debug, Default)]
pub(crate) struct Freshness {
    /// Milliseconds since boot when the newest successful renewal was begun; 0 for none.
    renewed: AtomicU64,
    ended: AtomicBool,
    /// How often it was renewed after it had ended.
    lapses: watch::Sender<u64>,
}

impl Freshness {
    /// The lease holds, with the margin that a request needs.
    pub(crate) fn fresh(&self) -> bool {
        self.age() + MARGIN < TTL
    }

    /// Since the newest successful renewal.
    pub(crate) fn age(&self) -> Duration {
        let renewed = self.renewed.load(Ordering::Acquire);
        if renewed == 0 || self.ended.load(Ordering::Acquire) {
            return Duration::MAX / 4;
        }
        boot().saturating_sub(Duration::from_millis(renewed))
    }

    pub(crate) fn renewed_at(&self, begun: Duration) {
        // Before it is fresh again: what was claimed under the former one may be another's.
        if self.renewed.load(Ordering::Acquire) != 0 && !self.fresh() {
            self.lapses.send_modify(|lapses| *lapses += 1);
        }
        let millis = u64::try_from(begun.as_millis()).unwrap_or(u64::MAX);
        self.renewed.store(millis, Ordering::Release);
    }

    /// How often the lease had ended before it was renewed: in between others could take what this
    /// node had claimed.
    pub(crate) fn lapses(&self) -> watch::Receiver<u64> {
        self.lapses.subscribe()
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// The key as this process holds it.
#[derive(Debug)]
pub(crate) struct Lease {
    broker: Broker,
    node: NodeName,
    record: NodeRecord,
    board: Arc<Board>,
    revision: Seq,
    freshness: Arc<Freshness>,
}

/// What stands under the name.
enum Standing {
    /// Nothing, or a marker: the revision to replace.
    Free(Seq),
    Own(Seq),
    Other(Seq, NodeRecord),
}

impl Lease {
    /// Takes the name. A former holder is waited for: it has ended when its key has, or when it can
    /// be seen to be dead.
    ///
    /// # Errors
    /// [`Error::NameInUse`] when the other goes on renewing.
    pub(crate) async fn take(
        broker: &Broker,
        node: &NodeName,
        instance: &str,
        board: Arc<Board>,
    ) -> Result<Self, Error> {
        let record = NodeRecord {
            node: node.clone(),
            instance: instance.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: wall(),
            partitions: Vec::new(),
            leaving: false,
        };
        let freshness = Arc::new(Freshness::default());
        let (broker, node) = (broker.clone(), node.clone());
        let mut lease = Self {
            broker,
            node,
            record,
            board,
            revision: 0,
            freshness,
        };
        let deadline = Instant::now() + TTL + Duration::from_secs(2);
        loop {
            let holder = match lease.standing().await? {
                Standing::Free(revision) | Standing::Own(revision) => {
                    lease.revision = revision;
                    None
                }
                Standing::Other(revision, other) => {
                    lease.revision = revision;
                    (!instance::is_dead(&other.instance)).then_some(other.instance)
                }
            };
            match holder {
                None => {
                    if lease.put().await.is_ok() {
                        return Ok(lease);
                    }
                }
                Some(instance) if Instant::now() >= deadline => {
                    return Err(Error::NameInUse {
                        name: lease.node,
                        instance,
                    });
                }
                Some(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) fn freshness(&self) -> Arc<Freshness> {
        self.freshness.clone()
    }

    /// Renews until the name is lost, or until `stop` says that the node has left. `leaving` is
    /// told to the others as soon as it is set.
    pub(crate) async fn keep(
        mut self,
        mut leaving: watch::Receiver<bool>,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), Error> {
        let mut wait = RENEWAL;
        loop {
            tokio::select! {
                biased;
                () = async { drop(stop.wait_for(|stop| *stop).await) } => {
                    self.give_up().await;
                    return Ok(());
                }
                () = tokio::time::sleep(wait) => {}
                _ = leaving.changed(), if !self.record.leaving => {
                    self.record.leaving = *leaving.borrow();
                }
            }
            wait = match self.put().await {
                Ok(()) => RENEWAL,
                Err(NoAck::WrongLast { .. }) => match self.standing().await {
                    Ok(Standing::Free(revision) | Standing::Own(revision)) => {
                        self.revision = revision;
                        Duration::ZERO
                    }
                    // The broker went back in time, and a former holder with it. One that lives
                    // finds ours above its own and ends.
                    Ok(Standing::Other(revision, other))
                        if revision < self.revision || instance::is_dead(&other.instance) =>
                    {
                        self.revision = revision;
                        Duration::ZERO
                    }
                    Ok(Standing::Other(_, other)) => {
                        self.freshness.end();
                        let name = self.node.clone();
                        return Err(Error::NameInUse {
                            name,
                            instance: other.instance,
                        });
                    }
                    Err(_) => Duration::from_millis(250),
                },
                Err(error) => {
                    tracing::debug!(%error, "the lease was not renewed");
                    Duration::from_millis(250)
                }
            };
        }
    }

    async fn put(&mut self) -> Result<(), NoAck> {
        let begun = boot();
        self.record.partitions = self.board.claimed();
        let payload = encode_node(&self.record);
        let ttl = TTL.as_secs().to_string();
        let headers = headers(self.revision, &[("Nats-TTL", &ttl)]);
        // A late answer is worth nothing: the next try tells.
        let within = Duration::from_secs(1);
        let ack = self
            .broker
            .publish_within(subject(&self.node), headers, payload, within)
            .await?;
        self.revision = ack.seq;
        self.freshness.renewed_at(begun);
        Ok(())
    }

    /// The others need not wait for the end of the lease.
    async fn give_up(&mut self) {
        self.freshness.end();
        let extra = [("KV-Operation", "DEL"), ("Nats-TTL", "60")];
        let headers = headers(self.revision, &extra);
        let within = Duration::from_secs(1);
        let gone = self
            .broker
            .publish_within(subject(&self.node), headers, Bytes::new(), within)
            .await;
        if let Err(error) = gone {
            tracing::debug!(%error, "the node's key ends by itself");
        }
    }

    async fn standing(&self) -> Result<Standing, Error> {
        let stream = bucket_stream(subjects::NODES);
        let Some(message) = self.broker.last(&stream, &subject(&self.node)).await? else {
            return Ok(Standing::Free(0));
        };
        Ok(match holder(&message) {
            Some(record) if record.instance == self.record.instance => {
                Standing::Own(message.sequence)
            }
            Some(record) => Standing::Other(message.sequence, record),
            None => Standing::Free(message.sequence),
        })
    }
}

fn headers(revision: Seq, extra: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(
        "Nats-Expected-Last-Subject-Sequence",
        revision.to_string().as_str(),
    );
    for (name, value) in extra {
        headers.insert(*name, *value);
    }
    headers
}

/// The process that has the lease of this name, as the broker says; `None`: nobody has.
///
/// # Errors
/// The broker does not answer.
pub(crate) async fn lease_of(broker: &Broker, node: &NodeName) -> Result<Option<String>, Error> {
    let stream = bucket_stream(subjects::NODES);
    let message = broker.last(&stream, &subject(node)).await?;
    let record = message.as_ref().and_then(holder);
    Ok(record.map(|record| record.instance))
}

/// `None`: the key was given back or has ended.
fn holder(message: &StreamMessage) -> Option<NodeRecord> {
    let marker = message.headers.get("KV-Operation").is_some()
        || message.headers.get("Nats-Marker-Reason").is_some();
    decode_node(&message.payload).ok().filter(|_| !marker)
}
