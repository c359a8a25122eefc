//! From the store into the mailbox: what is loaded when, and what becomes of it.

use std::collections::HashSet;

use expediter_types::{
    DeadReason, MerchantId, Now, Ordering, OutcomeKind, Priority, Seq, UnixMillis,
};

use super::backlog::{Backlog, Load, Loaded};
use super::writer::Why;
use super::{Command, Directory, PartitionMachine};
use crate::merchant::{Accepting, share_of_repeats};
use crate::store::{Gate, Ready, StoreOp};
use crate::{OrderState, Stored};

impl PartitionMachine {
    /// Loads more of a merchant's stored orders if it wants more.
    pub(super) fn refill(&mut self, id: &MerchantId, directory: &dyn Directory, now: Now) {
        let held = self.keep_hold(id, directory, now);
        let ledger_seen = self.ledger.seen();
        let unconfirmed = self.writer.unconfirmed() >= self.config.unconfirmed;
        let enough = self.ends_enough();
        let waits = self.backlogs.get(id);
        let Some(backlog) = waits.filter(|b| !b.loading && b.unloaded > 0) else {
            return;
        };
        let has_its_share = self.has_its_share(backlog);
        let window_is_full = self.window_bytes >= self.config.window_bytes;
        let manifest = self.manifest(id, directory);
        let Some(backlog) = self.backlogs.get_mut(id) else {
            return;
        };
        if backlog.condemned.is_some() {
            if enough || backlog.ends_enough(&self.config) {
                self.ending.insert(id.clone());
                return;
            }
            backlog.loading = true;
            let load = Load::Condemned {
                merchant: id.clone(),
                from: 0,
            };
            self.commands.push_back(Command::Load(load));
            return;
        }
        let overflowing = backlog.overflowing(&self.config);
        if let Some(merchant) = manifest.as_ref().filter(|_| !overflowing.is_empty()) {
            backlog.loading = true;
            let load = Load::Ready {
                merchant: id.clone(),
                from: backlog.cursor,
                up_to: 0,
                limit: 0,
                gate: Self::gate(merchant),
                also: overflowing,
            };
            self.commands.push_back(Command::Load(load));
            return;
        }
        let keeps =
            backlog.quarantined || held || backlog.ends_enough(&self.config) || has_its_share;
        if keeps || self.draining || self.paused || unconfirmed {
            return;
        }
        let Some(merchant) = manifest else {
            self.unknown_since.entry(id.clone()).or_insert(now.wall);
            return;
        };
        if backlog.active.is_none() {
            // What the machine would say if it existed.
            backlog.accepting = match backlog.closure {
                Some(c) if c.until > now.wall => Accepting::ClosedUntil(c.until),
                _ => Accepting::Open,
            };
        }
        match backlog.accepting {
            Accepting::ClosedUntil(until) if until > now.wall => {
                self.timers.insert((until, id.clone()));
                return;
            }
            Accepting::ClosedUntil(_) => {
                let probing = backlog
                    .closure
                    .is_some_and(|c| c.because != expediter_types::ClosedBecause::RateLimited);
                backlog.accepting = if probing {
                    Accepting::Probe
                } else {
                    Accepting::Open
                };
            }
            Accepting::Open | Accepting::Short | Accepting::Fresh | Accepting::Probe => {}
        }
        if !backlog.wants_load(&merchant) {
            return;
        }
        if merchant.holds_on_park() {
            let all = self.parked.holds_all(&merchant);
            self.load_again(id, now);
            if all {
                return;
            }
        }
        let Some(backlog) = self.backlogs.get_mut(id) else {
            return;
        };
        let room = match window_is_full {
            true => 1,
            false => backlog.room(&merchant) as usize,
        };
        let gate = Self::gate(&merchant);
        if gate != Gate::Ready
            && let Some((low, high)) = backlog.lanes.dissolve()
        {
            backlog.cursor = backlog.cursor.min(low);
            backlog.tail = backlog.tail.max(high);
        }
        let ordered = merchant.limits.ordering != Ordering::None;
        let up_to = if ordered { ledger_seen } else { Seq::MAX };
        if gate != Gate::HeadOfKey {
            // From before the merchant's ordering changed.
            backlog.key_heads.clear();
        }
        if let Some(key) = backlog.key_heads.pop_front() {
            backlog.loading = true;
            let load = Load::KeyHead {
                merchant: id.clone(),
                key,
            };
            self.commands.push_back(Command::Load(load));
            return;
        }
        if gate == Gate::Fifo {
            backlog.line_up();
            if let Some(due) = backlog.head_due.filter(|due| *due > now.wall) {
                self.timers.insert((due, id.clone()));
                return;
            }
        } else if let Some(due) = backlog.next_due
            // Those that were tried before wait in the store when the mailbox has enough of them.
            && (backlog.accepting != Accepting::Fresh || due > now.wall)
            && !(std::mem::take(&mut backlog.due_went) && backlog.can_load(up_to))
        {
            if due <= now.wall && backlog.due_above == Some(ledger_seen) {
                self.gated.insert(id.clone());
            } else if due <= now.wall {
                backlog.loading = true;
                backlog.due_went = true;
                backlog.next_due = None;
                backlog.due_above = None;
                // Orders in the mailbox may come back from the index; they are skipped.
                let room = match backlog.accepting {
                    Accepting::Short => room.min(share_of_repeats(&merchant.limits) as usize),
                    _ => room,
                };
                let limit = room + (backlog.offered + backlog.finishing) as usize;
                let load = Load::Due {
                    merchant: id.clone(),
                    until: now.wall,
                    limit,
                    gate,
                };
                self.commands.push_back(Command::Load(load));
                return;
            } else {
                self.timers.insert((due, id.clone()));
            }
        }
        if !backlog.lanes.is_empty() {
            let normal_waits = backlog.cursor <= backlog.tail;
            let (also, limit) = backlog.lanes.take(room, normal_waits);
            backlog.loading = true;
            let load = Load::Ready {
                merchant: id.clone(),
                from: backlog.cursor,
                // Without a place for them nothing of normal priority is read.
                up_to: if limit > 0 { up_to } else { 0 },
                limit,
                gate,
                also,
            };
            self.commands.push_back(Command::Load(load));
        } else if backlog.cursor <= backlog.tail {
            if backlog.cursor > up_to {
                self.gated.insert(id.clone());
                return;
            }
            backlog.loading = true;
            let from = backlog.cursor;
            let load = Load::Ready {
                merchant: id.clone(),
                from,
                up_to,
                limit: room,
                gate,
                also: Vec::new(),
            };
            self.commands.push_back(Command::Load(load));
        }
    }

