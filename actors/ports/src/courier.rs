use std::fmt::Debug;
use std::sync::Arc;

use expediter_core::Order;
use expediter_types::{Answer, Merchant};

use crate::BoxFuture;

/// Everything an adapter needs for one attempt.
#[derive(Debug, Clone)]
pub struct AttemptRequest {
    pub merchant: Arc<Merchant>,
    pub order: Arc<Order>,
    /// 1 for the first.
    pub number: u32,
    /// A former attempt may have been received: the order is sent only when the merchant, asked
    /// first ([`expediter_types::Lookup`]), says that it has not got it.
    pub look_first: bool,
}

/// Hands an order to a merchant's system, once, and says what came of it.
///
/// The future ends within the adapter's timeout. It never fails: whatever happens is an
/// [`Answer`]. Dropping it may leave the merchant with the order.
pub trait Courier: Debug + Send + Sync + 'static {
    fn attempt(&self, request: AttemptRequest) -> BoxFuture<'static, Answer>;
}
