//! What the partition asks of the store, as values.

use expediter_types::{Incarnation, MerchantId, Partition, Priority, Seq, UnixMillis};
use roaring::RoaringTreemap;

use crate::{OrderState, Stored};

/// Changes of one partition that become durable together or not at all.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreBatch {
    pub partition: Partition,
    pub ops: Vec<StoreOp>,
}

/// One change. Orders are addressed by merchant and sequence.
#[derive(Debug, Clone, PartialEq)]
pub enum StoreOp {
    /// Keeps an order; replaces one with the same address.
    Put(Stored),
    /// Replaces the state of an order; nothing happens when it is not there.
    SetState {
        merchant: MerchantId,
        seq: Seq,
        state: OrderState,
    },
    /// Forgets an order; nothing happens when it is not there.
    Remove { merchant: MerchantId, seq: Seq },
    /// Replaces the partition's meta record.
    Meta(PartitionMeta),
    /// Keeps a chunk of the table of repeats; replaces one of the same number.
    Repeats { chunk: u64, entries: Vec<Repeat> },
    /// Forgets the chunks below this number.
    ForgetRepeats { below: u64 },
}

/// Says how far the store can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionMeta {
    /// The epoch that wrote it.
    pub epoch: Seq,
    pub incarnation: Incarnation,
    /// Every order at or below it is finished or stored.
    pub position: Seq,
    /// Highest sequence taken from the log, and its timestamp there: proves the log's identity.
    pub last_taken: Seq,
    pub last_taken_at: UnixMillis,
}

/// One entry of the table that notices publishers' repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeat {
    /// Hash of merchant, id and generation ([`crate::repeats`]).
    pub id: u64,
    /// Low 32 bits of the payload's hash.
    pub payload: u32,
    /// Where the order with this id stands in the log.
    pub seq: Seq,
}

/// What the store knows of a partition when it is opened.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StoredPartition {
    /// `None`: the store has nothing of this partition.
    pub meta: Option<PartitionMeta>,
    pub merchants: Vec<StoredMerchant>,
    /// Chunks of repeats, oldest first.
    pub repeats: Vec<(u64, Vec<Repeat>)>,
}

/// A merchant's backlog in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredMerchant {
    pub merchant: MerchantId,
    /// Sequences of its orders.
    pub orders: RoaringTreemap,
    /// Those of them that could go now and have another priority than normal: high, low.
    pub lanes: [RoaringTreemap; 2],
    /// Earliest due time among its waiting orders.
    pub next_due: Option<UnixMillis>,
}

impl StoredMerchant {
    /// Place of a priority in [`StoredMerchant::lanes`]; `None` for normal.
    #[must_use]
    pub fn lane(priority: Priority) -> Option<usize> {
        match priority {
            Priority::High => Some(0),
            Priority::Normal => None,
            Priority::Low => Some(1),
        }
    }

    /// The lanes of these orders.
    pub fn lanes_of<'a>(orders: impl IntoIterator<Item = &'a Stored>) -> [RoaringTreemap; 2] {
        let mut lanes = <[RoaringTreemap; 2]>::default();
        for stored in orders {
            let lane = Self::lane(stored.order.envelope.priority);
            if let Some(lane) = lane.filter(|_| stored.state.due.is_none()) {
                lanes[lane].insert(stored.order.seq);
            }
        }
        lanes
    }
}

/// Which of a merchant's stored orders may be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// All that wait for no time.
    Ready,
    /// All that wait for no time and are the oldest stored order of their key.
    HeadOfKey,
    /// All, in sequence, whether they wait for a time or not.
    Fifo,
}

/// Loaded orders, ascending by sequence.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ready {
    pub orders: Vec<Stored>,
    /// Where the next load continues: everything of the merchant below it was looked at.
    pub next: Seq,
    /// Nothing was left between `next` and the upper bound.
    pub exhausted: bool,
}

/// Orders whose time has come, ascending by due time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Due {
    pub orders: Vec<Stored>,
    /// Due time of the first one that was not loaded.
    pub next: Option<UnixMillis>,
}
