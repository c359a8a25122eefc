//! A merchant's actor: its mailbox, its machine, its timer.
//!
//! Recipe for panics: the pure step runs under `catch_unwind`; after a panic the actor tells its
//! partition and stops, and the partition starts another one from its window. Whatever else might
//! panic closes the mailbox, which the partition notices at its next send.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::SendError;
use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message, SpawnHandle};
use expediter_core::merchant::{
    Accepting, Closure, Effect, Ended, MerchantMachine, Next, Offer, Wait,
};
use expediter_core::partition::Report;
use expediter_core::quota::Quotas;
use expediter_core::scopes::Needs;
use expediter_types::{Merchant, MerchantId, Now, Seq};

use crate::capacity::{Capacity, Permit};
use crate::clock::Clock;
use crate::partition_actor::{Input, PartitionActor};
use crate::scopes::{Place, Shared, SharedPermit, Taken, Tell};

/// What a merchant's machine is about to do.
#[derive(Debug, Clone)]
pub enum Step {
    Offer(Offer),
    Answer {
        seq: Seq,
        number: u32,
        ended: Ended,
    },
    Change(Arc<Merchant>),
    Halt,
    /// Give this order back if it has not started.
    Withdraw(Seq),
    /// Time passed.
    Poke,
    /// Capacity may have come free; for those who hold little, or much.
    Capacity {
        small: bool,
    },
}

/// Called before each step of each merchant, inside the step's panic boundary: for tests that
/// provoke panics.
pub type StepHook = Arc<dyn Fn(&MerchantId, &Step) + Send + Sync>;

impl Message for Step {
    type Result = ();
}

/// What a new actor starts with.
pub(crate) struct Start {
    pub(crate) merchant: Arc<Merchant>,
    pub(crate) incarnation: u64,
    pub(crate) limits_since: u64,
    pub(crate) spent: Quotas,
    pub(crate) closure: Option<Closure>,
    pub(crate) window: Vec<(Offer, Option<u32>)>,
}

/// What all actors of a partition share.
#[derive(Clone)]
pub(crate) struct Around {
    pub(crate) partition: Addr<PartitionActor>,
    pub(crate) capacity: Arc<Capacity>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) hook: Option<StepHook>,
}

/// What an attempt takes up while it runs; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permits {
    _node: Permit,
    _shared: Option<SharedPermit>,
}

/// What the start of a merchant takes of the limits that it shares.
struct Sharing {
    shared: Arc<Shared>,
    /// Of [`Shared::version`], when `needs` was looked up.
    version: u64,
    needs: Needs,
    /// A start waits in the queues.
    place: Option<Place>,
    /// Its turn came: kept until it starts, or turns out to have no order.
    granted: Option<SharedPermit>,
}

/// What a step led to.
struct Stepped {
    starts: Vec<(Seq, u32)>,
    permits: Vec<Permits>,
    effects: Vec<Effect>,
    accepting: Accepting,
    waits: Wait,
}

pub(crate) struct MerchantActor {
    id: MerchantId,
    incarnation: u64,
    machine: MerchantMachine,
    partition: Addr<PartitionActor>,
    capacity: Arc<Capacity>,
    merchant: Arc<Merchant>,
    sharing: Sharing,
    hook: Option<StepHook>,
    told: Option<(Accepting, Wait)>,
    timer: Option<(u64, SpawnHandle)>,
    /// Waits for capacity among those who hold much, and among those who hold little.
    waits: [bool; 2],
    random: u64,
}

impl MerchantActor {
    pub(crate) fn new(start: Start, around: Around) -> Self {
        let now = Clock::now();
        let Start {
            merchant,
            incarnation,
            limits_since,
            spent,
            closure,
            window,
        } = start;
        let id = merchant.id.clone();
        let mut machine = MerchantMachine::new(Arc::clone(&merchant), limits_since, spent, closure);
        for (offer, running) in window {
            machine.offer(offer);
            if let Some(number) = running {
                machine.adopt(offer.seq, number);
            }
        }
        Self {
            random: now.mono ^ incarnation.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15,
            id,
            incarnation,
            machine,
            partition: around.partition,
            capacity: around.capacity,
            merchant,
            sharing: Sharing {
                shared: around.shared,
                version: 0,
                needs: Needs::default(),
                place: None,
                granted: None,
            },
            hook: around.hook,
            told: None,
            timer: None,
            waits: [false; 2],
        }
    }

