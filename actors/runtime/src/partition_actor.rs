//! A partition's actor: runs the pure partition machine and carries out what it says.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message, SpawnHandle};
use expediter_core::partition::{
    Acked, Command, Drained, Event, Load, Loaded, PartitionMachine, Report,
};
use expediter_ports::{
    AttemptRequest, Courier, IntakeBatch, MayLeave, PartitionLog, Purge, Stop, Stopped,
};
use expediter_types::{Answer, AttemptClass, ClosedBecause, MerchantId, Partition, Record, Seq};
use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};

use crate::capacity::Capacity;
use crate::clock::Clock;
use crate::gauges::PartitionGauges;
use crate::intake::Credit;
use crate::merchant_actor::{Around, MerchantActor, Permits, Release, Start, Step, StepHook};
use crate::platform::PlatformEvents;
use crate::registry::{Change, MerchantDirectory};
use crate::scopes::Shared;
use crate::store_queue::StoreQueue;
use crate::writer::{self, Written};

/// After the in-flight attempts ended, the rest of a hand-over may take so long.
const FLUSH_DEADLINE: Duration = Duration::from_secs(10);

/// Everything the actor uses.
pub(crate) struct Parts {
    pub(crate) partition: Partition,
    pub(crate) machine: PartitionMachine,
    pub(crate) log: Arc<dyn PartitionLog>,
    pub(crate) courier: Arc<dyn Courier>,
    pub(crate) store: StoreQueue,
    pub(crate) directory: Arc<MerchantDirectory>,
    pub(crate) capacity: Arc<Capacity>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) events: Arc<dyn PlatformEvents>,
    pub(crate) gauges: Arc<PartitionGauges>,
    pub(crate) tasks: tokio::runtime::Handle,
    pub(crate) hook: Option<StepHook>,
    pub(crate) drain_deadline: Duration,
}

type Query = Box<dyn FnOnce(&mut PartitionMachine, &MerchantDirectory) + Send>;

/// Everything that reaches a partition.
pub(crate) enum Input {
    Log(IntakeBatch, Credit),
    Committed(u64),
    Loaded(Load, Loaded),
    Answer {
        seq: Seq,
        number: u32,
        answer: Answer,
    },
    Report(Report, Vec<Permits>),
    Panicked {
        merchant: MerchantId,
        incarnation: u64,
        answering: Option<Seq>,
    },
    Rebuild {
        merchant: MerchantId,
        incarnation: u64,
    },
    Written(Written),
    Registry(MerchantId, Change),
    /// Operators decided something.
    Holds,
    Confirmed(MerchantId, Option<bool>),
    Query(Query),
    Stop(Stop, oneshot::Sender<Stopped>),
    /// Everything in memory goes to the store, then it ends as if fenced.
    LogLost,
}

impl Message for Input {
    type Result = ();
}

struct Ending {
    reply: oneshot::Sender<Stopped>,
    /// Running attempts are given up then.
    give_up_at: u64,
    closed: Option<(Drained, u64)>,
}

pub(crate) struct PartitionActor {
    parts: Parts,
    actors: HashMap<MerchantId, (u64, Addr<MerchantActor>)>,
    /// Places of attempts that start and whose request has not left.
    permits: HashMap<Seq, Permits>,
    /// Intake credits, given back when the store has what the batch brought.
    credits: VecDeque<(u64, Credit)>,
    batches: u64,
    committed: u64,
    records: Option<mpsc::Sender<(u64, Record)>>,
    running: tokio::task::JoinSet<()>,
    timer: Option<(u64, SpawnHandle)>,
    ending: Option<Ending>,
    gauged: u64,
}

