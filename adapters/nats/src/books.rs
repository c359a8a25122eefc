//! What the log and OUTCOMES say of every sequence since some time, for who checks the accounts.

use std::collections::BTreeMap;

use expediter_types::{Partition, Seq, UnixMillis};
use expediter_wire::subjects;
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
        filters: vec!["outcomes.*".to_owned(), "dead.*.*".to_owned()],
        from: From::Time(since),
        name: "books".to_owned(),
    };
    let mut oldest = in_log.keys().next().copied();
    let reader = Reader::open(&broker, &records).await?;
    let take = |message: Delivered| {
        for item in outcomes::items(&message) {
            let outcome = item.outcome;
            if outcome.envelope.created >= since {
                oldest = Some(oldest.map_or(outcome.seq, |oldest| oldest.min(outcome.seq)));
            }
            books.finished.insert(outcome.seq);
        }
        tell();
    };
    reader.drain(take).await?;
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