    /// Credits bound the mailbox: the partition offers no more than the merchant's mailbox takes,
    /// and each running attempt answers once. So actix's own bound must refuse nothing.
    pub(crate) fn start_unbounded(self) -> Addr<Self> {
        Self::create(|ctx| {
            ctx.set_mailbox_capacity(0);
            self
        })
    }

    fn random(&mut self) -> u64 {
        // splitmix64: jitter needs spread, not secrecy.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn step(&mut self, step: Step, ctx: &mut Context<Self>) {
        let answering = match &step {
            Step::Answer { seq, .. } => Some(*seq),
            _ => None,
        };
        let now = Clock::now();
        match catch_unwind(AssertUnwindSafe(|| self.run(step, now, ctx))) {
            Ok(report) => self.report(report),
            Err(_) => {
                // The step may have been a wake-up.
                self.capacity.pass_on();
                let (merchant, incarnation) = (self.id.clone(), self.incarnation);
                let panicked = Input::Panicked {
                    merchant,
                    incarnation,
                    answering,
                };
                let _partition_ended = self.partition.try_send(panicked).is_err();
                ctx.stop();
            }
        }
    }

    fn run(&mut self, step: Step, now: Now, ctx: &mut Context<Self>) -> Stepped {
        if let Some(hook) = &self.hook {
            hook(&self.id, &step);
        }
        let woken = matches!(step, Step::Capacity { .. });
        match step {
            Step::Offer(offer) => self.machine.offer(offer),
            Step::Answer { seq, number, ended } => {
                let random = self.random();
                self.machine.answer(seq, number, ended, now, random);
            }
            Step::Change(merchant) => {
                self.merchant = Arc::clone(&merchant);
                self.sharing.version = 0;
                self.machine.change(merchant, now);
            }
            Step::Halt => self.machine.halt(),
            Step::Withdraw(seq) => self.machine.take_back(seq),
            Step::Poke => {}
            Step::Capacity { small } => self.waits[usize::from(small)] = false,
        }
        let (starts, permits) = self.advance(now, ctx);
        if woken && (starts.is_empty() || self.waits == [false; 2]) {
            // The place is another's, when there is one still.
            self.capacity.pass_on();
        }
        let effects = self.machine.take_effects();
        Stepped {
            starts,
            permits,
            effects,
            accepting: self.machine.accepting(now),
            waits: match self.machine.waits(now) {
                Wait::Capacity if self.sharing.place.is_some() => Wait::Shared,
                waits => waits,
            },
        }
    }

    /// Starts what may start.
    fn advance(&mut self, now: Now, ctx: &mut Context<Self>) -> (Vec<(Seq, u32)>, Vec<Permits>) {
        let (mut starts, mut permits) = (Vec::new(), Vec::new());
        loop {
            match self.machine.next(now) {
                Next::Start(seq) => {
                    let Some(permit) = self.take_permits(ctx) else {
                        break;
                    };
                    let Some(number) = self.machine.start(seq, now) else {
                        break;
                    };
                    starts.push((seq, number));
                    permits.push(permit);
                }
                Next::At(at) => {
                    self.arm(at, now, ctx);
                    self.sharing.granted = None;
                    break;
                }
                Next::Idle => {
                    self.sharing.granted = None;
                    break;
                }
            }
        }
        (starts, permits)
    }

