//! Reads OUTCOMES for people: what happens now, and what became of one order.

use std::time::Duration;

use bytes::Bytes;
use expediter_types::{
    DeadLetter, DeadReason, MerchantId, OrderId, Outcome, OutcomeKind, Partition, Seq, UnixMillis,
};
use expediter_wire::records;
use expediter_wire::subjects::{self, OutcomesSubject};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::clock::{millis, wall};
use crate::error::chain;
use crate::reader::{Delivered, From, Reader, ReaderOptions};
use crate::{Connection, Error, partitions};

/// Looked through one after the other for an order's outcome; the last one is everything.
const WINDOWS: [Option<Duration>; 5] = [
    Some(Duration::from_secs(60)),
    Some(Duration::from_secs(600)),
    Some(Duration::from_secs(3_600)),
    Some(Duration::from_secs(86_400)),
    None,
];

/// Reading gives up when nothing came for so long.
const SILENCE: Duration = Duration::from_secs(20);

/// One outcome as it stands in OUTCOMES.
#[derive(Debug, Clone, PartialEq)]
pub struct OutcomeItem {
    pub partition: Partition,
    /// Sequence of its record in OUTCOMES.
    pub record: Seq,
    /// When the record was stored.
    pub recorded: UnixMillis,
    pub outcome: Outcome,
    /// Payload and last answer, of a dead letter.
    pub dead: Option<(Bytes, Bytes)>,
}

/// Where following begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TailFrom {
    /// What is recorded from now on.
    Now,
    /// What was recorded since this time.
    Since(UnixMillis),
    /// After this sequence of OUTCOMES.
    After(Seq),
}

/// Where OUTCOMES ends now, for [`TailFrom::After`].
///
/// # Errors
/// There is no OUTCOMES, or the broker does not answer.
pub async fn newest_outcome(connection: &Connection) -> Result<Seq, Error> {
    let state = Broker::new(connection).state(subjects::OUTCOMES).await?;
    Ok(state.last)
}

/// Follows all outcomes into `sink` until its receiver is gone.
///
/// # Errors
/// There is no OUTCOMES, or the broker does not answer at the beginning. Later interruptions are
/// repaired.
pub async fn tail_outcomes(
    connection: &Connection,
    from: TailFrom,
    sink: mpsc::Sender<OutcomeItem>,
) -> Result<(), Error> {
    let broker = Broker::new(connection);
    let mut from = match from {
        TailFrom::Now => From::Seq(broker.state(subjects::OUTCOMES).await?.last + 1),
        TailFrom::Since(at) => From::Time(at),
        TailFrom::After(seq) => From::Seq(seq + 1),
    };
    let filters = || vec!["outcomes.*".to_owned(), "dead.*.*".to_owned()];
    let mut reader = open(&broker, filters(), from).await?;
    loop {
        let delivered = tokio::select! {
            () = sink.closed() => break,
            delivered = reader.next() => delivered,
        };
        match delivered {
            Ok(delivered) => {
                from = From::Seq(delivered.seq + 1);
                for item in items(&delivered) {
                    if sink.send(item).await.is_err() {
                        break;
                    }
                }
            }
            Err(broken) => {
                tracing::debug!(%broken, "following outcomes is interrupted");
                reader = loop {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    match open(&broker, filters(), from).await {
                        Ok(reader) => break reader,
                        Err(error) => tracing::debug!(error = chain(&error), "trying again"),
                    }
                };
            }
        }
    }
    reader.close().await;
    Ok(())
}

/// Reads the dead letters of these merchants (none named: of all) up to the newest one there is now,
/// oldest first, into `sink`; ends early when its receiver is gone.
///
/// # Errors
/// There is no OUTCOMES; the broker does not answer, or stops delivering for 20 s. Shorter interruptions
/// are repaired.
pub async fn read_dead_letters(
    connection: &Connection,
    merchants: &[MerchantId],
    since: Option<UnixMillis>,
    sink: &mpsc::Sender<OutcomeItem>,
) -> Result<(), Error> {
    let broker = Broker::new(connection);
    let filters = match merchants {
        [] => vec!["dead.*.*".to_owned()],
        named => named.iter().map(|id| format!("dead.*.{id}")).collect(),
    };
    let mut from = since.map_or(From::Seq(1), From::Time);
    let end = broker.state(subjects::OUTCOMES).await?.last;
    let mut moved = Instant::now();
    loop {
        let before = from;
        let read = read_to(&broker, filters.clone(), &mut from, end, sink).await;
        if from != before {
            moved = Instant::now();
        }
        match read {
            Err(error) if moved.elapsed() >= SILENCE => return Err(error),
            Err(error) => {
                tracing::debug!(error = chain(&error), "reading dead letters is interrupted");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Ok(()) => return Ok(()),
        }
    }
}

/// Reads what matches up to `end`; `from` moves behind what `sink` was given.
async fn read_to(
    broker: &Broker,
    filters: Vec<String>,
    from: &mut From,
    end: Seq,
    sink: &mpsc::Sender<OutcomeItem>,
) -> Result<(), Error> {
    let mut reader = open(broker, filters, *from).await?;
    'reading: for _ in 0..reader.pending_at_start() {
        let delivered = tokio::time::timeout(SILENCE / 2, reader.next())
            .await
            .map_err(|_| Error::plain("OUTCOMES delivers nothing"))?
            .map_err(|broken| Error::plain(format!("reading OUTCOMES: {broken}")))?;
        if delivered.seq > end {
            break;
        }
        for item in items(&delivered) {
            if sink.send(item).await.is_err() {
                break 'reading;
            }
        }
        *from = From::Seq(delivered.seq + 1);
    }
    reader.close().await;
    Ok(())
}

