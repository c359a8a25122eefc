use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use expediter_fleet::merchants::{self, Fleet, FleetHandle};
use expediter_fleet::nats_server::{NatsCluster, NatsServer};
use expediter_nats::{ConnectOptions, Connection, Registry, Topology};
use expediter_types::{Idempotency, Merchant, MerchantId};
use expediter_wire::registry::Registration;
use tempfile::TempDir;

use crate::{
    Accepted, Brokers, Ledger, NewOrder, NodeOptions, Oracle, Outcomes, Publisher, eventually,
};

/// Partitions of a world that does not ask for another number.
const PARTITIONS: u16 = 4;

/// One test's broker, merchants, client and ledger. Set `EXPEDITER_TEST_KEEP` to keep its files.
#[derive(Debug)]
pub struct World {
    pub brokers: NatsCluster,
    pub fleet: FleetHandle,
    /// The test's own connection.
    pub connection: Connection,
    pub ledger: Ledger,
    publisher: Publisher,
    registered: Arc<Mutex<BTreeMap<String, Merchant>>>,
    /// Removed last.
    dir: TempDir,
}

impl World {
    /// With streams of 4 partitions.
    ///
    /// # Errors
    /// No broker binary, or it does not start.
    pub async fn start() -> Result<Self> {
        Self::with(PARTITIONS).await
    }

    /// With streams of so many partitions.
    ///
    /// # Errors
    /// As [`World::start`].
    pub async fn with(partitions: u16) -> Result<Self> {
        let world = Self::bare().await?;
        world.make_streams(partitions).await?;
        Ok(world)
    }

    /// With a broker that has no streams yet.
    ///
    /// # Errors
    /// As [`World::start`].
    pub async fn bare() -> Result<Self> {
        Self::on(Brokers::default()).await
    }

    /// With a broker that has more configuration, and no streams yet.
    ///
    /// # Errors
    /// As [`World::start`].
    pub async fn configured(extra: &str) -> Result<Self> {
        Self::on(Brokers {
            extra_config: extra.to_owned(),
            ..Brokers::default()
        })
        .await
    }

    /// With such brokers, which have no streams yet.
    ///
    /// # Errors
    /// As [`World::start`].
    pub async fn on(brokers: Brokers) -> Result<Self> {
        let mut dir = tempfile::Builder::new().prefix("expediter-").tempdir()?;
        if std::env::var_os("EXPEDITER_TEST_KEEP").is_some() {
            dir.disable_cleanup(true);
            eprintln!("files are kept in {}", dir.path().display());
        }
        let brokers = brokers.start(dir.path()).await?;
        let fleet = Fleet::start(merchants::Options {
            record: merchants::Record::Arrivals,
            ..Default::default()
        })?;
        let connection = Connection::open_once(&ConnectOptions::to(&brokers.url(), "test")).await?;
        let ledger = Ledger::default();
        let publisher = Publisher::new(&connection, ledger.clone());
        let registered = Arc::default();
        Ok(Self {
            brokers,
            fleet,
            connection,
            ledger,
            publisher,
            registered,
            dir,
        })
    }

    /// Creates streams and buckets, as a node would.
    ///
    /// # Errors
    /// The broker does not take them.
    pub async fn make_streams(&self, partitions: u16) -> Result<()> {
        let topology = Topology {
            partitions: Some(partitions),
            replicas: self.brokers.members().len(),
            orders_max_bytes: 1 << 30,
            outcomes_max_bytes: 1 << 30,
            ..Topology::default()
        };
        expediter_nats::ensure(&self.connection, &topology).await?;
        Ok(())
    }

