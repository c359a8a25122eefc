//! Deletes what durable marks call finished, and nothing else.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use expediter_types::{Claim, ClaimState, Partition, Seq, UnixMillis};
use expediter_wire::records::{MarkCommit, WireEntry, decode_entry};
use expediter_wire::subjects::{self, OutcomesSubject};
use tokio::sync::watch;

use crate::Error;
use crate::clock::wall;
use crate::error::chain;
use crate::identity::{Identity, Witness, check};
use crate::log::LogView;
use crate::reader::{From, Reader, ReaderOptions};
use crate::recovery::MarkHead;
use crate::writer::{SELDOM, Shared, rest};

/// How often the whole log is looked at, by the owner of partition 0.
const EVERY: Duration = Duration::from_secs(10);
/// A purge is worth its cost from so many messages, or so many bytes.
const MESSAGES: u64 = 1_000;
const BYTES: u64 = 8 << 20;
/// Another partition's waiting orders keep the log: this partition's finished ones are deleted by
/// subject, so many sequences at once, as soon as its low water is so far above the log's beginning.
const PINNED: u64 = 20_000;
/// How often OUTCOMES is cleaned, by the owner of each partition.
const CLEANING: Duration = Duration::from_secs(600);
/// Unrepeatable attempts that old have long ended; what is open of them stands in marks.
const ATTEMPTS: Duration = Duration::from_secs(86_400);

/// Low waters of this node's partitions, as their durable marks say.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    low_waters: Mutex<BTreeMap<Partition, Seq>>,
    count: AtomicU64,
}

impl Marks {
    pub(crate) fn marked(&self, partition: Partition, low_water: Seq) {
        let mut low_waters = self
            .low_waters
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        low_waters.insert(partition, low_water);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn of(&self, partition: Partition) -> Option<Seq> {
        let low_waters = self
            .low_waters
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        low_waters.get(&partition).copied()
    }

    pub(crate) fn forget(&self, partition: Partition) {
        let mut low_waters = self
            .low_waters
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        low_waters.remove(&partition);
    }
}

/// How long OUTCOMES keeps what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retention {
    pub(crate) outcomes: Duration,
    pub(crate) dead: Duration,
}

