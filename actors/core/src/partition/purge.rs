//! Compaction by merchant: when one merchant's waiting orders pin the log, what the others have
//! finished is deleted by subject.

use expediter_types::{MerchantId, Seq};

use super::{Command, Load, PartitionMachine};

#[derive(Debug, Default)]
pub(super) struct Purges {
    asked: bool,
    /// Everything of the merchant below it that is not in the store was finished when it was asked.
    floor: Seq,
}

impl PartitionMachine {
    /// Chooses the merchant with the most to give back. One at a time, one a mark.
    pub(super) fn plan_purges(&mut self) {
        if self.purges.asked || self.writer.purge_candidate.is_some() {
            return;
        }
        if self.ledger.seen().saturating_sub(self.ledger.low_water()) < self.config.pinned {
            return;
        }
        let largest = self
            .backlogs
            .iter()
            .max_by_key(|(merchant, backlog)| (backlog.finished_since_purge, *merchant));
        let Some((merchant, backlog)) = largest else {
            return;
        };
        if backlog.finished_since_purge < self.config.purge_worth {
            return;
        }
        let merchant = merchant.clone();
        // What is unfinished of the merchant now is in the store, in its mailbox, being finished,
        // or not taken yet; each of these only moves up.
        let held = self.window.values().map(|held| &held.stored.order);
        let held = held
            .filter(|order| order.envelope.merchant == merchant)
            .map(|order| order.seq);
        let finishing = self
            .finishing
            .iter()
            .filter(|(_, f)| f.merchant == merchant);
        let lowest = held.chain(finishing.map(|(seq, _)| *seq)).min();
        self.purges.floor = lowest.unwrap_or(Seq::MAX).min(self.ledger.seen() + 1);
        self.purges.asked = true;
        self.commands
            .push_back(Command::Load(Load::First { merchant }));
    }

    /// The lowest sequence the store has of the merchant.
    pub(super) fn on_first(&mut self, merchant: MerchantId, first: Option<Seq>) {
        self.purges.asked = false;
        let below = first.unwrap_or(Seq::MAX).min(self.purges.floor);
        self.writer.purge_candidate = Some((merchant, below));
    }

    /// What may be purged once the mark that is being written is durable: all of it was finished
    /// before, so that this mark says so.
    pub(super) fn purge_at_mark(&mut self, seen: Seq) -> Option<(MerchantId, Seq)> {
        let (merchant, below) = self.writer.purge_candidate.take()?;
        if let Some(backlog) = self.backlogs.get_mut(&merchant) {
            backlog.finished_since_purge = 0;
        }
        Some((merchant, below.min(seen)))
    }
}
