//! Who of a node's merchants may start next, where they share limits.
//!
//! A start takes from every scope of its merchant at once, or waits in the queues of those that have
//! no room; each start is asked for anew, so that merchants take turns. Rates are token buckets that
//! refill with the node's share of the rate: a share that moves from node to node brings no tokens
//! along, so over all nodes no window passes more than the rate and the burst (at least one order
//! for each node that holds a share). A quota over a longer period is spread evenly, with the same
//! burst: that holds over nodes that do not know each other's past.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use expediter_types::{Rate, Slice};

/// A scope of this node; never given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeId(pub u32);

/// A start that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// The scopes of one merchant: at most its group, its credential, the node. Ascending, each once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    ids: [Option<ScopeId>; 3],
}

impl Needs {
    /// Of these; more than three are ignored.
    #[must_use]
    pub fn of(ids: impl IntoIterator<Item = ScopeId>) -> Self {
        let mut needs = Self::default();
        for (place, id) in needs.ids.iter_mut().zip(ids) {
            *place = Some(id);
        }
        needs.ids.sort_by_key(|id| id.map_or(u32::MAX, |id| id.0));
        needs
    }

    /// The merchant shares no limits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids[0].is_none()
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = ScopeId> {
        self.ids.into_iter().flatten()
    }
}

/// What a scope allows in all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScopeLimits {
    /// All hold at once.
    pub rates: Vec<Rate>,
    /// Orders that may go at once; at least 1.
    pub burst: u32,
    /// `None`: unlimited.
    pub concurrency: Option<u32>,
}

/// What keeps a scope's orders back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The rate, until then.
    Rate(u64),
    /// The concurrency: an attempt has to end.
    Concurrency,
    /// The merchants asked to wait until then.
    Closed(u64),
    /// No slice of the limit is leased to this node.
    NoSlice,
}

/// A scope as it stands on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScopeStatus {
    /// Merchants with a start that waits for it.
    pub waiting: usize,
    /// Attempts that run.
    pub in_use: u32,
    pub slice: Slice,
    /// `None`: one could start now.
    pub held: Option<Held>,
}

#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// One order is the rate's period in microseconds, times [`Slice::WHOLE`].
    tokens: u128,
    at: u64,
}

impl Bucket {
    fn empty(rate: Rate, at: u64) -> Self {
        let tokens = 0;
        Self { rate, tokens, at }
    }

    fn order(&self) -> u128 {
        self.rate.period().as_micros() * u128::from(Slice::WHOLE)
    }

    fn speed(&self, share: u32) -> u128 {
        u128::from(self.rate.count()) * u128::from(share)
    }

    fn refill(&mut self, share: u32, burst: u32, now: u64) {
        let burst = u128::from(burst) * u128::from(share) / u128::from(Slice::WHOLE);
        let full = if share == 0 {
            0
        } else {
            burst.max(1) * self.order()
        };
        let passed = u128::from(now.saturating_sub(self.at));
        self.tokens = (self.tokens + passed * self.speed(share)).min(full);
        self.at = self.at.max(now);
    }

    /// When the next order may go, after a refill at `now`; `None`: never.
    fn ready_at(&self, share: u32, now: u64) -> Option<u64> {
        let lacking = self.order().saturating_sub(self.tokens);
        let wait = match lacking {
            0 => 0,
            _ => lacking.div_ceil(self.speed(share).max(1)),
        };
        (share > 0).then(|| now.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)))
    }
}

/// Starts in their turn.
#[derive(Debug, Default)]
struct Queue {
    line: BTreeMap<u64, Ticket>,
    places: HashMap<Ticket, u64>,
    last: u64,
}

impl Queue {
    /// Once, at the end.
    fn push(&mut self, ticket: Ticket) {
        if let Entry::Vacant(place) = self.places.entry(ticket) {
            self.last += 1;
            place.insert(self.last);
            self.line.insert(self.last, ticket);
        }
    }

    fn remove(&mut self, ticket: Ticket) {
        if let Some(place) = self.places.remove(&ticket) {
            self.line.remove(&place);
        }
    }

    fn contains(&self, ticket: Ticket) -> bool {
        self.places.contains_key(&ticket)
    }

    fn front(&self) -> Option<Ticket> {
        self.next(0).map(|(_, ticket)| ticket)
    }

    /// The first one at or behind this place.
    fn next(&self, from: u64) -> Option<(u64, Ticket)> {
        let (place, ticket) = self.line.range(from..).next()?;
        Some((*place, *ticket))
    }

    fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    fn len(&self) -> usize {
        self.line.len()
    }
}

