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
    /// Asked at the last moment before a byte of the order is written.
    pub may_leave: MayLeave,
}

/// Whether a request may still be written: the right to work may have run out while it was prepared.
#[derive(Clone)]
pub struct MayLeave(Arc<dyn Fn() -> bool + Send + Sync>);

impl MayLeave {
    /// As that says, each time it is asked.
    pub fn when(may: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(may))
    }

    /// For requests that need no right.
    #[must_use]
    pub fn always() -> Self {
        Self::when(|| true)
    }

    /// It may, now.
    #[must_use]
    pub fn now(&self) -> bool {
        (self.0)()
    }
}

impl Debug for MayLeave {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("MayLeave").field(&self.now()).finish()
    }
}

/// Hands an order to a merchant's system, once, and says what came of it.
///
/// The future ends within the adapter's timeout. It never fails: whatever happens is an
/// [`Answer`]. Dropping it may leave the merchant with the order.
pub trait Courier: Debug + Send + Sync + 'static {
    fn attempt(&self, request: AttemptRequest) -> BoxFuture<'static, Answer>;
}