/// The dead letter at a sequence of OUTCOMES; `None` when it is not kept any more, or is none.
///
/// # Errors
/// The broker does not answer.
pub async fn dead_letter(
    connection: &Connection,
    record: Seq,
) -> Result<Option<OutcomeItem>, Error> {
    let broker = Broker::new(connection);
    let Some(message) = broker.message(subjects::OUTCOMES, record).await? else {
        return Ok(None);
    };
    let delivered = Delivered {
        subject: message.subject,
        headers: None,
        payload: message.payload,
        seq: record,
        at: millis(message.time),
        pending: 0,
    };
    let mut items = items(&delivered).into_iter();
    Ok(items.find(|item| item.dead.is_some()))
}

/// What was recorded of an order, newest last: its outcome, and repeats that were closed. Looks
/// through the newest minute first, then further back until something is found.
///
/// # Errors
/// No broker, no streams.
pub async fn find_outcome(
    connection: &Connection,
    merchant: &MerchantId,
    id: &OrderId,
) -> Result<Vec<OutcomeItem>, Error> {
    let broker = Broker::new(connection);
    let partition = subjects::partition_of(merchant.as_str(), partitions(connection).await?);
    let filters = match merchant.as_str() {
        // What had no merchant is in whatever partition its subject hashed to.
        subjects::INVALID_MERCHANT => vec![format!("dead.*.{merchant}")],
        _ => vec![
            subjects::outcomes(partition),
            subjects::dead(partition, merchant),
        ],
    };
    let mut newest = Vec::new();
    for window in WINDOWS {
        let from = window.map_or(From::Seq(1), |window| {
            From::Time(wall().saturating_sub(u64::try_from(window.as_millis()).unwrap_or(u64::MAX)))
        });
        let reader = open(&broker, filters.clone(), from).await?;
        let mut found = Vec::new();
        reader
            .drain(|delivered| {
                found.extend(items(&delivered).into_iter().filter(|item| {
                    let envelope = &item.outcome.envelope;
                    envelope.merchant == *merchant && envelope.id == *id
                }));
            })
            .await?;
        // A repeat that was closed lately says nothing of the order that stands further back.
        if found.iter().any(|item| !closes_a_repeat(item.outcome.kind)) {
            return Ok(found);
        }
        newest = found;
    }
    Ok(newest)
}

/// Not an outcome of the order, but of a publisher's repeat.
fn closes_a_repeat(kind: OutcomeKind) -> bool {
    matches!(
        kind,
        OutcomeKind::Duplicate | OutcomeKind::DeadLettered(DeadReason::IdConflict)
    )
}

async fn open(broker: &Broker, filters: Vec<String>, from: From) -> Result<Reader, Error> {
    let stream = subjects::OUTCOMES.to_owned();
    let options = ReaderOptions {
        stream,
        filters,
        from,
        name: "outcomes".to_owned(),
    };
    Reader::open(broker, &options).await
}

/// What is not readable says nothing.
pub(crate) fn items(delivered: &Delivered) -> Vec<OutcomeItem> {
    let Delivered {
        seq: record,
        at: recorded,
        ..
    } = *delivered;
    let item = |partition, outcome, dead| OutcomeItem {
        partition,
        record,
        recorded,
        outcome,
        dead,
    };
    let read = match OutcomesSubject::parse(&delivered.subject) {
        Some(OutcomesSubject::Outcomes(partition)) => records::decode_outcomes(&delivered.payload)
            .map(|(_, group)| {
                group
                    .into_iter()
                    .map(|outcome| item(partition, outcome, None))
                    .collect()
            }),
        Some(OutcomesSubject::Dead(partition, _)) => {
            records::decode_dead(&delivered.payload).map(|(_, letter)| {
                let DeadLetter {
                    outcome,
                    payload,
                    excerpt,
                } = letter;
                vec![item(partition, outcome, Some((payload, excerpt)))]
            })
        }
        _ => return Vec::new(),
    };
    read.unwrap_or_else(|error| {
        tracing::debug!(record, error = chain(&error), "a record is not readable");
        Vec::new()
    })
}