impl PartitionActor {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            parts,
            actors: HashMap::new(),
            permits: HashMap::new(),
            credits: VecDeque::new(),
            batches: 0,
            committed: 0,
            records: None,
            running: tokio::task::JoinSet::new(),
            timer: None,
            ending: None,
            gauged: 0,
        }
    }

    /// Those of batches that the store has, unless nothing more is to come in.
    fn give_credits_back(&mut self) {
        let stored = |(batch, _): &(u64, Credit)| *batch <= self.committed;
        while !self.parts.machine.is_full() && self.credits.front().is_some_and(stored) {
            self.credits.pop_front();
        }
    }

    fn handle_input(&mut self, input: Input, ctx: &mut Context<Self>) {
        let now = Clock::now();
        let Parts {
            machine,
            directory,
            events,
            ..
        } = &mut self.parts;
        match input {
            Input::Log(batch, credit) => {
                let IntakeBatch {
                    source,
                    messages,
                    pending_none_below,
                } = batch;
                machine.on_log(source, messages, pending_none_below, &**directory, now);
                self.parts
                    .gauges
                    .seen
                    .store(self.parts.machine.seen(), Ordering::Release);
                self.hand_to_store(ctx);
                // Without changes for the store the credit is given back at once.
                if self.batches > self.committed || self.parts.machine.is_full() {
                    self.credits.push_back((self.batches, credit));
                }
            }
            Input::Committed(number) => {
                machine.on_committed(number);
                self.committed = number;
                self.give_credits_back();
            }
            Input::Loaded(load, loaded) => machine.on_loaded(load, loaded, &**directory, now),
            Input::Answer {
                seq,
                number,
                answer,
            } => {
                if answer.class == AttemptClass::Local {
                    events.local_fault(&answer.detail);
                }
                machine.on_answer(seq, number, answer, &**directory, now);
            }
            Input::Report(report, permits) => {
                let starts = report.starts.iter().map(|(seq, _)| *seq);
                self.permits.extend(starts.zip(permits));
                machine.on_report(report, &**directory, now);
            }
            Input::Panicked {
                merchant,
                incarnation,
                answering,
            } => {
                self.on_panicked(merchant, incarnation, answering, ctx);
            }
            Input::Rebuild {
                merchant,
                incarnation,
            } => machine.rebuild(&merchant, incarnation, now),
            Input::Written(written) => self.on_written(written, ctx),
            Input::Registry(merchant, Change::Manifest) => {
                machine.on_registry(&merchant, &**directory, now);
            }
            Input::Holds => machine.on_holds(&**directory, now),
            Input::Registry(merchant, Change::Resume) => {
                let _was_held = machine.resume(&merchant, &**directory, now);
            }
            Input::Confirmed(merchant, registered) => {
                machine.on_confirmed(&merchant, registered, &**directory, now);
            }
            Input::Query(query) => query(machine, directory),
            Input::Stop(Stop::Fenced, reply) => {
                let _caller_gone = reply.send(Stopped::default()).is_err();
                self.end(ctx);
                return;
            }
            Input::Stop(Stop::HandOver, reply) => {
                machine.drain();
                let wait = u64::try_from(self.parts.drain_deadline.as_micros()).unwrap_or(u64::MAX);
                let give_up_at = now.mono.saturating_add(wait);
                self.ending = Some(Ending {
                    reply,
                    give_up_at,
                    closed: None,
                });
            }
            Input::LogLost => {
                machine.spill_all();
                self.hand_to_store(ctx);
                self.end(ctx);
                return;
            }
        }
        self.pump(ctx);
    }

    /// Carries out everything that is to be done now, and sets the timer for what comes later.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        let now = Clock::now();
        if self.parts.machine.wake_at(now) <= now.mono {
            let Parts {
                machine, directory, ..
            } = &mut self.parts;
            machine.tick(&**directory, now);
        }
        self.hand_to_store(ctx);
        loop {
            let commands = self.parts.machine.take_commands();
            if commands.len() == 0 {
                break;
            }
            for command in commands {
                self.carry_out(command, ctx);
            }
            self.hand_to_store(ctx);
        }
        if let Some((number, record)) = self.parts.machine.next_record(now)
            && let Some(records) = &self.records
        {
            let _writer_ended = records.try_send((number, record)).is_err();
        }
        self.gauge(now.mono);
        if self.step_ending(now.mono) {
            self.end(ctx);
            return;
        }
        self.arm(ctx);
    }

    fn arm(&mut self, ctx: &mut Context<Self>) {
        let now = Clock::now();
        let mut at = self.parts.machine.wake_at(now);
        if self.ending.is_some() {
            at = at.min(now.mono + 20_000);
        }
        if let Some((armed, handle)) = self.timer {
            if armed <= at {
                return;
            }
            ctx.cancel_future(handle);
        }
        let wait = Duration::from_micros(at.saturating_sub(now.mono) + 200);
        let handle = ctx.run_later(wait, |actor, ctx| {
            actor.timer = None;
            actor.pump(ctx);
        });
        self.timer = Some((at, handle));
    }

    fn hand_to_store(&mut self, ctx: &mut Context<Self>) {
        if let Some((number, batch)) = self.parts.machine.take_batch() {
            self.batches = number;
            let address = ctx.address();
            self.parts.store.commit(batch, move || {
                let _ended = address.try_send(Input::Committed(number)).is_err();
            });
        }
    }

    fn carry_out(&mut self, command: Command, ctx: &mut Context<Self>) {
        match command {
            Command::Activate {
                merchant,
                incarnation,
                limits_since,
                spent,
                closure,
                window,
            } => {
                let id = merchant.id.clone();
                let start = Start {
                    merchant,
                    incarnation,
                    limits_since,
                    spent,
                    closure,
                    window,
                };
                let around = Around {
                    partition: ctx.address(),
                    capacity: Arc::clone(&self.parts.capacity),
                    shared: Arc::clone(&self.parts.shared),
                    hook: self.parts.hook.clone(),
                };
                match catch_unwind(AssertUnwindSafe(|| MerchantActor::new(start, around))) {
                    Ok(actor) => {
                        self.actors
                            .insert(id, (incarnation, actor.start_unbounded()));
                    }
                    Err(_) => self.on_panicked(id, incarnation, None, ctx),
                }
            }
            Command::Offer { merchant, offer } => self.tell(&merchant, Step::Offer(offer), ctx),
            Command::Answer {
                merchant,
                seq,
                number,
                ended,
            } => {
                let step = Step::Answer { seq, number, ended };
                self.tell(&merchant, step, ctx);
            }
            Command::Change(merchant) => {
                let id = merchant.id.clone();
                self.tell(&id, Step::Change(merchant), ctx);
            }
            Command::Halt(merchant) => self.tell(&merchant, Step::Halt, ctx),
            Command::Withdraw { merchant, seq } => self.tell(&merchant, Step::Withdraw(seq), ctx),
            Command::Release(merchant) => {
                if let Some((_, actor)) = self.actors.remove(&merchant) {
                    let _ended = actor.try_send(Release).is_err();
                }
            }
            Command::Launch {
                merchant,
                order,
                number,
                gives_up,
                look_first,
            } => {
                let request = AttemptRequest {
                    merchant,
                    order,
                    number,
                    look_first,
                    may_leave: {
                        let log = Arc::clone(&self.parts.log);
                        MayLeave::when(move || log.lease_fresh() && Clock::now().wall < gives_up)
                    },
                };
                self.launch(request, ctx);
            }
            Command::CloseScope { kind, id, until } => {
                tracing::debug!(?kind, id, until, "a merchant's shared limit is used up");
                self.parts.shared.close_everywhere(&(kind, id), until);
            }
            Command::Load(load) => {
                let address = ctx.address();
                self.parts
                    .store
                    .load(self.parts.partition, load, move |load, loaded| {
                        let _ended = address.try_send(Input::Loaded(load, loaded)).is_err();
                    });
            }
            Command::Confirm(merchant) => {
                let address = ctx.address();
                let asked = self.parts.log.registered(&merchant);
                self.running.spawn_on(
                    async move {
                        let registered = asked.await;
                        let confirmed = Input::Confirmed(merchant, registered);
                        let _ended = address.try_send(confirmed).is_err();
                    },
                    &self.parts.tasks,
                );
            }
            Command::Purge { merchant, below } => {
                let purge = self.parts.log.purge(Purge::Merchant { merchant, below });
                self.running.spawn_on(
                    async move {
                        if let Err(error) = purge.await {
                            tracing::debug!(%error, "a purge brought no answer; it is planned anew");
                        }
                    },
                    &self.parts.tasks,
                );
            }
            Command::Event(event) => self.on_event(event),
        }
    }

    fn on_event(&self, event: Event) {
        let partition = self.parts.partition;
        match &event {
            Event::Closed { merchant, closure } => {
                let because = closure.because.as_str();
                match closure.because {
                    ClosedBecause::RateLimited => {
                        tracing::debug!(%partition, %merchant, because, "merchant closed");
                    }
                    // Each failed probe opens it again: only the first time is news.
                    ClosedBecause::Breaker if closure.times > 1 => {
                        tracing::debug!(%partition, %merchant, because, "merchant still fails");
                    }
                    ClosedBecause::Breaker => tracing::info!(
                        %partition, %merchant, because,
                        "merchant fails: its orders are kept, it is probed until it takes one"
                    ),
                    ClosedBecause::Suspended | ClosedBecause::Misconfigured => tracing::warn!(
                        %partition, %merchant, because,
                        "merchant closed: its orders are kept, it is probed once a minute"
                    ),
                }
            }
            Event::Opened { merchant } => tracing::debug!(%partition, %merchant, "merchant open"),
            Event::Quarantined { merchant } => {
                tracing::error!(
                    %partition, %merchant,
                    "merchant quarantined: its actor keeps panicking; see `expediter merchant resume`"
                );
            }
            Event::DeadLettered {
                merchant,
                id,
                reason,
            } => {
                tracing::info!(%partition, %merchant, order = %id, %reason, "order dead-lettered");
            }
            Event::Expired { merchant, id } => {
                tracing::debug!(%partition, %merchant, order = %id, "order expired");
            }
            Event::UnknownMerchant { merchant } => {
                tracing::warn!(%partition, %merchant, "orders for a merchant that is not registered");
            }
            Event::OutcomesLost => {
                tracing::error!(
                    %partition,
                    "OUTCOMES came back shorter: what waited of merchants without idempotency is parked"
                );
            }
            Event::LogLost { republish, parked } => {
                tracing::error!(%partition, republish, parked, "the broker lost acknowledged orders");
            }
            Event::Taken(_) | Event::Finished { .. } | Event::FirstStart { .. } => {}
        }
        self.parts.events.event(partition, &event);
    }

    /// Sends to a merchant's actor; a closed mailbox counts as a panic.
    fn tell(&mut self, merchant: &MerchantId, step: Step, ctx: &mut Context<Self>) {
        let Some((incarnation, actor)) = self.actors.get(merchant) else {
            return;
        };
        if actor.try_send(step).is_err() {
            let incarnation = *incarnation;
            self.on_panicked(merchant.clone(), incarnation, None, ctx);
        }
    }

    fn on_panicked(
        &mut self,
        merchant: MerchantId,
        incarnation: u64,
        answering: Option<Seq>,
        ctx: &mut Context<Self>,
    ) {
        if self
            .actors
            .get(&merchant)
            .is_some_and(|(current, _)| *current == incarnation)
        {
            self.actors.remove(&merchant);
        }
        tracing::error!(partition = %self.parts.partition, %merchant, "a merchant's actor panicked");
        self.parts.events.panicked();
        let now = Clock::now();
        let wait = self
            .parts
            .machine
            .on_panicked(&merchant, incarnation, answering, now);
        if let Some(wait) = wait {
            let address = ctx.address();
            ctx.run_later(Duration::from_millis(wait), move |_, _| {
                let rebuild = Input::Rebuild {
                    merchant,
                    incarnation,
                };
                let _ended = address.try_send(rebuild).is_err();
            });
        }
    }

    fn launch(&mut self, request: AttemptRequest, ctx: &mut Context<Self>) {
        let (seq, number) = (request.order.seq, request.number);
        let permit = self.permits.remove(&seq);
        let address = ctx.address();
        let log = Arc::clone(&self.parts.log);
        let courier = Arc::clone(&self.parts.courier);
        while self.running.try_join_next().is_some() {}
        self.running.spawn_on(
            async move {
                let answer = attempt(&*log, &*courier, request).await;
                drop(permit);
                let _ended = address
                    .try_send(Input::Answer {
                        seq,
                        number,
                        answer,
                    })
                    .is_err();
            },
            &self.parts.tasks,
        );
    }

    fn on_written(&mut self, written: Written, ctx: &mut Context<Self>) {
        let now = Clock::now();
        match written {
            Written::Acked { number, seq, took } => {
                self.parts.events.record_written(took);
                let Parts {
                    machine, directory, ..
                } = &mut self.parts;
                if let Some(Acked::Mark {
                    low_water,
                    last_taken,
                    last_taken_at,
                }) = machine.on_acked(number, seq, &**directory, now)
                {
                    // What came while it was written is younger.
                    self.parts.gauges.unmarked_since.store(0, Ordering::Relaxed);
                    self.parts.log.marked(low_water, last_taken, last_taken_at);
                }
                self.give_credits_back();
            }
            Written::Fenced { current } => {
                tracing::warn!(
                    partition = %self.parts.partition, current,
                    "another owner's claim stands: the partition stops"
                );
                self.end(ctx);
            }
            Written::Refused(why) => {
                tracing::error!(partition = %self.parts.partition, %why, "OUTCOMES takes no more");
                self.parts.events.refused();
            }
        }
    }

    fn gauge(&mut self, mono: u64) {
        let unmarked = &self.parts.gauges.unmarked_since;
        if !self.parts.machine.owes_mark() {
            unmarked.store(0, Ordering::Relaxed);
        } else if unmarked.load(Ordering::Relaxed) == 0 {
            unmarked.store(mono, Ordering::Relaxed);
        }
        if mono.saturating_sub(self.gauged) < 500_000 {
            return;
        }
        self.gauged = mono;
        self.parts.gauges.refresh(&self.parts.machine);
        let machine = &self.parts.machine;
        self.permits.retain(|seq, _| machine.is_starting(*seq));
    }

    /// Moves a hand-over on; true when it is over.
    fn step_ending(&mut self, mono: u64) -> bool {
        let Some(ending) = &mut self.ending else {
            return false;
        };
        if ending.closed.is_none() && (self.parts.machine.is_quiet() || mono >= ending.give_up_at) {
            let drained = self.parts.machine.close(Clock::now());
            let deadline = u64::try_from(FLUSH_DEADLINE.as_micros()).unwrap_or(u64::MAX);
            ending.closed = Some((drained, mono.saturating_add(deadline)));
            return false;
        }
        match &ending.closed {
            Some((_, until)) => self.parts.machine.is_flushed() || mono >= *until,
            None => false,
        }
    }

    /// The epoch is over for this process.
    fn end(&mut self, ctx: &mut Context<Self>) {
        if let Some(Ending { reply, closed, .. }) = self.ending.take() {
            let (drained, _) = closed.unwrap_or_default();
            let Drained {
                running,
                busy_until,
            } = drained;
            let _caller_gone = reply
                .send(Stopped {
                    running,
                    busy_until,
                    paused: self.parts.machine.is_paused(),
                })
                .is_err();
        }
        self.records = None;
        self.running.abort_all();
        for (_, (_, actor)) in self.actors.drain() {
            let _ended = actor.try_send(Release).is_err();
        }
        self.parts.events.ended(self.parts.partition);
        ctx.stop();
    }
}

