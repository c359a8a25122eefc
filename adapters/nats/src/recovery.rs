//! Reads what OUTCOMES says of a partition up to the own claim.

use std::time::Duration;

use expediter_core::recovery::{Entry, EntryBody, Finished, Incomplete, Recovered, Recovery};
use expediter_core::{key_hash, repeats, store::PartitionMeta};
use expediter_types::{
    AttemptMark, Claim, ClaimState, DeadReason, OutcomeKind, ParkedOrder, Partition, Seq, Stamp,
};
use expediter_wire::records::{MarkReader, WireEntry, WireFinished, decode_entry};
use expediter_wire::{WireError, subjects};
use serde::Deserialize;

use crate::Error;
use crate::broker::Broker;
use crate::error::chain;
use crate::intake::CLAIM_MISSING;
use crate::reader::{Delivered, From, Reader, ReaderOptions};

/// Without a message for so long a reading is begun again.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the new owner knows before it reads.
#[derive(Debug, Clone)]
pub(crate) struct Claimed {
    pub(crate) partition: Partition,
    pub(crate) token: Seq,
    pub(crate) claim: Claim,
    pub(crate) replaced: Option<Claim>,
    /// What the own store has.
    pub(crate) meta: Option<PartitionMeta>,
}

impl Claimed {
    /// The epoch whose store may be trusted; 0 for none.
    fn replaced_epoch(&self) -> Seq {
        match &self.replaced {
            None => 0,
            Some(Claim {
                state: ClaimState::Released { epoch, .. },
                ..
            }) => *epoch,
            Some(_) => self.claim.replaces,
        }
    }
}

/// Begins again until all is read.
///
/// # Errors
/// [`Error::Fenced`], and records that only a newer version can read.
pub(crate) async fn recover(broker: &Broker, claimed: &Claimed) -> Result<Recovered, Error> {
    let partition = claimed.partition;
    let mut wait = Duration::from_millis(50);
    let (mut whole, mut missing) = (false, 0);
    loop {
        match once(broker, claimed, whole).await {
            Ok(Ok(recovered)) => return Ok(recovered),
            Ok(Err(Incomplete::NotCovered { from })) => {
                tracing::warn!(%partition, from, "the newest mark is not valid: reading all");
                whole = true;
                continue;
            }
            Ok(Err(incomplete)) => tracing::debug!(%partition, %incomplete, "recovery"),
            Err(error @ (Error::Fenced { .. } | Error::Format { .. })) => return Err(error),
            Err(error) => {
                tracing::info!(%partition, error = chain(&error), "recovery begins again");
            }
        }
        stands(broker, claimed, &mut missing).await?;
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(2));
    }
}

/// A claim that OUTCOMES has lost is never reached: it has to be made again. Brokers that were restored
/// may show it late, so it has to be missing in several looks.
///
/// # Errors
/// [`Error::Fenced`].
async fn stands(broker: &Broker, claimed: &Claimed, missing: &mut u32) -> Result<(), Error> {
    let Claimed {
        partition, token, ..
    } = *claimed;
    let subject = subjects::claim(partition);
    let Ok(last) = broker.last(subjects::OUTCOMES, &subject).await else {
        return Ok(());
    };
    let current = last.map_or(0, |message| message.sequence);
    *missing = if current < token { *missing + 1 } else { 0 };
    if current > token || *missing > CLAIM_MISSING {
        return Err(Error::Fenced { partition, current });
    }
    Ok(())
}

/// The fields of a mark's commit that are there whether it was split or not.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct MarkHead {
    pub(crate) low_water: Seq,
    #[serde(default)]
    pub(crate) seen: Seq,
    pub(crate) covers: Seq,
    pub(crate) repeats_from: Seq,
}

/// The newest records before the claim.
#[derive(Debug, Default)]
struct Newest {
    mark: Option<MarkHead>,
    attempts: Vec<(Seq, Stamp, AttemptMark)>,
}

async fn once(
    broker: &Broker,
    claimed: &Claimed,
    whole: bool,
) -> Result<Result<Recovered, Incomplete>, Error> {
    let newest = newest(broker, claimed).await?;
    // The store of another log is dropped, and with it the ids it knows.
    let trusted = claimed.meta.is_some_and(|meta| {
        meta.epoch == claimed.replaced_epoch()
            && meta.epoch > 0
            && meta.incarnation == claimed.claim.incarnation
    });
    // One that covers what is not there yet is of an OUTCOMES that was lost.
    let mark = newest.mark.filter(|mark| mark.covers < claimed.token);
    let from = match mark {
        Some(mark) if !whole && trusted => mark.covers + 1,
        Some(mark) if !whole => mark.repeats_from.min(mark.covers + 1).max(1),
        _ => 1,
    };
    let Claimed {
        partition,
        token,
        claim,
        replaced,
        ..
    } = claimed.clone();
    let mut recovery = Recovery::new(token, claim, replaced, from);
    for (seq, stamp, mark) in newest.attempts {
        recovery.newest_attempts(seq, stamp, mark);
    }
    let filters = subjects::outcomes_filters(partition);
    let mut reader = open(broker, partition, filters, From::Seq(from)).await?;
    let mut marks = MarkReader::default();
    loop {
        let message = next(&mut reader, partition, token).await?;
        let seq = message.seq;
        if let Some(body) = body(&message, &mut marks)? {
            recovery.push(Entry { seq, body });
        }
        if seq >= token {
            break;
        }
    }
    reader.close().await;
    Ok(recovery
        .complete()
        .map(|recovered| believe_the_store(recovered, claimed)))
}

