//! Orders of a backlog that end without an attempt: expired, or condemned with their merchant.

use expediter_types::{DeadReason, MerchantId, Now, OutcomeKind, Seq, UnixMillis};

use super::backlog::{Condemned, EXPIRE_AT_ONCE, Load};
use super::writer::Why;
use super::{Command, Directory, PartitionMachine};
use crate::Stored;
use crate::merchant::expiry;
use crate::store::{Ready, StoreOp};

/// No more orders of a backlog are ended while so many decisions are not acknowledged: the others'
/// outcomes wait behind them, and each dead letter holds its payload.
const ENDING_AT_ONCE: usize = 512;

impl PartitionMachine {
    pub(super) fn on_expired(&mut self, orders: Vec<Stored>, directory: &dyn Directory, now: Now) {
        self.expiring = false;
        let stale = std::mem::take(&mut self.parked_while_expiring);
        let full = orders.len() >= EXPIRE_AT_ONCE;
        let mut progress = false;
        for mut stored in orders {
            let seq = stored.order.seq;
            let id = stored.order.envelope.merchant.clone();
            // The machine of a merchant judges what is in its mailbox.
            if stale.contains(&seq)
                || self.window.contains_key(&seq)
                || self.finishing.contains_key(&seq)
                || !self.ledger.is_open(seq)
                || self.is_unread(seq)
            {
                continue;
            }
            progress = true;
            let merchant = directory.merchant(&id);
            let deadline = Self::deadline(&stored.order, merchant.as_deref());
            if deadline > now.wall {
                // The merchant's policy became longer.
                stored.deadline = deadline;
                self.ops.push(StoreOp::Put(stored));
                continue;
            }
            let doubtful = self.doubts.remove(&seq).is_some() || stored.state.ambiguous;
            self.take_unloaded(&id);
            self.conclude(stored, true, expiry(doubtful), Why::default(), now);
            if let Some(backlog) = self.backlogs.get_mut(&id) {
                backlog.head_due = None;
            }
            self.refill(&id, directory, now);
        }
        if full && progress {
            self.expire_more = true;
            self.end_more(directory, now);
        }
    }

    /// So many decisions wait for their acknowledgement that no more orders are ended.
    pub(super) fn ends_enough(&self) -> bool {
        self.writer.unconfirmed() >= ENDING_AT_ONCE.min(self.config.unconfirmed)
            || self.writer.dead_letters_full()
    }

    /// Goes on ending orders when enough of those before are acknowledged.
    pub(super) fn end_more(&mut self, directory: &dyn Directory, now: Now) {
        if self.ends_enough() {
            return;
        }
        if std::mem::take(&mut self.expire_more) && !self.expiring {
            self.expiring = true;
            self.commands
                .push_back(Command::Load(Load::Expired { until: now.wall }));
        }
        for merchant in std::mem::take(&mut self.ending) {
            self.refill(&merchant, directory, now);
        }
    }

