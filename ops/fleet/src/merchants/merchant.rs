use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use hyper::HeaderMap;
use xxhash_rust::xxh3::xxh3_64;

use super::judge::{Group, Seen, Tally};
use super::plan::{Choice, Pace, Plan, Reply};
use super::{Arrival, MerchantStats, Record};

/// A simulated merchant: how it answers, and what reached it.
#[derive(Debug)]
pub(super) struct Merchant {
    pub(super) id: String,
    /// Where its arrivals are timed; `None` without a judge.
    pub(super) group: Option<Arc<Group>>,
    in_flight: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    plan: Arc<Plan>,
    /// It has a behaviour of its own, which a new default does not replace.
    own: bool,
    /// Arrivals since the behaviour was set.
    since_set: u64,
    pace: Pace,
    stats: MerchantStats,
    arrivals: Vec<Arrival>,
    /// How often the arrivals were cleared: an answer to one of before has no place any more.
    cleared: u32,
    seen: Seen,
}

/// An arrival that has been recorded and decided on.
#[derive(Debug)]
pub(super) struct Decided {
    plan: Arc<Plan>,
    choice: Choice,
    pub(super) delay: Duration,
    /// Its place among the arrivals, and how often they had been cleared.
    place: Option<(usize, u32)>,
}

impl Decided {
    pub(super) fn reply(&self) -> &Reply {
        self.plan.reply(self.choice)
    }
}

impl Merchant {
    pub(super) fn new(id: &str, plan: Arc<Plan>, group: Option<Arc<Group>>) -> Self {
        let state = Mutex::new(State {
            plan,
            own: false,
            since_set: 0,
            pace: Pace::default(),
            stats: MerchantStats::default(),
            arrivals: Vec::new(),
            cleared: 0,
            seen: Seen::default(),
        });
        Self {
            id: id.to_owned(),
            group,
            in_flight: AtomicU32::new(0),
            state,
        }
    }

    /// A request begins: it is in flight until the returned guard is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// An order's body is complete.
    pub(super) fn arrive(&self, headers: &HeaderMap, body: &Body, record: Record) -> Decided {
        let (at_us, now) = (unix_micros(), Instant::now());
        let hash = if record == Record::Arrivals {
            xxh3_64(&body.bytes)
        } else {
            0
        };
        let mut guard = self.state();
        let state = &mut *guard;
        let plan = Arc::clone(&state.plan);
        let nth = state.since_set;
        state.since_set += 1;
        let early = state.pace.closed_until.is_some_and(|until| now < until);
        let choice = plan.choose(nth, &mut state.pace, now);
        let reply = plan.reply(choice);
        if record >= Record::Counts {
            let stats = &mut state.stats;
            stats.arrived += 1;
            stats.too_early += u64::from(early);
            let in_flight = self.in_flight.load(Ordering::Relaxed);
            stats.max_in_flight = stats.max_in_flight.max(in_flight);
        }
        let place = (record == Record::Arrivals).then(|| {
            let text = |name: &str| {
                let value = headers.get(name)?;
                Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
            };
            state.arrivals.push(Arrival {
                merchant: self.id.clone(),
                order_id: text("expediter-order-id").unwrap_or_default(),
                idempotency_key: text("idempotency-key"),
                attempt: text("expediter-attempt")
                    .and_then(|n| n.parse().ok())
                    .unwrap_or(0),
                at_us,
                body_len: body.len,
                body_hash: hash,
                decided: reply.status.as_u16(),
                answered: None,
            });
            (state.arrivals.len() - 1, state.cleared)
        });
        if let Some(group) = &self.group {
            let judged = state.seen.judge(&body.bytes, reply.status.is_success());
            drop(guard);
            if let Some((mark, first)) = judged {
                group.arrived(mark, first, at_us);
            }
        }
        Decided {
            delay: plan.delay(nth, choice),
            plan,
            choice,
            place,
        }
    }

    /// The decision has been carried out.
    pub(super) fn answered(&self, decided: &Decided, record: Record) {
        if record == Record::Off {
            return;
        }
        let reply = decided.reply();
        let mut state = self.state();
        if !reply.ending.answers() {
            state.stats.unanswered += 1;
            return;
        }
        let status = reply.status.as_u16();
        *state.stats.answered.entry(status).or_default() += 1;
        if let Some((index, cleared)) = decided.place
            && cleared == state.cleared
        {
            state.arrivals[index].answered = Some(status);
        }
    }

    /// A request ended before its body was complete.
    pub(super) fn incomplete(&self) {
        self.state().stats.incomplete += 1;
    }

    pub(super) fn set(&self, plan: Arc<Plan>, own: bool) {
        let mut state = self.state();
        state.plan = plan;
        state.own = own;
        state.since_set = 0;
        state.pace = Pace::default();
    }

    /// Follows the default unless it has a behaviour of its own.
    pub(super) fn set_default(&self, plan: &Arc<Plan>) {
        if !self.state().own {
            self.set(Arc::clone(plan), false);
        }
    }

    pub(super) fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.state().plan)
    }

    pub(super) fn clear(&self) {
        let mut state = self.state();
        state.stats = MerchantStats::default();
        state.arrivals = Vec::new();
        state.cleared += 1;
        state.seen = Seen::default();
    }

    pub(super) fn stats(&self) -> MerchantStats {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        MerchantStats {
            in_flight,
            ..self.state().stats.clone()
        }
    }

    pub(super) fn tally(&self) -> Tally {
        self.state().seen.tally()
    }

    /// At most `count` arrivals from the `from`th on.
    pub(super) fn arrivals(&self, from: usize, count: usize) -> Vec<Arrival> {
        let state = self.state();
        let rest = state.arrivals.get(from..).unwrap_or_default();
        rest[..rest.len().min(count)].to_vec()
    }

    /// The first arrival of an order that was taken.
    pub(super) fn taken(&self, order_id: &str) -> Option<Arrival> {
        let taken = |arrival: &&Arrival| arrival.order_id == order_id && arrival.is_taken();
        self.state().arrivals.iter().find(taken).cloned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's body; `bytes` are empty when nobody looks at them.
#[derive(Debug, Default)]
pub(super) struct Body {
    pub(super) len: u64,
    pub(super) bytes: Bytes,
}

/// Counts a request as in flight as long as it lives.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Merchant>);

impl std::ops::Deref for InFlight {
    type Target = Merchant;

    fn deref(&self) -> &Merchant {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn unix_micros() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
