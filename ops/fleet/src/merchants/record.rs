use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How much is remembered of what reached the merchants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// Nothing.
    Off,
    /// [`MerchantStats`]: a fixed size for each merchant.
    #[default]
    Counts,
    /// Besides, an [`Arrival`] for each order: about 200 bytes each, never dropped.
    Arrivals,
}

/// An order that reached a merchant, with its whole body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    pub merchant: String,
    /// Header `Expediter-Order-Id`; empty if it had none.
    pub order_id: String,
    /// Header `Idempotency-Key`, as it was sent.
    pub idempotency_key: Option<String>,
    /// Header `Expediter-Attempt`; 0 if it had none.
    pub attempt: u32,
    /// When its body was complete, in microseconds since 1970.
    pub at_us: u64,
    /// In bytes.
    pub body_len: u64,
    /// XXH3 (64 bits, seed 0) of the body.
    pub body_hash: u64,
    /// The status that the merchant decided on. With 2xx the merchant has taken the order, whether or
    /// not its answer gets through.
    pub decided: u16,
    /// The status that was answered; `None` as long as the answer is due, and for ever when the
    /// merchant hangs, resets or closes or the client went away first. That it was received is not
    /// known.
    pub answered: Option<u16>,
}

impl Arrival {
    /// The merchant decided to take the order.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        (200..300).contains(&self.decided)
    }

    /// The merchant said that it took the order.
    #[must_use]
    pub fn is_answered_2xx(&self) -> bool {
        self.answered
            .is_some_and(|status| (200..300).contains(&status))
    }
}

/// What happened at one merchant since the start (or the last clearing).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MerchantStats {
    /// Orders whose body arrived completely.
    pub arrived: u64,
    /// Answers by status.
    pub answered: BTreeMap<u16, u64>,
    /// Arrivals that the merchant hung up on or reset instead of answering. Hanging ones are in flight.
    pub unanswered: u64,
    /// Requests that ended before their body was complete, or had more than 64 MiB.
    pub incomplete: u64,
    /// Arrivals before the time that the last Retry-After had asked for.
    pub too_early: u64,
    /// Requests that have begun and not been answered yet, now.
    pub in_flight: u32,
    /// The most at the same time.
    pub max_in_flight: u32,
}

impl MerchantStats {
    /// Answers with 200–299.
    #[must_use]
    pub fn answered_2xx(&self) -> u64 {
        self.answered.range(200..300).map(|(_, count)| count).sum()
    }
}

/// What happened in the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// The sum over all merchants.
    pub arrived: u64,
    /// Connections that are open now.
    pub connections: u64,
    /// Connections that were accepted since the start.
    pub accepted: u64,
    /// Merchants that something was sent to or that have a behaviour of their own.
    pub merchants: BTreeMap<String, MerchantStats>,
}