#[derive(Debug)]
struct Scope {
    limits: ScopeLimits,
    buckets: Vec<Bucket>,
    slice: Slice,
    slice_until: u64,
    in_use: u32,
    closed_until: u64,
    queue: Queue,
    /// Since it was last asked for its demand.
    taken: u32,
    most_in_use: u32,
    lacked: bool,
    used_at: u64,
    asked_at: u64,
    wanted: Slice,
}

impl Scope {
    fn slice(&self, now: u64) -> Slice {
        if now < self.slice_until {
            self.slice
        } else {
            Slice::default()
        }
    }

    fn refill(&mut self, now: u64) {
        // What was leased counts until its end, also when nobody looked meanwhile.
        if now > self.slice_until && self.slice != Slice::default() {
            let until = self.slice_until;
            self.refill_at(self.slice.share, until);
            self.slice = Slice::default();
        }
        self.refill_at(self.slice(now).share, now);
    }

    fn refill_at(&mut self, share: u32, now: u64) {
        for bucket in &mut self.buckets {
            bucket.refill(share, self.limits.burst, now);
        }
    }

    fn held(&mut self, now: u64) -> Option<Held> {
        if now < self.closed_until {
            return Some(Held::Closed(self.closed_until));
        }
        self.refill(now);
        let slice = self.slice(now);
        if let Some(concurrency) = self.limits.concurrency {
            let slots = slice.slots.min(concurrency);
            if self.in_use >= slots {
                let none = slots == 0;
                return Some(if none {
                    Held::NoSlice
                } else {
                    Held::Concurrency
                });
            }
        }
        let mut latest = now;
        for bucket in &self.buckets {
            match bucket.ready_at(slice.share, now) {
                Some(at) => latest = latest.max(at),
                None => return Some(Held::NoSlice),
            }
        }
        (latest > now).then_some(Held::Rate(latest))
    }

    fn take(&mut self, now: u64) {
        for bucket in &mut self.buckets {
            bucket.tokens = bucket.tokens.saturating_sub(bucket.order());
        }
        self.in_use += 1;
        self.taken += 1;
        self.most_in_use = self.most_in_use.max(self.in_use);
        self.used_at = now;
    }

    fn set_limits(&mut self, limits: ScopeLimits, now: u64) {
        self.refill(now);
        let mut old = std::mem::take(&mut self.buckets);
        old.sort_by_key(|bucket| bucket.rate.period());
        let same = old.len() == limits.rates.len();
        let mut rates = limits.rates.clone();
        rates.sort_by_key(Rate::period);
        self.buckets = rates
            .into_iter()
            .map(|rate| Bucket::empty(rate, now))
            .collect();
        if same {
            // What was spent stays spent, at the new pace.
            for (new, old) in self.buckets.iter_mut().zip(&old) {
                new.tokens = old.tokens * new.order() / old.order().max(1);
            }
        }
        self.limits = limits;
        self.refill(now);
    }
}

/// What one node wants of a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    pub wants: Slice,
    pub in_use: u32,
    /// The concurrency of all nodes; 0 when it is unlimited.
    pub whole: u32,
}

#[derive(Debug)]
struct Waiter {
    needs: Needs,
    /// Taken already, for a start that the next scope keeps back.
    held: Needs,
}

/// How long a scope keeps its slice without a start; microseconds.
const IDLE: u64 = 10_000_000;

/// What is used is measured over so long at least; microseconds.
const MEASURED: u64 = 900_000;

/// All scopes of a node. Times are microseconds of the monotonic clock.
#[derive(Debug, Default)]
pub struct Scopes {
    scopes: BTreeMap<ScopeId, Scope>,
    waiters: BTreeMap<Ticket, Waiter>,
    last: u64,
    /// Scopes that began to lack a slice or more of one since they were last named.
    hungry: Vec<ScopeId>,
}

impl Scopes {
    /// Makes or changes a scope. A new one starts empty, without a slice.
    pub fn put(&mut self, id: ScopeId, limits: ScopeLimits, now: u64) {
        let scope = self.scopes.entry(id).or_insert_with(|| Scope {
            limits: ScopeLimits::default(),
            buckets: Vec::new(),
            slice: Slice::default(),
            slice_until: 0,
            in_use: 0,
            closed_until: 0,
            queue: Queue::default(),
            taken: 0,
            most_in_use: 0,
            lacked: false,
            used_at: 0,
            asked_at: 0,
            wanted: Slice::default(),
        });
        scope.set_limits(limits, now);
    }

    /// Its limits hold no more: what waits for it alone can go.
    pub fn remove(&mut self, id: ScopeId, now: u64) -> Vec<Ticket> {
        let Some(scope) = self.scopes.remove(&id) else {
            return Vec::new();
        };
        let waiting = scope.queue.line.into_values();
        waiting
            .filter(|ticket| self.try_grant(*ticket, now))
            .collect()
    }

