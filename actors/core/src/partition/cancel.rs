//! Orders that are taken back before they are sent.

use expediter_types::{MerchantId, Now, OrderId, OutcomeKind, Seq, UnixMillis};

use super::merchants::Stage;
use super::writer::Why;
use super::{Command, Directory, Load, Located, PartitionMachine};
use crate::Stored;

/// Cancelled orders that are remembered for who asked.
const REMEMBERED: usize = 1_000;

/// What became of a request to cancel, at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancel {
    /// It is being taken out of where it waits: look at [`PartitionMachine::cancelling`].
    Begun { seq: Seq },
    /// An attempt runs, or an earlier one may have been received.
    TooLate { seq: Seq },
    /// How it ends was decided before.
    Ended { seq: Seq },
    /// Its id was not seen up to `seen`.
    Unknown,
}

/// How far a cancellation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelling {
    Waiting,
    /// Its outcome is not acknowledged yet.
    Ending,
    /// Its outcome is durable; what it is.
    Cancelled,
    /// It was started meanwhile.
    TooLate,
    /// It ended in another way.
    Ended,
}

impl PartitionMachine {
    /// Asks for an order back; of several generations the newest. `why` is said with its outcome.
    pub fn cancel(
        &mut self,
        merchant: &MerchantId,
        id: &OrderId,
        why: &str,
        directory: &dyn Directory,
    ) -> Cancel {
        match self.locate(merchant, id) {
            Located::Mailbox { stored, .. } => self.cancel_offered(&stored, why, directory),
            Located::Store { merchant, seq } => {
                self.cancelling.insert(seq, why.into());
                self.ask_stored(merchant, seq);
                Cancel::Begun { seq }
            }
            Located::Finishing { seq } | Located::Finished { seq } => Cancel::Ended { seq },
            Located::Unknown => Cancel::Unknown,
        }
    }

    fn cancel_offered(&mut self, stored: &Stored, why: &str, directory: &dyn Directory) -> Cancel {
        let seq = stored.order.seq;
        let waits = |held: &super::merchants::Held| matches!(held.stage, Stage::Offered);
        if self.may_have_been_received(stored, directory)
            || !self.window.get(&seq).is_some_and(waits)
        {
            return Cancel::TooLate { seq };
        }
        self.cancelling.insert(seq, why.into());
        let merchant = stored.order.envelope.merchant.clone();
        self.commands.push_back(Command::Withdraw { merchant, seq });
        Cancel::Begun { seq }
    }

    /// How far the cancellation of this order is.
    #[must_use]
    pub fn cancelling(&self, seq: Seq) -> Cancelling {
        if self.finishing.contains_key(&seq) {
            return Cancelling::Ending;
        }
        if !self.ledger.is_open(seq) {
            return match self.cancelled.contains(&seq) {
                true => Cancelling::Cancelled,
                false => Cancelling::Ended,
            };
        }
        if self.cancelling.contains_key(&seq) {
            Cancelling::Waiting
        } else {
            Cancelling::TooLate
        }
    }

    /// An attempt of this epoch or of a former owner may have reached the merchant.
    fn may_have_been_received(&self, stored: &Stored, directory: &dyn Directory) -> bool {
        let envelope = &stored.order.envelope;
        let before = |at: UnixMillis| envelope.created < at;
        // Where attempts are listed before they leave, what is not listed was not sent.
        let listed = directory
            .merchant(&envelope.merchant)
            .is_some_and(|merchant| merchant.adapter.idempotency.is_marked());
        stored.state.ambiguous
            || self.doubts.contains_key(&stored.order.seq)
            || self.outcomes_lost_at.is_some_and(before)
            || (!listed && before(self.unknown.ends()))
    }

    fn ask_stored(&mut self, merchant: MerchantId, seq: Seq) {
        self.commands
            .push_back(Command::Load(Load::One { merchant, seq }));
    }

    /// An order that is to be cancelled came back from its mailbox into the store.
    pub(super) fn cancel_parked(&mut self, merchant: &MerchantId, seq: Seq) {
        if self.cancelling.contains_key(&seq) {
            self.ask_stored(merchant.clone(), seq);
        }
    }

    /// The actor gave an order back for good.
    pub(super) fn on_withdrawn(&mut self, seq: Seq, now: Now) {
        let Some(held) = self.leave_window(seq) else {
            return;
        };
        match self.cancelling.remove(&seq) {
            Some(why) => {
                self.conclude_cancelled(held.stored, held.in_store, &why, now);
            }
            None => self.keep_in_store(held, false),
        }
    }

    /// The store's copy of an order that is to be cancelled.
    pub(super) fn on_one(
        &mut self,
        merchant: &MerchantId,
        seq: Seq,
        stored: Option<Stored>,
        directory: &dyn Directory,
        now: Now,
    ) {
        let waits = !self.cancelling.contains_key(&seq) && !self.window.contains_key(&seq);
        if waits && self.on_again(merchant, seq, stored.as_ref(), directory, now) {
            return;
        }
        if self.window.contains_key(&seq) {
            if self.cancelling.contains_key(&seq) {
                let merchant = merchant.clone();
                self.commands.push_back(Command::Withdraw { merchant, seq });
            }
            return;
        }
        let Some(why) = self.cancelling.remove(&seq) else {
            return;
        };
        let Some(stored) = stored else { return };
        if self.finishing.contains_key(&seq)
            || !self.ledger.is_open(seq)
            || self.may_have_been_received(&stored, directory)
        {
            return;
        }
        self.take_unloaded(merchant);
        if let Some(backlog) = self.backlogs.get_mut(merchant) {
            backlog.head_due = None;
        }
        self.conclude_cancelled(stored, true, &why, now);
        self.refill(merchant, directory, now);
    }

    fn conclude_cancelled(&mut self, stored: Stored, in_store: bool, why: &str, now: Now) {
        if self.cancelled.len() >= REMEMBERED {
            self.cancelled.pop_front();
        }
        self.cancelled.push_back(stored.order.seq);
        self.conclude(
            stored,
            in_store,
            OutcomeKind::Cancelled,
            Why::from(why),
            now,
        );
    }
}
