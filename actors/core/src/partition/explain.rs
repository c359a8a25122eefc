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
    /// The owner gives the partition back.
    pub hands_over: bool,
    /// Orders of the merchant that ended in the last full minute, or so far in the first.
    pub ended_per_minute: u64,
}

/// What is known of an order's waiting, besides its merchant's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderWait {
    /// Older orders of the merchant that are in memory and not in the store.
    pub ahead_in_memory: u64,
    pub turn: Turn,
    /// An older order that shares its key was parked, and a person has to resolve that.
    pub parked_key: bool,
    /// Its attempt is being listed in OUTCOMES and has not left.
    pub marking: bool,
}

/// Which stored orders of the merchant go before one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The older ones, with those of high priority that are younger, without the older ones of low
    /// priority.
    Sequence { more: u64, less: u64 },
    /// So many of high priority.
    High(u64),
    /// All but those of its own priority, of which so many are older; but for its share of the
    /// places.
    Low { stored: u64, older: u64 },
}

impl Turn {
    /// Orders that go before, when so many are older.
    #[must_use]
    pub fn ahead(self, older: u64) -> u64 {
        match self {
            Self::Sequence { more, less } => (older + more).saturating_sub(less),
            Self::High(ahead) => ahead,
            Self::Low { stored, older } => stored + older,
        }
    }
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
            hands_over: self.draining,
            ended_per_minute: backlog.map_or(0, |backlog| backlog.stats.pace(now)),
        }
    }

    /// An order that is in a mailbox.
    #[must_use]
    pub fn held(&self, seq: Seq) -> Option<Stored> {
        self.window.get(&seq).map(|held| held.stored.clone())
    }

    /// Why this order waits.
    #[must_use]
    pub fn explain_order(&self, stored: &Stored, directory: &dyn Directory) -> OrderWait {
        let order = &stored.order;
        let merchant = &order.envelope.merchant;
        let older = |seq: Seq| seq < order.seq;
        let ahead = self.window.values().filter(|held| {
            let other = &held.stored.order;
            !held.in_store && older(other.seq) && other.envelope.merchant == *merchant
        });
        let manifest = directory.merchant(merchant);
        OrderWait {
            ahead_in_memory: ahead.count() as u64,
            turn: self.turn(stored),
            parked_key: manifest.is_some_and(|manifest| self.parked.holds(&manifest, order)),
            marking: self
                .window
                .get(&order.seq)
                .is_some_and(|held| matches!(held.stage, Stage::Marking { .. })),
        }
    }

    /// Lanes are empty where an ordering keeps the sequence.
    fn turn(&self, stored: &Stored) -> Turn {
        let order = &stored.order;
        let Some(backlog) = self.backlogs.get(&order.envelope.merchant) else {
            return Turn::Sequence { more: 0, less: 0 };
        };
        let ([high, low], [older_high, older_low]) = backlog.lanes.around(order.seq);
        match order.envelope.priority {
            Priority::High if backlog.lanes.contains(order.seq) => Turn::High(older_high),
            Priority::Low if backlog.lanes.contains(order.seq) => Turn::Low {
                stored: backlog.unloaded.saturating_sub(low),
                older: older_low,
            },
            _ => Turn::Sequence {
                more: high - older_high,
                less: older_low,
            },
        }
    }
}
