use crate::{NodeName, UnixMillis};

/// The part of a shared limit that one node may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slice {
    /// Of its rates, in thousandths; 0 to [`Slice::WHOLE`].
    pub share: u32,
    /// Of its concurrency, in attempts.
    pub slots: u32,
}

impl Slice {
    /// All of the rates.
    pub const WHOLE: u32 = 1_000;

    /// What both allow.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self {
            share: self.share.min(other.share),
            slots: self.slots.min(other.slots),
        }
    }
}

/// One node's slice of a shared limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEntry {
    pub node: NodeName,
    pub slice: Slice,
    /// What it could use; it is among those that share fairly while any of it is not 0.
    pub wants: Slice,
    /// Another number in each write of the node; one that stays the same is not renewed.
    pub renewed: u64,
}

/// Who holds which slice of one shared limit: the slices add up to the whole at most.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SliceTable {
    /// Moves what cannot be divided on to the next node.
    pub turn: u64,
    /// A merchant's answer asked all of the scope to wait until then; 0: none did. May be in the past.
    pub closed_until: UnixMillis,
    /// By node, each once.
    pub entries: Vec<SliceEntry>,
}
