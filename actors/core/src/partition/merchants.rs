//! Between the partition and its merchants' actors: starts, answers, effects.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use expediter_types::{
    Answer, AttemptClass, AttemptCount, AttemptRecord, Idempotency, LimitScope, MAX_DETAIL,
    Merchant, MerchantId, Now, Ordering, OutcomeKind, Seq, UnixMillis,
};

use super::backlog::Backlog;
use super::writer::Why;
use super::{Command, Directory, Event, PartitionMachine};
use crate::merchant::{Accepting, Closure, Effect, Ended, Wait, millis};
use crate::store::StoreOp;
use crate::{Stored, check_invariant};

/// Entries of [`PartitionMachine::attempted`] that go into a mark.
const ATTEMPTS_REMEMBERED: usize = 10_000;

/// What an actor did.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub merchant: MerchantId,
    pub incarnation: u64,
    /// Orders that start, with their attempt's number; before the effects.
    pub starts: Vec<(Seq, u32)>,
    pub effects: Vec<Effect>,
    pub accepting: Accepting,
    /// For those who ask why.
    pub waits: Wait,
}

/// An order in a mailbox.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) stored: Stored,
    pub(super) in_store: bool,
    pub(super) stage: Stage,
    /// In the mailbox since, by the monotonic clock.
    pub(super) since: u64,
    pub(super) answer_panics: u8,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// The machine has it.
    Offered,
    /// Its attempt is being marked in OUTCOMES and has not started.
    Marking {
        number: u32,
    },
    Running {
        number: u32,
        at: UnixMillis,
    },
    /// The answer is here until the machine's effects are accepted.
    Answered {
        number: u32,
        at: UnixMillis,
        answer: Box<Answer>,
    },
}

impl Stage {
    pub(super) fn number(&self) -> Option<u32> {
        match self {
            Self::Offered => None,
            Self::Marking { number }
            | Self::Running { number, .. }
            | Self::Answered { number, .. } => Some(*number),
        }
    }
}

impl PartitionMachine {
    /// An actor took a step.
    pub fn on_report(&mut self, report: Report, directory: &dyn Directory, now: Now) {
        let Some(backlog) = self.backlogs.get_mut(&report.merchant) else {
            return;
        };
        if backlog.active.is_none() || backlog.incarnation != report.incarnation {
            return;
        }
        let gives_back = |e: &&Effect| {
            matches!(
                e,
                Effect::Defer { .. } | Effect::Return { .. } | Effect::Hold
            )
        };
        backlog.returns += report.effects.iter().filter(gives_back).count() as u64;
        backlog.accepting = report.accepting;
        backlog.waits = report.waits;
        backlog.last_used = now.mono;
        for (seq, number) in report.starts {
            self.on_start(seq, number, now);
        }
        for effect in report.effects {
            self.on_effect(&report.merchant, effect, now);
        }
        self.refill(&report.merchant, directory, now);
    }

    fn on_start(&mut self, seq: Seq, number: u32, now: Now) {
        if self.closed {
            // It is in the store, and the last mark says that nothing starts after it.
            return;
        }
        let Some(held) = self.window.get_mut(&seq) else {
            return;
        };
        check_invariant!(
            Ord2,
            matches!(held.stage, Stage::Offered),
            "order {seq} started while {:?}",
            held.stage
        );
        let envelope = &held.stored.order.envelope;
        let Some(backlog) = self.backlogs.get_mut(&envelope.merchant) else {
            return;
        };
        let Some(merchant) = backlog.active.clone() else {
            return;
        };
        if held.stored.state.first_attempt.is_none() {
            held.stored.state.first_attempt = Some(now.wall);
            let waited_ms = now.wall.saturating_sub(envelope.created);
            self.commands
                .push_back(Command::Event(Event::FirstStart { waited_ms }));
        }
        backlog.quotas.take(now.mono);
        backlog.running += 1;
        self.running += 1;
        self.cancelling.remove(&seq);
        if merchant.adapter.idempotency.is_marked() {
            held.stage = Stage::Marking { number };
            let id = envelope.id.clone();
            self.writer.attempts.add(&merchant.id, seq, id);
        } else {
            held.stage = Stage::Running {
                number,
                at: now.wall,
            };
            self.commands.push_back(launch(merchant, held, number));
        }
    }

    /// The attempts of these orders are marked: their requests may leave, unless an order gave up
    /// meanwhile.
    pub(super) fn launch_marked(&mut self, seqs: &[Seq], directory: &dyn Directory, now: Now) {
        for seq in seqs {
            let Some(held) = self.window.get_mut(seq) else {
                continue;
            };
            let Stage::Marking { number } = held.stage else {
                continue;
            };
            let id = &held.stored.order.envelope.merchant;
            let Some(merchant) = self.backlogs.get(id).and_then(|b| b.active.clone()) else {
                continue;
            };
            held.stage = Stage::Running {
                number,
                at: now.wall,
            };
            if Self::deadline(&held.stored.order, Some(&merchant)) > now.wall {
                self.commands.push_back(launch(merchant, held, number));
            } else {
                self.on_answer(*seq, number, too_late(), directory, now);
            }
        }
    }

