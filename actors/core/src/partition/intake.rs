//! Orders come in from the log.

use std::sync::Arc;

use expediter_types::{
    AttemptCount, DeadReason, Envelope, Idempotency, Merchant, MerchantId, Now, OrderId, Origin,
    OutcomeKind, Seq, UnixMillis,
};

use super::backlog::Backlog;
use super::writer::Why;
use super::{Directory, Event, PartitionMachine};
use crate::ledger::Taken;
use crate::repeats::{self, Verdict};
use crate::store::Repeat;
use crate::{IntakeSource, LogMessage, Order, OrderState, Stored, Undecodable, payload_hash};

impl PartitionMachine {
    /// Messages of the partition, in sequence. `pending_none_below`: nothing of the partition is
    /// pending at or below it, for the main reader.
    pub fn on_log(
        &mut self,
        source: IntakeSource,
        messages: Vec<LogMessage>,
        pending_none_below: Option<Seq>,
        directory: &dyn Directory,
        now: Now,
    ) {
        let mut taken = 0;
        for message in messages {
            if source == IntakeSource::FreshTail
                && let Ok(order) = &message.order
                && (self.is_ordered(directory, &order.envelope.merchant)
                    || message.seq <= self.ledger.seen())
            {
                // The main reader brings it when everything older is known.
                continue;
            }
            if source == IntakeSource::Main {
                self.ledger.pass(message.seq);
                if message.seq > self.last_taken.0 {
                    self.last_taken = (message.seq, message.at);
                }
            }
            if self.ledger.take(message.seq) == Taken::Known {
                // Stored above the position: its id may not be known yet.
                if let Ok(order) = &message.order
                    && self.ledger.is_open(message.seq)
                {
                    self.note_again(order, now);
                }
                continue;
            }
            taken += 1;
            match message.order {
                Ok(order) => self.take(order, directory, now),
                Err(bad) => self.take_undecodable(message.seq, message.at, *bad, now),
            }
        }
        if let Some(seq) = pending_none_below.filter(|_| source == IntakeSource::Main) {
            self.ledger.pass(seq);
        }
        self.look_at_unread(directory, now);
        if taken > 0 {
            self.event(Event::Taken(taken));
        }
    }

    /// A stored order comes by again. When another one of its id was read only now, because the
    /// fresh tail had been quicker, the younger one closes after all; the older one does where the
    /// younger is on its way by then.
    fn note_again(&mut self, order: &Arc<Order>, now: Now) {
        let seq = order.seq;
        let verdict = self.repeats.check(repeat_of(order));
        let (Verdict::Repeat(first) | Verdict::Conflict(first)) = verdict else {
            return;
        };
        if first > seq && self.ledger.is_open(first) && !self.may_be_tried(first) {
            // This is the older one; the other closes when it comes by again.
            self.repeats.replace(repeat_of(order));
        } else if self.closes_unsent(seq) {
            self.close_stored(order, verdict, now);
        } else if self.window.contains_key(&seq)
            && self.ledger.is_open(first)
            && self.closes_unsent(first)
        {
            // The older one closes when it is loaded.
            self.superseded.insert(first, verdict.against(seq));
        }
    }

    /// Closes an order of the store that a younger one of its id went before; false: it goes itself.
    pub(super) fn closed_as_superseded(&mut self, order: &Arc<Order>, now: Now) -> bool {
        let Some(verdict) = self.superseded.remove(&order.seq) else {
            return false;
        };
        let closes = self.closes_unsent(order.seq);
        if closes {
            self.close_stored(order, verdict, now);
        }
        closes
    }

    /// It may end for another one of its id: nothing of it is on the way. A former owner may have
    /// tried it, but under the key that the other one is sent with.
    fn closes_unsent(&self, seq: Seq) -> bool {
        let ambiguous = |count: &AttemptCount| count.ambiguous;
        !self.is_tried_here(seq) && !self.attempted.get(&seq).is_some_and(ambiguous)
    }

    fn close_stored(&mut self, order: &Arc<Order>, verdict: Verdict, now: Now) {
        let Some((kind, why)) = closes(verdict) else {
            return;
        };
        self.take_unloaded(&order.envelope.merchant);
        let stored = Stored {
            order: Arc::clone(order),
            state: OrderState::default(),
            deadline: order.envelope.created,
        };
        self.conclude(stored, true, kind, why, now);
    }

    fn may_be_tried(&self, seq: Seq) -> bool {
        self.is_tried_here(seq) || self.attempted.contains_key(&seq)
    }

    /// Its end, or what a former owner left of it, is decided by its own attempts.
    fn is_tried_here(&self, seq: Seq) -> bool {
        self.window.contains_key(&seq)
            || self.finishing.contains_key(&seq)
            || self.doubts.contains_key(&seq)
    }

