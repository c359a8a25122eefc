//! Which slice of a shared limit this node may use, agreed with the others over one value.
//!
//! The value is a [`SliceTable`] that all nodes compare and swap. A node with demand takes what is
//! free up to its fair part, renews each second, and gives back what the others lack. Constraints:
//! a node uses less before it writes less, and more only after the write of more was confirmed; it
//! stops using what it holds [`MARGIN`] before anyone may take it for expired. So the slices in use
//! never add up to more than the whole, whatever is lost or late.

use std::collections::BTreeMap;

use expediter_types::{NodeName, Seq, Slice, SliceEntry, SliceTable, UnixMillis};

/// An entry that was not renewed for so long, as an observer saw it, is free; microseconds.
pub const TTL: u64 = 3_000_000;
/// A holder stops so long before that; microseconds.
pub const MARGIN: u64 = 750_000;
/// Between two renewals; microseconds.
pub const RENEWAL: u64 = 1_000_000;
/// How long a node keeps what cannot be divided while others have none; microseconds.
const ROTATION: u64 = 3_000_000;

/// What a node could use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// Nothing of it: the slice is given back.
    pub wants: Slice,
    /// Attempts that run now: their slots are given back when they end.
    pub in_use: u32,
    /// An answer on this node asked all of it to wait until then; 0: none did, or that is over.
    pub closed_until: UnixMillis,
}

#[derive(Debug)]
struct Pending {
    table: SliceTable,
    slice: Slice,
    renewed: u64,
    sent: u64,
}

/// One node's part in the table of one scope. Times are microseconds of the monotonic clock.
#[derive(Debug)]
pub struct Lessee {
    me: NodeName,
    /// Newest revision and table that this node knows.
    revision: Seq,
    table: SliceTable,
    /// For each entry: what its renewal was, and since when.
    heard: BTreeMap<NodeName, (u64, u64)>,
    renewed: u64,
    /// What the table gives this node, confirmed.
    held: Slice,
    /// What it should use of that.
    aim: Slice,
    until: u64,
    /// When the newest confirmed write was sent.
    sent: u64,
    turn_since: u64,
    not_before: u64,
    pending: Option<Pending>,
}

impl Lessee {
    /// Knows nothing and holds nothing.
    #[must_use]
    pub fn new(me: NodeName) -> Self {
        Self {
            me,
            revision: 0,
            table: SliceTable::default(),
            heard: BTreeMap::new(),
            renewed: 0,
            held: Slice::default(),
            aim: Slice::default(),
            until: 0,
            sent: 0,
            turn_since: 0,
            not_before: 0,
            pending: None,
        }
    }

    /// The value is another one than before (the broker lost it): the others may still use what
    /// they held.
    pub fn recreated(&mut self, now: u64) {
        self.revision = 0;
        self.not_before = now.saturating_add(TTL);
        self.learn(SliceTable::default(), now);
        self.held = Slice::default();
    }

    /// What the value is; an older revision than known is ignored. Absent is an empty table.
    pub fn observe(&mut self, revision: Seq, table: SliceTable, now: u64) {
        if revision > self.revision {
            self.revision = revision;
            self.learn(table, now);
        }
    }

    /// The value as it was read after a write without an answer, or one that was refused.
    pub fn settle(&mut self, revision: Seq, table: SliceTable, now: u64) {
        if revision >= self.revision {
            self.revision = revision;
            self.learn(table, now);
        }
        self.pending = None;
    }

    fn learn(&mut self, table: SliceTable, now: u64) {
        if table.turn != self.table.turn {
            self.turn_since = now;
        }
        self.heard
            .retain(|node, _| table.entries.iter().any(|entry| entry.node == *node));
        for entry in &table.entries {
            let heard = self
                .heard
                .entry(entry.node.clone())
                .or_insert((entry.renewed, now));
            if heard.0 != entry.renewed {
                *heard = (entry.renewed, now);
            }
        }
        let own = table.entries.iter().find(|entry| entry.node == self.me);
        let own = own.map(|entry| (entry.renewed, entry.slice));
        match (own, &self.pending) {
            (Some((renewed, _)), Some(pending)) if renewed == pending.renewed => {
                (self.held, self.sent) = (pending.slice, pending.sent);
                self.until = pending.sent.saturating_add(TTL - MARGIN);
                self.pending = None;
            }
            // An older write of this node, or of one that had its name before.
            (Some((_, slice)), _) => self.held = self.held.min(slice),
            (None, _) => self.held = Slice::default(),
        }
        self.table = table;
    }

