//! Why orders wait, for people.

use expediter_types::{MerchantId, Now, Priority, Seq};

use super::merchants::Stage;
use super::{Directory, MerchantRow, PartitionMachine};
use crate::Stored;
use crate::merchant::Wait;

/// What is known of a merchant's waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// `None`: it has no unfinished orders here and nothing holds it.
    pub row: Option<MerchantRow>,
    /// What keeps the orders in its mailbox waiting.
    pub waits: Wait,
    /// So many outcomes wait for their acknowledgement that nothing starts.
    pub outcomes_wait: bool,
    /// So many of its dead letters wait for that that nothing of it starts.
    pub dead_letters_wait: bool,
    /// The mailboxes hold so many bytes that it gets no more.
    pub memory_full: bool,
    /// The owner gives the partition back.
    pub hands_over: bool,
    /// The whole partition: too many owners crashed.
    pub paused: bool,
    /// Orders of the merchant that ended in the last full minute, or so far in the first.
    pub ended_per_minute: u64,
}

/// What is known of an order's waiting, besides its merchant's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderWait {
    /// Orders of the merchant that go before it.
    pub ahead: u64,
    /// An older order that shares its key was parked, and a person has to resolve that.
    pub parked_key: bool,
    /// Its attempt is being listed in OUTCOMES and has not left.
    pub marking: bool,
}

impl PartitionMachine {
    /// Why a merchant's orders wait.
    #[must_use]
    pub fn explain(&self, merchant: &MerchantId, directory: &dyn Directory, now: Now) -> Explained {
        let backlog = self.backlogs.get(merchant);
        Explained {
            row: self.rows(Some(merchant), directory, now).pop(),
            waits: backlog.map_or(Wait::Nothing, |backlog| backlog.waits),
            outcomes_wait: self.writer.unconfirmed() >= self.config.unconfirmed,
            dead_letters_wait: backlog.is_some_and(|backlog| backlog.ends_enough(&self.config)),
            memory_full: backlog.is_some_and(|backlog| self.has_its_share(backlog)),
            hands_over: self.draining,
            paused: self.paused,
            ended_per_minute: backlog.map_or(0, |backlog| backlog.stats.pace(now)),
        }
    }

    /// An order that is in a mailbox.
    #[must_use]
    pub fn held(&self, seq: Seq) -> Option<Stored> {
        self.window.get(&seq).map(|held| held.stored.clone())
    }

    /// Why this order waits. `older`: so many older ones of its merchant are in the store.
    #[must_use]
    pub fn explain_order(
        &self,
        stored: &Stored,
        older: u64,
        directory: &dyn Directory,
    ) -> OrderWait {
        let order = &stored.order;
        let manifest = directory.merchant(&order.envelope.merchant);
        OrderWait {
            ahead: self.ahead_in_memory(stored) + self.ahead_in_store(stored, older),
            parked_key: manifest.is_some_and(|manifest| self.parked.holds(&manifest, order)),
            marking: self
                .window
                .get(&order.seq)
                .is_some_and(|held| matches!(held.stage, Stage::Marking { .. })),
        }
    }

    fn ahead_in_memory(&self, stored: &Stored) -> u64 {
        let order = &stored.order;
        let ahead = self.window.values().filter(|held| {
            let other = &held.stored.order;
            let same = other.envelope.merchant == order.envelope.merchant;
            !held.in_store && same && other.seq < order.seq
        });
        ahead.count() as u64
    }

    /// By the lanes of the priorities, which are empty where an ordering keeps the sequence.
    fn ahead_in_store(&self, stored: &Stored, older: u64) -> u64 {
        let order = &stored.order;
        let Some(backlog) = self.backlogs.get(&order.envelope.merchant) else {
            return older;
        };
        let ([high, low], [older_high, older_low]) = backlog.lanes.around(order.seq);
        match order.envelope.priority {
            Priority::High if backlog.lanes.contains(order.seq) => older_high,
            // All others, but for its own share of the places.
            Priority::Low if backlog.lanes.contains(order.seq) => {
                backlog.unloaded.saturating_sub(low) + older_low
            }
            _ => (older + high - older_high).saturating_sub(older_low),
        }
    }
}
