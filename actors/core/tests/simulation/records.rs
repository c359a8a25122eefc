//! What the judge says to a record that became durable.

use std::sync::Arc;

use expediter_types::{
    AttemptClass, ClaimState, DeadReason, Mark, Outcome, OutcomeKind, Record, Retry, Seq,
};

use crate::broker::Write;
use crate::shadow::{Done, Shadow, broken, gives_up};

impl Shadow {
    /// A record was stored at this sequence of OUTCOMES.
    pub(crate) fn stored(&mut self, at: Seq, write: &Write) {
        match &write.record {
            Record::Outcomes(group) => {
                for outcome in group {
                    if matches!(outcome.kind, OutcomeKind::DeadLettered(_)) {
                        broken!("DUR-1", "dead letter {} without its payload", outcome.seq);
                    }
                    self.ended(at, outcome, write);
                }
            }
            Record::Dead(letter) => {
                let payload = self
                    .truth
                    .get(&letter.outcome.seq)
                    .map(|truth| match &truth.order {
                        Ok(order) => order.payload.clone(),
                        Err(bad) => bad.payload.clone(),
                    });
                if payload.as_ref() != Some(&letter.payload) {
                    broken!(
                        "DUR-1",
                        "dead letter {} with another payload",
                        letter.outcome.seq
                    );
                }
                self.ended(at, &letter.outcome, write);
            }
            Record::Attempts(mark) => {
                self.listed
                    .extend(mark.in_flight.iter().map(|(seq, _)| *seq));
            }
            Record::Mark(mark) => {
                self.marked(mark);
                self.marked_by(write.stamp.token);
            }
        }
    }

    /// A release is durable.
    pub(crate) fn released(&mut self, state: &ClaimState) {
        if let ClaimState::Released { running, .. } = state {
            self.listed.extend(running);
        }
    }

    fn ended(&mut self, at: Seq, outcome: &Outcome, write: &Write) {
        let seq = outcome.seq;
        let record = (write.stamp.token, write.number);
        if let Some(done) = self.done.get(&seq) {
            // The stream forgot the message id meanwhile and stored the repeat: readers ignore it.
            if done.record != record {
                broken!(
                    "ORD-1",
                    "order {seq} ends a second time: {:?}",
                    outcome.kind
                );
            }
            return;
        }
        self.judge_kind(outcome, write.stamp.token);
        if let (OutcomeKind::DeadLettered(DeadReason::Ambiguous), Ok(order)) =
            (outcome.kind, &self.truth[&seq].order)
        {
            self.parked.insert(seq, (Arc::clone(order), false));
        }
        self.open.remove(&seq);
        self.done.insert(
            seq,
            Done {
                at,
                kind: outcome.kind,
                decided: outcome.at,
                record,
            },
        );
    }

    fn judge_kind(&self, outcome: &Outcome, token: Seq) {
        let (seq, kind) = (outcome.seq, outcome.kind);
        let Some(truth) = self.truth.get(&seq) else {
            broken!("ORD-1", "{seq} ends and was never published");
        };
        if outcome.envelope.merchant != truth.merchant {
            broken!(
                "ORD-1",
                "order {seq} ends for {}",
                outcome.envelope.merchant
            );
        }
        let Ok(order) = &truth.order else {
            if kind != OutcomeKind::DeadLettered(DeadReason::Undecodable) {
                broken!("ORD-1", "{seq} is no order and ends as {kind:?}");
            }
            return;
        };
        if outcome.envelope != order.envelope {
            broken!("ORD-1", "order {seq} ends as another");
        }
        let id = (truth.merchant.clone(), order.envelope.id.clone());
        let sent = || {
            self.sent
                .get(&id)
                .into_iter()
                .flatten()
                .filter(|sent| sent.seq == seq)
        };
        let answered = |classes: &[AttemptClass]| {
            sent().any(|sent| sent.class.is_some_and(|class| classes.contains(&class)))
        };
        let others = || self.same_id[&id].iter().filter(|other| **other != seq);
        let payload = |seq: &Seq| self.truth[seq].order.as_ref().map(|o| o.payload_hash).ok();
        let holds = match kind {
            OutcomeKind::Delivered => {
                self.found.contains(&id)
                    || answered(&[AttemptClass::Delivered, AttemptClass::AlreadyDone])
            }
            OutcomeKind::Rejected => answered(&[AttemptClass::Rejected]),
            OutcomeKind::Expired => {
                // Early when it was tried and no further attempt would have ended in time.
                let spec = self.specs.get(&id.0);
                let end = spec.and_then(|spec| gives_up(spec, order));
                // While it is not registered, the default margin counts.
                let default = Retry::default().margin.as_millis() as u64;
                let stranger = self.strangers.contains(&id.0);
                let end = end.map(|end| end - if stranger { default } else { 0 });
                let takes = spec.map_or(0, |spec| spec.adapter.timeout.as_millis() as u64);
                let tried = sent().next().is_some();
                let own = self.jumps
                    || end.is_none_or(|end| {
                        end <= outcome.at || (tried && end <= outcome.at + takes)
                    });
                let last = sent().rfind(|sent| sent.token == token);
                own && last.is_none_or(|sent| sent.class != Some(AttemptClass::Ambiguous))
            }
            OutcomeKind::Cancelled => {
                self.cancels.contains(&id) && !sent().any(|sent| sent.maybe_received())
            }
            OutcomeKind::Duplicate => others().any(|s| payload(s) == Some(order.payload_hash)),
            OutcomeKind::DeadLettered(reason) => match reason {
                DeadReason::Ambiguous => {
                    // Also when it was a publisher's repeat of it that was sent, or listed to be.
                    let listed = |seq: &Seq| self.listed.contains(seq);
                    self.sent.contains_key(&id)
                        || self.same_id[&id].iter().any(listed)
                        || self.forgetful
                }
                DeadReason::AttemptsExhausted => {
                    let looked = self.undecided.get(&seq).copied().unwrap_or(0);
                    sent().count() + looked >= self.fewest_attempts(&id.0) as usize
                }
                DeadReason::Invalid => answered(&[AttemptClass::Invalid]),
                DeadReason::IdConflict => others().any(|s| payload(s) != Some(order.payload_hash)),
                DeadReason::UnknownMerchant => self.strangers.contains(&id.0),
                DeadReason::MerchantDeleted => self.condemned.contains(&id.0),
                DeadReason::BacklogFull => self.bounded.contains(&id.0),
                DeadReason::Undecodable | DeadReason::Poisoned => false,
            },
        };
        if !holds {
            let sent: Vec<_> = sent().collect();
            broken!(
                "ORD-1",
                "order {seq} ends as {kind:?}, which is not so: {sent:?}"
            );
        }
    }

    /// I5, and what a successor relies on that reads only what the mark does not cover.
    fn marked(&self, mark: &Mark) {
        let low_water = mark.low_water;
        if low_water > mark.seen {
            broken!(
                "ORD-1",
                "I5: low water {low_water} passed seen {}",
                mark.seen
            );
        }
        if let Some(open) = self.open.first().filter(|open| **open <= low_water) {
            broken!("ORD-1", "I5: low water {low_water} passed order {open}");
        }
        if let Some(open) = mark
            .finished
            .iter()
            .find(|seq| self.truth.contains_key(seq) && !self.done.contains_key(seq))
        {
            broken!("ORD-1", "the mark calls {open} finished");
        }
        for (seq, done) in &self.done {
            if done.at <= mark.covers && *seq > low_water && !mark.finished.contains(*seq) {
                broken!("ORD-1", "I2: the mark covers {} and not {seq}", mark.covers);
            }
        }
    }
}