    fn take(&mut self, order: Arc<Order>, directory: &dyn Directory, now: Now) {
        let envelope = &order.envelope;
        let id = envelope.merchant.clone();
        let seq = order.seq;
        let verdict = self.repeats.check(repeat_of(&order));
        let merchant = self.manifest(&id, directory);
        let mut state = OrderState {
            due: envelope.not_before,
            ..OrderState::default()
        };
        if let Some(count) = self.inherited.remove(&seq) {
            state.attempts = count.attempts;
            state.first_attempt = Some(count.first);
            state.ambiguous = count.ambiguous;
            self.attempted.insert(seq, count);
        }
        state.due = state.due.filter(|due| *due > now.wall);
        let deadline = Self::deadline(&order, merchant.as_deref());
        let republished = envelope.origin.is_some();
        let mut stored = Stored {
            order,
            state,
            deadline,
        };
        if let Some((kind, why)) = closes(verdict) {
            return self.conclude(stored, false, kind, why, now);
        }
        self.parked.note(&stored.order);
        let Some(merchant) = merchant else {
            if !self.unknown_since.contains_key(&id) {
                self.unknown_since.insert(id.clone(), now.wall);
                self.event(Event::UnknownMerchant {
                    merchant: id.clone(),
                });
            }
            return self.park(stored);
        };
        let unrepeatable = merchant.adapter.idempotency == Idempotency::None;
        if self.settle_doubt(&mut stored, &merchant, now) || (republished && unrepeatable) {
            let kind = OutcomeKind::DeadLettered(DeadReason::Ambiguous);
            let why = "the node or the broker stopped while it may have been sent";
            return self.conclude(stored, false, kind, Why::from(why), now);
        }
        // A former generation, or a former owner's attempt, may have arrived and be at work still.
        let again = republished || stored.state.ambiguous || stored.order.envelope.generation > 1;
        if again && merchant.adapter.idempotency == Idempotency::Lookup {
            self.look_later(&mut stored, &merchant, now);
        }
        self.backlogs.entry(id.clone()).or_insert_with(Backlog::new);
        if self.is_over_quota(&stored, &merchant) {
            return self.end_over_quota(stored, now);
        }
        let held = self.keep_hold(&id, directory, now);
        let direct = !held
            && self
                .backlogs
                .get(&id)
                .is_some_and(|backlog| self.goes_direct(&stored, &merchant, backlog, now));
        if direct {
            self.offer(stored, false, &merchant, now);
        } else {
            self.park(stored);
            self.refill(&id, directory, now);
        }
    }

    /// The merchant's quota has no place for the order. It counts when the order comes in: a former
    /// owner had room for what is read again after a take-over.
    fn is_over_quota(&self, stored: &Stored, merchant: &Merchant) -> bool {
        let backlog = self.backlogs.get(&merchant.id);
        let Some((quota, backlog)) = merchant.limits.backlog.zip(backlog) else {
            return false;
        };
        let read_again = stored.order.envelope.created <= self.accepted_until;
        let tried = stored.state.first_attempt.is_some();
        let waiting = backlog.waiting() - backlog.overflow.len();
        waiting >= quota && !read_again && !tried
    }

    /// At once, or as soon as the log has room for the dead letter.
    fn end_over_quota(&mut self, stored: Stored, now: Now) {
        let Some(backlog) = self.backlogs.get_mut(&stored.order.envelope.merchant) else {
            return;
        };
        if backlog.ends_enough(&self.config) {
            backlog.overflow.insert(stored.order.seq);
            self.park(stored);
        } else {
            self.conclude_over_quota(stored, false, now);
        }
    }

    pub(super) fn conclude_over_quota(&mut self, stored: Stored, in_store: bool, now: Now) {
        let kind = OutcomeKind::DeadLettered(DeadReason::BacklogFull);
        let why = "as many orders of the merchant waited as its quota (limits.backlog) allows";
        self.conclude(stored, in_store, kind, Why::from(why), now);
    }

    fn take_undecodable(&mut self, seq: Seq, at: UnixMillis, bad: Undecodable, now: Now) {
        let incarnation = self.stamp.incarnation;
        let Ok(id) = OrderId::new(&format!("undecodable-{}", Origin { incarnation, seq })) else {
            return;
        };
        let envelope = bare_envelope(id, bad.merchant, at);
        let payload_hash = payload_hash(&bad.payload);
        let order = Arc::new(Order {
            seq,
            envelope,
            payload: bad.payload,
            payload_hash,
        });
        let stored = Stored {
            order,
            state: OrderState::default(),
            deadline: at,
        };
        let kind = OutcomeKind::DeadLettered(DeadReason::Undecodable);
        self.conclude(stored, false, kind, Why::from(bad.reason), now);
    }
}

/// How an order ends whose id stands at another sequence.
fn closes(verdict: Verdict) -> Option<(OutcomeKind, Why)> {
    let (kind, why) = match verdict {
        Verdict::New => return None,
        Verdict::Repeat(other) => (
            OutcomeKind::Duplicate,
            format!("the same order stands at sequence {other}"),
        ),
        Verdict::Conflict(other) => (
            OutcomeKind::DeadLettered(DeadReason::IdConflict),
            format!("the id was used at sequence {other} with another payload"),
        ),
    };
    Some((kind, Why::from(why)))
}

/// What is known of a message that is no order.
pub(super) fn bare_envelope(id: OrderId, merchant: MerchantId, created: UnixMillis) -> Envelope {
    Envelope {
        id,
        merchant,
        generation: 1,
        created,
        deadline: None,
        not_before: None,
        key: None,
        priority: expediter_types::Priority::Normal,
        event_type: None,
        source: None,
        time: None,
        content_type: None,
        traceparent: None,
        test: false,
        origin: None,
    }
}

pub(super) fn repeat_of(order: &Order) -> Repeat {
    let envelope = &order.envelope;
    let (merchant, id) = (&envelope.merchant, &envelope.id);
    repeats::entry(
        merchant,
        id,
        envelope.generation,
        order.payload_hash,
        order.seq,
    )
}