    /// What this node may use of it from now on.
    pub fn lease(&mut self, id: ScopeId, slice: Slice, until: u64, now: u64) {
        if let Some(scope) = self.scopes.get_mut(&id) {
            scope.refill(now);
            (scope.slice, scope.slice_until) = (slice, until);
            scope.refill(now);
        }
    }

    /// A merchant asked all of the scope to wait; an earlier time than known changes nothing.
    pub fn close(&mut self, id: ScopeId, until: u64) {
        if let Some(scope) = self.scopes.get_mut(&id) {
            scope.closed_until = scope.closed_until.max(until);
        }
    }

    /// Takes from all scopes of a start that nobody waits before; false: nothing is taken.
    pub fn take(&mut self, needs: Needs, now: u64) -> bool {
        let free = needs.iter().all(|id| {
            self.scopes
                .get_mut(&id)
                .is_none_or(|scope| scope.queue.is_empty() && scope.held(now).is_none())
        });
        if free {
            needs.iter().for_each(|id| self.take_one(id, now));
        }
        free
    }

    fn take_one(&mut self, id: ScopeId, now: u64) {
        if let Some(scope) = self.scopes.get_mut(&id) {
            scope.take(now);
        }
    }

    /// Puts a start at the end of the queues of what keeps it back. [`Scopes::dispatch`] may grant it
    /// at once.
    pub fn enqueue(&mut self, needs: Needs, now: u64) -> Ticket {
        self.last += 1;
        let ticket = Ticket(self.last);
        let held = Needs::default();
        self.waiters.insert(ticket, Waiter { needs, held });
        let mut anywhere = false;
        for id in needs.iter() {
            let lacks = self
                .scopes
                .get_mut(&id)
                .is_some_and(|scope| !scope.queue.is_empty() || scope.held(now).is_some());
            if lacks {
                self.line_up(id, ticket, now);
                anywhere = true;
            }
        }
        if let Some(id) = needs.iter().next().filter(|_| !anywhere) {
            self.line_up(id, ticket, now);
        }
        ticket
    }

    fn line_up(&mut self, id: ScopeId, ticket: Ticket, now: u64) {
        let Some(scope) = self.scopes.get_mut(&id) else {
            return;
        };
        scope.queue.push(ticket);
        scope.used_at = now;
        if !std::mem::replace(&mut scope.lacked, true) {
            self.hungry.push(id);
        }
    }

    /// Grants what can go now, in turn. A granted start has taken from all its scopes.
    pub fn dispatch(&mut self, now: u64) -> Vec<Ticket> {
        let mut granted = Vec::new();
        let waiting = self
            .scopes
            .iter()
            .filter(|(_, scope)| !scope.queue.is_empty());
        let ids: Vec<ScopeId> = waiting.map(|(id, _)| *id).collect();
        for id in ids {
            let mut from = 0;
            while let Some(scope) = self.scopes.get_mut(&id) {
                let Some((place, ticket)) = scope.queue.next(from) else {
                    break;
                };
                if scope.held(now).is_some() {
                    break;
                }
                from = place + 1;
                if self.try_grant(ticket, now) {
                    granted.push(ticket);
                } else {
                    self.hold(id, ticket);
                }
            }
        }
        granted
    }

    /// Takes from all scopes of a waiting start, or lines it up for what it lacks.
    fn try_grant(&mut self, ticket: Ticket, now: u64) -> bool {
        let Some(waiter) = self.waiters.get(&ticket) else {
            return false;
        };
        let (needs, held) = (waiter.needs, waiter.held);
        let open: Vec<ScopeId> = needs
            .iter()
            .filter(|id| held.iter().all(|h| h != *id))
            .collect();
        let mut lacking = open.clone();
        lacking.retain(|id| {
            self.scopes
                .get_mut(id)
                .is_some_and(|scope| scope.held(now).is_some())
        });
        if lacking.is_empty() {
            open.iter().for_each(|id| self.take_one(*id, now));
            self.waiters.remove(&ticket);
            self.leave_queues(needs, ticket);
            return true;
        }
        lacking.iter().for_each(|id| self.line_up(*id, ticket, now));
        false
    }

