use std::fmt::Debug;

use expediter_types::{LimitScope, Slice, UnixMillis};

use crate::BoxFuture;

/// A group or credential with limits.
pub type SharedLimit = (LimitScope, String);

/// What this node wants of a shared limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceWant {
    /// Nothing: what is held can be given back.
    pub wants: Slice,
    /// Attempts that run.
    pub in_use: u32,
    /// The concurrency of all nodes together; 0 when it is unlimited.
    pub whole: u32,
    /// An answer on this node asked all of it to wait until then; 0: none did, or that is over.
    pub closed_until: UnixMillis,
}

/// The limits that this node's merchants share with those of other nodes. Slices of them are leased
/// on its behalf.
pub trait SharedLimits: Debug + Send + Sync + 'static {
    /// Waits for a limit of which a slice, or more of one, is wanted at once.
    fn wanted(&self) -> BoxFuture<'_, SharedLimit>;

    /// What is wanted now; asked about once a second. `None`: it has no limits any more.
    fn want(&self, limit: &SharedLimit) -> Option<SliceWant>;

    /// What may be used, until that time of the monotonic clock in microseconds.
    fn lease(&self, limit: &SharedLimit, slice: Slice, until: u64);

    /// An answer on some node asked all of it to wait until then; an earlier time than known changes
    /// nothing.
    fn close(&self, limit: &SharedLimit, until: UnixMillis);

    /// The table of a limit was written.
    fn written(&self);
}
