//! The broker as one partition sees it: the log of orders, the records of OUTCOMES, the fence.

use std::collections::BTreeMap;

use expediter_core::recovery::{Entry, EntryBody, Finished, Incomplete, Recovered, Recovery};
use expediter_core::store::PartitionMeta;
use expediter_core::{LogMessage, key_hash, repeats};
use expediter_types::{
    Claim, ClaimState, DeadReason, Mark, MerchantId, Outcome, OutcomeKind, ParkedOrder, Record,
    Seq, Stamp,
};

/// The stream forgets message ids after so long, in microseconds.
const DUPLICATE_WINDOW: u64 = 120_000_000;

/// A fenced write on its way.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) stamp: Stamp,
    pub(crate) number: u64,
    pub(crate) record: Record,
}

/// What the broker does with a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    Stored(Seq),
    /// Stored before under the same id.
    Repeated(Seq),
    Fenced,
}

/// What only arrives later, whoever waits for it.
#[derive(Debug)]
pub(crate) enum Late {
    Write(Box<Write>),
    Claim { expected: Seq, claim: Claim },
    Purge { merchant: MerchantId, below: Seq },
}

#[derive(Debug, Clone)]
pub(crate) enum Body {
    Claim(Claim),
    Write(Box<Write>),
}

#[derive(Debug, Default)]
pub(crate) struct Broker {
    /// The partition's messages that are still there.
    pub(crate) log: BTreeMap<Seq, LogMessage>,
    /// Of the whole stream: other partitions' messages lie between.
    pub(crate) last: Seq,
    pub(crate) outcomes: BTreeMap<Seq, Body>,
    pub(crate) last_outcome: Seq,
    /// The newest claim record.
    pub(crate) claim: Option<(Seq, Claim)>,
    ids: BTreeMap<(Seq, u64), (Seq, u64)>,
    pub(crate) late: Vec<Late>,
}

impl Broker {
    pub(crate) fn standing(&self) -> Seq {
        self.claim.as_ref().map_or(0, |(seq, _)| *seq)
    }

    /// A write under the fence; `gap`: so many records of others stand before it.
    pub(crate) fn write(&mut self, write: Write, mono: u64, gap: u64) -> Written {
        let id = (write.stamp.token, write.number);
        if let Some((seq, at)) = self.ids.get(&id)
            && mono < at + DUPLICATE_WINDOW
        {
            return Written::Repeated(*seq);
        }
        if self.standing() != write.stamp.token {
            return Written::Fenced;
        }
        self.last_outcome += 1 + gap;
        self.ids.insert(id, (self.last_outcome, mono));
        self.outcomes
            .insert(self.last_outcome, Body::Write(Box::new(write)));
        Written::Stored(self.last_outcome)
    }

    /// Compare and swap; `None`: another claim stands.
    pub(crate) fn claim(&mut self, expected: Seq, claim: Claim, gap: u64) -> Option<Seq> {
        if self.standing() != expected {
            return None;
        }
        self.last_outcome += 1 + gap;
        self.claim = Some((self.last_outcome, claim.clone()));
        self.outcomes.insert(self.last_outcome, Body::Claim(claim));
        Some(self.last_outcome)
    }

    /// Deletes the log below a sequence, of one merchant or of all; gives what went.
    pub(crate) fn purge(&mut self, merchant: Option<&MerchantId>, below: Seq) -> Vec<Seq> {
        let goes = self
            .log
            .range(..below)
            .filter(|(_, message)| match &message.order {
                Ok(order) => merchant.is_none_or(|only| order.envelope.merchant == *only),
                Err(bad) => merchant.is_none_or(|only| bad.merchant == *only),
            });
        let goes: Vec<Seq> = goes.map(|(seq, _)| *seq).collect();
        for seq in &goes {
            self.log.remove(seq);
        }
        goes
    }

    /// The newest mark below a sequence.
    pub(crate) fn mark_before(&self, below: Seq) -> Option<(Seq, &Write, &Mark)> {
        self.outcomes
            .range(..below)
            .rev()
            .find_map(|(seq, body)| match body {
                Body::Write(write) => match &write.record {
                    Record::Mark(mark) => Some((*seq, &**write, &**mark)),
                    _ => None,
                },
                Body::Claim(_) => None,
            })
    }

