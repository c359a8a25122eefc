//! The fenced side of one epoch: everything the owner of a partition writes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use expediter_core::Order;
use expediter_ports::{BoxFuture, PartitionLog, PublishFailure, Purge};
use expediter_types::{
    Envelope, Incarnation, MerchantId, Origin, Partition, Record, Seq, Stamp, UnixMillis,
};
use expediter_wire::{order, records, subjects};
use futures::StreamExt;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::broker::{Broker, NoAck, StreamState};
use crate::clock::unique;
use crate::compaction::Marks;
use crate::error::chain;
use crate::identity::{Identity, Witness, check};
use crate::intake::CLAIM_MISSING;
use crate::lease::Freshness;
use crate::registry::Registry;
use crate::{Error, NodeEvents};

/// Merchants whose lost orders are published again at the same time.
const REPUBLISH_WIDTH: usize = 64;
/// A lost order is tried so often before the caller hears of it.
const REPUBLISH_TRIES: u32 = 5;
/// Purges by subject take at most 2 % of the broker's time, or 20 % when the log is half full.
pub(crate) const SELDOM: u32 = 50;
const OFTEN: u32 = 4;
/// A log of so many bytes counts as full, whatever room it has: an owner without its store reads it.
const LONG_LOG: u64 = 16 << 30;
const LONGEST: Duration = Duration::from_secs(1);
/// A node that was taken for dead is known to live again to all others within this time.
const SETTLE: Duration = Duration::from_secs(1);

/// What all partitions of a node write with.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) broker: Broker,
    pub(crate) freshness: Arc<Freshness>,
    pub(crate) purges: Pace,
    pub(crate) marks: Marks,
    pub(crate) events: Arc<dyn NodeEvents>,
}

/// Spreads purges by subject. Meanwhile the stream stands still for all who publish and read: on 2.15.1
/// 3 ms for each block of 8 MiB below the bound, however little of it goes.
#[derive(Debug)]
pub(crate) struct Pace(Mutex<Instant>);

impl Pace {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    /// Waits for a turn and purges; then there is none for `rest` times as long as that took.
    pub(crate) async fn purge<T>(&self, rest: u32, purge: impl Future<Output = T>) -> T {
        let mut next = self.0.lock().await;
        tokio::time::sleep_until(*next).await;
        let began = Instant::now();
        let purged = purge.await;
        // A purge that timed out says nothing of what it cost.
        *next = Instant::now() + began.elapsed().min(LONGEST) * rest;
        purged
    }
}

/// Purges of ORDERS by subject rest so long, as a multiple of what the last one took; `None`: there
/// are none, while there is room. Then the log forgets by whole blocks what all partitions have
/// finished, which costs next to nothing.
pub(crate) fn rest(orders: &StreamState) -> Option<u32> {
    let room = orders.room.min(LONG_LOG);
    match orders.bytes {
        bytes if bytes < room / 4 => None,
        bytes if bytes < room / 2 => Some(SELDOM),
        _ => Some(OFTEN),
    }
}

/// One epoch's fence.
pub(crate) struct FencedLog {
    shared: Arc<Shared>,
    partition: Partition,
    stamp: Stamp,
    /// In the ids of its records.
    name: String,
    /// The log that stored orders above the cut belonged to.
    former: Incarnation,
    /// The message that the intake took last.
    witness: watch::Receiver<Witness>,
    /// Set once, to the claim that stands instead.
    fenced: watch::Sender<Option<Seq>>,
    over: AtomicBool,
    /// So often in turn the claim was not found.
    missing: AtomicU32,
    lapses: watch::Receiver<u64>,
    /// The claim was seen to stand after so many of these.
    stood: AtomicU64,
}

impl fmt::Debug for FencedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            partition, stamp, ..
        } = self;
        f.debug_struct("FencedLog")
            .field("partition", partition)
            .field("stamp", stamp)
            .finish()
    }
}

/// An epoch's writer, and what its partition learns from it.
pub(crate) struct Fence {
    pub(crate) log: Arc<FencedLog>,
    pub(crate) fenced: watch::Receiver<Option<Seq>>,
}

