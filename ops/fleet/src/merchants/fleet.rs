use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use expediter_types::MerchantId;

use super::judge::{Group, Times};
use super::merchant::Merchant;
use super::plan::Plan;
use super::server::{self, Running};
use super::{Arrival, Behaviour, MerchantStats, Record, Stats, Verdict};
use crate::Error;

/// More groups than these are judged together, as `other`: a group has a histogram of its own.
const MAX_GROUPS: usize = 64;

/// How to run a fleet.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen. Default 127.0.0.1, a free port.
    pub listen: SocketAddr,
    /// Threads that serve connections, at least 1. Default 1, good for some 60,000 orders a second.
    pub threads: usize,
    /// The behaviour of merchants that have none of their own. Default [`Behaviour::default`].
    pub behaviour: Behaviour,
    /// Default [`Record::Counts`].
    pub record: Record,
    /// Read the bodies as those of [`super::bench_body`] and judge them. Default false.
    pub judge: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            threads: 1,
            behaviour: Behaviour::default(),
            record: Record::default(),
            judge: false,
        }
    }
}

/// Simulated merchants behind one address.
#[derive(Debug)]
pub struct Fleet;

impl Fleet {
    /// Starts serving on threads of its own, so that neither a busy runtime of the caller distorts the
    /// latencies nor the fleet slows the caller's tasks. Raises this process's limit of open files
    /// as far as it may.
    pub fn start(options: Options) -> Result<FleetHandle, Error> {
        let shared = Arc::new(Shared {
            plan: RwLock::new(Arc::new(Plan::new(options.behaviour)?)),
            merchants: RwLock::default(),
            groups: RwLock::default(),
            record: options.record,
            judge: options.judge,
            connections: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
        });
        let running = server::start(options.listen, options.threads, &shared)?;
        Ok(FleetHandle {
            shared,
            running: Arc::new(running),
        })
    }
}

/// Steers and reads a fleet. When the last clone is dropped the fleet stops: its port is closed, its
/// connections are cut, its threads have ended (within milliseconds).
#[derive(Debug, Clone)]
pub struct FleetHandle {
    shared: Arc<Shared>,
    running: Arc<Running>,
}

