use std::sync::Arc;

use expediter_types::{Hold, LimitScope, Merchant, MerchantId, Scope};

/// A merchant's entry in the registry.
#[derive(Debug, Clone)]
pub struct Registered {
    pub merchant: Arc<Merchant>,
    /// Rises with each change; the compare-and-swap value.
    pub revision: u64,
}

/// Whom a decision concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecisionSubject {
    Merchant(MerchantId),
    Group(String),
}

/// Follows the registry. Changes come in order; the first [`RegistrySink::loaded`] follows the
/// complete initial state.
pub trait RegistrySink: Send + Sync + 'static {
    /// Created or changed.
    fn put(&self, entry: Registered);
    /// Deleted.
    fn remove(&self, merchant: &MerchantId);
    /// The limits of a group or credential were created or changed.
    fn put_scope(&self, scope: Arc<Scope>);
    /// They were deleted: its merchants have only their own.
    fn remove_scope(&self, kind: LimitScope, id: &str);
    /// All that was registered when the follower started was put: unknown now means unknown.
    fn loaded(&self);
    /// Operators decided about a merchant or a group; `None`: nothing holds it any more. `revision`
    /// rises with each decision.
    fn decided(&self, subject: DecisionSubject, hold: Option<Hold>, revision: u64);
    /// All that was decided when the follower started was told.
    fn decisions_loaded(&self);
    /// The broker lost the decisions: revisions count from the beginning again.
    fn decisions_renumbered(&self) {}
    /// Operators let a quarantined merchant go on.
    fn resume(&self, merchant: &MerchantId);
}
