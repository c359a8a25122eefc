//! What the log and OUTCOMES say of every sequence since some time, for who checks the accounts.

use std::collections::BTreeMap;

use expediter_types::{Claim, Partition, Seq, UnixMillis};
use expediter_wire::records;
use expediter_wire::subjects::{self, OutcomesSubject};
use roaring::RoaringTreemap;

use crate::broker::Broker;
use crate::outcomes;
use crate::reader::{Delivered, From, Reader, ReaderOptions};
use crate::{Connection, Error};

/// The sequences of ORDERS since some time.
#[derive(Debug, Clone, Default)]
pub struct Books {
    /// The first and the last that are looked at; none if the first is above the last.
    pub first: Seq,
    pub last: Seq,
    /// They have an outcome.
    pub finished: RoaringTreemap,
    /// They stand in ORDERS, and have none.
    pub unfinished: BTreeMap<Seq, Partition>,
    /// Neither: purged from ORDERS, and OUTCOMES says nothing of them.
    pub gone: RoaringTreemap,
}

/// Reads ORDERS and OUTCOMES since then; `progress` hears how many messages were read.
///
/// # Errors
/// The broker does not answer, or stops delivering.
pub async fn books(
    connection: &Connection,
    since: UnixMillis,
    mut progress: impl FnMut(u64),
) -> Result<Books, Error> {
    let broker = Broker::new(connection);
    let (mut read, mut books) = (0, Books::default());
    let mut tell = || {
        read += 1;
        if read % 1_000 == 0 {
            progress(read);
        }
    };
    // Before OUTCOMES: what is published meanwhile is not looked at.
    books.last = broker.state(subjects::ORDERS).await?.last;
    let mut in_log = BTreeMap::new();
    let orders = ReaderOptions {
        stream: subjects::ORDERS.to_owned(),
        filters: vec!["orders.>".to_owned()],
        from: From::Time(since),
        name: "books".to_owned(),
    };
    let last = books.last;
    let reader = Reader::open_headers(&broker, &orders).await?;
    let take = |message: Delivered| {
        if let Some((partition, _)) = subjects::parse_orders(&message.subject)
            && message.seq <= last
        {
            in_log.insert(message.seq, partition);
        }
        tell();
    };
    reader.drain(take).await?;
    // Of an order that was published since then the outcome is recorded later than that.
    let records = ReaderOptions {
        stream: subjects::OUTCOMES.to_owned(),
        filters: ["claim.*", "outcomes.*", "dead.*.*"]
            .map(str::to_owned)
            .to_vec(),
        from: From::Time(since),
        name: "books".to_owned(),
    };
    let mut oldest = in_log.keys().next().copied();
    let reader = Reader::open(&broker, &records).await?;
    let mut finished = BTreeMap::<Partition, RoaringTreemap>::new();
    let mut incarnations = BTreeMap::new();
    let take = |message: Delivered| {
        if let Some((partition, claim)) = claim(&message) {
            let known = incarnations.insert(partition, claim.incarnation.counter);
            if known.is_some_and(|known| known < claim.incarnation.counter)
                && let Some(finished) = finished.get_mut(&partition)
            {
                // The broker lost what was above the cut; those sequences are other orders now.
                finished.remove_range(claim.cut.saturating_add(1)..);
            }
        }
        for item in outcomes::items(&message) {
            let outcome = item.outcome;
            if outcome.envelope.created >= since {
                oldest = Some(oldest.map_or(outcome.seq, |oldest| oldest.min(outcome.seq)));
            }
            finished
                .entry(item.partition)
                .or_default()
                .insert(outcome.seq);
        }
        tell();
    };
    reader.drain(take).await?;
    for of_partition in finished.into_values() {
        books.finished |= of_partition;
    }
    books.first = oldest.unwrap_or(last + 1);
    books.finished.remove_range(..books.first);
    for seq in books.first..=last {
        if books.finished.contains(seq) {
            continue;
        }
        match in_log.get(&seq) {
            Some(partition) => drop(books.unfinished.insert(seq, *partition)),
            None => drop(books.gone.insert(seq)),
        }
    }
    Ok(books)
}

fn claim(message: &Delivered) -> Option<(Partition, Claim)> {
    let Some(OutcomesSubject::Claim(partition)) = OutcomesSubject::parse(&message.subject) else {
        return None;
    };
    let claim = records::decode_claim(&message.payload).ok()?;
    Some((partition, claim))
}
