//! The lives of merchants' actors: made, rebuilt after a panic, stopped for panics, begun again with
//! another manifest, let go.

use std::sync::Arc;

use expediter_types::{Merchant, MerchantId, Now, Seq};

use super::merchants::Stage;
use super::{Command, Directory, Event, PartitionMachine};
use crate::merchant::{Closure, Ended, Offer};
use crate::store::StoreOp;

impl PartitionMachine {
    /// The actor's step panicked; `answering`: on which order's answer. The actor is gone. Gives
    /// how long to wait before the commands that rebuild it, in milliseconds; `None` when the
    /// merchant is quarantined instead.
    pub fn on_panicked(
        &mut self,
        merchant: &MerchantId,
        incarnation: u64,
        answering: Option<Seq>,
        now: Now,
    ) -> Option<u64> {
        let config = (self.config.panics, self.config.panic_window);
        let backlog = self.backlogs.get_mut(merchant)?;
        if backlog.incarnation != incarnation || backlog.active.is_none() {
            return None;
        }
        backlog.panics.push_back(now.mono);
        // What it knew of its rate is gone: begin empty, as a new epoch does.
        backlog.limits_since = now.mono;
        while backlog
            .panics
            .front()
            .is_some_and(|at| now.mono.saturating_sub(*at) > config.1)
        {
            backlog.panics.pop_front();
        }
        let panics = backlog.panics.len();
        let poison = answering
            .and_then(|seq| self.window.get_mut(&seq))
            .is_some_and(|held| {
                held.answer_panics += 1;
                held.answer_panics >= 2
            });
        if poison && let Some(seq) = answering {
            self.decide_alone(seq, now);
        }
        if panics >= config.0 {
            self.quarantine(merchant, now);
            return None;
        }
        Some(100 << panics.min(6))
    }

    /// Starts the actor again with the attempts that run. What waited in its mailbox is loaded
    /// anew: the actor may have given an older order of the same key back just before it died.
    pub fn rebuild(&mut self, merchant: &MerchantId, incarnation: u64, now: Now) {
        if self.draining {
            return self.let_go(merchant, now);
        }
        let Some(backlog) = self.backlogs.get_mut(merchant) else {
            return;
        };
        let Some(active) = backlog.active.clone() else {
            return;
        };
        if backlog.incarnation != incarnation {
            return;
        }
        self.begin_again(&active, now);
        self.timers.insert((now.wall, merchant.clone()));
    }

    /// Starts the merchant's actor with all it holds: what waits in its mailbox, the attempts that
    /// run, the answers that nobody decided yet.
    pub(super) fn activate(&mut self, merchant: &Arc<Merchant>, now: Now) {
        self.charge(merchant, now);
        let epoch_since = self.limits_since;
        let Some(backlog) = self.backlogs.get_mut(&merchant.id) else {
            return;
        };
        self.incarnations += 1;
        backlog.incarnation = self.incarnations;
        backlog.returns = 0;
        backlog.active = Some(Arc::clone(merchant));
        let limits_since = backlog.limits_since.max(epoch_since);
        let spent = backlog.quotas.clone();
        let (incarnation, closure) = (backlog.incarnation, backlog.closure);
        let mut window: Vec<(Offer, Option<u32>)> = Vec::new();
        let mut answers = Vec::new();
        if backlog.offered > 0 {
            for held in self.window.values() {
                let order = &held.stored.order;
                if order.envelope.merchant != merchant.id {
                    continue;
                }
                window.push((Self::offer_of(&held.stored, merchant), held.stage.number()));
                if let Stage::Answered { number, answer, .. } = &held.stage {
                    answers.push(Command::Answer {
                        merchant: merchant.id.clone(),
                        seq: order.seq,
                        number: *number,
                        ended: Ended::of(answer),
                    });
                }
            }
        }
        self.commands.push_back(Command::Activate {
            merchant: Arc::clone(merchant),
            incarnation,
            limits_since,
            spent,
            closure,
            window,
        });
        self.halt_if_held(&merchant.id);
        self.commands.extend(answers);
    }

    fn quarantine(&mut self, merchant: &MerchantId, now: Now) {
        self.let_go(merchant, now);
        if let Some(backlog) = self.backlogs.get_mut(merchant) {
            backlog.quarantined = true;
            self.event(Event::Quarantined {
                merchant: merchant.clone(),
            });
        }
    }

    /// An operator lets a quarantined or closed merchant go on. True when it was one.
    pub fn resume(&mut self, merchant: &MerchantId, directory: &dyn Directory, now: Now) -> bool {
        let Some(backlog) = self.backlogs.get_mut(merchant) else {
            return false;
        };
        let held = backlog.quarantined || backlog.closure.is_some();
        backlog.quarantined = false;
        backlog.panics.clear();
        if backlog.closure.take().is_some() {
            // A successor must not close it again from an older mark.
            self.writer.hurry_mark();
            self.event(Event::Opened {
                merchant: merchant.clone(),
            });
            if let Some(manifest) = directory.merchant(merchant) {
                self.begin_again(&manifest, now);
            }
        }
        self.refill(merchant, directory, now);
        held
    }