    /// A place of the node, and room in every limit that is shared.
    fn take_permits(&mut self, ctx: &mut Context<Self>) -> Option<Permits> {
        let version = self.sharing.shared.version();
        if version != self.sharing.version {
            self.sharing.version = version;
            let needs = self.sharing.shared.needs(&self.merchant);
            if needs != self.sharing.needs {
                // Its place was in other queues.
                (self.sharing.place, self.sharing.granted) = (None, None);
                self.sharing.needs = needs;
            }
        }
        if self.sharing.place.is_some() {
            return None;
        }
        let node = self.take_capacity(ctx)?;
        let mut shared = self.sharing.granted.take();
        if shared.is_none() && !self.sharing.needs.is_empty() {
            let address = ctx.address();
            let tell = || -> Tell {
                Box::new(move |permit| match address.try_send(Granted(permit)) {
                    Ok(()) => None,
                    Err(SendError::Full(Granted(permit)) | SendError::Closed(Granted(permit))) => {
                        Some(permit)
                    }
                })
            };
            match self.sharing.shared.take(self.sharing.needs, tell) {
                Taken::Now(permit) => shared = Some(permit),
                Taken::Waits(place) => {
                    self.sharing.place = Some(place);
                    return None;
                }
            }
        }
        if let Some(shared) = &mut shared {
            shared.spend();
        }
        Some(Permits {
            _node: node,
            _shared: shared,
        })
    }

    fn take_capacity(&mut self, ctx: &mut Context<Self>) -> Option<Permit> {
        let held = self.machine.running();
        let small = Capacity::is_small(held);
        if let Some(permit) = self.capacity.take(held) {
            return Some(permit);
        }
        if std::mem::replace(&mut self.waits[usize::from(small)], true) {
            return None;
        }
        let address = ctx.address();
        let wake = Box::new(move || address.try_send(Step::Capacity { small }).is_ok());
        let permit = self.capacity.wait(held, wake);
        if permit.is_some() {
            self.waits[usize::from(small)] = false;
        }
        permit
    }

    /// One timer; it is moved only to fire earlier, and looks again when it fires.
    fn arm(&mut self, at: u64, now: Now, ctx: &mut Context<Self>) {
        if let Some((armed, handle)) = self.timer {
            if armed <= at {
                return;
            }
            ctx.cancel_future(handle);
        }
        // Deadlines may be far: look again after a minute, so that a jump of the wall clock is seen.
        let wait = at.saturating_sub(now.mono).min(60_000_000) + 500;
        let handle = ctx.run_later(Duration::from_micros(wait), |actor, ctx| {
            actor.timer = None;
            actor.step(Step::Poke, ctx);
        });
        self.timer = Some((at, handle));
    }

    fn report(&mut self, stepped: Stepped) {
        let Stepped {
            starts,
            permits,
            effects,
            accepting,
            waits,
        } = stepped;
        let told = Some((accepting, waits));
        if starts.is_empty() && effects.is_empty() && self.told == told {
            return;
        }
        self.told = told;
        let report = Report {
            merchant: self.id.clone(),
            incarnation: self.incarnation,
            starts,
            effects,
            accepting,
            waits,
        };
        let _partition_ended = self
            .partition
            .try_send(Input::Report(report, permits))
            .is_err();
    }
}

impl Actor for MerchantActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if !self.machine.is_empty() {
            self.step(Step::Poke, ctx);
        }
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        // A wake-up may lie in the mailbox.
        self.capacity.pass_on();
    }
}

impl Handler<Step> for MerchantActor {
    type Result = ();

    fn handle(&mut self, step: Step, ctx: &mut Self::Context) {
        self.step(step, ctx);
    }
}

/// The turn of a start that waited for shared limits.
struct Granted(SharedPermit);

impl Message for Granted {
    type Result = ();
}

impl Handler<Granted> for MerchantActor {
    type Result = ();

    fn handle(&mut self, Granted(permit): Granted, ctx: &mut Self::Context) {
        // One of former queues is given back.
        if permit.is_for(self.sharing.needs) {
            (self.sharing.place, self.sharing.granted) = (None, Some(permit));
        }
        self.step(Step::Poke, ctx);
    }
}

/// The partition lets the actor go.
pub(crate) struct Release;

impl Message for Release {
    type Result = ();
}

impl Handler<Release> for MerchantActor {
    type Result = ();

    fn handle(&mut self, _: Release, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