impl FleetHandle {
    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.running.addr
    }

    /// `http://127.0.0.1:<port>`, without a slash at the end.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Where orders for the merchant go: `http://127.0.0.1:<port>/m/<merchant>/orders`.
    #[must_use]
    pub fn url(&self, merchant: &str) -> String {
        format!("http://{}/m/{merchant}/orders", self.addr())
    }

    /// Sets the merchant's own behaviour, for the arrivals from now on; arrivals that are being
    /// answered keep theirs. Its script, failures and rate limit start anew.
    pub fn set(&self, merchant: &str, behaviour: Behaviour) -> Result<(), Error> {
        self.shared.set(merchant, behaviour)
    }

    /// Lets the merchant behave as all again.
    pub fn unset(&self, merchant: &str) -> Result<(), Error> {
        self.shared.unset(merchant)
    }

    /// Sets the behaviour of all merchants that have none of their own.
    pub fn set_default(&self, behaviour: Behaviour) -> Result<(), Error> {
        self.shared.set_default(behaviour)
    }

    /// What reached one merchant, in order of arrival. Empty without [`Record::Arrivals`].
    #[must_use]
    pub fn arrivals(&self, merchant: &str) -> Vec<Arrival> {
        self.shared
            .known(merchant)
            .map_or_else(Vec::new, |m| m.arrivals(0, usize::MAX))
    }

    /// What reached all merchants, merchant by merchant.
    #[must_use]
    pub fn all_arrivals(&self) -> Vec<Arrival> {
        self.shared
            .merchants()
            .iter()
            .flat_map(|m| m.arrivals(0, usize::MAX))
            .collect()
    }

    /// The counts of one merchant; zeros if it is unknown.
    #[must_use]
    pub fn merchant_stats(&self, merchant: &str) -> MerchantStats {
        self.shared
            .known(merchant)
            .map_or_else(MerchantStats::default, |m| m.stats())
    }

    /// The counts of all merchants.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// The judgement so far. Empty without [`Options::judge`].
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.shared.verdict()
    }

    /// Forgets counts, arrivals and judgement; behaviours stay.
    pub fn clear(&self) {
        self.shared.clear();
    }

    /// Begins the judge's times anew (latencies, arrivals a second, first and last arrival), so that
    /// they are those of a later part of a flow; its counts of orders go on.
    pub fn clear_times(&self) {
        self.shared.clear_times();
    }

    /// Waits until the counts are as `condition` asks; returns whether they were within `deadline`.
    pub async fn wait_until(
        &self,
        deadline: Duration,
        mut condition: impl FnMut(&Stats) -> bool,
    ) -> bool {
        let end = tokio::time::Instant::now() + deadline;
        loop {
            if condition(&self.stats()) {
                return true;
            }
            if tokio::time::Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until at least `count` orders arrived at the merchant; false when the deadline passed.
    pub async fn wait_arrived(&self, merchant: &str, count: u64, deadline: Duration) -> bool {
        let arrived = |stats: &Stats| stats.merchants.get(merchant).map_or(0, |m| m.arrived);
        self.wait_until(deadline, |stats| arrived(stats) >= count)
            .await
    }
}

/// What the serving threads and the handles have in common.
#[derive(Debug)]
pub(super) struct Shared {
    plan: RwLock<Arc<Plan>>,
    merchants: RwLock<HashMap<String, Arc<Merchant>>>,
    groups: RwLock<BTreeMap<String, Arc<Group>>>,
    record: Record,
    judge: bool,
    pub(super) connections: AtomicU64,
    pub(super) accepted: AtomicU64,
}

impl Shared {
    /// The merchant of this id; an unknown one begins to exist.
    pub(super) fn merchant(&self, id: &str) -> Result<Arc<Merchant>, Error> {
        if let Some(merchant) = self.known(id) {
            return Ok(merchant);
        }
        MerchantId::new(id)?;
        let mut merchants = self
            .merchants
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Merchant::new(id, self.default_plan(), self.group(id)));
        Ok(Arc::clone(
            merchants.entry(id.to_owned()).or_insert_with(new),
        ))
    }

    pub(super) fn known(&self, id: &str) -> Option<Arc<Merchant>> {
        self.merchants
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    /// All merchants, by id.
    pub(super) fn merchants(&self) -> Vec<Arc<Merchant>> {
        let merchants = self
            .merchants
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = merchants.values().cloned().collect();
        all.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        all
    }

    fn group(&self, merchant: &str) -> Option<Arc<Group>> {
        if !self.judge {
            return None;
        }
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        let name = merchant
            .rsplit_once('-')
            .map_or(merchant, |(group, _)| group);
        let full = groups.len() >= MAX_GROUPS && !groups.contains_key(name);
        let name = if full { "other" } else { name };
        if !groups.contains_key(name) {
            groups.insert(name.to_owned(), Arc::new(Group::new(name)?));
        }
        groups.get(name).cloned()
    }

    pub(super) fn default_plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn record(&self) -> Record {
        self.record
    }

    pub(super) fn reads_bodies(&self) -> bool {
        self.judge || self.record == Record::Arrivals
    }

    pub(super) fn set(&self, merchant: &str, behaviour: Behaviour) -> Result<(), Error> {
        let plan = Arc::new(Plan::new(behaviour)?);
        self.merchant(merchant)?.set(plan, true);
        Ok(())
    }

    pub(super) fn unset(&self, merchant: &str) -> Result<(), Error> {
        self.merchant(merchant)?.set(self.default_plan(), false);
        Ok(())
    }

    pub(super) fn set_default(&self, behaviour: Behaviour) -> Result<(), Error> {
        let plan = Arc::new(Plan::new(behaviour)?);
        // Before the merchants, so that one that begins to exist meanwhile has the new one.
        *self.plan.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&plan);
        for merchant in self.merchants() {
            merchant.set_default(&plan);
        }
        Ok(())
    }

    pub(super) fn clear(&self) {
        for merchant in self.merchants() {
            merchant.clear();
        }
        self.clear_times();
    }

    pub(super) fn clear_times(&self) {
        for group in self
            .groups
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
        {
            group.times().clear();
        }
    }

    pub(super) fn stats(&self) -> Stats {
        let merchants: BTreeMap<_, _> = self
            .merchants()
            .iter()
            .map(|m| (m.id.clone(), m.stats()))
            .collect();
        Stats {
            arrived: merchants.values().map(|stats| stats.arrived).sum(),
            connections: self.connections.load(Ordering::Relaxed),
            accepted: self.accepted.load(Ordering::Relaxed),
            merchants,
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::default();
        for merchant in self.merchants() {
            let Some(group) = &merchant.group else {
                continue;
            };
            let tally = merchant.tally();
            verdict.total.add(&tally);
            verdict
                .groups
                .entry(group.name.clone())
                .or_default()
                .add(&tally);
        }
        let Some(mut times) = Times::new() else {
            return verdict;
        };
        for group in self
            .groups
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
        {
            let of_group = group.times();
            times.add(&of_group);
            of_group.fill(verdict.groups.entry(group.name.clone()).or_default());
        }
        times.fill(&mut verdict.total);
        verdict.arrivals_per_second = times.per_second();
        verdict
    }
}