    /// The broker, or the first of several.
    ///
    /// # Panics
    /// Never: there is one.
    #[must_use]
    pub fn broker(&self) -> &NatsServer {
        &self.brokers.members()[0]
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A node on this broker, to be changed and started.
    #[must_use]
    pub fn node(&self, name: &str) -> NodeOptions {
        let servers = self.brokers.urls();
        let replicas = servers.len().to_string();
        NodeOptions::new(self.dir(), name, &servers).set_toml("nats.replicas", replicas)
    }

    /// A merchant of the fleet that is tried again soon and often: native idempotency, 16 at a
    /// time, attempts of 5 s, waits of 50 ms to 1 s, 1,000 attempts, 10 minutes, no circuit breaker
    /// and the largest retry budget.
    ///
    /// # Panics
    /// When the id is none.
    #[must_use]
    pub fn merchant(&self, id: &str) -> Merchant {
        let valid = MerchantId::new(id).expect("a merchant id");
        let mut merchant = Merchant::to(valid, &self.fleet.url(id));
        merchant.adapter.idempotency = Idempotency::Native;
        merchant.adapter.timeout = Duration::from_secs(5);
        merchant.limits.concurrency = 16;
        merchant.retry.initial = Duration::from_millis(50);
        merchant.retry.max = Duration::from_secs(1);
        merchant.retry.max_attempts = 1_000;
        merchant.retry.deadline = Duration::from_secs(600);
        merchant.retry.budget = 10.0;
        merchant.breaker.consecutive = 0;
        merchant.breaker.min_samples = 0;
        merchant
    }

    /// Creates or changes a merchant; gives its revision.
    ///
    /// # Errors
    /// The broker does not take it.
    pub async fn register(&self, merchant: &Merchant) -> Result<u64> {
        let registry = Registry::new(&self.connection);
        let before = registry
            .get(&merchant.id)
            .await?
            .map_or(0, |entry| entry.revision);
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let registration = Registration {
            merchant: merchant.clone(),
            actor: "a test".to_owned(),
            at: u64::try_from(now.as_millis())?,
            rolled_back_from: None,
        };
        let revision = registry.put(&registration, before).await?;
        let mut registered = self
            .registered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        registered.insert(merchant.id.to_string(), merchant.clone());
        Ok(revision)
    }

    /// Deletes a merchant.
    ///
    /// # Errors
    /// The broker does not take it, or there is none.
    pub async fn delete(&self, merchant: &str) -> Result<()> {
        let registry = Registry::new(&self.connection);
        let id = MerchantId::new(merchant)?;
        let entry = registry.get(&id).await?.context("it is not registered")?;
        Ok(registry.delete(&id, "a test", entry.revision).await?)
    }

    #[must_use]
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// One with a connection and a window of its own: what [`World::publisher`] sends does not hold
    /// it up.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn another_publisher(&self) -> Result<Publisher> {
        let connect = ConnectOptions::to(&self.brokers.url(), "test flow");
        let connection = Connection::open_once(&connect).await?;
        Ok(Publisher::new(&connection, self.ledger.clone()))
    }

    /// Publishes so many orders to a merchant and waits for the acknowledgements.
    ///
    /// # Errors
    /// One was not acknowledged.
    pub async fn publish(&self, merchant: &str, count: usize) -> Result<Vec<Accepted>> {
        let sends = (0..count).map(|_| self.publisher.send(NewOrder::to(merchant)));
        futures::future::try_join_all(sends).await
    }

    /// Waits until every acknowledged order has its outcome.
    ///
    /// # Errors
    /// Some have none within the deadline; tells which.
    pub async fn settled(&self, deadline: Duration) -> Result<Outcomes> {
        let mut outcomes = Outcomes::default();
        let end = tokio::time::Instant::now() + deadline;
        loop {
            let read = outcomes.advance(&self.connection).await;
            let late = tokio::time::Instant::now() >= end;
            if outcomes.len() < self.ledger.len() && !late {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            let missing = self.ledger.missing(|seq| outcomes.of(seq).is_some());
            if missing.is_empty() && read.is_ok() {
                return Ok(outcomes);
            }
            if late {
                read.context("reading OUTCOMES")?;
                let mut by_merchant = BTreeMap::<&str, Vec<u64>>::new();
                for order in &missing {
                    by_merchant
                        .entry(&order.merchant)
                        .or_default()
                        .push(order.seq);
                }
                for seqs in by_merchant.values_mut() {
                    seqs.truncate(5);
                }
                bail!(
                    "after {deadline:?} {} of {} orders have no outcome, the first of each \
                     merchant: {by_merchant:?}",
                    missing.len(),
                    self.ledger.len()
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until so many orders arrived at a merchant, repeats included.
    ///
    /// # Errors
    /// Fewer did within the deadline.
    pub async fn arrived(&self, merchant: &str, count: u64, deadline: Duration) -> Result<()> {
        if self.fleet.wait_arrived(merchant, count, deadline).await {
            return Ok(());
        }
        let arrived = self.fleet.merchant_stats(merchant).arrived;
        bail!("{arrived} of {count} orders arrived at {merchant} within {deadline:?}")
    }

    /// Judges what happened so far, with what is registered now.
    #[must_use]
    pub fn oracle(&self) -> Oracle<'_> {
        let registered = self
            .registered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let merchants: HashMap<String, Merchant> = registered
            .iter()
            .map(|(id, merchant)| (id.clone(), merchant.clone()))
            .collect();
        Oracle::new(self, merchants)
    }

    /// Kills the broker, removes all it has stored, and starts it again.
    ///
    /// # Errors
    /// It does not start.
    pub async fn empty_broker(&self) -> Result<()> {
        let broker = self.broker();
        broker.kill9();
        std::fs::remove_dir_all(broker.store_dir())?;
        std::fs::create_dir_all(broker.store_dir())?;
        broker.restart().await?;
        self.reconnected(Duration::from_secs(20)).await
    }

    /// Waits until the test's own connection is up (again).
    ///
    /// # Errors
    /// It is not within the deadline.
    pub async fn reconnected(&self, deadline: Duration) -> Result<()> {
        eventually("connected", deadline, || async {
            self.connection.client().flush().await?;
            Ok(self.connection.connected().then_some(()))
        })
        .await
    }
}