    /// A load came back.
    pub fn on_loaded(&mut self, load: Load, loaded: Loaded, directory: &dyn Directory, now: Now) {
        match (load, loaded) {
            (
                Load::Ready {
                    merchant,
                    from,
                    up_to,
                    limit,
                    gate,
                    ..
                },
                Loaded::Ready(ready, mut also),
            ) => {
                let Some((lowered, mut stale)) = self.end_load(&merchant) else {
                    return;
                };
                also.retain(|stored| !stale.contains(&stored.order.seq));
                // One that came both ways is admitted once: what is known of it is used up by that.
                stale.extend(also.iter().map(|stored| stored.order.seq));
                if limit > 0 {
                    let changed = (lowered, stale);
                    self.on_ready(&merchant, from, up_to, gate, ready, changed, directory, now);
                }
                self.on_lanes(&merchant, gate, also, directory, now);
            }
            (Load::Due { merchant, gate, .. }, Loaded::Due(due)) => {
                let Some((lowered, stale)) = self.end_load(&merchant) else {
                    return;
                };
                let changed = self
                    .manifest(&merchant, directory)
                    .is_some_and(|manifest| Self::gate(&manifest) != gate);
                let orders = due.orders.iter().map(|stored| stored.order.seq);
                let early = changed
                    || (gate != Gate::Ready && orders.max().is_some_and(|last| last > lowered));
                if let Some(backlog) = self.backlogs.get_mut(&merchant) {
                    if early {
                        backlog.add_due(now.wall);
                    } else if let Some(next) = due.next {
                        backlog.add_due(next);
                    }
                }
                if !early {
                    for stored in due.orders {
                        if stale.contains(&stored.order.seq) {
                            continue;
                        }
                        self.admit(stored, directory, now);
                    }
                }
                self.refill(&merchant, directory, now);
            }
            (Load::KeyHead { merchant, key }, Loaded::KeyHead(stored)) => {
                let Some((lowered, stale)) = self.end_load(&merchant) else {
                    return;
                };
                // Keys mean nothing any more when the ordering changed: all is looked at again then.
                let manifest = self.manifest(&merchant, directory);
                let by_key = manifest.is_some_and(|m| Self::gate(&m) == Gate::HeadOfKey);
                if let Some(stored) = stored.filter(|_| by_key) {
                    let seq = stored.order.seq;
                    let waits = stored.state.due.filter(|due| *due > now.wall);
                    if let Some(backlog) = self.backlogs.get_mut(&merchant) {
                        if seq > lowered || stale.contains(&seq) {
                            backlog.key_heads.push_back(key);
                        } else if let Some(due) = waits {
                            // Its time had come once while it was behind, and was not waited for;
                            // then the wall clock was set back.
                            backlog.add_timed(seq, due);
                        } else if seq < backlog.cursor || stored.state.due.is_some() {
                            // The cursor passed it, or does not look at what waited for a time.
                            self.admit(stored, directory, now);
                        }
                    }
                }
                self.refill(&merchant, directory, now);
            }
            (Load::Expired { .. }, Loaded::Expired(orders)) => {
                self.on_expired(orders, directory, now);
            }
            (Load::Condemned { merchant, .. }, Loaded::Ready(ready, _)) => {
                self.on_condemned(&merchant, ready, directory, now);
            }
            (Load::First { merchant }, Loaded::First(first)) => self.on_first(merchant, first),
            (Load::One { merchant, seq }, Loaded::One(stored)) => {
                self.on_one(&merchant, seq, stored, directory, now);
            }
            _ => debug_assert!(false, "a load was answered with another kind"),
        }
    }

