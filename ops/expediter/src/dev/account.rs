//! The books of the demonstration: every acknowledged order is finished or still waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use expediter_nats::{Connection, OutcomeItem, TailFrom};
use expediter_types::OutcomeKind;
use tokio::sync::mpsc;

use crate::node::RunningNode;

/// How long the books may take to balance after the last publish.
const SETTLE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Books {
    accepted: u64,
    refused: u64,
    /// ORDERS sequences that were acknowledged and have no outcome yet.
    open: std::collections::BTreeSet<u64>,
    /// Outcomes that were read before the publish's acknowledgement.
    early: std::collections::BTreeSet<u64>,
    delivered: u64,
    finished: u64,
}

/// Shared by the publisher, the reader of OUTCOMES and the screen.
#[derive(Debug, Clone, Default)]
pub(super) struct Account(Arc<Mutex<Books>>);

/// How the books closed.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(super) struct Verdict {
    pub(super) accepted: u64,
    pub(super) refused: u64,
    pub(super) delivered: u64,
    pub(super) finished: u64,
    pub(super) waiting: u64,
    pub(super) lost: u64,
}

impl Account {
    /// Reads OUTCOMES from now on.
    pub(super) async fn follow(connection: &Connection) -> anyhow::Result<Self> {
        let account = Self::default();
        let (sender, mut outcomes) = mpsc::channel::<OutcomeItem>(1_024);
        let connection = connection.clone();
        tokio::spawn(async move {
            if let Err(error) =
                expediter_nats::tail_outcomes(&connection, TailFrom::Now, sender).await
            {
                tracing::error!(%error, "OUTCOMES cannot be read");
            }
        });
        let reader = account.clone();
        tokio::spawn(async move {
            while let Some(item) = outcomes.recv().await {
                reader.finished(&item);
            }
        });
        Ok(account)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn accepted(&self, seq: u64) {
        let mut books = self.books();
        books.accepted += 1;
        if !books.early.remove(&seq) {
            books.open.insert(seq);
        }
    }

    pub(super) fn refused(&self) {
        self.books().refused += 1;
    }

    fn finished(&self, item: &OutcomeItem) {
        let mut books = self.books();
        let seq = item.outcome.seq;
        books.finished += 1;
        if item.outcome.kind == OutcomeKind::Delivered {
            books.delivered += 1;
        }
        if !books.open.remove(&seq) {
            books.early.insert(seq);
        }
    }

    /// Accepted and finished so far.
    pub(super) fn so_far(&self) -> (u64, u64) {
        let books = self.books();
        (books.accepted, books.finished)
    }

    /// Waits until what is open here is what the node says it holds, or the time is over: the
    /// difference is lost.
    pub(super) async fn settle(&self, node: &RunningNode) -> Verdict {
        let started = Instant::now();
        loop {
            let held = node.unfinished().await;
            let verdict = {
                let books = self.books();
                let missing = books
                    .open
                    .iter()
                    .filter(|seq| !held.contains(**seq))
                    .count() as u64;
                Verdict {
                    accepted: books.accepted,
                    refused: books.refused,
                    delivered: books.delivered,
                    finished: books.accepted - books.open.len() as u64,
                    waiting: books.open.len() as u64 - missing,
                    lost: missing,
                }
            };
            if verdict.lost == 0 || started.elapsed() > SETTLE {
                return verdict;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
