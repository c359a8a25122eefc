use std::sync::Arc;

use bytes::Bytes;
use expediter_types::{MerchantId, Seq, UnixMillis};

use crate::Order;

/// A message of the partition, decoded.
#[derive(Debug, Clone)]
pub struct LogMessage {
    pub seq: Seq,
    /// The broker's timestamp.
    pub at: UnixMillis,
    pub order: Result<Arc<Order>, Box<Undecodable>>,
}

/// A message that is no order.
#[derive(Debug, Clone)]
pub struct Undecodable {
    /// The subject's merchant; `_invalid` when that token is no merchant id.
    pub merchant: MerchantId,
    /// What is wrong, for people.
    pub reason: String,
    pub payload: Bytes,
}

/// Which reader took the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntakeSource {
    /// Reads everything, in sequence, without a gap.
    Main,
    /// Reads what is new while `Main` still catches up.
    FreshTail,
}