    /// What may be used now, of a concurrency of `whole`.
    #[must_use]
    pub fn slice(&self, whole: u32, now: u64) -> Slice {
        if now >= self.until {
            return Slice::default();
        }
        let slice = self.held.min(self.aim);
        // The concurrency was lowered and not everybody has given back yet.
        let all: u64 = self
            .table
            .entries
            .iter()
            .map(|e| u64::from(e.slice.slots))
            .sum();
        let lowered = u64::from(whole) * u64::from(slice.slots) / all.max(u64::from(whole)).max(1);
        Slice {
            slots: slice.slots.min(u32::try_from(lowered).unwrap_or(u32::MAX)),
            ..slice
        }
    }

    /// Until when some node's merchant asked all of the scope to wait.
    #[must_use]
    pub fn closed_until(&self) -> UnixMillis {
        self.table.closed_until
    }

    /// Until when [`Lessee::slice`] holds without another write.
    #[must_use]
    pub fn until(&self) -> u64 {
        self.until
    }

    /// This node has no entry, and nothing is on its way.
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.pending.is_none() && self.own().is_none()
    }

    fn own(&self) -> Option<&SliceEntry> {
        self.table
            .entries
            .iter()
            .find(|entry| entry.node == self.me)
    }

    /// When to look again, without news.
    #[must_use]
    pub fn next_at(&self, now: u64) -> u64 {
        let expiry = self.heard.iter().filter(|(node, _)| **node != self.me);
        let expiry = expiry
            .map(|(_, (_, since))| since.saturating_add(TTL + 1))
            .min();
        let renewal = self.sent.saturating_add(RENEWAL);
        expiry
            .map_or(renewal, |expiry| expiry.min(renewal))
            .max(self.not_before)
            .max(now + 10_000)
    }

    /// The table to write over the revision that comes with it; `None`: nothing is to be done. What
    /// is given back is not used from here on. The answer goes to [`Lessee::confirmed`] or
    /// [`Lessee::settle`].
    pub fn plan(&mut self, demand: Demand, whole: u32, now: u64) -> Option<(Seq, SliceTable)> {
        if self.pending.is_some() || now < self.not_before {
            return None;
        }
        let own = self.own().cloned();
        let wanted = demand.wants != Slice::default();
        let mut table = self.table.clone();
        table.closed_until = table.closed_until.max(demand.closed_until);
        let closed = table.closed_until != self.table.closed_until;
        table.entries.retain(|entry| {
            let heard = self.heard.get(&entry.node).map_or(now, |heard| heard.1);
            entry.node != self.me && now <= heard.saturating_add(TTL)
        });
        if !wanted && demand.in_use == 0 {
            (self.held, self.aim) = (Slice::default(), Slice::default());
            if own.is_none() && !closed {
                return None;
            }
            return Some(self.write(table, Slice::default(), now));
        }
        let others = table
            .entries
            .iter()
            .fold(Slice::default(), |sum, entry| Slice {
                share: sum.share.saturating_add(entry.slice.share),
                slots: sum.slots.saturating_add(entry.slice.slots),
            });
        let place = table.entries.partition_point(|entry| entry.node < self.me);
        let renewed = now.max(self.renewed + 1);
        let entry = SliceEntry {
            node: self.me.clone(),
            slice: Slice::default(),
            wants: demand.wants,
            renewed,
        };
        table.entries.insert(place, entry);
        if self.is_to_pass_on(&table, place, whole, now) {
            table.turn += 1;
        }
        let wants = |of: fn(Slice) -> u32| -> Vec<u32> {
            table.entries.iter().map(|entry| of(entry.wants)).collect()
        };
        let aim = Slice {
            share: fair(&wants(|slice| slice.share), Slice::WHOLE, table.turn)[place],
            slots: fair(&wants(|slice| slice.slots), whole, table.turn)[place],
        };
        let running = demand
            .in_use
            .min(own.as_ref().map_or(0, |own| own.slice.slots));
        let slice = Slice {
            share: aim.share.min(Slice::WHOLE.saturating_sub(others.share)),
            slots: aim
                .slots
                .min(whole.saturating_sub(others.slots))
                .max(running),
        };
        self.aim = aim;
        let due = now >= self.sent.saturating_add(RENEWAL);
        let new = own.as_ref().is_none_or(|own| {
            let more = demand.wants.share > own.wants.share || demand.wants.slots > own.wants.slots;
            own.slice.share != slice.share
                || own.slice.slots < slice.slots
                || (own.slice.slots > slice.slots && running <= aim.slots)
                || more
        });
        let turned = table.turn != self.table.turn;
        if !(due || new || turned || closed || now >= self.until) {
            return None;
        }
        table.entries[place].slice = slice;
        self.renewed = renewed;
        Some(self.write(table, slice, now))
    }

    /// Whether this node is the first of those that have something and has had its time, while
    /// others have none.
    fn is_to_pass_on(&self, table: &SliceTable, place: usize, whole: u32, now: u64) -> bool {
        let wants = |n: &usize| table.entries[*n].wants.slots > 0;
        let count = table.entries.len();
        let first = usize::try_from(table.turn % count as u64).unwrap_or(0);
        let mut round = (0..count).map(|n| (first + n) % count).filter(wants);
        whole > 0
            && (0..count).filter(wants).count() > whole as usize
            && round.next() == Some(place)
            && now >= self.turn_since.saturating_add(ROTATION)
    }

    fn write(&mut self, table: SliceTable, slice: Slice, now: u64) -> (Seq, SliceTable) {
        self.held = self.held.min(slice);
        self.pending = Some(Pending {
            table: table.clone(),
            slice,
            renewed: self.renewed,
            sent: now,
        });
        (self.revision, table)
    }

    /// The write was stored with this revision.
    pub fn confirmed(&mut self, revision: Seq, now: u64) {
        let Some(pending) = self.pending.as_ref() else {
            return;
        };
        if revision > self.revision {
            let table = pending.table.clone();
            self.revision = revision;
            self.learn(table, now);
        }
        self.pending = None;
    }
}

