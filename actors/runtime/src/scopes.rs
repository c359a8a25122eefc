//! Limits that merchants share, on this node: who waits, who is told, what is held.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use expediter_core::scopes::{Held, Needs, ScopeId, ScopeLimits, Scopes, Ticket};
use expediter_ports::{BoxFuture, SharedLimit, SharedLimits, SliceWant};
use expediter_types::{LimitScope, Merchant, Now, Rate, Scope, Slice, UnixMillis};
use tokio::sync::{Notify, mpsc};

use crate::clock::Clock;
use crate::registry::MerchantDirectory;

/// The node's own rate.
const NODE: ScopeId = ScopeId(0);

/// Takes the permit of a start that waited; hands it back when nobody is there any more.
pub(crate) type Tell = Box<dyn FnOnce(SharedPermit) -> Option<SharedPermit> + Send>;

/// A shared limit as it stands on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedStatus {
    /// `None`: the node's own rate.
    pub limit: Option<SharedLimit>,
    /// Merchants with a start that waits for it.
    pub waiting: usize,
    /// Attempts that run.
    pub in_use: u32,
    /// What this node may use.
    pub slice: Slice,
    /// `None`: one could start now.
    pub held: Option<Held>,
}

#[derive(Default)]
struct State {
    machine: Scopes,
    ids: HashMap<SharedLimit, ScopeId>,
    names: HashMap<ScopeId, SharedLimit>,
    tells: HashMap<Ticket, (Needs, Tell)>,
    /// Until when answers asked all of a scope to wait.
    closed: HashMap<ScopeId, UnixMillis>,
    last: u32,
}

/// All shared limits of a node.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Rises when a scope comes or goes: merchants look again which are theirs. 0: there is none.
    version: AtomicU64,
    has_node_rate: bool,
    /// Something waits, or waits no more: the timer is to be set anew.
    changed: Notify,
    hungry: mpsc::UnboundedSender<SharedLimit>,
    wanted: tokio::sync::Mutex<mpsc::UnboundedReceiver<SharedLimit>>,
    writes: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// One attempt's part of the shared limits; given back when dropped.
#[derive(Debug)]
pub(crate) struct SharedPermit {
    /// `None`: it was given back.
    shared: Option<Arc<Shared>>,
    needs: Needs,
    used: bool,
}

impl SharedPermit {
    /// It is of exactly these scopes.
    pub(crate) fn is_for(&self, needs: Needs) -> bool {
        self.needs == needs
    }

    /// The attempt begins: its part of the rates is spent.
    pub(crate) fn spend(&mut self) {
        self.used = true;
    }
}

impl Drop for SharedPermit {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.tell(shared.take_back(self.needs, self.used));
        }
    }
}

/// A start that waits in the queues; it leaves them when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    shared: Arc<Shared>,
    ticket: Ticket,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.leave(self.ticket);
    }
}

/// What a start got of its shared limits.
#[derive(Debug)]
pub(crate) enum Taken {
    Now(SharedPermit),
    /// Its permit comes later.
    Waits(Place),
}

impl State {
    fn grant(&mut self, now: u64) -> Vec<(Needs, Tell)> {
        if self.tells.is_empty() {
            return Vec::new();
        }
        let granted = self.machine.dispatch(now);
        self.told(granted)
    }

    fn told(&mut self, granted: Vec<Ticket>) -> Vec<(Needs, Tell)> {
        granted
            .iter()
            .filter_map(|ticket| self.tells.remove(ticket))
            .collect()
    }

    /// True: it is new, and has no limits yet.
    fn id(&mut self, limit: &SharedLimit, now: u64) -> (ScopeId, bool) {
        if let Some(id) = self.ids.get(limit) {
            return (*id, false);
        }
        self.last += 1;
        let id = ScopeId(self.last);
        self.ids.insert(limit.clone(), id);
        self.names.insert(id, limit.clone());
        self.machine.put(id, ScopeLimits::default(), now);
        (id, true)
    }
}

