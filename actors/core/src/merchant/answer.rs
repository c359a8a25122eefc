//! What an attempt's end means for its order and for the merchant.

use expediter_types::{
    AttemptClass, ClosedBecause, DeadReason, Idempotency, Now, OutcomeKind, Seq,
};

use super::machine::{MerchantMachine, Slot};
use super::schedule::{self, Again};
use super::{DEFAULT_CLOSURE, Effect, Ended, LOCAL_PAUSE, Offer, PROBE_EVERY, expiry, millis};

impl MerchantMachine {
    /// An attempt ended. `random`: any 64 bits, for the jitter. Stale answers are ignored.
    pub fn answer(&mut self, seq: Seq, number: u32, ended: Ended, now: Now, random: u64) {
        let Some(slot) = self
            .slots
            .get(&seq)
            .filter(|slot| slot.running == Some(number))
            .copied()
        else {
            return;
        };
        let mut offer = slot.offer;
        // What former attempts left in doubt is settled.
        offer.ambiguous &= !ended.absent;
        if let Some(slot) = self.slots.get_mut(&seq) {
            slot.offer = offer;
        }
        let Ended {
            class, retry_after, ..
        } = ended;
        self.running -= 1;
        self.judge_merchant(&slot, ended, now, random);
        // A merchant that asks to wait uses up no attempt.
        let counted = retry_after.is_none();
        match class {
            AttemptClass::Delivered | AttemptClass::AlreadyDone => {
                self.finish(seq, OutcomeKind::Delivered);
            }
            AttemptClass::Rejected => self.finish(seq, OutcomeKind::Rejected),
            AttemptClass::Invalid => {
                self.finish(seq, OutcomeKind::DeadLettered(DeadReason::Invalid));
            }
            AttemptClass::Retry => self.try_again(offer, false, counted, now, random),
            // It was sent without anything that the merchant could know it by.
            AttemptClass::Ambiguous if slot.nameless => {
                self.finish(seq, OutcomeKind::DeadLettered(DeadReason::Ambiguous));
            }
            AttemptClass::Ambiguous => self.try_again(offer, true, counted, now, random),
            AttemptClass::RateLimited => self.again(seq),
            // Its own time is over, and nothing is wrong: it expires.
            AttemptClass::Local if offer.deadline <= now.wall => self.again(seq),
            AttemptClass::Local => {
                self.paused_until = now
                    .mono
                    .saturating_add(u64::try_from(LOCAL_PAUSE.as_micros()).unwrap_or(0));
                self.again(seq);
            }
            AttemptClass::Suspended => {
                self.again(seq);
                self.close(ClosedBecause::Suspended, PROBE_EVERY, now);
            }
            AttemptClass::Misconfigured => {
                self.again(seq);
                self.close(ClosedBecause::Misconfigured, PROBE_EVERY, now);
            }
        }
    }