/// Divides `whole`: nobody gets more than it wants while another lacks it; what is left over goes
/// round, from the one whose turn it is. Gives nothing to those that want nothing.
fn fair(wants: &[u32], whole: u32, turn: u64) -> Vec<u32> {
    let mut given = vec![0; wants.len()];
    let mut order: Vec<usize> = (0..wants.len()).filter(|n| wants[*n] > 0).collect();
    if order.is_empty() {
        return given;
    }
    order.sort_by_key(|n| wants[*n]);
    let mut left = whole;
    for (done, n) in order.iter().enumerate() {
        let equal = left / u32::try_from(order.len() - done).unwrap_or(u32::MAX);
        if wants[*n] > equal {
            order[done..].iter().for_each(|n| given[*n] = equal);
            left %= u32::try_from(order.len() - done).unwrap_or(u32::MAX);
            break;
        }
        given[*n] = wants[*n];
        left -= given[*n];
    }
    let first = usize::try_from(turn % wants.len() as u64).unwrap_or(0);
    let round: Vec<usize> = (0..wants.len())
        .map(|n| (first + n) % wants.len())
        .filter(|n| wants[*n] > 0)
        .collect();
    let lacking: Vec<usize> = round
        .iter()
        .copied()
        .filter(|n| given[*n] < wants[*n])
        .collect();
    let takers = if lacking.is_empty() { round } else { lacking };
    let count = u32::try_from(takers.len()).unwrap_or(u32::MAX);
    for (n, taker) in takers.iter().enumerate() {
        let extra = u32::from((n as u64) < u64::from(left % count));
        given[*taker] += left / count + extra;
    }
    given
}

#[cfg(test)]
mod tests;
