//! Dead letters: the one that an order ended as, what became of it, and its next generation.

use std::collections::HashMap;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::RawMessageErrorKind;
use expediter_nats::{
    Audit, AuditFilter, AuditItem, Connection, OrderPublisher, OutcomeItem, Published, TailFrom,
    find_outcome,
};
use expediter_types::{
    DeadReason, Envelope, MerchantId, OrderId, OutcomeKind, Priority, UnixMillis,
};
use expediter_wire::audit::{AuditRecord, AuditResult};
use expediter_wire::order::{GENERATION, msg_id, order_headers};
use expediter_wire::subjects;
use tokio::sync::mpsc;

use super::Error;
use super::global::with_causes;
use super::text::when;

/// The verbs whose records in AUDIT name a dead letter, by [`RECORD`]: it is not open any more.
const RESOLVING: [&str; 3] = ["order.resolve", "deadletter.replay", "deadletter.discard"];

/// The detail of such a record with the dead letter's sequence in OUTCOMES.
pub(super) const RECORD: &str = "record";

/// The dead letter that the newest generation of an order ended as, and why.
///
/// # Errors
/// Nothing of it is kept, or it ended otherwise.
pub(super) async fn newest(
    connection: &Connection,
    merchant: &MerchantId,
    id: &OrderId,
) -> Result<(OutcomeItem, DeadReason), Error> {
    let items = find_outcome(connection, merchant, id).await?;
    let Some(item) = newest_of(items) else {
        return Err(Error::NotFound(format!(
            "no outcome of order {id} of {merchant} is kept"
        )));
    };
    match item.outcome.kind {
        OutcomeKind::DeadLettered(reason) => Ok((item, reason)),
        other => Err(Error::failed(format!(
            "order {id} of {merchant} is no dead letter: it ended as {}, {}",
            other.as_str(),
            when(item.outcome.at)
        ))),
    }
}

/// The first outcome of the newest generation counts; repeats of the publisher are none.
fn newest_of(items: Vec<OutcomeItem>) -> Option<OutcomeItem> {
    let closes_a_repeat = |kind| {
        matches!(
            kind,
            OutcomeKind::Duplicate | OutcomeKind::DeadLettered(DeadReason::IdConflict)
        )
    };
    let mut newest: Option<OutcomeItem> = None;
    for item in items {
        let generation = |item: &OutcomeItem| item.outcome.envelope.generation;
        let newer = newest
            .as_ref()
            .is_none_or(|newest| generation(&item) > generation(newest));
        if newer && !closes_a_repeat(item.outcome.kind) {
            newest = Some(item);
        }
    }
    newest
}

/// What somebody did about a dead letter already.
///
/// # Errors
/// AUDIT cannot be read.
pub(super) async fn resolution(
    audit: &Audit,
    dead: &OutcomeItem,
) -> Result<Option<AuditItem>, Error> {
    let filter = AuditFilter {
        merchants: vec![dead.outcome.envelope.merchant.clone()],
        verbs: RESOLVING.map(str::to_owned).into(),
        actors: Vec::new(),
    };
    let (sink, mut records) = mpsc::channel(64);
    let reading = async {
        let read = audit.read(&filter, TailFrom::Since(dead.recorded), &sink);
        let read = read.await;
        drop(sink);
        read
    };
    let finding = async {
        let mut found = None;
        while let Some(item) = records.recv().await {
            if resolved(&item).is_some_and(|of| of == letter(dead)) {
                found = Some(item);
            }
        }
        found
    };
    let (read, found) = futures::join!(reading, finding);
    read?;
    Ok(found)
}

/// A dead letter's sequence in OUTCOMES and its order's id: an OUTCOMES that came back empty gives the
/// sequences of former records to others.
pub(super) type LetterKey = (u64, String);

pub(super) fn letter(dead: &OutcomeItem) -> LetterKey {
    (dead.record, dead.outcome.envelope.id.to_string())
}

/// The dead letter that the record says is not open any more.
fn resolved(item: &AuditItem) -> Option<LetterKey> {
    let record = item.record.details.get(RECORD).and_then(|n| n.as_u64())?;
    let done = item.record.result == AuditResult::Ok;
    done.then(|| (record, item.record.target.id.clone()))
}

/// The newest record about the order says that this dead letter is not open any more.
pub(super) fn is_resolved_by(newest: Option<&AuditRecord>, dead: &OutcomeItem) -> bool {
    newest.is_some_and(|record| {
        let of = record.details.get(RECORD).and_then(|n| n.as_u64());
        record.result == AuditResult::Ok && of == Some(dead.record)
    })
}

/// What was done about all dead letters since a time.
///
/// # Errors
/// AUDIT cannot be read.
pub(super) async fn resolutions(
    audit: &Audit,
    merchants: &[MerchantId],
    since: Option<UnixMillis>,
) -> Result<HashMap<LetterKey, AuditItem>, Error> {
    let filter = AuditFilter {
        merchants: merchants.to_vec(),
        verbs: RESOLVING.map(str::to_owned).into(),
        actors: Vec::new(),
    };
    let (sink, mut records) = mpsc::channel(64);
    let reading = async {
        let from = TailFrom::Since(since.unwrap_or(0));
        let read = audit.read(&filter, from, &sink).await;
        drop(sink);
        read
    };
    let collecting = async {
        let mut found = HashMap::new();
        while let Some(item) = records.recv().await {
            if let Some(letter) = resolved(&item) {
                found.insert(letter, item);
            }
        }
        found
    };
    let (read, found) = futures::join!(reading, collecting);
    read?;
    Ok(found)
}