    /// Deletes the records that nobody needs any more.
    pub(crate) fn clean(&mut self) {
        let Some((newest, write, mark)) = self.mark_before(Seq::MAX) else {
            return;
        };
        let token = self.standing();
        if write.stamp.token != token {
            return;
        }
        let needless = mark.repeats_from.min(mark.covers);
        self.outcomes.retain(|seq, body| match body {
            Body::Claim(_) => *seq >= needless.min(token),
            Body::Write(write) => match &write.record {
                Record::Mark(_) => *seq >= newest,
                Record::Attempts(_) => true,
                Record::Outcomes(_) | Record::Dead(_) => *seq >= needless,
            },
        });
    }

    /// What the adapter reads for a new owner.
    pub(crate) fn recover(
        &self,
        token: Seq,
        claim: &Claim,
        replaced: Option<&Claim>,
        meta: Option<PartitionMeta>,
    ) -> Recovered {
        let replaced_epoch = match replaced.map(|claim| &claim.state) {
            None => 0,
            Some(ClaimState::Released { epoch, .. }) => *epoch,
            Some(ClaimState::Held) => claim.replaces,
        };
        let trusted = meta.is_some_and(|m| m.epoch == replaced_epoch && m.epoch > 0);
        let from = match self.mark_before(token) {
            Some((_, _, mark)) if trusted => mark.covers + 1,
            Some((_, _, mark)) => mark.repeats_from.min(mark.covers + 1).max(1),
            None => 1,
        };
        match self.fold(token, claim, replaced, from) {
            Ok(recovered) => recovered,
            Err(Incomplete::NotCovered { .. }) => self
                .fold(token, claim, replaced, 1)
                .expect("everything was read"),
            Err(incomplete) => panic!("OWN-1: {incomplete}"),
        }
    }

    fn fold(
        &self,
        token: Seq,
        claim: &Claim,
        replaced: Option<&Claim>,
        from: Seq,
    ) -> Result<Recovered, Incomplete> {
        let mut recovery = Recovery::new(token, claim.clone(), replaced.cloned(), from);
        let mut attempts = BTreeMap::new();
        for (seq, body) in self.outcomes.range(..token) {
            if let Body::Write(write) = body
                && let Record::Attempts(mark) = &write.record
            {
                attempts.insert(mark.merchant.clone(), (*seq, write.stamp, mark.clone()));
            }
        }
        for (seq, stamp, mark) in attempts.into_values() {
            recovery.newest_attempts(seq, stamp, mark);
        }
        for (seq, body) in self.outcomes.range(from..=token) {
            recovery.push(Entry {
                seq: *seq,
                body: entry(body),
            });
        }
        recovery.complete()
    }
}

fn entry(body: &Body) -> EntryBody {
    let write = match body {
        Body::Claim(claim) => return EntryBody::Claim(claim.clone()),
        Body::Write(write) => write,
    };
    match &write.record {
        Record::Attempts(mark) => EntryBody::Attempts(write.stamp, mark.clone()),
        Record::Mark(mark) => EntryBody::Mark(write.stamp, mark.clone()),
        Record::Outcomes(group) => {
            EntryBody::Outcomes(write.stamp, group.iter().map(finished).collect())
        }
        Record::Dead(letter) => EntryBody::Outcomes(write.stamp, vec![finished(&letter.outcome)]),
    }
}

fn finished(outcome: &Outcome) -> Finished {
    let envelope = &outcome.envelope;
    let (id, generation, seq) = (&envelope.id, envelope.generation, outcome.seq);
    let closes_only = matches!(
        outcome.kind,
        OutcomeKind::Duplicate | OutcomeKind::DeadLettered(DeadReason::IdConflict)
    );
    let repeat = (!closes_only).then(|| {
        repeats::entry(
            &envelope.merchant,
            id,
            generation,
            outcome.payload_hash,
            seq,
        )
    });
    let ambiguous = outcome.kind == OutcomeKind::DeadLettered(DeadReason::Ambiguous);
    let parked = ambiguous.then(|| ParkedOrder {
        merchant: envelope.merchant.clone(),
        seq,
        id: id.clone(),
        generation,
        key: envelope.key.as_deref().map(key_hash),
    });
    Finished {
        seq,
        merchant: envelope.merchant.clone(),
        repeat,
        parked,
    }
}