    /// Replaces the merchant's actor: what waited in its mailbox goes back to the store, what runs
    /// is taken over.
    pub(super) fn begin_again(&mut self, merchant: &Arc<Merchant>, now: Now) {
        let Some(backlog) = self.backlogs.get_mut(&merchant.id) else {
            return;
        };
        if backlog.active.take().is_none() {
            return;
        }
        backlog.limits_since = now.mono;
        self.commands
            .push_back(Command::Release(merchant.id.clone()));
        let waiting: Vec<Seq> = self
            .window
            .values()
            .filter(|held| held.stored.order.envelope.merchant == merchant.id)
            .filter(|held| matches!(held.stage, Stage::Offered | Stage::Marking { .. }))
            .map(|held| held.stored.order.seq)
            .collect();
        for seq in waiting {
            self.decide_alone(seq, now);
        }
        let holds = self
            .backlogs
            .get(&merchant.id)
            .is_some_and(|b| b.offered > 0);
        if holds {
            self.activate(merchant, now);
        }
    }

    /// Ends the merchant's actor. What waited in its mailbox goes to the store, what was answered is
    /// decided by its class, what runs ends by itself.
    pub(super) fn let_go(&mut self, merchant: &MerchantId, now: Now) {
        let Some(backlog) = self.backlogs.get_mut(merchant) else {
            return;
        };
        if backlog.active.take().is_some() {
            backlog.limits_since = now.mono;
            self.commands.push_back(Command::Release(merchant.clone()));
        }
        let seqs: Vec<Seq> = self
            .window
            .values()
            .filter(|held| held.stored.order.envelope.merchant == *merchant)
            .filter(|held| !matches!(held.stage, Stage::Running { .. }))
            .map(|held| held.stored.order.seq)
            .collect();
        for seq in seqs {
            self.decide_alone(seq, now);
        }
    }

    /// A manifest was created, changed or deleted.
    pub fn on_registry(&mut self, merchant: &MerchantId, directory: &dyn Directory, now: Now) {
        let manifest = directory.merchant(merchant);
        self.parked_under(merchant, manifest.as_deref());
        let Some(backlog) = self.backlogs.get_mut(merchant) else {
            return;
        };
        match (manifest, backlog.active.clone()) {
            (None, _) => {
                self.let_go(merchant, now);
                let waits = self.backlogs.get(merchant).is_some_and(|b| b.unloaded > 0);
                if waits {
                    self.unknown_since
                        .entry(merchant.clone())
                        .or_insert(now.wall);
                }
            }
            (Some(new), active) => {
                self.unknown_since.remove(merchant);
                backlog.quarantined = false;
                backlog.panics.clear();
                backlog.condemned = None;
                match active {
                    // Keys or deadlines mean something else now: begin again from the store.
                    Some(old)
                        if old.limits.ordering != new.limits.ordering
                            || old.retry.deadline != new.retry.deadline
                            || old.retry.margin != new.retry.margin =>
                    {
                        self.begin_again(&new, now);
                    }
                    Some(_) => {
                        backlog.active = Some(Arc::clone(&new));
                        backlog.quotas.change(&new.limits.rates);
                        self.commands.push_back(Command::Change(new));
                    }
                    None => {
                        let refused =
                            |c: &Closure| c.because != expediter_types::ClosedBecause::RateLimited;
                        if backlog.closure.as_ref().is_some_and(refused) {
                            backlog.closure = None;
                            self.event(Event::Opened {
                                merchant: merchant.clone(),
                            });
                        }
                    }
                }
                if let Some(backlog) = self.backlogs.get_mut(merchant) {
                    backlog.look_at_all(now);
                }
                self.refill(merchant, directory, now);
            }
        }
    }

    /// Orders that stay in the mailbox for long are written to the store, so that a restart need
    /// not read the log from them on.
    pub(super) fn spill(&mut self, now: Now) {
        let before = now.mono.saturating_sub(self.config.spill_after);
        for held in self.window.values_mut() {
            if !held.in_store && held.since <= before {
                held.in_store = true;
                self.ledger.store(held.stored.order.seq);
                self.ops.push(StoreOp::Put(held.stored.clone()));
            }
        }
        self.write_meta();
    }

    /// Lets actors go that have had nothing to do, once forgetting their limiter forgets nothing.
    pub(super) fn release_idle(&mut self, now: Now) {
        let idle_after = self.config.idle_after;
        let mut idle = Vec::new();
        self.backlogs.retain(|id, backlog| {
            let limits = backlog.active.as_deref().map(|merchant| &merchant.limits);
            let full_after = limits.map_or(0, |limits| {
                let interval = limits
                    .rates
                    .first()
                    .map_or(0, |rate| rate.interval_ns() / 1_000 + 1);
                interval.saturating_mul(u64::from(limits.burst))
            });
            let unused = now.mono.saturating_sub(backlog.last_used);
            if !backlog.is_empty() || unused < idle_after.max(full_after) || backlog.quarantined {
                return true;
            }
            if backlog.active.take().is_some() {
                idle.push(id.clone());
            }
            let closed = backlog.closure.is_some_and(|c| c.until > now.wall);
            closed || !backlog.quotas.is_unspent(now.mono)
        });
        idle.sort_unstable();
        self.commands.extend(idle.into_iter().map(Command::Release));
    }
}