    /// An attempt ended.
    pub fn on_answer(
        &mut self,
        seq: Seq,
        number: u32,
        answer: Answer,
        directory: &dyn Directory,
        now: Now,
    ) {
        let Some(held) = self.window.get_mut(&seq) else {
            return;
        };
        let Stage::Running {
            number: running,
            at,
        } = held.stage
        else {
            return;
        };
        if running != number {
            return;
        }
        let id = held.stored.order.envelope.merchant.clone();
        let ended = Ended::of(&answer);
        let retry_after = answer.retry_after;
        // What former attempts left in doubt is settled.
        held.stored.state.ambiguous &= !answer.absent;
        held.stage = Stage::Answered {
            number,
            at,
            answer: Box::new(answer),
        };
        let Some(backlog) = self.backlogs.get_mut(&id) else {
            return;
        };
        backlog.running = backlog.running.saturating_sub(1);
        self.running = self.running.saturating_sub(1);
        if let Some(wait) = retry_after
            && let Some(merchant) = backlog.active.clone().or_else(|| directory.merchant(&id))
        {
            let until = now.wall.saturating_add(millis(wait));
            self.commands.extend(close_scope(&merchant, until));
        }
        if let Some(held) = self.window.get(&seq)
            && let Stage::Answered { answer, .. } = &held.stage
        {
            backlog.stats.answered(answer, now);
        }
        let idle = backlog.quarantined || backlog.condemned.is_some();
        if backlog.active.is_some() {
            self.commands.push_back(Command::Answer {
                merchant: id,
                seq,
                number,
                ended,
            });
        } else if let Some(merchant) = directory.merchant(&id).filter(|_| !idle) {
            self.activate(&merchant, now);
        } else {
            self.decide_alone(seq, now);
            self.refill(&id, directory, now);
        }
    }

    fn on_effect(&mut self, merchant: &MerchantId, effect: Effect, now: Now) {
        match effect {
            Effect::Finish { seq, kind } => {
                if let Some(mut held) = self.leave_window(seq) {
                    let why = record_attempt(&mut held, true);
                    self.conclude(held.stored, held.in_store, kind, why, now);
                }
            }
            Effect::Defer {
                seq,
                due,
                counted,
                ambiguous,
            } => {
                if let Some(mut held) = self.leave_window(seq) {
                    record_attempt(&mut held, counted);
                    let state = &mut held.stored.state;
                    state.due = Some(due);
                    state.ambiguous = ambiguous;
                    self.remember_attempts(&held.stored);
                    self.unlist(merchant, seq, ambiguous);
                    self.keep_in_store(held, true);
                }
            }
            Effect::Again { seq } => {
                if let Some(held) = self.window.get_mut(&seq) {
                    record_attempt(held, false);
                    held.stage = Stage::Offered;
                    let ambiguous = held.stored.state.ambiguous;
                    self.unlist(merchant, seq, ambiguous);
                }
            }
            Effect::Return { seq } => {
                if let Some(held) = self.leave_window(seq) {
                    // The store may not know of the doubt.
                    let changed = held.stored.state.ambiguous;
                    self.keep_in_store(held, changed);
                }
            }
            // Counted with what was given back.
            Effect::Hold => {}
            Effect::Withdrawn { seq } => self.on_withdrawn(seq, now),
            Effect::Closure(closure) => self.on_closure(merchant, closure),
        }
    }

    fn on_closure(&mut self, merchant: &MerchantId, closure: Option<Closure>) {
        let Some(backlog) = self.backlogs.get_mut(merchant) else {
            return;
        };
        backlog.closure = closure;
        let merchant = merchant.clone();
        match closure {
            Some(closure) => {
                // It has to survive a crash: say so in a mark soon.
                self.writer.hurry_mark();
                self.timers.insert((closure.until, merchant.clone()));
                self.event(Event::Closed { merchant, closure });
            }
            None => {
                // A successor must not close it again from an older mark.
                self.writer.hurry_mark();
                self.event(Event::Opened { merchant });
            }
        }
    }

    /// An attempt ended and the order goes on. What may be at the merchant stays listed, so that a
    /// successor asks, too.
    fn unlist(&mut self, merchant: &MerchantId, seq: Seq, ambiguous: bool) {
        if !ambiguous {
            self.writer.attempts.remove(merchant, seq);
        }
    }