async fn attempt(log: &dyn PartitionLog, courier: &dyn Courier, request: AttemptRequest) -> Answer {
    let failed = |class, detail: &str| Answer {
        class,
        status: None,
        retry_after: None,
        absent: false,
        detail: detail.to_owned(),
        excerpt: Default::default(),
        took: Duration::ZERO,
    };
    if !log.lease_fresh() {
        return failed(
            AttemptClass::Local,
            "the node's lease is not fresh: nothing was sent",
        );
    }
    // The call itself may panic, not only its future.
    let attempt = async { courier.attempt(request).await };
    match AssertUnwindSafe(attempt).catch_unwind().await {
        Ok(answer) => answer,
        Err(_) => failed(
            AttemptClass::Ambiguous,
            "the adapter panicked during the attempt",
        ),
    }
}

impl PartitionActor {
    /// Credits bound what comes in (intake, attempts in flight, one record, one load a merchant),
    /// so the mailbox itself must refuse nothing, from the first message on.
    pub(crate) fn start_unbounded(self) -> Addr<Self> {
        Self::create(|ctx| {
            ctx.set_mailbox_capacity(0);
            self
        })
    }
}

impl Actor for PartitionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // One record is under way at a time.
        let (records, receiver) = mpsc::channel(1);
        self.records = Some(records);
        let address = ctx.address();
        let tell = move |written| {
            let _ended = address.try_send(Input::Written(written)).is_err();
        };
        self.parts
            .tasks
            .spawn(writer::run(Arc::clone(&self.parts.log), receiver, tell));
        let Parts {
            machine, directory, ..
        } = &mut self.parts;
        machine.wake_all(&**directory, Clock::now());
        self.pump(ctx);
    }
}

impl Handler<Input> for PartitionActor {
    type Result = ();

    fn handle(&mut self, input: Input, ctx: &mut Self::Context) {
        self.handle_input(input, ctx);
    }
}