impl Shared {
    /// Those of the directory, now and later. `node_rate`: of this node alone.
    pub(crate) fn new(node_rate: Option<Rate>, directory: &MerchantDirectory) -> Arc<Self> {
        #[expect(
            clippy::disallowed_methods,
            reason = "holds a limit's name once until it is asked about, and once for each change of it"
        )]
        let (hungry, wanted) = mpsc::unbounded_channel();
        let shared = Arc::new(Self {
            state: Mutex::default(),
            version: AtomicU64::new(0),
            has_node_rate: node_rate.is_some(),
            changed: Notify::new(),
            hungry,
            wanted: tokio::sync::Mutex::new(wanted),
            writes: AtomicU64::new(0),
        });
        if let Some(rate) = node_rate {
            let now = Clock::now().mono;
            let tenth = 100_000_000 / rate.interval_ns().max(1);
            let limits = ScopeLimits {
                rates: vec![rate],
                burst: u32::try_from(tenth).unwrap_or(u32::MAX).max(1),
                concurrency: None,
            };
            let slice = Slice {
                share: Slice::WHOLE,
                slots: 0,
            };
            let mut state = shared.lock();
            state.machine.put(NODE, limits, now);
            state.machine.lease(NODE, slice, u64::MAX, now);
            drop(state);
            shared.version.store(1, Ordering::Release);
        }
        let listener = Arc::downgrade(&shared);
        directory.listen_scopes(move |kind, id, scope| {
            if let Some(shared) = listener.upgrade() {
                shared.change(&(kind, id.to_owned()), scope.as_deref());
            }
        });
        for scope in directory.scopes() {
            shared.change(&(scope.kind, scope.id.clone()), Some(&scope));
        }
        shared
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another limit acts at once on what waits.
    fn change(self: &Arc<Self>, limit: &SharedLimit, scope: Option<&Scope>) {
        let now = Clock::now().mono;
        let mut state = self.lock();
        let limited = scope.filter(|s| !s.rates.is_empty() || s.concurrency.is_some());
        let granted = match limited {
            Some(scope) => {
                let limits = ScopeLimits {
                    rates: scope.rates.clone(),
                    burst: scope.burst,
                    concurrency: scope.concurrency,
                };
                let (id, new) = state.id(limit, now);
                state.machine.put(id, limits, now);
                if new {
                    self.version.fetch_add(1, Ordering::AcqRel);
                } else {
                    // More, or less, of the whole may be leased now.
                    let _nobody_leases = self.hungry.send(limit.clone()).is_err();
                }
                state.grant(now)
            }
            None => {
                let Some(id) = state.ids.remove(limit) else {
                    return;
                };
                state.names.remove(&id);
                state.closed.remove(&id);
                self.version.fetch_add(1, Ordering::AcqRel);
                let freed = state.machine.remove(id, now);
                let mut granted = state.told(freed);
                granted.extend(state.grant(now));
                granted
            }
        };
        drop(state);
        self.tell(granted);
        self.changed.notify_one();
    }

    /// Without the lock: those who are told may look here again. What nobody takes any more goes to
    /// the next, one after the other.
    fn tell(self: &Arc<Self>, granted: Vec<(Needs, Tell)>) {
        let mut granted = VecDeque::from(granted);
        while let Some((needs, tell)) = granted.pop_front() {
            if let Some(mut unwanted) = tell(self.permit(needs)) {
                unwanted.shared = None;
                granted.extend(self.take_back(needs, false));
            }
        }
    }

    /// Gives those whose turn it is then.
    fn take_back(&self, needs: Needs, used: bool) -> Vec<(Needs, Tell)> {
        let now = Clock::now().mono;
        let mut state = self.lock();
        state.machine.give_back(needs, !used, now);
        let granted = state.grant(now);
        if !state.tells.is_empty() {
            // What waited for a place may wait for a time now.
            self.changed.notify_one();
        }
        granted
    }

    fn leave(self: &Arc<Self>, ticket: Ticket) {
        let now = Clock::now().mono;
        let mut state = self.lock();
        let Some(told) = state.tells.remove(&ticket) else {
            return;
        };
        state.machine.leave(ticket, now);
        let granted = state.grant(now);
        drop(state);
        // What it holds may end with it, and look here.
        drop(told);
        self.tell(granted);
    }

    fn permit(self: &Arc<Self>, needs: Needs) -> SharedPermit {
        SharedPermit {
            shared: Some(Arc::clone(self)),
            needs,
            used: false,
        }
    }

    /// Changes when a merchant has to look again at [`Shared::needs`].
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// What a start of this merchant takes from.
    pub(crate) fn needs(&self, merchant: &Merchant) -> Needs {
        let state = self.lock();
        let group = Some((LimitScope::Group, merchant.group.clone()));
        let credential = merchant.adapter.credential.clone();
        let credential = credential.map(|id| (LimitScope::Credential, id));
        let shared = [group, credential].into_iter().flatten();
        let shared = shared.filter_map(|limit| state.ids.get(&limit).copied());
        Needs::of(shared.chain(self.has_node_rate.then_some(NODE)))
    }

    /// Room for a start in all its scopes, or a place in their queues: then `tell` gets the permit
    /// later, once.
    pub(crate) fn take(self: &Arc<Self>, needs: Needs, tell: impl FnOnce() -> Tell) -> Taken {
        let now = Clock::now().mono;
        let mut state = self.lock();
        if state.machine.take(needs, now) {
            return Taken::Now(self.permit(needs));
        }
        let ticket = state.machine.enqueue(needs, now);
        state.tells.insert(ticket, (needs, tell()));
        let hungry = state.machine.take_hungry();
        for id in hungry {
            if let Some(limit) = state.names.get(&id) {
                let _nobody_leases = self.hungry.send(limit.clone()).is_err();
            }
        }
        let mut granted = state.machine.dispatch(now);
        let at_once = granted.iter().position(|grant| *grant == ticket);
        if let Some(place) = at_once {
            granted.remove(place);
            state.tells.remove(&ticket);
        }
        let granted = state.told(granted);
        drop(state);
        self.tell(granted);
        self.changed.notify_one();
        match at_once {
            Some(_) => Taken::Now(self.permit(needs)),
            None => Taken::Waits(Place {
                shared: Arc::clone(self),
                ticket,
            }),
        }
    }

    /// A merchant's answer spoke for all of a scope: nothing of it starts until then, on any node.
    pub(crate) fn close_everywhere(&self, limit: &SharedLimit, until: UnixMillis) {
        self.close(limit, until);
        // The other nodes are told through the table of its slices.
        let _nobody_leases = self.hungry.send(limit.clone()).is_err();
    }

    /// The scopes of a merchant, for those who ask why its orders wait.
    pub(crate) fn status(&self, merchant: &Merchant) -> Vec<SharedStatus> {
        let now = Clock::now().mono;
        let needs = self.needs(merchant);
        let mut state = self.lock();
        let status = needs.iter().filter_map(|id| {
            let status = state.machine.status(id, now)?;
            Some(SharedStatus {
                limit: state.names.get(&id).cloned(),
                waiting: status.waiting,
                in_use: status.in_use,
                slice: status.slice,
                held: status.held,
            })
        });
        status.collect()
    }

    /// Merchants with a start that waits for a shared limit.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().tells.len()
    }

    /// Tables of slices that were written.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Grants what time brings; ends when its future is dropped or nothing else holds `shared`.
    pub(crate) async fn run(shared: std::sync::Weak<Self>) {
        loop {
            let Some(strong) = shared.upgrade() else {
                return;
            };
            let (granted, next) = {
                let now = Clock::now().mono;
                let mut state = strong.lock();
                let granted = state.grant(now);
                let next = state.machine.next_at(now);
                (granted, next.map(|at| at.saturating_sub(now)))
            };
            strong.tell(granted);
            // Looks again now and then, to notice that the platform is gone.
            let wait = Duration::from_micros(next.unwrap_or(5_000_000).min(5_000_000));
            drop(tokio::time::timeout(wait, strong.changed.notified()).await);
        }
    }
}

