use std::fmt::Debug;
use std::sync::Arc;

use expediter_core::Order;
use expediter_core::recovery::Recovered;
use expediter_core::store::PartitionMeta;
use expediter_types::{MerchantId, Partition, Record, Seq, UnixMillis};

use crate::BoxFuture;

pub use expediter_core::{IntakeSource, LogMessage, Undecodable};

/// Messages in sequence.
#[derive(Debug, Clone)]
pub struct IntakeBatch {
    pub source: IntakeSource,
    pub messages: Vec<LogMessage>,
    /// Nothing of the partition is pending at or below this sequence (the stream's last sequence
    /// as read before a consumer answered that nothing is pending).
    pub pending_none_below: Option<Seq>,
}

/// The partition takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the partition's intake is closed")]
pub struct IntakeClosed;

/// Where the readers of a partition put what they read.
pub trait PartitionIntake: Debug + Send + Sync + 'static {
    /// Waits while the partition cannot take more.
    fn deliver(&self, batch: IntakeBatch) -> BoxFuture<'_, Result<(), IntakeClosed>>;

    /// All of the partition up to here was delivered by `Main` without a gap.
    fn seen(&self) -> Seq;

    /// The broker is another, or lost acknowledged messages: the partition must be opened again.
    fn log_lost(&self, state: LogState);
}

/// How the log stands against what the partition remembers of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogState {
    pub first: Seq,
    pub last: Seq,
    pub created: UnixMillis,
}

/// Why a fenced write brought no acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishFailure {
    /// Another claim stands: stop the partition at once.
    #[error("fenced: claim {current} stands")]
    Fenced { current: Seq },
    /// Nothing is known: repeat the same record.
    #[error("undecided: {0}")]
    Undecided(String),
    /// OUTCOMES takes no more (full).
    #[error("refused: {0}")]
    Refused(String),
}

/// What may be deleted from ORDERS. Keeps the message at `below`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purge {
    /// This merchant's messages below the sequence.
    Merchant { merchant: MerchantId, below: Seq },
}

/// One partition's side of the broker, for one epoch.
pub trait PartitionLog: Debug + Send + Sync + 'static {
    /// Publishes a record under the fence. The caller has one record under way at a time and
    /// repeats it with the same `number` until it is decided. Gives the OUTCOMES sequence.
    fn publish(
        &self,
        number: u64,
        record: Record,
    ) -> BoxFuture<'static, Result<Seq, PublishFailure>>;

    /// Deletes finished orders after checking the log's identity.
    fn purge(&self, purge: Purge) -> BoxFuture<'static, Result<(), PublishFailure>>;

    /// A mark with this low water is durable; the log may be compacted below the smallest one.
    fn marked(&self, low_water: Seq, last_taken: Seq, last_taken_at: UnixMillis);

    /// Publishes orders again that the broker lost; returns when all are acknowledged.
    fn republish(&self, orders: Vec<Arc<Order>>) -> BoxFuture<'static, Result<(), PublishFailure>>;

    /// The lease is fresh: a request may be written now.
    fn lease_fresh(&self) -> bool;

    /// Asks the registry's leader whether a merchant is registered; `None`: it could not be asked.
    fn registered(&self, merchant: &MerchantId) -> BoxFuture<'static, Option<bool>>;
}

/// A partition that was claimed and recovered.
#[derive(Debug)]
pub struct StartPartition {
    pub partition: Partition,
    /// So many has ORDERS: what a node may hold in all is shared out among them.
    pub partitions: u16,
    pub recovered: Recovered,
    pub log: Arc<dyn PartitionLog>,
}

/// A started partition.
#[derive(Debug)]
pub struct Opened {
    pub intake: Arc<dyn PartitionIntake>,
    /// `Main` starts after it.
    pub read_after: Seq,
}

/// How a partition is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Planned: no new attempts, let running ones end until the deadline, publish, mark.
    HandOver,
    /// The epoch is over: drop everything, write nothing.
    Fenced,
}

/// A stopped partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stopped {
    /// Attempts that still ran; ambiguous until `busy_until`.
    pub running: Vec<Seq>,
    pub busy_until: UnixMillis,
    /// No attempt starts, because too many owners crashed; so it is for the next owner, too.
    pub paused: bool,
}

/// The side of the node that works on partitions; ownership calls it.
pub trait PartitionHost: Debug + Send + Sync + 'static {
    /// What the store has of a partition that is not started: asked before recovery, it tells how
    /// far OUTCOMES must be read and whether the log is still the same. `None`: nothing stored.
    fn meta(&self, partition: Partition) -> BoxFuture<'static, Option<PartitionMeta>>;

    /// Begins work on a claimed partition.
    fn start(&self, start: StartPartition) -> BoxFuture<'static, Result<Opened, String>>;

    /// Ends it; after a [`Stop::HandOver`] all is published.
    fn stop(&self, partition: Partition, how: Stop) -> BoxFuture<'static, Stopped>;

    /// The limits of which slices are to be leased; `None`: it has none.
    fn shared_limits(&self) -> Option<Arc<dyn crate::SharedLimits>> {
        None
    }
}