    /// The load is over; the lowest sequence that was parked meanwhile, `Seq::MAX` for none.
    pub(super) fn end_load(&mut self, merchant: &MerchantId) -> Option<(Seq, HashSet<Seq>)> {
        let backlog = self.backlogs.get_mut(merchant)?;
        backlog.loading = false;
        let lowered = backlog.lowered.take().unwrap_or(Seq::MAX);
        Some((lowered, std::mem::take(&mut backlog.stale)))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one load and its answer"
    )]
    fn on_ready(
        &mut self,
        merchant: &MerchantId,
        from: Seq,
        up_to: Seq,
        gate: Gate,
        ready: Ready,
        (lowered, stale): (Seq, HashSet<Seq>),
        directory: &dyn Directory,
        now: Now,
    ) {
        let manifest = self.manifest(merchant, directory);
        let Some(backlog) = self.backlogs.get_mut(merchant) else {
            return;
        };
        let last = ready.orders.last().map_or(0, |stored| stored.order.seq);
        let changed = manifest.is_some_and(|manifest| Self::gate(&manifest) != gate);
        if changed || (gate != Gate::Ready && last > lowered) {
            // An older order of the same key may have come back to the store meanwhile.
            backlog.cursor = from.min(backlog.cursor).min(lowered);
            return self.refill(merchant, directory, now);
        }
        backlog.cursor = ready.next.min(lowered);
        if gate == Gate::Fifo {
            backlog.head_due = None;
        }
        let mut stopped_at = None;
        for stored in ready.orders {
            let seq = stored.order.seq;
            let in_lane = |backlog: &Backlog| backlog.lanes.contains(seq);
            if stale.contains(&seq) || self.backlogs.get(merchant).is_some_and(in_lane) {
                continue;
            }
            let skip = self.window.contains_key(&seq) || self.finishing.contains_key(&seq);
            if gate == Gate::Fifo && !skip {
                if let Some(due) = stored.state.due.filter(|due| *due > now.wall) {
                    stopped_at = Some((seq, Some(due)));
                    break;
                }
                let full = self
                    .backlogs
                    .get(merchant)
                    .zip(self.manifest(merchant, directory));
                if full.is_some_and(|(backlog, spec)| backlog.room(&spec) == 0) {
                    stopped_at = Some((seq, None));
                    break;
                }
            }
            self.admit(stored, directory, now);
            let taken = self.window.contains_key(&seq) || !self.ledger.is_open(seq);
            if gate == Gate::Fifo && !taken && !self.finishing.contains_key(&seq) {
                // It was put back: nothing behind it may go.
                stopped_at = Some((seq, None));
                break;
            }
        }
        let Some(backlog) = self.backlogs.get_mut(merchant) else {
            return;
        };
        if let Some((seq, due)) = stopped_at {
            backlog.cursor = backlog.cursor.min(seq);
            backlog.head_due = due;
            if let Some(due) = due {
                self.timers.insert((due, merchant.clone()));
            }
            return;
        }
        if ready.exhausted && backlog.cursor > up_to && backlog.cursor <= backlog.tail {
            self.gated.insert(merchant.clone());
            return;
        }
        self.refill(merchant, directory, now);
    }

    /// Orders of high and low priority came from the store.
    fn on_lanes(
        &mut self,
        merchant: &MerchantId,
        gate: Gate,
        orders: Vec<Stored>,
        directory: &dyn Directory,
        now: Now,
    ) {
        if orders.is_empty() {
            return;
        }
        let manifest = self.manifest(merchant, directory);
        if manifest.is_none_or(|manifest| Self::gate(&manifest) == gate) {
            for stored in orders {
                self.admit(stored, directory, now);
            }
        }
        // Otherwise they keep their sequence now, and are looked at from the beginning.
        self.refill(merchant, directory, now);
    }

    /// A stored order comes back towards its mailbox.
    pub(super) fn admit(&mut self, mut stored: Stored, directory: &dyn Directory, now: Now) {
        let seq = stored.order.seq;
        let id = stored.order.envelope.merchant.clone();
        if self.window.contains_key(&seq)
            || self.finishing.contains_key(&seq)
            || !self.ledger.is_open(seq)
        {
            return;
        }
        if let Some(backlog) = self.backlogs.get_mut(&id)
            && backlog.closure.is_none()
            && backlog.active.is_none()
        {
            backlog.accepting = Accepting::Open;
        }
        let Some(merchant) = self.manifest(&id, directory) else {
            return self.put_back(&stored);
        };
        let seen = self.ledger.seen();
        if merchant.limits.ordering != Ordering::None && seq > seen {
            // Something older may be in the log and not taken yet.
            if stored.state.due.is_some()
                && let Some(backlog) = self.backlogs.get_mut(&id)
            {
                backlog.due_above = Some(seen);
            }
            self.gated.insert(id.clone());
            return self.put_back(&stored);
        }
        let overflows = |backlog: &Backlog| backlog.overflow.contains(seq);
        if self.backlogs.get(&id).is_some_and(overflows) {
            self.take_unloaded(&id);
            return self.conclude_over_quota(stored, true, now);
        }
        if self.is_unread(seq) {
            if stored.state.due.is_some()
                && let Some(backlog) = self.backlogs.get_mut(&id)
            {
                // Its time has come, and the index would give it again at once.
                backlog.due_above = Some(seen);
                self.gated.insert(id);
            }
            self.unread.insert(seq, Place::of(&stored));
            return;
        }
        if self.parked.holds(&merchant, &stored.order) {
            // It stays in the store, and is looked for when the one before it is resolved; without
            // its time, or it would be read again and again until then.
            if stored.state.due.is_some_and(|due| due <= now.wall) {
                stored.state.due = None;
                let state = stored.state;
                self.ops.push(StoreOp::SetState {
                    merchant: id,
                    seq,
                    state,
                });
            }
            return;
        }
        if self.closed_as_superseded(&stored.order, now) {
            return;
        }
        let doubt = |state: &OrderState| (state.ambiguous, state.first_attempt, state.due);
        let known = doubt(&stored.state);
        if self.settle_doubt(&mut stored, &merchant, now) {
            let in_store = true;
            self.take_unloaded(&id);
            self.conclude(
                stored,
                in_store,
                OutcomeKind::DeadLettered(DeadReason::Ambiguous),
                Why::from("the node stopped while the attempt was running"),
                now,
            );
            return;
        }
        if doubt(&stored.state) != known {
            // The doubt is settled once, and the order may go back to the store before it is tried.
            let state = stored.state.clone();
            self.ops.push(StoreOp::SetState {
                merchant: id.clone(),
                seq,
                state,
            });
        }
        if stored.state.due.is_some_and(|due| due > now.wall) {
            return self.put_back(&stored);
        }
        let blocked = self.draining
            || self.paused
            || self.backlogs.get(&id).is_none_or(|b| {
                b.quarantined
                    || b.held
                    || b.condemned.is_some()
                    || b.room(&merchant) == 0
                    || self.has_its_share(b)
            });
        if blocked {
            return self.put_back(&stored);
        }
        self.take_unloaded(&id);
        self.offer(stored, true, &merchant, now);
    }

    /// So many bytes are in mailboxes that this merchant gets no more: it has a sixteenth of them, or
    /// they are four times as many as they should be and it has one order there.
    pub(super) fn has_its_share(&self, backlog: &Backlog) -> bool {
        let most = self.config.window_bytes;
        let large = self.window_bytes >= most && backlog.window_bytes >= most / 16;
        backlog.offered > 0 && (large || self.window_bytes >= most.saturating_mul(4))
    }

    /// A former owner stored it from a fresh tail, and the main reader has not come there.
    pub(super) fn is_unread(&self, seq: Seq) -> bool {
        seq > self.ledger.seen() && seq <= self.stored_up_to
    }

    /// The main reader went on: what it came by can be loaded.
    pub(super) fn look_at_unread(&mut self, directory: &dyn Directory, now: Now) {
        while let Some(entry) = self.unread.first_entry()
            && *entry.key() <= self.ledger.seen()
        {
            let (seq, place) = entry.remove_entry();
            if self.ledger.is_open(seq) && !self.finishing.contains_key(&seq) {
                let merchant = place.merchant.clone();
                if let Some(backlog) = self.backlogs.get_mut(&merchant) {
                    backlog.note_lowered(seq);
                }
                self.put_back_at(seq, place);
                self.refill(&merchant, directory, now);
            }
        }
    }

    /// It stays in the store after all.
    fn put_back(&mut self, stored: &Stored) {
        self.put_back_at(stored.order.seq, Place::of(stored));
    }

    fn put_back_at(&mut self, seq: Seq, place: Place) {
        let Place {
            merchant,
            due,
            priority,
        } = place;
        self.parked.stored(&merchant, seq, due);
        if let Some(backlog) = self.backlogs.get_mut(&merchant) {
            match due {
                Some(due) => {
                    backlog.add_timed(seq, due);
                    self.timers.insert((due, merchant));
                }
                None => backlog.add_ready(seq, priority),
            }
        }
    }
}

/// What the store is asked by for an order.
#[derive(Debug)]
pub(super) struct Place {
    merchant: MerchantId,
    due: Option<UnixMillis>,
    priority: Priority,
}

impl Place {
    fn of(stored: &Stored) -> Self {
        let envelope = &stored.order.envelope;
        Self {
            merchant: envelope.merchant.clone(),
            due: stored.state.due,
            priority: envelope.priority,
        }
    }
}