    pub(super) fn on_condemned(
        &mut self,
        merchant: &MerchantId,
        ready: Ready,
        directory: &dyn Directory,
        now: Now,
    ) {
        let Some((_, stale)) = self.end_load(merchant) else {
            return;
        };
        let Some(backlog) = self.backlogs.get_mut(merchant) else {
            return;
        };
        let Some(condemned) = backlog.condemned.clone() else {
            backlog.cursor = 0;
            return self.refill(merchant, directory, now);
        };
        let (mut last, mut ended) = (0, 0);
        let (mut younger, mut unread) = (None, false);
        for stored in ready.orders {
            last = stored.order.seq;
            if self.is_unread(last) {
                unread = true;
                continue;
            }
            if stale.contains(&last)
                || self.window.contains_key(&last)
                || self.finishing.contains_key(&last)
                || !self.ledger.is_open(last)
            {
                continue;
            }
            let created = stored.order.envelope.created;
            if created > condemned.up_to {
                younger = Some((last, created));
                break;
            }
            ended += 1;
            self.take_unloaded(merchant);
            let doubtful = self.doubts.remove(&last).is_some() || stored.state.ambiguous;
            let reason = if doubtful {
                DeadReason::Ambiguous
            } else {
                condemned.reason
            };
            let kind = OutcomeKind::DeadLettered(reason);
            self.conclude(stored, true, kind, Why::from(&*condemned.detail), now);
        }
        let enough = self.ends_enough();
        let Some(backlog) = self.backlogs.get_mut(merchant) else {
            return;
        };
        if let Some((seq, created)) = younger {
            // Their own grace is not over.
            backlog.condemned = None;
            backlog.cursor = seq;
            self.unknown_since.insert(merchant.clone(), created);
        } else if backlog.unloaded > 0 && !(ready.exhausted && ended == 0 && stale.is_empty()) {
            if enough || backlog.ends_enough(&self.config) {
                self.ending.insert(merchant.clone());
                return;
            }
            backlog.loading = true;
            let from = if ready.exhausted { 0 } else { last + 1 };
            let load = Load::Condemned {
                merchant: merchant.clone(),
                from,
            };
            self.commands.push_back(Command::Load(load));
        } else if unread {
            // They end when the main reader has come there.
            self.gated.insert(merchant.clone());
        } else {
            backlog.condemned = None;
            backlog.cursor = if backlog.unloaded > 0 { 0 } else { Seq::MAX };
            backlog.next_due = None;
            if backlog.unloaded == 0 {
                backlog.tail = 0;
            }
        }
    }

    /// Ends everything this merchant has waiting as dead letters. Attempts in flight end by
    /// themselves.
    pub fn condemn(
        &mut self,
        merchant: &MerchantId,
        reason: DeadReason,
        detail: &str,
        directory: &dyn Directory,
        now: Now,
    ) {
        self.condemn_up_to(merchant, reason, detail, UnixMillis::MAX, directory, now);
    }

    fn condemn_up_to(
        &mut self,
        merchant: &MerchantId,
        reason: DeadReason,
        detail: &str,
        up_to: UnixMillis,
        directory: &dyn Directory,
        now: Now,
    ) {
        if let Some(backlog) = self.backlogs.get_mut(merchant)
            && (backlog.unloaded > 0 || backlog.offered > 0)
        {
            let detail = detail.into();
            backlog.condemned = Some(Condemned {
                reason,
                detail,
                up_to,
            });
            self.let_go(merchant, now);
            self.refill(merchant, directory, now);
        }
    }

    /// Orders of unknown merchants: after the grace the registry itself is asked.
    pub(super) fn look_at_unknown(&mut self, directory: &dyn Directory, now: Now) {
        let known: Vec<MerchantId> = self
            .unknown_since
            .keys()
            .filter(|id| {
                directory.merchant(id).is_some()
                    || self.backlogs.get(*id).is_none_or(|b| b.unloaded == 0)
            })
            .cloned()
            .collect();
        for id in known {
            self.unknown_since.remove(&id);
            self.refill(&id, directory, now);
        }
        let over: Vec<MerchantId> = self
            .unknown_since
            .iter()
            .filter(|(id, since)| {
                since.saturating_add(self.config.unknown_grace) <= now.wall
                    && !self.confirming.contains(*id)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in over {
            self.confirming.insert(id.clone());
            self.commands.push_back(Command::Confirm(id));
        }
    }

    /// The registry itself answered: `Some(false)`: this merchant is not registered; `None`: it
    /// could not be asked.
    pub fn on_confirmed(
        &mut self,
        merchant: &MerchantId,
        registered: Option<bool>,
        directory: &dyn Directory,
        now: Now,
    ) {
        self.confirming.remove(merchant);
        if registered == Some(false) && directory.merchant(merchant).is_none() {
            self.unknown_since.remove(merchant);
            let detail = "no merchant of this id is registered";
            let reason = DeadReason::UnknownMerchant;
            let up_to = now.wall.saturating_sub(self.config.unknown_grace);
            self.condemn_up_to(merchant, reason, detail, up_to, directory, now);
        }
    }
}
