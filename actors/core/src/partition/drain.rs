//! Planned end of an epoch.

use expediter_types::{Now, Seq, UnixMillis};

use super::merchants::Stage;
use super::{Command, Directory, PartitionMachine};
use crate::store::StoreOp;

/// What is left when a drained partition is given back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drained {
    /// Attempts that still run: ambiguous.
    pub running: Vec<Seq>,
    /// They may be attempted again after this.
    pub busy_until: UnixMillis,
}

impl PartitionMachine {
    /// Starts no more attempts; running ones may end.
    pub fn drain(&mut self) {
        if self.draining {
            return;
        }
        self.draining = true;
        let active = self.backlogs.iter().filter(|(_, b)| b.active.is_some());
        let mut active: Vec<_> = active.map(|(merchant, _)| merchant.clone()).collect();
        active.sort_unstable();
        self.commands.extend(active.into_iter().map(Command::Halt));
    }

    /// No attempt starts, because too many owners crashed.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// An operator lets a paused partition go on. True when it was paused.
    pub fn resume_all(&mut self, directory: &dyn Directory, now: Now) -> bool {
        let paused = std::mem::take(&mut self.paused);
        if paused {
            self.wake_all(directory, now);
        }
        paused
    }

    /// No attempt runs and every answer is decided.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.running == 0
            && !self
                .window
                .values()
                .any(|held| matches!(held.stage, Stage::Answered { .. }))
    }

    /// Ends the epoch: everything that waits goes to the store, and a last mark is asked for. What
    /// still runs is given up as ambiguous.
    pub fn close(&mut self, now: Now) -> Drained {
        self.drain();
        self.closed = true;
        // Requests that have not left are the next owner's; an answer that is here is decided, or it
        // would be lost.
        let undecided: Vec<Seq> = self
            .window
            .iter()
            .filter(|(_, held)| {
                matches!(held.stage, Stage::Marking { .. } | Stage::Answered { .. })
            })
            .map(|(seq, _)| *seq)
            .collect();
        for seq in undecided {
            self.decide_alone(seq, now);
        }
        let mut running: Vec<Seq> = Vec::new();
        for held in self.window.values_mut() {
            let seq = held.stored.order.seq;
            if matches!(held.stage, Stage::Running { .. }) {
                running.push(seq);
            }
            if !held.in_store {
                held.in_store = true;
                self.ledger.store(seq);
                self.ops.push(StoreOp::Put(held.stored.clone()));
            }
        }
        let busy_until = match running.is_empty() {
            true => 0,
            false => now.wall.saturating_add(self.longest_timeout()),
        };
        self.request_mark();
        Drained {
            running,
            busy_until,
        }
    }

    /// Every record is acknowledged and the store has everything.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.writer.is_idle() && self.ops.is_empty() && self.committed >= self.batch_number
    }

    /// Hands everything in memory to the store at once: the log is not to be relied on.
    pub fn spill_all(&mut self) {
        for held in self.window.values_mut() {
            if !held.in_store {
                held.in_store = true;
                self.ledger.store(held.stored.order.seq);
                self.ops.push(StoreOp::Put(held.stored.clone()));
            }
        }
        self.write_meta();
    }
}
