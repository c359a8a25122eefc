//! The broker's books: which orders have an outcome.

use std::time::Duration;

use anyhow::Context as _;
use expediter_nats::{Connection, TailFrom};
use expediter_types::OutcomeKind;
use tokio::sync::mpsc;

/// OUTCOMES is read to its end when nothing came for this time.
const QUIET: Duration = Duration::from_secs(5);

/// What OUTCOMES says of acknowledged orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Books {
    /// Acknowledged, without an outcome.
    pub(super) unfinished: u64,
    /// With another outcome than delivered.
    pub(super) not_delivered: u64,
}

/// Reads OUTCOMES from its beginning until every order in `acked` (by sequence in the log) has its
/// outcome, or nothing comes any more. The first outcome of a sequence counts, as for all readers.
pub(super) async fn read(connection: &Connection, acked: &[bool]) -> anyhow::Result<Books> {
    let mut open = acked.to_vec();
    let mut books = Books {
        unfinished: open.iter().filter(|acked| **acked).count() as u64,
        not_delivered: 0,
    };
    let (sender, mut outcomes) = mpsc::channel(4_096);
    let reading = expediter_nats::tail_outcomes(connection, TailFrom::After(0), sender);
    let counting = async move {
        while books.unfinished > 0 {
            let Ok(Some(item)) = tokio::time::timeout(QUIET, outcomes.recv()).await else {
                break;
            };
            let place = usize::try_from(item.outcome.seq).unwrap_or(usize::MAX);
            if let Some(open) = open.get_mut(place).filter(|open| **open) {
                *open = false;
                books.unfinished -= 1;
                let delivered = item.outcome.kind == OutcomeKind::Delivered;
                books.not_delivered += u64::from(!delivered);
            }
        }
        // The receiver goes, and the reading ends.
        books
    };
    let (read, books) = futures::join!(reading, counting);
    read.context("reading OUTCOMES")?;
    Ok(books)
}
