//! Orders that a former owner may have sent: what of them may be repeated.

use expediter_types::{Idempotency, Merchant, Now};

use super::{Doubt, PartitionMachine};
use crate::Stored;
use crate::merchant::millis;

impl PartitionMachine {
    /// Applies what is doubtful about an order from before this epoch. True: it cannot be
    /// repeated and has to be parked.
    pub(super) fn settle_doubt(
        &mut self,
        stored: &mut Stored,
        merchant: &Merchant,
        now: Now,
    ) -> bool {
        let Some(doubt) = self.doubts.remove(&stored.order.seq) else {
            return self.settle_possibly_sent(stored, merchant, now);
        };
        stored.state.ambiguous = true;
        stored.state.first_attempt.get_or_insert(now.wall);
        match (doubt, merchant.adapter.idempotency) {
            (_, Idempotency::Lookup) => {
                self.look_later(stored, merchant, now);
                false
            }
            (Doubt::Unrepeatable, _) | (Doubt::Until(_), Idempotency::None) => true,
            (Doubt::Until(busy_until), _) => {
                if busy_until > now.wall {
                    stored.state.due = Some(busy_until);
                }
                false
            }
        }
    }

    /// The merchant is asked before the order is sent. What it says is believed only when nothing of
    /// a former owner can be on the wire any more.
    pub(super) fn look_later(&self, stored: &mut Stored, merchant: &Merchant, now: Now) {
        let state = &mut stored.state;
        state.ambiguous = true;
        let envelope = &stored.order.envelope;
        // A next generation may follow the one before at once.
        let published = match envelope.generation {
            1 => 0,
            _ => envelope.created,
        };
        let from = self
            .claimed_at
            .max(published)
            .saturating_add(millis(merchant.adapter.settles_after()));
        if from > now.wall {
            state.due = Some(state.due.unwrap_or(0).max(from));
        }
    }

    /// The former owner may have sent this order since its newest mark, which does not list it. True:
    /// the merchant may have it and does not remember it any more.
    fn settle_possibly_sent(&mut self, stored: &mut Stored, merchant: &Merchant, now: Now) -> bool {
        let adapter = &merchant.adapter;
        let envelope = &stored.order.envelope;
        let created = envelope.created;
        let doubted = || {
            let id = (envelope.merchant.clone(), envelope.id.clone());
            self.doubted.get(&id).is_some_and(|at| created < *at)
        };
        // Attempts are listed. A listed one may be of a repeat of this order that was read before it;
        // without the list every order may have been sent.
        let perhaps_sent = (!self.doubted.is_empty() && doubted())
            || self.outcomes_lost_at.is_some_and(|at| created < at);
        if adapter.idempotency == Idempotency::Lookup {
            if perhaps_sent && stored.state.first_attempt.is_none() {
                self.look_later(stored, merchant, now);
            }
            return false;
        }
        let unrepeatable = adapter.idempotency == Idempotency::None;
        if unrepeatable && perhaps_sent {
            stored.state.ambiguous = true;
            return true;
        }
        let Some((since, claimed)) = self.sent_since else {
            return false;
        };
        if unrepeatable || stored.state.first_attempt.is_some() || created >= claimed {
            return false;
        }
        // An owner between the one that sent it and this one may have known better.
        let known = self.attempted.get(&stored.order.seq);
        let first = known.map_or(since.max(created), |count| count.first);
        stored.state.first_attempt = Some(first);
        // The next owner must not count from its own beginning.
        self.remember_attempts(stored);
        let forgotten = first.saturating_add(millis(adapter.idempotency_window)) <= now.wall;
        stored.state.ambiguous |= forgotten;
        forgotten
    }
}