/// Claims only grow: a store of a later epoch than the one replaced outlived the OUTCOMES it was
/// written under, and nothing knows better.
fn believe_the_store(mut recovered: Recovered, claimed: &Claimed) -> Recovered {
    if let Some(meta) = claimed.meta
        && meta.epoch > recovered.replaced_epoch
    {
        tracing::error!(
            partition = %claimed.partition,
            epoch = meta.epoch,
            replaced = recovered.replaced_epoch,
            "OUTCOMES has lost records: going on from this node's store"
        );
        recovered.replaced_epoch = meta.epoch;
        recovered.outcomes_lost = true;
    }
    recovered
}

/// The newest mark and the newest attempts of every merchant. Nobody writes for the partition after
/// the claim, so they are complete when the claim came.
async fn newest(broker: &Broker, claimed: &Claimed) -> Result<Newest, Error> {
    let partition = claimed.partition;
    let filters = vec![
        subjects::mark(partition),
        subjects::claim(partition),
        format!("attempt.{partition}.*"),
    ];
    let mut reader = open(broker, partition, filters, From::Newest).await?;
    let mut newest = Newest::default();
    loop {
        let message = next(&mut reader, partition, claimed.token).await?;
        if message.seq >= claimed.token {
            break;
        }
        if message.subject.as_str() == subjects::mark(partition) {
            newest.mark = serde_json::from_slice(&message.payload).ok();
        } else if let Some(WireEntry::Attempts(stamp, mark)) = decode(&message)? {
            newest.attempts.push((message.seq, stamp, mark));
        }
    }
    reader.close().await;
    Ok(newest)
}

async fn open(
    broker: &Broker,
    partition: Partition,
    filters: Vec<String>,
    from: From,
) -> Result<Reader, Error> {
    let options = ReaderOptions {
        stream: subjects::OUTCOMES.to_owned(),
        filters,
        from,
        name: format!("recover-{partition}"),
    };
    Reader::open(broker, &options).await
}

async fn next(reader: &mut Reader, partition: Partition, token: Seq) -> Result<Delivered, Error> {
    let message = tokio::time::timeout(PATIENCE, reader.next())
        .await
        .map_err(|_| Error::plain("OUTCOMES delivers nothing"))?
        .map_err(|broken| Error::plain(broken.to_string()))?;
    let claim = message.subject.as_str() == subjects::claim(partition);
    if claim && message.seq > token {
        return Err(Error::Fenced {
            partition,
            current: message.seq,
        });
    }
    Ok(message)
}

/// `None` for what says nothing: no valid record, or one that another reader needs.
fn body(message: &Delivered, marks: &mut MarkReader) -> Result<Option<EntryBody>, Error> {
    Ok(match decode(message)? {
        None | Some(WireEntry::Shift(..)) => None,
        Some(WireEntry::Claim(claim)) => Some(EntryBody::Claim(claim)),
        Some(WireEntry::Attempts(stamp, mark)) => Some(EntryBody::Attempts(stamp, mark)),
        Some(WireEntry::Outcomes(stamp, group)) => {
            let finished = group.into_iter().map(finished).collect();
            Some(EntryBody::Outcomes(stamp, finished))
        }
        Some(WireEntry::MarkPart(part)) => {
            marks.part(part);
            None
        }
        Some(WireEntry::Mark(commit)) => match marks.commit(&commit) {
            Ok((stamp, mark)) => Some(EntryBody::Mark(stamp, Box::new(mark))),
            Err(error) => {
                skip(message, &error);
                None
            }
        },
    })
}

fn finished(from: WireFinished) -> Finished {
    let WireFinished {
        seq,
        merchant,
        id,
        generation,
        payload_hash,
        key,
        kind,
    } = from;
    // These close a sequence; the order with that id is another one.
    let closes_only = matches!(
        kind,
        Some(OutcomeKind::Duplicate | OutcomeKind::DeadLettered(DeadReason::IdConflict))
    );
    let repeat =
        (!closes_only).then(|| repeats::entry(&merchant, &id, generation, payload_hash, seq));
    let ambiguous = kind == Some(OutcomeKind::DeadLettered(DeadReason::Ambiguous));
    let parked = ambiguous.then(|| ParkedOrder {
        merchant: merchant.clone(),
        seq,
        id,
        generation,
        key: key.as_deref().map(key_hash),
    });
    Finished {
        seq,
        merchant,
        repeat,
        parked,
    }
}

fn decode(message: &Delivered) -> Result<Option<WireEntry>, Error> {
    match decode_entry(message.subject.as_str(), &message.payload) {
        Ok(entry) => Ok(Some(entry)),
        // An older version must not begin work on what it cannot read.
        Err(error @ WireError::Newer { .. }) => {
            let what = format!("record {} of OUTCOMES ({})", message.seq, message.subject);
            Err(Error::format(what)(error))
        }
        Err(error) => {
            skip(message, &error);
            Ok(None)
        }
    }
}

fn skip(message: &Delivered, error: &WireError) {
    tracing::warn!(
        subject = message.subject.as_str(),
        seq = message.seq,
        error = chain(error),
        "a record of OUTCOMES says nothing"
    );
}