impl FencedLog {
    pub(crate) fn open(
        shared: Arc<Shared>,
        partition: Partition,
        stamp: Stamp,
        former: Incarnation,
        witness: watch::Receiver<Witness>,
        lapses: u64,
    ) -> Fence {
        let (sender, fenced) = watch::channel(None);
        let (over, missing) = (AtomicBool::new(false), AtomicU32::new(0));
        let log = Self {
            missing,
            lapses: shared.freshness.lapses(),
            stood: AtomicU64::new(lapses),
            shared,
            partition,
            stamp,
            name: unique(),
            former,
            witness,
            fenced: sender,
            over,
        };
        Fence {
            log: Arc::new(log),
            fenced,
        }
    }

    /// No request and no record may leave in this epoch any more.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// One message under the fence.
    async fn send(
        &self,
        subject: String,
        msg_id: &str,
        payload: bytes::Bytes,
    ) -> Result<Seq, PublishFailure> {
        // Not left to the fence: in an OUTCOMES that came back empty the next claim may have this
        // one's number.
        if self.over.load(Ordering::Acquire) {
            return Err(PublishFailure::Undecided("the epoch is over".into()));
        }
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, msg_id);
        fence(&mut headers, self.partition, self.stamp.token);
        match self.shared.broker.publish(subject, headers, payload).await {
            Ok(ack) => {
                self.missing.store(0, Ordering::Relaxed);
                Ok(ack.seq)
            }
            // An older claim stands, or none: a leader that has not read all of its log, or one
            // that has lost some.
            Err(NoAck::WrongLast { current })
                if current < self.stamp.token
                    && self.missing.fetch_add(1, Ordering::Relaxed) < CLAIM_MISSING =>
            {
                Err(PublishFailure::Undecided(format!(
                    "claim {current} is the last"
                )))
            }
            Err(NoAck::WrongLast { current }) if current != self.stamp.token => {
                self.end();
                self.fenced.send_replace(Some(current));
                Err(PublishFailure::Fenced { current })
            }
            Err(NoAck::Refused { code, description }) => {
                Err(PublishFailure::Refused(format!("{description} ({code})")))
            }
            Err(other) => Err(PublishFailure::Undecided(other.to_string())),
        }
    }

    async fn publish_record(&self, number: u64, record: Record) -> Result<Seq, PublishFailure> {
        let messages = records::encode_record(self.partition, self.stamp, &record)
            .map_err(|error| PublishFailure::Refused(chain(&error)))?;
        let mut last = 0;
        for message in messages {
            let records::Message {
                subject,
                part,
                payload,
            } = message;
            let id =
                subjects::record_msg_id(self.partition, self.stamp.token, &self.name, number, part);
            last = self.send(subject, &id, payload).await?;
        }
        Ok(last)
    }

    async fn purge_merchant(
        &self,
        merchant: &MerchantId,
        below: Seq,
    ) -> Result<(), PublishFailure> {
        let undecided = |error: Error| PublishFailure::Undecided(chain(&error));
        let orders = self.shared.broker.state(subjects::ORDERS).await;
        let Some(rest) = rest(&orders.map_err(undecided)?) else {
            return Ok(());
        };
        let filter = subjects::orders(self.partition, merchant);
        let purge = Box::pin(async {
            // Not before its turn: the log may become another one while it waits.
            let witness = *self.witness.borrow();
            match check(&self.shared.broker, &witness).await? {
                Identity::Same => {}
                Identity::Lost { .. } => {
                    return Err(Error::plain("the log is not the same any more"));
                }
            }
            // What proves the log's identity stays.
            let below = below.min(witness.seq);
            let broker = &self.shared.broker;
            broker.purge(subjects::ORDERS, Some(&filter), below).await
        });
        let purged = self.shared.purges.purge(rest, purge).await;
        let purged = purged.map_err(undecided)?;
        self.shared.events.purged(purged);
        Ok(())
    }

    /// Merchants at the same time, the orders of one merchant one after the other: what was
    /// published in order comes back in order.
    async fn republish_all(&self, orders: Vec<Arc<Order>>) -> Result<(), PublishFailure> {
        let count = orders.len();
        let mut merchants: BTreeMap<MerchantId, Vec<Arc<Order>>> = BTreeMap::new();
        for order in orders {
            merchants
                .entry(order.envelope.merchant.clone())
                .or_default()
                .push(order);
        }
        let mut running = futures::stream::iter(merchants.into_values().map(|mut orders| {
            orders.sort_unstable_by_key(|order| order.seq);
            async move {
                for order in orders {
                    self.republish_one(&order).await?;
                }
                Ok(())
            }
        }))
        .buffer_unordered(REPUBLISH_WIDTH);
        while let Some(done) = running.next().await {
            done?;
        }
        tracing::warn!(partition = %self.partition, count, "published lost orders again");
        Ok(())
    }

    async fn republish_one(&self, order: &Order) -> Result<(), PublishFailure> {
        let origin = Origin {
            incarnation: self.former,
            seq: order.seq,
        };
        let envelope = Envelope {
            origin: Some(origin),
            ..order.envelope.clone()
        };
        let mut headers = HeaderMap::new();
        for (name, value) in order::order_headers(&envelope) {
            headers.insert(name, value.as_ref());
        }
        let mut wait = Duration::from_millis(100);
        for tries in 1.. {
            let subject = subjects::publish(&envelope.merchant);
            let payload = order.payload.clone();
            match self
                .shared
                .broker
                .publish(subject, headers.clone(), payload)
                .await
            {
                Ok(_) => return Ok(()),
                Err(NoAck::Refused { code, description }) => {
                    return Err(PublishFailure::Refused(format!("{description} ({code})")));
                }
                Err(error) if tries >= REPUBLISH_TRIES => {
                    return Err(PublishFailure::Undecided(error.to_string()));
                }
                Err(_) => {}
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        Ok(())
    }
}

impl FencedLog {
    /// After each lapse of the node's lease looks whether the claim still stands: until then no
    /// request leaves. For ever; ends when its future is dropped.
    pub(crate) async fn stand(&self) {
        let mut lapses = self.lapses.clone();
        loop {
            let now = *lapses.borrow_and_update();
            if now == self.stood.load(Ordering::Acquire) {
                if lapses.changed().await.is_err() {
                    return;
                }
                continue;
            }
            // Who saw the lease end is about to claim, or knows by then that it is back.
            tokio::time::sleep(SETTLE).await;
            let subject = subjects::claim(self.partition);
            match self.shared.broker.last(subjects::OUTCOMES, &subject).await {
                Ok(Some(claim)) if claim.sequence == self.stamp.token => {
                    self.stood.store(now, Ordering::Release);
                }
                Ok(Some(claim)) if claim.sequence > self.stamp.token => {
                    self.fenced.send_replace(Some(claim.sequence));
                    return;
                }
                // An OUTCOMES that came back shorter is found out by the next write.
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(error = chain(&error), "the claim is looked for again");
                }
            }
        }
    }
}