    /// Takes an order out of its mailbox.
    pub(super) fn leave_window(&mut self, seq: Seq) -> Option<Held> {
        let held = self.window.remove(&seq)?;
        let bytes = held.stored.order.payload.len();
        self.window_bytes = self.window_bytes.saturating_sub(bytes);
        let backlog = self
            .backlogs
            .get_mut(&held.stored.order.envelope.merchant)?;
        backlog.offered = backlog.offered.saturating_sub(1);
        backlog.window_bytes = backlog.window_bytes.saturating_sub(bytes);
        if matches!(held.stage, Stage::Running { .. } | Stage::Marking { .. }) {
            backlog.running = backlog.running.saturating_sub(1);
            self.running = self.running.saturating_sub(1);
        }
        Some(held)
    }

    /// An order that left its mailbox waits in the store.
    pub(super) fn keep_in_store(&mut self, held: Held, changed: bool) {
        if !held.in_store {
            self.park(held.stored);
            return;
        }
        let order = &held.stored.order;
        let (merchant, seq) = (order.envelope.merchant.clone(), order.seq);
        let (due, priority) = (held.stored.state.due, order.envelope.priority);
        if changed {
            let state = held.stored.state;
            self.ops.push(StoreOp::SetState {
                merchant: merchant.clone(),
                seq,
                state,
            });
        }
        self.note_parked(&merchant, seq, due, priority);
    }

    pub(super) fn remember_attempts(&mut self, stored: &Stored) {
        let state = &stored.state;
        let Some(first) = state.first_attempt else {
            return;
        };
        let (seq, attempts, ambiguous) = (stored.order.seq, state.attempts, state.ambiguous);
        self.attempted.insert(
            seq,
            AttemptCount {
                seq,
                attempts,
                first,
                ambiguous,
            },
        );
        if self.attempted.len() > ATTEMPTS_REMEMBERED {
            // What is in doubt may be listed nowhere else.
            let mut newest = self.attempted.iter().rev();
            let plain = newest.find(|(_, count)| !count.ambiguous);
            match plain.map(|(seq, _)| *seq) {
                Some(seq) => self.attempted.remove(&seq),
                None => self.attempted.pop_last().map(|(_, count)| count),
            };
        }
    }

    /// Without its machine, an answered order is decided from the class of its answer.
    pub(super) fn decide_alone(&mut self, seq: Seq, now: Now) {
        let Some(mut held) = self.leave_window(seq) else {
            return;
        };
        let Stage::Answered { answer, .. } = &held.stage else {
            let merchant = held.stored.order.envelope.merchant.clone();
            self.unlist(&merchant, seq, held.stored.state.ambiguous);
            let changed = held.stored.state.ambiguous;
            return self.keep_in_store(held, changed);
        };
        let class = answer.class;
        let merchant = held.stored.order.envelope.merchant.clone();
        let condemned = self
            .backlogs
            .get(&merchant)
            .and_then(|b| b.condemned.clone());
        let by_class = Self::kind_of_class(class, &held.stored.state);
        let condemned = condemned.filter(|_| by_class.is_none());
        let by_person = condemned
            .as_ref()
            .map(|condemned| OutcomeKind::DeadLettered(condemned.reason));
        let kind = by_class.or(by_person);
        let counted = !matches!(
            class,
            AttemptClass::RateLimited
                | AttemptClass::Local
                | AttemptClass::Suspended
                | AttemptClass::Misconfigured
        );
        let mut why = record_attempt(&mut held, counted);
        if let Some(condemned) = condemned {
            // The answer stands with the attempt; this is why nothing is tried any more.
            why.detail = condemned.detail.to_string();
        }
        match kind {
            Some(kind) => self.conclude(held.stored, held.in_store, kind, why, now),
            None => {
                self.writer.attempts.remove(&merchant, seq);
                self.keep_in_store(held, true);
            }
        }
    }

    /// The manifest by which a merchant's orders go: its actor's, which hears of another one in its
    /// turn; `None` for a merchant that is not registered.
    pub(super) fn manifest(
        &self,
        id: &MerchantId,
        directory: &dyn Directory,
    ) -> Option<Arc<Merchant>> {
        let registered = directory.merchant(id)?;
        let active = self.backlogs.get(id).and_then(|b| b.active.clone());
        Some(active.unwrap_or(registered))
    }

    /// Whether a merchant keeps its orders' order.
    pub(super) fn is_ordered(&self, directory: &dyn Directory, merchant: &MerchantId) -> bool {
        self.manifest(merchant, directory)
            .is_some_and(|merchant| merchant.limits.ordering != Ordering::None)
    }

    /// The backlog of a merchant, made when there is none.
    pub(super) fn backlog(&mut self, merchant: &MerchantId) -> &mut Backlog {
        self.backlogs
            .entry(merchant.clone())
            .or_insert_with(Backlog::new)
    }