/// What the next generation says otherwise than the dead letter.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Next {
    /// Instead of the order's own.
    pub(super) deadline: Option<UnixMillis>,
    /// Instead of the order's own.
    pub(super) priority: Option<Priority>,
}

/// Why a dead letter has no next generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAgain {
    #[error("it could not be read as an order: publish it again, mended")]
    Undecodable,
    /// The other order's key would make the merchant drop it.
    #[error("its id is another order's: publish it under an id of its own")]
    IdConflict,
    #[error("its deadline was {} (--deadline gives it another one)", when(*.0))]
    Late(UnixMillis),
}

/// The next generation of a dead letter: the same order, which is tried anew.
///
/// # Errors
/// It never was an order of its own, or nobody would try it any more.
pub(super) fn next_generation(
    dead: &OutcomeItem,
    next: Next,
    now: UnixMillis,
) -> Result<Envelope, NotAgain> {
    let from = &dead.outcome.envelope;
    match dead.outcome.kind {
        OutcomeKind::DeadLettered(DeadReason::Undecodable) => return Err(NotAgain::Undecodable),
        OutcomeKind::DeadLettered(DeadReason::IdConflict) => return Err(NotAgain::IdConflict),
        _ => {}
    }
    let deadline = next.deadline.or(from.deadline);
    if let Some(over) = deadline.filter(|deadline| *deadline <= now) {
        return Err(NotAgain::Late(over));
    }
    Ok(Envelope {
        generation: from.generation + 1,
        deadline,
        not_before: from.not_before.filter(|time| *time > now),
        priority: next.priority.unwrap_or(from.priority),
        origin: None,
        ..from.clone()
    })
}

/// Publishes the next generation of a dead letter. A duplicate: somebody did so just before.
///
/// # Errors
/// The broker refuses it, or does not answer.
pub(super) async fn publish(
    connection: &Connection,
    publisher: &OrderPublisher,
    next: &Envelope,
    dead: &OutcomeItem,
) -> Result<Published, Error> {
    let mut headers = HeaderMap::new();
    for (name, value) in order_headers(next) {
        headers.insert(name, &*value);
    }
    let payload = dead.dead.as_ref().map(|(payload, _)| payload.clone());
    let sent = publisher.publish(&next.merchant, headers, payload.unwrap_or_default());
    let published = sent.await?.wait().await?;
    if published.duplicate {
        check_same(connection, next, published.seq).await?;
    }
    Ok(published)
}

/// The broker tells a repeat by the message's id alone, which any publisher can choose.
async fn check_same(connection: &Connection, next: &Envelope, seq: u64) -> Result<(), Error> {
    let context = async_nats::jetstream::new(connection.client().clone());
    let stream = context
        .get_stream_no_info(subjects::ORDERS)
        .await
        .map_err(anyhow::Error::from)?;
    let message = match stream.get_raw_message(seq).await {
        Ok(message) => message,
        // Finished already, and gone from the log.
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(()),
        Err(error) => {
            return Err(Error::failed(format!(
                "reading ORDERS: {}",
                with_causes(&error)
            )));
        }
    };
    let generation = message.headers.get(GENERATION).map(|value| value.as_str());
    if generation == Some(next.generation.to_string().as_str()) {
        return Ok(());
    }
    Err(Error::failed(format!(
        "nothing was published: another message, at sequence {seq} of ORDERS, has used the id {}",
        msg_id(&next.merchant, next.generation, &next.id)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::outcome::tests::item;

    fn dead(record: u64, generation: u32) -> OutcomeItem {
        let mut dead = item(record, OutcomeKind::DeadLettered(DeadReason::Ambiguous));
        dead.outcome.envelope.generation = generation;
        dead
    }

    #[test]
    fn the_newest_generation_counts_and_repeats_do_not() {
        let items = vec![
            dead(1, 1),
            dead(2, 2),
            item(3, OutcomeKind::Duplicate),
            dead(4, 2),
            item(5, OutcomeKind::DeadLettered(DeadReason::IdConflict)),
        ];
        assert_eq!(newest_of(items).map(|item| item.record), Some(2));
        let only_a_repeat = vec![item(3, OutcomeKind::Duplicate)];
        assert!(newest_of(only_a_repeat).is_none());
    }

    #[test]
    fn the_next_generation_is_the_same_order() {
        let mut first = dead(1, 1);
        first.outcome.envelope.deadline = Some(2_000);
        first.outcome.envelope.not_before = Some(500);
        let next = next_generation(&first, Next::default(), 1_000).unwrap();
        assert_eq!((next.generation, next.deadline), (2, Some(2_000)));
        assert_eq!(next.not_before, None);
        let headers = order_headers(&next);
        let id = headers.iter().find(|(name, _)| *name == "Nats-Msg-Id");
        assert_eq!(id.map(|(_, value)| &**value), Some("luigis/2/4711"));

        let late = next_generation(&first, Next::default(), 2_000);
        assert_eq!(late, Err(NotAgain::Late(2_000)));
        let moved = Next {
            deadline: Some(9_000),
            priority: Some(Priority::Low),
        };
        let next = next_generation(&first, moved, 2_000).unwrap();
        assert_eq!((next.deadline, next.priority), (Some(9_000), Priority::Low));
        for (reason, why) in [
            (DeadReason::Undecodable, NotAgain::Undecodable),
            (DeadReason::IdConflict, NotAgain::IdConflict),
        ] {
            let never = item(1, OutcomeKind::DeadLettered(reason));
            assert_eq!(next_generation(&never, Next::default(), 0), Err(why));
        }
    }
}