/// Compacts ORDERS for ever; runs with partition 0 and ends when its future is dropped.
pub(crate) async fn compact(shared: &Shared, partitions: u16, view: watch::Receiver<LogView>) {
    let mut interval = tokio::time::interval(EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut marks_seen = 0;
    loop {
        interval.tick().await;
        let LogView { state, .. } = *view.borrow();
        let marks = shared.marks.count.load(Ordering::Relaxed);
        let own = shared.marks.of(Partition(0)).unwrap_or(0);
        // Nothing can go that the own mark does not allow.
        if marks == marks_seen || own <= state.first {
            continue;
        }
        marks_seen = marks;
        if let Err(error) = compact_once(shared, partitions, state.created).await {
            tracing::info!(error = chain(&error), "the log was not compacted");
        }
    }
}

/// Deletes what a partition has finished while another one's waiting orders keep the log, for ever;
/// runs with the partition and ends when its future is dropped.
pub(crate) async fn compact_own(
    shared: &Shared,
    partition: Partition,
    view: watch::Receiver<LogView>,
    witness: watch::Receiver<Witness>,
) {
    let mut interval = tokio::time::interval(EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut done = 0;
    loop {
        interval.tick().await;
        loop {
            let LogView { state, .. } = *view.borrow();
            let step = state.first.max(done).saturating_add(PINNED);
            let witness = *witness.borrow();
            let own = shared.marks.of(partition).unwrap_or(0).min(witness.seq);
            let Some(rest) = rest(&state).filter(|_| own >= step) else {
                break;
            };
            match purge_own(shared, partition, step, &witness, rest).await {
                Ok(()) => done = step,
                Err(error) => {
                    tracing::info!(%partition, error = chain(&error), "the log was not compacted");
                    break;
                }
            }
        }
    }
}

async fn purge_own(
    shared: &Shared,
    partition: Partition,
    below: Seq,
    witness: &Witness,
    rest: u32,
) -> Result<(), Error> {
    let filter = subjects::orders_filter(partition);
    let broker = &shared.broker;
    let purge = Box::pin(async {
        // Not before its turn: the log may become another one while it waits.
        if check(broker, witness).await? != Identity::Same {
            return Ok(0);
        }
        broker.purge(subjects::ORDERS, Some(&filter), below).await
    });
    let purged = shared.purges.purge(rest, purge).await?;
    shared.events.purged(purged);
    tracing::debug!(%partition, below, purged, "compacted the partition's orders");
    Ok(())
}

async fn compact_once(shared: &Shared, partitions: u16, created: UnixMillis) -> Result<(), Error> {
    let broker = &shared.broker;
    let Some(below) = smallest_low_water(shared, partitions, created).await? else {
        return Ok(());
    };
    let state = broker.state(subjects::ORDERS).await?;
    if state.created != created || below > state.last {
        return Ok(());
    }
    let span = state.last.saturating_sub(state.first) + 1;
    let goes = below.saturating_sub(state.first).min(state.messages);
    let bytes = u128::from(state.bytes) * u128::from(goes) / u128::from(span.max(1));
    if goes < MESSAGES && bytes < u128::from(BYTES) {
        return Ok(());
    }
    // The newest message stands for the log between reading it and deleting below it.
    let witness = Witness {
        created,
        seq: state.last,
        at: state.last_at,
    };
    if check(broker, &witness).await? != Identity::Same {
        return Ok(());
    }
    let purged = broker.purge(subjects::ORDERS, None, below).await?;
    shared.events.purged(purged);
    tracing::debug!(below, purged, "compacted ORDERS");
    Ok(())
}

/// Of the durable marks of all partitions; `None` while a partition has none that holds.
async fn smallest_low_water(
    shared: &Shared,
    partitions: u16,
    created: UnixMillis,
) -> Result<Option<Seq>, Error> {
    let mut claims: BTreeMap<Partition, Claim> = BTreeMap::new();
    let mut marks = BTreeMap::new();
    let filters = vec!["claim.*".to_owned(), "mark.*".to_owned()];
    for message in newest(shared, filters).await? {
        let Some(partition) = OutcomesSubject::parse(&message.subject).map(|s| s.partition())
        else {
            continue;
        };
        match decode_entry(&message.subject, &message.payload) {
            Ok(WireEntry::Claim(claim)) => {
                claims.insert(partition, claim);
            }
            Ok(WireEntry::Mark(MarkCommit { stamp, .. })) => {
                if let Ok(head) = serde_json::from_slice::<MarkHead>(&message.payload) {
                    marks.insert(partition, (stamp, head));
                }
            }
            _ => {}
        }
    }
    let mut smallest = None;
    for partition in (0..partitions).map(Partition) {
        let (Some(claim), Some((stamp, head))) = (claims.get(&partition), marks.get(&partition))
        else {
            return Ok(None);
        };
        if claim.incarnation.created != created {
            return Ok(None);
        }
        // A mark of an older log says nothing about what was stored above the cut since.
        let low_water = match stamp.incarnation == claim.incarnation {
            true => head.low_water.min(head.seen),
            false if stamp.incarnation.created == created => head.low_water.min(claim.cut),
            false => 0,
        };
        smallest = Some(smallest.map_or(low_water, |least: Seq| least.min(low_water)));
    }
    Ok(smallest)
}

#[derive(Debug)]
struct Message {
    subject: String,
    payload: bytes::Bytes,
    seq: Seq,
}

async fn newest(shared: &Shared, filters: Vec<String>) -> Result<Vec<Message>, Error> {
    let options = ReaderOptions {
        stream: subjects::OUTCOMES.to_owned(),
        filters,
        from: From::Newest,
        name: "marks".to_owned(),
    };
    let mut reader = Reader::open(&shared.broker, &options).await?;
    let mut messages = Vec::new();
    for _ in 0..reader.pending_at_start() {
        let message = tokio::time::timeout(Duration::from_secs(5), reader.next())
            .await
            .map_err(|_| Error::plain("OUTCOMES delivers nothing"))?
            .map_err(|broken| Error::plain(broken.to_string()))?;
        let subject = message.subject.to_string();
        messages.push(Message {
            subject,
            payload: message.payload,
            seq: message.seq,
        });
    }
    reader.close().await;
    Ok(messages)
}

/// Cleans a partition's OUTCOMES for ever; runs with the partition.
pub(crate) async fn clean(shared: &Shared, partition: Partition, token: Seq, keep: Retention) {
    // Not all partitions at the same moment.
    let offset = CLEANING / 16 * u32::from(partition.0 % 16) / 2;
    tokio::time::sleep(CLEANING / 2 + offset).await;
    loop {
        if let Err(error) = clean_once(shared, partition, token, keep).await {
            tracing::info!(%partition, error = chain(&error), "OUTCOMES was not cleaned");
        }
        tokio::time::sleep(CLEANING).await;
    }
}

/// Deletes what is older than its retention, never above what the newest mark makes needless.
async fn clean_once(
    shared: &Shared,
    partition: Partition,
    token: Seq,
    keep: Retention,
) -> Result<(), Error> {
    let filters = vec![subjects::mark(partition), subjects::claim(partition)];
    let mut mark = None;
    let mut stands = false;
    for message in newest(shared, filters).await? {
        match decode_entry(&message.subject, &message.payload) {
            Ok(WireEntry::Claim(claim)) => {
                stands = message.seq == token && claim.state == ClaimState::Held;
            }
            Ok(WireEntry::Mark(commit)) if commit.stamp.token == token => {
                let head: Option<MarkHead> = serde_json::from_slice(&message.payload).ok();
                mark = head.map(|head| (message.seq, head));
            }
            _ => {}
        }
    }
    let Some((mark_seq, head)) = mark.filter(|_| stands) else {
        return Ok(());
    };
    let needless = head.repeats_from.min(head.covers);
    let p = partition;
    // Marks before the newest, and their parts; the newest one's parts lie above what it covers.
    purge(shared, subjects::mark(p), mark_seq).await?;
    purge(shared, format!("mark.{p}.*"), head.covers).await?;
    purge(shared, subjects::claim(p), needless.min(token)).await?;
    let old = [
        (subjects::outcomes(p), keep.outcomes),
        (format!("dead.{p}.*"), keep.dead),
        (format!("attempt.{p}.*"), ATTEMPTS),
    ];
    for (filter, age) in old {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let young = first_since(shared, &filter, wall().saturating_sub(age)).await?;
        let below = young.unwrap_or(Seq::MAX).min(needless);
        purge(shared, filter, below).await?;
    }
    Ok(())
}

/// The first message of a subject that is not older than the time.
async fn first_since(
    shared: &Shared,
    filter: &str,
    since: UnixMillis,
) -> Result<Option<Seq>, Error> {
    let options = ReaderOptions {
        stream: subjects::OUTCOMES.to_owned(),
        filters: vec![filter.to_owned()],
        from: From::Time(since),
        name: "clean".to_owned(),
    };
    let mut reader = Reader::open(&shared.broker, &options).await?;
    let first = match reader.pending_at_start() {
        0 => None,
        _ => Some(
            reader
                .next()
                .await
                .map_err(|broken| Error::plain(broken.to_string()))?
                .seq,
        ),
    };
    reader.close().await;
    Ok(first)
}

async fn purge(shared: &Shared, filter: String, below: Seq) -> Result<(), Error> {
    if below > 1 {
        let purge = shared
            .broker
            .purge(subjects::OUTCOMES, Some(&filter), below);
        let purged = shared.purges.purge(SELDOM, purge).await?;
        tracing::debug!(filter, below, purged, "cleaned OUTCOMES");
    }
    Ok(())
}
