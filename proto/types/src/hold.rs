use std::fmt;
use std::sync::Arc;

use crate::{LimitScope, UnixMillis};

/// What an operator decided: the orders of a merchant, or of a group, wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub state: HoldState,
    /// [`LimitScope::Merchant`] or [`LimitScope::Group`].
    pub scope: LimitScope,
    pub reason: Arc<str>,
    pub actor: Arc<str>,
    pub at: UnixMillis,
}

/// How they wait. In either state new orders are taken into the backlog, nothing is started, and
/// attempts in flight end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HoldState {
    Paused,
    /// As paused; the operator waits for the attempts in flight.
    Draining,
}

impl HoldState {
    /// The name used on wires and in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for HoldState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
