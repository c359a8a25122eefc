//! Sends the plan, as fast as merchants can bear it.

use std::collections::{BTreeMap, VecDeque};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use expediter_nats::{Audit, Connection, OrderPublisher, dead_letter};
use expediter_types::MerchantId;
use expediter_wire::audit::AuditTarget;
use expediter_wire::control::MerchantState;
use indicatif::{ProgressBar, ProgressStyle};

use super::Summary;
use super::plan::Plan;
use crate::cli::Error;
use crate::cli::dead::{self, Next, RECORD};
use crate::cli::deadletter::select::Letter;
use crate::cli::error::note;
use crate::cli::operator::{Deed, Effect, Operator, Recorded};
use crate::cli::owners::Owners;
use crate::cli::text::{clean, counted, now};

/// So many failures one after the other are not the letters' fault.
const HOPELESS: usize = 3;
/// An owner is asked so often how much a merchant has to do.
const LOOK: Duration = Duration::from_millis(100);
/// Failures that are told one by one.
const TOLD: usize = 20;

const MEANWHILE: &str = "settled by somebody else meanwhile";

pub(super) struct Sending<'a> {
    pub(super) connection: &'a Connection,
    pub(super) publisher: OrderPublisher,
    pub(super) operator: &'a Operator,
    pub(super) audit: Audit,
    pub(super) owners: Owners,
    pub(super) why: &'a str,
}

/// The letters of one merchant, and how many it may get before its owner is asked again.
struct Queue<'a> {
    merchant: &'a MerchantId,
    letters: VecDeque<&'a (Letter, Next)>,
    /// Orders that may be unfinished there for another one to follow.
    most: u64,
    room: u64,
    asked: Option<Instant>,
}

impl Queue<'_> {
    /// A fresh order waits for few replayed ones: the merchant is open, and has nearly nothing to do.
    async fn has_room(&mut self, owners: &Owners) -> bool {
        if self.room == 0 && self.asked.is_none_or(|asked| asked.elapsed() >= LOOK) {
            self.asked = Some(Instant::now());
            self.room = match owners.status(self.merchant).await {
                Ok(status)
                    if matches!(status.state, MerchantState::Idle | MerchantState::Active) =>
                {
                    self.most.saturating_sub(status.backlog)
                }
                Ok(_) => 0,
                // Without an owner they wait in the log, at the pace that was asked for.
                Err(_) => 1,
            };
        }
        self.room > 0
    }
}

impl Sending<'_> {
    /// One after the other, until it is told to stop. One that cannot be sent holds up no other, nor
    /// does a merchant that has enough to do.
    pub(super) async fn all(
        &self,
        plan: &Plan,
        pause: Duration,
        summary: &mut Summary,
    ) -> Result<(), Error> {
        let bar = match std::io::stderr().is_terminal() {
            true => ProgressBar::new(plan.letters.len() as u64),
            false => ProgressBar::hidden(),
        };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} replayed, {eta} left {msg}");
        bar.set_style(style.map_err(anyhow::Error::from)?);
        let mut tick = tokio::time::interval(pause);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut in_a_row = 0;
        summary.left = plan.letters.len();
        let mut queues = queues(plan);
        while !queues.is_empty() {
            let next = async {
                tick.tick().await;
                loop {
                    for (place, queue) in queues.iter_mut().enumerate() {
                        if queue.has_room(&self.owners).await {
                            return place;
                        }
                    }
                    bar.set_message("(the merchants have enough to do, or are closed)");
                    tokio::time::sleep(LOOK).await;
                }
            };
            let next = tokio::select! {
                biased;
                () = self.operator.stopped() => None,
                place = next => Some(place),
            };
            let Some(place) = next.filter(|_| in_a_row < HOPELESS) else {
                bar.abandon();
                let cause = if next.is_none() {
                    "stopped"
                } else {
                    "given up"
                };
                return Err(Error::failed(format!(
                    "{cause}; the same command goes on where it stopped"
                )));
            };
            bar.set_message("");
            // In turn: the others come before it next time.
            let mut queue = queues.remove(place);
            queue.room -= 1;
            let Some((letter, next)) = queue.letters.pop_front() else {
                continue;
            };
            if !queue.letters.is_empty() {
                queues.push(queue);
            }
            summary.left -= 1;
            bar.inc(1);
            match self.one(letter, *next, summary).await {
                Ok(recorded) => {
                    in_a_row = 0;
                    recorded?;
                }
                Err(error) => {
                    in_a_row += 1;
                    summary.failed += 1;
                    if summary.failed <= TOLD {
                        let envelope = &letter.item.outcome.envelope;
                        let error = clean(&error.to_string());
                        let told = format!("{} of {}: {error}", envelope.id, envelope.merchant);
                        bar.suspend(|| note(&told));
                    }
                }
            }
        }
        bar.finish_and_clear();
        match summary.failed {
            0 => Ok(()),
            failed => Err(Error::failed(format!(
                "not replayed: {}",
                counted(failed as u64, "dead letter")
            ))),
        }
    }

    async fn one(
        &self,
        letter: &Letter,
        next: Next,
        summary: &mut Summary,
    ) -> Result<Recorded, Error> {
        let envelope = match dead::next_generation(&letter.item, next, now()) {
            Ok(envelope) => envelope,
            // Its deadline passed while it waited for its turn.
            Err(why) => {
                summary.refused(why);
                return Ok(Ok(()));
            }
        };
        let Some(whole) = dead_letter(self.connection, letter.item.record).await? else {
            summary.leave_out("not kept any more");
            return Ok(Ok(()));
        };
        let target = AuditTarget::order(&envelope.merchant, &envelope.id);
        // It may be long since the plan was made.
        if dead::is_resolved_by(self.audit.newest(&target).await?.as_ref(), &letter.item) {
            summary.leave_out(MEANWHILE);
            return Ok(Ok(()));
        }
        let deed = Deed::new("deadletter.replay", target)
            .because(self.why)
            .detail("generation", letter.item.outcome.envelope.generation)
            .detail(RECORD, letter.item.record)
            .detail("next", envelope.generation);
        let sending = async {
            let sent = dead::publish(self.connection, &self.publisher, &envelope, &whole).await?;
            Ok(Effect::new(sent.duplicate)
                .detail("seq", sent.seq)
                .detail("duplicate", sent.duplicate))
        };
        let (duplicate, recorded) = self.operator.step(deed, sending).await?;
        match duplicate {
            true => summary.already += 1,
            false => summary.replayed += 1,
        }
        Ok(recorded)
    }
}

/// By merchant, each in the plan's order.
fn queues(plan: &Plan) -> Vec<Queue<'_>> {
    let mut queues: BTreeMap<&MerchantId, Queue<'_>> = BTreeMap::new();
    for planned in &plan.letters {
        let merchant = &planned.0.item.outcome.envelope.merchant;
        let queue = queues.entry(merchant).or_insert_with(|| Queue {
            merchant,
            letters: VecDeque::new(),
            most: plan.most.get(merchant).copied().unwrap_or(1),
            room: 0,
            asked: None,
        });
        queue.letters.push_back(planned);
    }
    queues.into_values().collect()
}
