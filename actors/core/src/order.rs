use std::sync::Arc;

use bytes::Bytes;
use expediter_types::{AttemptRecord, Envelope, Seq, UnixMillis};
use xxhash_rust::xxh3::xxh3_64;

/// An order as it was taken from the log; immutable and shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// ORDERS sequence: its identity within one incarnation of the log.
    pub seq: Seq,
    pub envelope: Envelope,
    /// As it came.
    pub payload: Bytes,
    /// [`payload_hash`] of `payload`.
    pub payload_hash: u64,
}

/// What happened to an unfinished order so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OrderState {
    /// Attempts that count against `retry.max_attempts`.
    pub attempts: u32,
    /// When the first request may have left; the idempotency window counts from here.
    pub first_attempt: Option<UnixMillis>,
    /// Waits for this time (a retry, or not-before); `None`: could go now.
    pub due: Option<UnixMillis>,
    /// The newest attempt may have been received.
    pub ambiguous: bool,
    /// Newest last, bounded by [`OrderState::remember`].
    pub history: Vec<AttemptRecord>,
}

impl OrderState {
    /// An order keeps its first attempt and its newest ones, so many in all.
    pub const HISTORY: usize = 16;

    /// Adds a record; drops the second oldest when there are too many.
    pub fn remember(&mut self, record: AttemptRecord) {
        if self.history.len() >= Self::HISTORY {
            self.history.remove(1);
        }
        self.history.push(record);
    }
}

/// An order with its state, as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub order: Arc<Order>,
    pub state: OrderState,
    /// When it gives up: the merchant's margin before the order's own deadline or the one of the
    /// merchant's policy at intake. The store keeps an index by it.
    pub deadline: UnixMillis,
}

/// xxh3-64 of the ordering key; part of the store's format.
#[must_use]
pub fn key_hash(key: &str) -> u64 {
    xxh3_64(key.as_bytes())
}

/// xxh3-64 of the payload; part of the outcome record's format.
#[must_use]
pub fn payload_hash(payload: &[u8]) -> u64 {
    xxh3_64(payload)
}