    /// Timeout of the slowest attempt that runs, in milliseconds.
    pub(super) fn longest_timeout(&self) -> u64 {
        let running = self
            .window
            .values()
            .filter(|h| matches!(h.stage, Stage::Running { .. }));
        running
            .filter_map(|held| self.backlogs.get(&held.stored.order.envelope.merchant))
            .filter_map(|backlog| backlog.active.as_deref())
            .map(|merchant: &Merchant| millis(merchant.adapter.timeout))
            .max()
            .unwrap_or(0)
    }
}

/// The limit that the merchant's answer spoke of, where others share it.
fn close_scope(merchant: &Merchant, until: UnixMillis) -> Option<Command> {
    let kind = merchant.adapter.rate_limit_scope;
    let id = match kind {
        LimitScope::Merchant => return None,
        LimitScope::Group => merchant.group.clone(),
        LimitScope::Credential => merchant.adapter.credential.clone()?,
    };
    Some(Command::CloseScope { kind, id, until })
}

fn too_late() -> Answer {
    Answer {
        class: AttemptClass::Local,
        status: None,
        retry_after: None,
        absent: false,
        detail: "its time was over before the request could leave".to_owned(),
        excerpt: Bytes::new(),
        took: Duration::ZERO,
    }
}

fn launch(merchant: Arc<Merchant>, held: &Held, number: u32) -> Command {
    let lookup = merchant.adapter.idempotency == Idempotency::Lookup;
    Command::Launch {
        gives_up: PartitionMachine::deadline(&held.stored.order, Some(&merchant)),
        look_first: lookup && held.stored.state.ambiguous,
        order: Arc::clone(&held.stored.order),
        merchant,
        number,
    }
}

/// Writes the attempt that ended into the order's history; gives what it says for people.
fn record_attempt(held: &mut Held, counted: bool) -> Why {
    let state = &mut held.stored.state;
    if counted && !matches!(held.stage, Stage::Offered) {
        state.attempts += 1;
    }
    let stage = std::mem::replace(&mut held.stage, Stage::Offered);
    let Stage::Answered { number, at, answer } = stage else {
        return Why::default();
    };
    let delivered = matches!(
        answer.class,
        AttemptClass::Delivered | AttemptClass::AlreadyDone
    );
    let Answer {
        class,
        status,
        detail,
        excerpt,
        took,
        ..
    } = *answer;
    let why = if delivered {
        Why::default()
    } else {
        Why { detail, excerpt }
    };
    let quoted = quoting(&why.detail, &why.excerpt);
    // A fault of ours that goes on would wash out what the merchant said.
    let local = |record: &AttemptRecord| record.class == AttemptClass::Local;
    if class == AttemptClass::Local && state.history.last().is_some_and(local) {
        state.history.pop();
    }
    state.remember(AttemptRecord {
        number,
        at,
        class,
        status,
        took_ms: u32::try_from(took.as_millis()).unwrap_or(u32::MAX),
        detail: quoted,
    });
    why
}

/// What happened at an attempt, then how the answer begins where it is text: one line of at most
/// [`MAX_DETAIL`] characters. Only the last answer is kept longer, with the order's outcome.
fn quoting(detail: &str, excerpt: &[u8]) -> String {
    let text = match std::str::from_utf8(excerpt) {
        Ok(text) => text,
        // Cut within a character, or not text.
        Err(error) => match std::str::from_utf8(&excerpt[..error.valid_up_to()]) {
            Ok(text) if error.error_len().is_none() => text,
            _ => "",
        },
    };
    let mut words = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty());
    let Some(first) = words.next() else {
        return detail.to_owned();
    };
    let quote = words.fold(first.to_owned(), |line, word| line + " " + word);
    let line = format!("{detail}: {quote}");
    match line.char_indices().nth(MAX_DETAIL) {
        Some(_) => line.chars().take(MAX_DETAIL - 1).chain(['…']).collect(),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_quotes_how_its_answer_begins() {
        let quoted = |answer: &[u8]| quoting("HTTP 503", answer);
        assert_eq!(
            quoted(b"kitchen\r\n  closed\x07\n"),
            "HTTP 503: kitchen closed"
        );
        for nothing in [
            &b""[..],
            b" \n",
            b"\xff\x00\x01",
            b"text, then \xff no text",
        ] {
            assert_eq!(quoted(nothing), "HTTP 503");
        }
        // The excerpt was cut within a character.
        assert_eq!(quoted(&"fermé".as_bytes()[..5]), "HTTP 503: ferm");
        let long = quoted("é".repeat(1_000).as_bytes());
        assert_eq!(long.chars().count(), MAX_DETAIL);
        assert!(long.starts_with("HTTP 503: é") && long.ends_with('…'));
    }
}
