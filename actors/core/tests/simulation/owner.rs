//! The owner of the partition without actix: carries out what the partition's machine says, in the
//! order the real one does (`actors/runtime/src/partition_actor.rs`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use expediter_core::merchant::Offer;
use expediter_core::partition::{Cancel, Command, Drained, Event, Load, Loaded, PartitionMachine};
use expediter_core::store::StoreOp;
use expediter_core::{IntakeSource, LogMessage, Order};
use expediter_types::{
    Answer, AttemptClass, DeadReason, Merchant, MerchantId, OrderId, Record, Seq,
};

use crate::actor::{Actor, Begun, Places, Reported, Step, Stepped};
use crate::broker::{Late, Write};
use crate::env::{Change, Directory, Env, Plant};
use crate::fleet::{Attempt, Looked};
use crate::shadow::{Launching, broken};
use crate::store::{Job, Store};

/// Everything that reaches a partition.
#[derive(Debug)]
pub(crate) enum Input {
    Log {
        source: IntakeSource,
        messages: Vec<LogMessage>,
        none_below: Option<Seq>,
    },
    Committed(u64),
    Loaded(Load, Loaded),
    Answer {
        seq: Seq,
        number: u32,
        answer: Answer,
    },
    Report(Reported),
    Panicked {
        merchant: MerchantId,
        incarnation: u64,
        answering: Option<Seq>,
    },
    Rebuild {
        merchant: MerchantId,
        incarnation: u64,
    },
    Written {
        number: u64,
        seq: Seq,
    },
    Fenced,
    Registry(MerchantId, Change),
    Confirmed(MerchantId, Option<bool>),
    Condemn(MerchantId),
    Cancel(MerchantId, OrderId),
    /// A person has resolved this parked order.
    Release(Seq),
    HandOver {
        patience: u64,
    },
}

/// Whether the epoch goes on.
#[derive(Debug)]
pub(crate) enum Flow {
    Goes,
    Fenced,
    HandedOver(Drained),
}

#[derive(Debug)]
struct Ending {
    give_up_at: u64,
    closed: Option<(Drained, u64)>,
}

/// What of the process the owner uses.
#[derive(Debug)]
pub(crate) struct Node<'a> {
    pub(crate) process: usize,
    pub(crate) directory: &'a Directory,
    pub(crate) store: &'a mut Store,
    /// The lease allows requests.
    pub(crate) fresh: bool,
}

#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) machine: PartitionMachine,
    pub(crate) token: Seq,
    pub(crate) inbox: VecDeque<Input>,
    pub(crate) actors: BTreeMap<u64, Actor>,
    current: BTreeMap<MerchantId, u64>,
    /// The record under way, and when it is sent (again).
    pub(crate) sending: Option<(Write, u64)>,
    pub(crate) rebuilds: Vec<(u64, MerchantId, u64)>,
    pub(crate) armed: u64,
    ending: Option<Ending>,
    /// Everything at or below it was read, by either reader.
    pub(crate) taken: Seq,
    pub(crate) tail: Option<Seq>,
    /// Started and not launched.
    begun: BTreeMap<Seq, Begun>,
    in_reports: usize,
    waiting: [VecDeque<u64>; 2],
    pub(crate) logs_waiting: usize,
}