impl SharedLimits for Shared {
    fn wanted(&self) -> BoxFuture<'_, SharedLimit> {
        Box::pin(async {
            match self.wanted.lock().await.recv().await {
                Some(limit) => limit,
                None => std::future::pending().await,
            }
        })
    }

    fn want(&self, limit: &SharedLimit) -> Option<SliceWant> {
        let Now { mono: now, wall } = Clock::now();
        let mut state = self.lock();
        let id = *state.ids.get(limit)?;
        let want = state.machine.want(id, now)?;
        Some(SliceWant {
            wants: want.wants,
            in_use: want.in_use,
            whole: want.whole,
            closed_until: state
                .closed
                .get(&id)
                .copied()
                .filter(|until| *until > wall)
                .unwrap_or(0),
        })
    }

    fn lease(&self, limit: &SharedLimit, slice: Slice, until: u64) {
        let mut state = self.lock();
        if let Some(id) = state.ids.get(limit).copied() {
            state.machine.lease(id, slice, until, Clock::now().mono);
        }
        drop(state);
        self.changed.notify_one();
    }

    fn close(&self, limit: &SharedLimit, until: UnixMillis) {
        let Now { mono, wall } = Clock::now();
        let wait = until.saturating_sub(wall);
        let mut state = self.lock();
        let known = state.ids.get(limit).and_then(|id| state.closed.get(id));
        if wait == 0 || known.is_some_and(|at| *at >= until) {
            return;
        }
        // Those who share it wait together, whether or not it has limits that were registered.
        let (id, new) = state.id(limit, mono);
        if new {
            self.version.fetch_add(1, Ordering::AcqRel);
        }
        state.closed.insert(id, until);
        state
            .machine
            .close(id, mono.saturating_add(wait.saturating_mul(1_000)));
        drop(state);
        self.changed.notify_one();
    }

    fn written(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use expediter_types::MerchantId;

    use super::*;

    fn group() -> SharedLimit {
        (LimitScope::Group, "default".to_owned())
    }

    fn merchant() -> Merchant {
        Merchant::to(
            MerchantId::new("luigis").unwrap(),
            "http://merchant.example/",
        )
    }

    /// One slot, all of it on this node.
    fn one_slot() -> Arc<Shared> {
        let shared = Shared::new(None, &MerchantDirectory::new());
        let (kind, id) = group();
        let scope = Scope {
            kind,
            id,
            rates: Vec::new(),
            burst: 1,
            concurrency: Some(1),
        };
        shared.change(&group(), Some(&scope));
        let slice = Slice {
            share: Slice::WHOLE,
            slots: 1,
        };
        shared.lease(&group(), slice, u64::MAX);
        shared
    }

    fn place(taken: Taken) -> Place {
        match taken {
            Taken::Waits(place) => place,
            Taken::Now(_) => panic!("there is no room"),
        }
    }

    /// However many are gone whose turn comes: one after the other, on a stack of usual size.
    #[test]
    fn a_permit_that_many_do_not_want_any_more_reaches_the_one_that_does() {
        let shared = one_slot();
        let needs = shared.needs(&merchant());
        let Taken::Now(first) = shared.take(needs, || Box::new(Some)) else {
            panic!("there is room for one");
        };
        let gone: Vec<Place> = (0..50_000)
            .map(|_| place(shared.take(needs, || Box::new(Some))))
            .collect();
        let (told, mut got) = tokio::sync::mpsc::channel(1);
        let last = place(shared.take(needs, || {
            Box::new(move |permit| {
                told.try_send(permit).ok();
                None
            })
        }));
        drop(first);
        assert!(got.try_recv().is_ok());
        drop((gone, last));
        assert_eq!(shared.waiting(), 0);
    }

    #[test]
    fn who_leaves_is_asked_no_more() {
        let shared = one_slot();
        let needs = shared.needs(&merchant());
        let first = shared.take(needs, || Box::new(Some));
        let tell = || -> Tell { Box::new(|_| panic!("it left")) };
        drop(place(shared.take(needs, tell)));
        assert_eq!(shared.waiting(), 0);
        drop(first);
    }

    /// An answer that speaks for a group closes all of it, though nobody registered a limit.
    #[test]
    fn a_group_without_limits_is_closed_too() {
        let shared = Shared::new(None, &MerchantDirectory::new());
        assert!(shared.needs(&merchant()).is_empty());
        let version = shared.version();
        shared.close(&group(), Clock::now().wall + 60_000);
        assert_ne!(shared.version(), version, "its merchants look again");
        let needs = shared.needs(&merchant());
        drop(place(shared.take(needs, || Box::new(Some))));
        let status = shared.status(&merchant());
        assert!(
            matches!(status[0].held, Some(Held::Closed(_))),
            "{status:?}"
        );
    }
}
