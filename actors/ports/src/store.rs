use std::fmt::Debug;

use expediter_core::Stored;
use expediter_core::store::{Due, Gate, Ready, StoreBatch, StoredPartition};
use expediter_types::{MerchantId, Partition, Seq, UnixMillis};

/// The working copy of what waits. All calls block: they belong on the store's own threads.
///
/// Any error is fatal for the process: after one, neither reads nor writes are to be believed.
pub trait MerchantStore: Debug + Send + Sync + 'static {
    /// Applies the batches in order; when it returns, they survive a power cut, each one whole.
    fn commit(&self, batches: &[StoreBatch]) -> Result<(), StoreError>;

    /// What is there of a partition; reads all its keys.
    fn partition(&self, partition: Partition) -> Result<StoredPartition, StoreError>;

    /// Forgets a partition.
    fn drop_partition(&self, partition: Partition) -> Result<(), StoreError>;

    /// Orders of a merchant with `from <= seq <= up_to` that pass the gate; at most `limit`, and
    /// fewer after [`looked_at`] orders. When there was nothing left, `next` is behind `up_to`.
    fn ready(
        &self,
        partition: Partition,
        merchant: &MerchantId,
        from: Seq,
        up_to: Seq,
        limit: usize,
        gate: Gate,
    ) -> Result<Ready, StoreError>;

    /// Orders of a merchant that wait for a time at or before `until`; with
    /// [`Gate::HeadOfKey`] only the oldest stored one of each key: of the others, those whose time
    /// has come do not count for `next`, because a timer would never be done with them.
    fn due(
        &self,
        partition: Partition,
        merchant: &MerchantId,
        until: UnixMillis,
        limit: usize,
        gate: Gate,
    ) -> Result<Due, StoreError>;

    /// The oldest stored order with this hash of an ordering key.
    fn key_head(
        &self,
        partition: Partition,
        merchant: &MerchantId,
        key: u64,
    ) -> Result<Option<Stored>, StoreError>;

    /// Orders of any merchant whose deadline is at or before `until`, earliest first.
    fn expired(
        &self,
        partition: Partition,
        until: UnixMillis,
        limit: usize,
    ) -> Result<Vec<Stored>, StoreError>;

    /// One order.
    fn get(
        &self,
        partition: Partition,
        merchant: &MerchantId,
        seq: Seq,
    ) -> Result<Option<Stored>, StoreError>;

    /// The lowest sequence stored of a merchant.
    fn first(&self, partition: Partition, merchant: &MerchantId)
    -> Result<Option<Seq>, StoreError>;

    /// How many orders of a merchant are stored below the sequence; counts no further than `most`.
    fn below(
        &self,
        partition: Partition,
        merchant: &MerchantId,
        seq: Seq,
        most: usize,
    ) -> Result<usize, StoreError>;

    /// For metrics.
    fn usage(&self) -> StoreUsage;
}

/// How many orders [`MerchantStore::ready`] looks at for one answer.
#[must_use]
pub fn looked_at(limit: usize) -> usize {
    limit.saturating_mul(4).saturating_add(256)
}

/// What the store occupies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Bytes on disk; 0 for a store without one.
    pub disk_bytes: u64,
}

/// Why the store cannot go on. `Display` is a lower-case fragment; the chain tells the rest.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct StoreError {
    /// What was tried, where.
    pub what: String,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}