impl Owner {
    pub(crate) fn new(machine: PartitionMachine, tail: Option<Seq>) -> Self {
        Self {
            token: machine.stamp().token,
            taken: machine.seen(),
            machine,
            inbox: VecDeque::new(),
            actors: BTreeMap::new(),
            current: BTreeMap::new(),
            sending: None,
            rebuilds: Vec::new(),
            armed: 0,
            ending: None,
            tail,
            begun: BTreeMap::new(),
            in_reports: 0,
            waiting: [VecDeque::new(), VecDeque::new()],
            logs_waiting: 0,
        }
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Something is to be done now.
    pub(crate) fn is_busy(&self, mono: u64) -> bool {
        !self.inbox.is_empty()
            || self.armed <= mono
            || self.rebuilds.iter().any(|(at, ..)| *at <= mono)
    }

    /// One message, or the timer.
    pub(crate) fn step(&mut self, node: &mut Node<'_>, env: &mut Env) -> Flow {
        let due = self.rebuilds.iter().position(|(at, ..)| *at <= env.mono);
        if let Some(due) = due {
            let (_, merchant, incarnation) = self.rebuilds.swap_remove(due);
            self.inbox.push_back(Input::Rebuild {
                merchant,
                incarnation,
            });
        }
        if let Some(input) = self.inbox.pop_front() {
            env.trace(|| format!("p{} {}", node.process, describe(&input)));
            if matches!(input, Input::Fenced) {
                return Flow::Fenced;
            }
            self.handle(input, node, env);
        }
        self.pump(node, env)
    }

    fn handle(&mut self, input: Input, node: &mut Node<'_>, env: &mut Env) {
        let now = env.now();
        let (machine, directory) = (&mut self.machine, node.directory);
        match input {
            Input::Log {
                source,
                messages,
                none_below,
            } => {
                self.logs_waiting -= 1;
                machine.on_log(source, messages, none_below, directory, now);
                self.hand_to_store(node, env);
            }
            Input::Committed(number) => machine.on_committed(number),
            Input::Loaded(load, loaded) => machine.on_loaded(load, loaded, directory, now),
            Input::Answer {
                seq,
                number,
                answer,
            } => {
                machine.on_answer(seq, number, answer, directory, now);
            }
            Input::Report(reported) => {
                let Reported {
                    report,
                    begun,
                    asked,
                } = reported;
                self.in_reports -= begun.len();
                let current = self.current.get(&report.merchant) == Some(&report.incarnation);
                self.begun
                    .extend(begun.into_iter().map(|begun| (begun.seq, begun)));
                if let Some(asked) = asked.filter(|_| current) {
                    env.shadow
                        .asked_to_wait(self.token, &report.merchant, asked);
                }
                machine.on_report(report, directory, now);
            }
            Input::Panicked {
                merchant,
                incarnation,
                answering,
            } => {
                self.on_panicked(merchant, incarnation, answering, env);
            }
            Input::Rebuild {
                merchant,
                incarnation,
            } => {
                machine.rebuild(&merchant, incarnation, now);
            }
            Input::Written { number, seq } => {
                let _mark = machine.on_acked(number, seq, directory, now);
            }
            Input::Registry(merchant, change) => match change {
                Change::Manifest(_) => {
                    env.shadow.resumed(self.token, &merchant);
                    machine.on_registry(&merchant, directory, now);
                }
                Change::Resume => {
                    env.shadow.resumed(self.token, &merchant);
                    machine.resume(&merchant, directory, now);
                    env.shadow.paused.remove(&self.token);
                    machine.resume_all(directory, now);
                }
                Change::Hold(hold) => {
                    env.shadow.holds(self.token, &merchant, hold.is_some(), now);
                    machine.on_holds(directory, now);
                }
            },
            Input::Confirmed(merchant, registered) => {
                machine.on_confirmed(&merchant, registered, directory, now);
            }
            Input::Condemn(merchant) => {
                env.shadow.condemned.insert(merchant.clone());
                let reason = DeadReason::MerchantDeleted;
                machine.condemn(&merchant, reason, "an operator said so", directory, now);
            }
            Input::Cancel(merchant, id) => {
                let begun = machine.cancel(&merchant, &id, "an operator asked", directory);
                if matches!(begun, Cancel::Begun { .. }) {
                    env.shadow.cancels.insert((merchant, id));
                }
            }
            Input::Release(seq) => {
                if let Some((order, resolved)) = env.shadow.parked.get_mut(&seq) {
                    *resolved = true;
                    let (id, generation) = (&order.envelope.id, order.envelope.generation);
                    let merchant = &order.envelope.merchant;
                    machine.release_parked(merchant, id, generation, directory, now);
                }
            }
            Input::HandOver { patience } => {
                machine.drain();
                let give_up_at = now.mono + patience;
                self.ending.get_or_insert(Ending {
                    give_up_at,
                    closed: None,
                });
            }
            Input::Fenced => {}
        }
    }

    pub(crate) fn pump(&mut self, node: &mut Node<'_>, env: &mut Env) -> Flow {
        let now = env.now();
        if self.machine.wake_at(now) <= now.mono {
            self.machine.tick(node.directory, now);
        }
        self.hand_to_store(node, env);
        loop {
            let commands = self.machine.take_commands();
            if commands.len() == 0 {
                break;
            }
            for command in commands {
                self.carry_out(command, node, env);
            }
            self.hand_to_store(node, env);
        }
        if let Some((number, record)) = self.machine.next_record(now) {
            assert!(self.sending.is_none(), "two records are under way");
            env.trace(|| format!("p{} record {number} {record:?}", node.process));
            let stamp = self.machine.stamp();
            self.sending = Some((
                Write {
                    stamp,
                    number,
                    record,
                },
                now.mono,
            ));
        }
        self.judge(node, env);
        self.begun.retain(|seq, _| self.machine.is_starting(*seq));
        self.wake_waiting(node, env);
        if let Some(drained) = self.step_ending(env) {
            return Flow::HandedOver(drained);
        }
        let now = env.now();
        self.armed = self.machine.wake_at(now).max(now.mono + 1);
        if self.ending.is_some() {
            self.armed = self.armed.min(now.mono + 20_000);
        }
        Flow::Goes
    }

    fn step_ending(&mut self, env: &Env) -> Option<Drained> {
        let (now, ending) = (env.now(), self.ending.as_mut()?);
        if ending.closed.is_none() && (self.machine.is_quiet() || now.mono >= ending.give_up_at) {
            let drained = self.machine.close(now);
            ending.closed = Some((drained, now.mono + 10_000_000));
            return None;
        }
        let (drained, until) = ending.closed.as_ref()?;
        (self.machine.is_flushed() || now.mono >= *until).then(|| drained.clone())
    }

    fn hand_to_store(&mut self, node: &mut Node<'_>, env: &mut Env) {
        if let Some((number, mut batch)) = self.machine.take_batch() {
            if env.plant == Some(Plant::LosePuts) && env.rng.chance(50) {
                batch.ops.retain(|op| !matches!(op, StoreOp::Put(_)));
            }
            node.store.push(Job::Commit {
                token: self.token,
                number,
                batch,
            });
        }
    }

    fn judge(&mut self, node: &Node<'_>, env: &mut Env) {
        let unaccounted = self.machine.unaccounted();
        if unaccounted != 0 {
            broken!("ORD-1", "{unaccounted} orders are unaccounted");
        }
        if !env.rng.chance(50) {
            return;
        }
        for row in self.machine.rows(None, node.directory, env.now()) {
            let bound = env.shadow.mailbox_bound(&row.merchant);
            if row.mailbox > bound {
                broken!(
                    "ISO-1",
                    "{} holds {} of {bound} orders",
                    row.merchant,
                    row.mailbox
                );
            }
        }
    }
}

/// For the trace: what arrives, in one line.
fn describe(input: &Input) -> String {
    match input {
        Input::Log {
            source,
            messages,
            none_below,
        } => {
            let seqs: Vec<Seq> = messages.iter().map(|message| message.seq).collect();
            format!("reads {source:?} {seqs:?} none below {none_below:?}")
        }
        Input::Loaded(load, loaded) => {
            let seqs = |all: &[expediter_core::Stored]| -> Vec<Seq> {
                all.iter().map(|stored| stored.order.seq).collect()
            };
            match loaded {
                Loaded::Ready(r, also) => {
                    let (seqs, next) = (seqs(&r.orders), r.next);
                    let also: Vec<Seq> = also.iter().map(|stored| stored.order.seq).collect();
                    let done = r.exhausted;
                    format!("{load:?} -> {seqs:?} also {also:?} next {next} exhausted {done}")
                }
                Loaded::Due(due) => {
                    format!("{load:?} -> {:?} next {:?}", seqs(&due.orders), due.next)
                }
                Loaded::Expired(all) => format!("{load:?} -> {:?}", seqs(all)),
                Loaded::KeyHead(head) => {
                    format!(
                        "{load:?} -> {:?}",
                        head.as_ref().map(|stored| stored.order.seq)
                    )
                }
                Loaded::First(first) => format!("{load:?} -> {first:?}"),
                Loaded::One(one) => {
                    format!("{load:?} -> {:?}", one.as_ref().map(|s| s.order.seq))
                }
            }
        }
        other => format!("{other:?}"),
    }
}

/// Whether a record is of the kind that the planted fault concerns.
pub(crate) fn planted(write: &mut Write, plant: Option<Plant>) -> bool {
    match (&mut write.record, plant) {
        (Record::Mark(mark), Some(Plant::MarkAhead)) => {
            mark.low_water = mark.seen;
            false
        }
        (Record::Attempts(_), Some(Plant::SkipAttemptMarks)) => true,
        _ => false,
    }
}

mod carry;