    /// What the answer says about the merchant, whatever it says about the order.
    fn judge_merchant(&mut self, slot: &Slot, ended: Ended, now: Now, random: u64) {
        use AttemptClass::{
            AlreadyDone, Ambiguous, Delivered, Invalid, RateLimited, Rejected, Retry,
        };
        let Ended {
            class,
            retry_after,
            took,
            ..
        } = ended;
        let delivered = matches!(class, Delivered | AlreadyDone);
        let alive = delivered || matches!(class, Rejected | Invalid);
        let asks_to_wait = class == RateLimited || retry_after.is_some();
        let failed = matches!(class, Retry | Ambiguous) && !asks_to_wait;
        // Other answers during a closure are of attempts from before it.
        let tells = slot.probe || slot.adopted;
        if delivered {
            self.budget.delivered();
        }
        if alive {
            self.pace.learn(took);
            self.concurrency.answered(took, now.mono);
            self.health.alive(&self.merchant.breaker, now.mono);
            let opens = match self.closure.map(|closure| closure.because) {
                None | Some(ClosedBecause::RateLimited) => false,
                // It looked at the order, whatever it thinks of it: our credentials are good.
                Some(ClosedBecause::Suspended | ClosedBecause::Misconfigured) => delivered || tells,
                Some(ClosedBecause::Breaker) => tells && self.health.probed(&self.merchant.breaker),
            };
            if opens {
                self.health.reset();
                self.open(now);
            }
        }
        if failed || asks_to_wait {
            self.concurrency.failed(took, now.mono);
        }
        if failed {
            match self.closure.map(|closure| closure.because) {
                Some(ClosedBecause::Breaker) if tells => self.trip(now, random),
                Some(ClosedBecause::Breaker) => {}
                // A probe that says nothing: it is not back, and the next one has its time.
                Some(because @ (ClosedBecause::Suspended | ClosedBecause::Misconfigured)) => {
                    if tells {
                        self.close(because, PROBE_EVERY, now);
                    }
                }
                None | Some(ClosedBecause::RateLimited) => {
                    if self.health.failed(&self.merchant.breaker, now.mono) {
                        self.trip(now, random);
                    }
                }
            }
        }
        if asks_to_wait {
            let wait = retry_after.unwrap_or(DEFAULT_CLOSURE);
            self.close(ClosedBecause::RateLimited, wait, now);
        }
    }

    /// A delivery that may have been received goes again only to a merchant that deduplicates,
    /// and only while it remembers the key.
    fn try_again(&mut self, offer: Offer, received: bool, counted: bool, now: Now, random: u64) {
        let ambiguous = received || offer.ambiguous;
        let (adapter, retry) = (&self.merchant.adapter, &self.merchant.retry);
        let attempts = offer.attempts + u32::from(counted);
        let settled = match adapter.idempotency {
            Idempotency::Lookup if received => {
                now.wall.saturating_add(millis(adapter.settles_after()))
            }
            _ => now.wall,
        };
        let takes = self.pace.estimate(adapter.timeout);
        // It must start before the order gives up, however little it takes.
        let latest = offer.deadline.saturating_sub(takes.max(1));
        let again = schedule::again(retry, attempts, (settled, latest), now.wall, random);
        let exhausted = attempts >= retry.max_attempts;
        let remembered_until = offer
            .first_attempt
            .unwrap_or(now.wall)
            .saturating_add(millis(adapter.idempotency_window));
        let kind = match again {
            Again::At(due) => {
                let repeatable = match adapter.idempotency {
                    Idempotency::Native | Idempotency::UniqueRef => due < remembered_until,
                    Idempotency::Lookup => true,
                    Idempotency::None => false,
                };
                if !(exhausted || ambiguous && !repeatable) {
                    self.effects.push(Effect::Defer {
                        seq: offer.seq,
                        due,
                        counted,
                        ambiguous,
                    });
                    self.note_returned(offer.key);
                    return self.leave_with_followers(offer.seq);
                }
                match ambiguous {
                    true => OutcomeKind::DeadLettered(DeadReason::Ambiguous),
                    false => OutcomeKind::DeadLettered(DeadReason::AttemptsExhausted),
                }
            }
            Again::Never if exhausted && !ambiguous => {
                OutcomeKind::DeadLettered(DeadReason::AttemptsExhausted)
            }
            Again::Never => expiry(ambiguous),
        };
        self.finish(offer.seq, kind);
    }

    /// The attempt does not count; the order may go as soon as the merchant can.
    fn again(&mut self, seq: Seq) {
        let Some(slot) = self.slots.get_mut(&seq) else {
            return;
        };
        slot.running = None;
        let Offer { deadline, key, .. } = slot.offer;
        let adopted = slot.adopted;
        self.deadlines.insert((deadline, seq));
        self.effects.push(Effect::Again { seq });
        match key {
            None => {
                self.enter(seq);
            }
            Some(key) if adopted => {
                // It may have got its key while it ran, with older ones in the store.
                self.give_back(seq, Some(key));
                self.leave_with_followers(seq);
            }
            Some(key) => self.ready_head(key),
        }
    }
}