impl PartitionLog for Fenced {
    fn publish(
        &self,
        number: u64,
        record: Record,
    ) -> BoxFuture<'static, Result<Seq, PublishFailure>> {
        let log = self.0.clone();
        Box::pin(async move { log.publish_record(number, record).await })
    }

    fn purge(&self, purge: Purge) -> BoxFuture<'static, Result<(), PublishFailure>> {
        let log = self.0.clone();
        let Purge::Merchant { merchant, below } = purge;
        Box::pin(async move { log.purge_merchant(&merchant, below).await })
    }

    fn marked(&self, low_water: Seq, _last_taken: Seq, _last_taken_at: UnixMillis) {
        self.0.shared.marks.marked(self.0.partition, low_water);
    }

    fn republish(&self, orders: Vec<Arc<Order>>) -> BoxFuture<'static, Result<(), PublishFailure>> {
        let log = self.0.clone();
        Box::pin(async move { log.republish_all(orders).await })
    }

    fn lease_fresh(&self) -> bool {
        let log = &self.0;
        // A process that slept renews its lease before its first write is refused.
        let stands = *log.lapses.borrow() == log.stood.load(Ordering::Acquire);
        stands && !log.over.load(Ordering::Acquire) && log.shared.freshness.fresh()
    }

    fn registered(&self, merchant: &MerchantId) -> BoxFuture<'static, Option<bool>> {
        let registry = Registry::of(self.0.shared.broker.clone());
        let merchant = merchant.clone();
        Box::pin(async move {
            registry
                .get(&merchant)
                .await
                .ok()
                .map(|entry| entry.is_some())
        })
    }
}

/// What the host is given: keeps the epoch's writer alive as long as anybody writes.
#[derive(Debug)]
pub(crate) struct Fenced(pub(crate) Arc<FencedLog>);

/// The condition that every write of an owner carries.
pub(crate) fn fence(headers: &mut HeaderMap, partition: Partition, token: Seq) {
    headers.insert(
        "Nats-Expected-Last-Subject-Sequence",
        token.to_string().as_str(),
    );
    headers.insert(
        "Nats-Expected-Last-Subject-Sequence-Subject",
        subjects::claim(partition).as_str(),
    );
}