    /// One that is the first wherever it still waits keeps its place in this scope, so that two full
    /// scopes cannot keep it out by turns. Only in ascending order, so that no two wait for each
    /// other.
    fn hold(&mut self, id: ScopeId, ticket: Ticket) {
        let Some(waiter) = self.waiters.get(&ticket) else {
            return;
        };
        let (needs, held) = (waiter.needs, waiter.held);
        let first = |scopes: &BTreeMap<ScopeId, Scope>, id: ScopeId| {
            scopes
                .get(&id)
                .is_none_or(|scope| scope.queue.front() == Some(ticket))
        };
        let others = needs
            .iter()
            .filter(|n| *n != id && held.iter().all(|h| h != *n));
        let waits: Vec<ScopeId> = others
            .filter(|other| {
                self.scopes
                    .get(other)
                    .is_some_and(|s| s.queue.contains(ticket))
            })
            .collect();
        let all = !waits.is_empty()
            && first(&self.scopes, id)
            && waits
                .iter()
                .all(|other| *other > id && first(&self.scopes, *other));
        if !all {
            return;
        }
        if let Some(scope) = self.scopes.get_mut(&id) {
            scope.queue.remove(ticket);
            let now = scope.used_at;
            scope.take(now);
        }
        if let Some(waiter) = self.waiters.get_mut(&ticket) {
            waiter.held = Needs::of(held.iter().chain([id]));
        }
    }

    /// A start waits no more: what it had taken is available again.
    pub fn leave(&mut self, ticket: Ticket, now: u64) {
        if let Some(Waiter { needs, held }) = self.waiters.remove(&ticket) {
            self.leave_queues(needs, ticket);
            self.give_back(held, true, now);
        }
    }

    fn leave_queues(&mut self, needs: Needs, ticket: Ticket) {
        for id in needs.iter() {
            if let Some(scope) = self.scopes.get_mut(&id) {
                scope.queue.remove(ticket);
            }
        }
    }

    /// A start's attempt ended; `unused`: it never began, and its part of the rates is available
    /// again.
    pub fn give_back(&mut self, needs: Needs, unused: bool, now: u64) {
        for id in needs.iter() {
            let Some(scope) = self.scopes.get_mut(&id) else {
                continue;
            };
            scope.in_use = scope.in_use.saturating_sub(1);
            if unused {
                scope.refill(now);
                for bucket in &mut scope.buckets {
                    bucket.tokens += bucket.order();
                }
                // No more than fits.
                scope.refill(now);
            }
        }
    }

    /// When [`Scopes::dispatch`] can grant something without another input.
    #[must_use]
    pub fn next_at(&mut self, now: u64) -> Option<u64> {
        let waiting = self
            .scopes
            .values_mut()
            .filter(|scope| !scope.queue.is_empty());
        let times = waiting.filter_map(|scope| match scope.held(now) {
            Some(Held::Rate(at) | Held::Closed(at)) => Some(at),
            Some(Held::Concurrency | Held::NoSlice) | None => None,
        });
        times.min()
    }

    /// Scopes whose slice should be looked at now; each is named once until [`Scopes::want`].
    pub fn take_hungry(&mut self) -> Vec<ScopeId> {
        std::mem::take(&mut self.hungry)
    }

    /// What this node wants of a scope, from what it used lately. `None`: there is no such scope.
    pub fn want(&mut self, id: ScopeId, now: u64) -> Option<Want> {
        let scope = self.scopes.get_mut(&id)?;
        let whole = scope.limits.concurrency.unwrap_or(0);
        let waits = !scope.queue.is_empty() || scope.lacked;
        let idle = now >= scope.used_at.saturating_add(IDLE);
        let since = now.saturating_sub(scope.asked_at);
        if since < MEASURED && !waits {
            return Some(Want {
                wants: scope.wanted,
                in_use: scope.in_use,
                whole,
            });
        }
        let wants = if waits {
            Slice {
                share: Slice::WHOLE,
                slots: whole,
            }
        } else if idle {
            Slice::default()
        } else {
            // Half as much again as was used, in steps, so that it does not change each time.
            let used = |rate: &Rate| {
                let passed = u128::from(since.max(1)) * u128::from(rate.count());
                let used = u128::from(scope.taken) * rate.period().as_micros() * 1_500 / passed;
                u32::try_from(used)
                    .unwrap_or(u32::MAX)
                    .div_ceil(125)
                    .saturating_mul(125)
            };
            let share = scope.limits.rates.iter().map(used).max().unwrap_or(125);
            let slots = scope.most_in_use.saturating_mul(3) / 2 + 1;
            Slice {
                share: share.clamp(125, Slice::WHOLE),
                slots: slots.next_power_of_two().min(whole),
            }
        };
        (scope.taken, scope.most_in_use) = (0, scope.in_use);
        (scope.asked_at, scope.wanted) = (now, wants);
        scope.lacked = !scope.queue.is_empty();
        Some(Want {
            wants,
            in_use: scope.in_use,
            whole,
        })
    }

    /// For those who ask why an order waits.
    pub fn status(&mut self, id: ScopeId, now: u64) -> Option<ScopeStatus> {
        let scope = self.scopes.get_mut(&id)?;
        Some(ScopeStatus {
            waiting: scope.queue.len(),
            in_use: scope.in_use,
            held: scope.held(now),
            slice: scope.slice(now),
        })
    }

    /// Starts that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }
}

#[cfg(test)]
mod tests;
