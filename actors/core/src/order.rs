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

impl Stored {
    /// Share of the time between when it could first go and its deadline that is over, 0 to 1.
    #[must_use]
    pub fn time_used(&self, now: UnixMillis) -> f64 {
        let envelope = &self.order.envelope;
        let begin = envelope.created.max(envelope.not_before.unwrap_or(0));
        if now >= self.deadline {
            return 1.0;
        }
        let (used, whole) = (
            now.saturating_sub(begin),
            self.deadline.saturating_sub(begin),
        );
        #[expect(
            clippy::cast_precision_loss,
            reason = "milliseconds of some days are exact"
        )]
        let share = used as f64 / whole.max(1) as f64;
        share.min(1.0)
    }
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

#[cfg(test)]
mod tests {
    use expediter_types::{Envelope, MerchantId, OrderId, Priority};

    use super::*;

    fn stored(created: u64, not_before: Option<u64>, deadline: u64) -> Stored {
        let envelope = Envelope {
            id: OrderId::new("1").unwrap(),
            merchant: MerchantId::new("m").unwrap(),
            generation: 1,
            created,
            deadline: None,
            not_before,
            key: None,
            priority: Priority::default(),
            event_type: None,
            source: None,
            time: None,
            content_type: None,
            traceparent: None,
            test: false,
            origin: None,
        };
        let order = Order {
            seq: 1,
            envelope,
            payload: Bytes::new(),
            payload_hash: 0,
        };
        Stored {
            order: Arc::new(order),
            state: OrderState::default(),
            deadline,
        }
    }

    #[test]
    fn the_time_of_an_order_begins_when_it_could_go() {
        let plain = stored(1_000, None, 2_000);
        let used = [0, 1_000, 1_250, 2_000, 9_000].map(|now| plain.time_used(now));
        assert_eq!(used, [0.0, 0.0, 0.25, 1.0, 1.0]);
        let scheduled = stored(1_000, Some(1_800), 2_000);
        assert_eq!(
            [1_500, 1_900].map(|now| scheduled.time_used(now)),
            [0.0, 0.5]
        );
        // Its deadline passed before it could have gone.
        assert_eq!(stored(1_000, Some(3_000), 2_000).time_used(1_500), 0.0);
    }
}
