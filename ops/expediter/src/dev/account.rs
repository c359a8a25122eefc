//! The books of the demonstration: every acknowledged order is finished or still waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use expediter_nats::{Connection, OutcomeItem, TailFrom, newest_outcome, tail_outcomes};
use expediter_types::{OutcomeKind, Seq};
use roaring::RoaringTreemap;
use tokio::sync::mpsc;

use crate::node::RunningNode;

/// How long the books may take to balance after the last publish.
const SETTLE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Books {
    accepted: u64,
    refused: u64,
    /// ORDERS sequences that were acknowledged and have no outcome yet.
    open: BTreeSet<Seq>,
    /// Outcomes of which no acknowledgement was read yet, and whether they are deliveries. Others than
    /// this command's publisher may add some, which are never asked for.
    early: BTreeMap<Seq, bool>,
    delivered: u64,
}

impl Books {
    fn accepted(&mut self, seq: Seq) {
        self.accepted += 1;
        match self.early.remove(&seq) {
            Some(delivered) => self.delivered += u64::from(delivered),
            None => drop(self.open.insert(seq)),
        }
    }

    fn finished(&mut self, seq: Seq, delivered: bool) {
        if self.open.remove(&seq) {
            self.delivered += u64::from(delivered);
        } else {
            self.early.insert(seq, delivered);
        }
    }

    /// With what the node says it holds: the rest is lost.
    fn verdict(&self, held: &RoaringTreemap) -> Verdict {
        let open = self.open.len() as u64;
        let lost = self.open.iter().filter(|seq| !held.contains(**seq)).count() as u64;
        Verdict {
            accepted: self.accepted,
            refused: self.refused,
            delivered: self.delivered,
            finished: self.accepted - open,
            waiting: open - lost,
            lost,
        }
    }
}

/// Shared by the publisher, the reader of OUTCOMES and the screen.
#[derive(Debug, Clone, Default)]
pub(super) struct Account(Arc<Mutex<Books>>);

/// How the books closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(super) struct Verdict {
    pub(super) accepted: u64,
    pub(super) refused: u64,
    pub(super) delivered: u64,
    pub(super) finished: u64,
    pub(super) waiting: u64,
    pub(super) lost: u64,
}

impl Account {
    /// Reads OUTCOMES from now on: nothing that ends later is missed.
    pub(super) async fn follow(connection: &Connection) -> anyhow::Result<Self> {
        let account = Self::default();
        let from = TailFrom::After(newest_outcome(connection).await?);
        let (sender, mut outcomes) = mpsc::channel::<OutcomeItem>(1_024);
        let connection = connection.clone();
        tokio::spawn(async move {
            if let Err(error) = tail_outcomes(&connection, from, sender).await {
                tracing::error!(%error, "OUTCOMES cannot be read");
            }
        });
        let reader = account.clone();
        tokio::spawn(async move {
            while let Some(OutcomeItem { outcome, .. }) = outcomes.recv().await {
                let delivered = outcome.kind == OutcomeKind::Delivered;
                reader.books().finished(outcome.seq, delivered);
            }
        });
        Ok(account)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn accepted(&self, seq: Seq) {
        self.books().accepted(seq);
    }

    pub(super) fn refused(&self) {
        self.books().refused += 1;
    }

    /// Accepted and finished so far.
    pub(super) fn so_far(&self) -> (u64, u64) {
        let books = self.books();
        (books.accepted, books.accepted - books.open.len() as u64)
    }

    /// Waits until what is open here is what the node says it holds, or the time is over.
    pub(super) async fn settle(&self, node: &RunningNode) -> Verdict {
        let started = Instant::now();
        loop {
            let held = node.unfinished().await;
            let verdict = self.books().verdict(&held);
            if verdict.lost == 0 || started.elapsed() > SETTLE {
                return verdict;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_neither_ended_nor_is_held_is_lost() {
        let mut books = Books::default();
        (1..=5).for_each(|seq| books.accepted(seq));
        books.finished(1, true);
        books.finished(2, false);
        // Acknowledged after its outcome was read; and an order of somebody else.
        books.finished(6, true);
        books.accepted(6);
        books.finished(70, true);
        let verdict = books.verdict(&[3, 4].into_iter().collect());
        let wanted = Verdict {
            accepted: 6,
            refused: 0,
            delivered: 2,
            finished: 3,
            waiting: 2,
            lost: 1,
        };
        assert_eq!(verdict, wanted);
    }
}
