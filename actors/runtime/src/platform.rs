//! The node's side that works on partitions: starts and stops them, and answers questions.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use actix::Addr;
use expediter_core::partition::{Event, PartitionConfig, PartitionMachine};
use expediter_core::recovery::Recovered;
use expediter_core::store::{Gate, PartitionMeta, StoreBatch, StoreOp, StoredPartition};
use expediter_core::{Order, Stored};
use expediter_ports::{
    BoxFuture, Courier, MerchantStore, Opened, PartitionHost, PartitionLog, SharedLimits,
    StartPartition, Stop, Stopped, StoreError,
};
use expediter_types::{Merchant, MerchantId, Partition, Rate, Seq, UnixMillis};
use tokio::sync::{Semaphore, oneshot};

use crate::capacity::Capacity;
use crate::clock::Clock;
use crate::gauges::{PartitionGauges, Snapshot};
use crate::intake::Intake;
use crate::merchant_actor::StepHook;
use crate::partition_actor::{Input, PartitionActor, Parts};
use crate::registry::{MerchantDirectory, News};
use crate::scopes::{Shared, SharedStatus};
use crate::store_queue::{StoreQueue, StoreWatch};

/// Orders that are published again at once after the broker lost them.
const REPUBLISH_AT_ONCE: usize = 256;

/// How the platform runs.
#[derive(Clone)]
pub struct Options {
    /// Threads that run actors; 1 to 64.
    pub shards: usize,
    /// Attempts in flight in this process.
    pub in_flight: usize,
    /// Attempts that this process begins, over all merchants; `None`: unlimited.
    pub rate: Option<Rate>,
    /// Messages of one partition that may be on their way from the log to the store.
    pub intake_credits: usize,
    /// Payloads of all partitions on that way, in KiB; 65,536.
    pub intake_kib: u32,
    /// Ids remembered to notice publishers' repeats, over all partitions of ORDERS: a node may have
    /// to carry all of them; 5,000,000.
    pub repeats: usize,
    /// Its `repeats` are shared out from the above.
    pub partition: PartitionConfig,
    /// How long running attempts may go on after a stop was asked for.
    pub drain_deadline: Duration,
    /// For tests that provoke panics.
    pub before_step: Option<StepHook>,
}

impl Options {
    /// Ids that each of so many partitions remembers; at least 1.
    fn repeats_of_each(&self, partitions: u16) -> usize {
        (self.repeats / usize::from(partitions.max(1))).max(1)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            shards: 1,
            in_flight: 5_000,
            rate: None,
            intake_credits: 4_096,
            intake_kib: 65_536,
            repeats: 5_000_000,
            partition: PartitionConfig::default(),
            drain_deadline: Duration::from_secs(20),
            before_step: None,
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("shards", &self.shards)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

/// What the process around the platform wants to hear. All calls are quick and do not block.
pub trait PlatformEvents: std::fmt::Debug + Send + Sync + 'static {
    /// Something was counted or happened in a partition.
    fn event(&self, _partition: Partition, _event: &Event) {}
    /// A record was acknowledged after so long.
    fn record_written(&self, _took: Duration) {}
    /// OUTCOMES refused a record.
    fn refused(&self) {}
    /// A partition's work ended in this process.
    fn ended(&self, _partition: Partition) {}
    /// A merchant's actor panicked.
    fn panicked(&self) {}
    /// An attempt failed by our own fault.
    fn local_fault(&self, _detail: &str) {}
    /// A store commit of so many changes took so long.
    fn store_committed(&self, _ops: usize, _took: Duration) {}
    /// The store failed: the process has to end.
    fn store_failed(&self, error: StoreError);
}

/// Why the platform did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot start the thread {name}")]
    Thread {
        name: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("an actor thread ended before it was ready")]
    ThreadEnded,
}

struct Running {
    address: Addr<PartitionActor>,
    gauges: Arc<PartitionGauges>,
    intake: Weak<Intake>,
}

struct Shard {
    arbiter: actix_rt::ArbiterHandle,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Inner {
    options: Options,
    store: StoreQueue,
    courier: Arc<dyn Courier>,
    directory: Arc<MerchantDirectory>,
    capacity: Arc<Capacity>,
    shared: Arc<Shared>,
    /// Of the intakes, in KiB.
    intake_bytes: Arc<Semaphore>,
    events: Arc<dyn PlatformEvents>,
    tasks: tokio::runtime::Handle,
    shards: Vec<Shard>,
    partitions: Mutex<HashMap<Partition, Running>>,
    /// What the store had of partitions that were asked for and not started yet.
    scanned: Mutex<HashMap<Partition, StoredPartition>>,
}

/// Works on the partitions it is given. Cheap to clone.
#[derive(Clone)]
pub struct Platform(Arc<Inner>);

impl std::fmt::Debug for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Platform")
            .field("options", &self.0.options)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Watch(Arc<dyn PlatformEvents>);

impl StoreWatch for Watch {
    fn committed(&self, ops: usize, took: Duration) {
        self.0.store_committed(ops, took);
    }

    fn failed(&self, error: StoreError) {
        self.0.store_failed(error);
    }
}

impl Platform {
    /// Starts the actor threads and the store's thread. Requests run on the current tokio runtime.
    pub fn start(
        options: Options,
        store: Arc<dyn MerchantStore>,
        courier: Arc<dyn Courier>,
        directory: Arc<MerchantDirectory>,
        events: Arc<dyn PlatformEvents>,
    ) -> Result<Self, Error> {
        let (store, _thread) =
            StoreQueue::start(store, Watch(Arc::clone(&events))).map_err(|source| {
                Error::Thread {
                    name: "store",
                    source,
                }
            })?;
        let shards = (0..options.shards.clamp(1, 64)).map(|_| start_shard());
        let shards = shards.collect::<Result<Vec<_>, _>>()?;
        let shared = Shared::new(options.rate, &directory);
        tokio::spawn(Shared::run(Arc::downgrade(&shared)));
        let inner = Arc::new(Inner {
            shared,
            capacity: Capacity::new(options.in_flight),
            intake_bytes: Arc::new(Semaphore::new(options.intake_kib as usize)),
            options,
            store,
            courier,
            directory: Arc::clone(&directory),
            events,
            tasks: tokio::runtime::Handle::current(),
            shards,
            partitions: Mutex::default(),
            scanned: Mutex::default(),
        });
        let listener = Arc::downgrade(&inner);
        directory.listen(Box::new(move |news| {
            if let Some(inner) = listener.upgrade() {
                inner.tell_all(news);
            }
        }));
        Ok(Self(inner))
    }

    /// Asks a partition's machine something; `None` when this process does not work on it.
    pub async fn ask<T: Send + 'static>(
        &self,
        partition: Partition,
        question: impl FnOnce(&mut PartitionMachine, &MerchantDirectory) -> T + Send + 'static,
    ) -> Option<T> {
        let address = self.0.address(partition)?;
        let (reply, answer) = oneshot::channel();
        let query = Input::Query(Box::new(move |machine, directory| {
            let _asker_gone = reply.send(question(machine, directory)).is_err();
        }));
        address.try_send(query).ok()?;
        answer.await.ok()
    }

    /// One stored order.
    pub async fn stored(
        &self,
        partition: Partition,
        merchant: MerchantId,
        seq: Seq,
    ) -> Option<Stored> {
        self.0
            .on_store(move |store| store.get(partition, &merchant, seq))
            .await
            .flatten()
    }

    /// Of each partition the orders whose deadline comes first, at most `limit`; those that are
    /// younger than [`PartitionConfig::spill_after`] may be missing.
    pub async fn next_to_expire(&self, limit: usize) -> Vec<Stored> {
        let mut orders = Vec::new();
        for partition in self.partitions() {
            let first = self
                .0
                .on_store(move |store| store.expired(partition, UnixMillis::MAX, limit));
            orders.extend(first.await.unwrap_or_default());
        }
        orders
    }

    /// Older stored orders of a merchant, counted up to `most`.
    pub async fn stored_below(
        &self,
        partition: Partition,
        merchant: MerchantId,
        seq: Seq,
        most: usize,
    ) -> Option<usize> {
        self.0
            .on_store(move |store| store.below(partition, &merchant, seq, most))
            .await
    }

    /// When the oldest stored order of a merchant was taken in by the broker.
    pub async fn oldest_stored(
        &self,
        partition: Partition,
        merchant: MerchantId,
    ) -> Option<expediter_types::UnixMillis> {
        let oldest = self.0.on_store(move |store| {
            let Some(seq) = store.first(partition, &merchant)? else {
                return Ok(None);
            };
            store.get(partition, &merchant, seq)
        });
        let stored = oldest.await.flatten()?;
        Some(stored.order.envelope.created)
    }

    /// Starts no attempt while held: outcomes could not be recorded.
    pub fn hold(&self, held: bool) {
        self.0.capacity.hold(held);
    }

    /// The shared limits that hold for a merchant, as they stand on this node.
    #[must_use]
    pub fn shared_status(&self, merchant: &Merchant) -> Vec<SharedStatus> {
        self.0.shared.status(merchant)
    }

    /// Partitions this process works on.
    #[must_use]
    pub fn partitions(&self) -> Vec<Partition> {
        let partitions = self
            .0
            .partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        partitions.keys().copied().collect()
    }

    /// Figures, at most a second old.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let inner = &self.0;
        let mut all = Snapshot {
            capacity: inner.capacity.limit(),
            capacity_used: inner.capacity.in_flight(),
            capacity_denied: inner.capacity.denied(),
            capacity_waiting: inner.capacity.waiting(),
            shared_waiting: inner.shared.waiting(),
            slice_writes: inner.shared.writes(),
            store_waiting: inner.store.waiting(),
            ..Snapshot::default()
        };
        let now = Clock::now().mono;
        let partitions = inner
            .partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for running in partitions.values() {
            all.add(&running.gauges, now);
        }
        all
    }

    /// Ends the threads. Partitions that still run are dropped as if fenced: hand them over first.
    /// Waits until the store has everything.
    pub async fn shut_down(&self) {
        let partitions: Vec<Partition> = self.partitions();
        for partition in partitions {
            self.stop(partition, Stop::Fenced).await;
        }
        let _stored = self.0.on_store(|_| Ok(())).await;
        self.0.store.stop();
        for shard in &self.0.shards {
            shard.arbiter.stop();
        }
    }
}

impl Inner {
    fn address(&self, partition: Partition) -> Option<Addr<PartitionActor>> {
        let partitions = self
            .partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        partitions
            .get(&partition)
            .map(|running| running.address.clone())
    }

    fn tell_all(&self, news: News<'_>) {
        let partitions = self
            .partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for running in partitions.values() {
            let input = match news {
                News::Merchant(merchant, change) => Input::Registry(merchant.clone(), change),
                News::Holds => Input::Holds,
            };
            let _ended = running.address.try_send(input).is_err();
        }
    }

    /// Runs a call on the store's thread; `None` when the store failed.
    async fn on_store<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn MerchantStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.store.call(move |store| {
            let _asker_gone = reply.send(call(store)?).is_err();
            Ok(())
        });
        answer.await.ok()
    }

    async fn scan(&self, partition: Partition) -> Option<StoredPartition> {
        self.on_store(move |store| store.partition(partition)).await
    }

    /// Publishes again what the broker lost: everything stored above the cut.
    async fn republish(
        &self,
        partition: Partition,
        stored: &StoredPartition,
        cut: Seq,
        log: &Arc<dyn PartitionLog>,
    ) -> Result<u64, String> {
        let mut count = 0;
        for entry in &stored.merchants {
            let mut from = cut + 1;
            loop {
                let merchant = entry.merchant.clone();
                let read = move |store: &dyn MerchantStore| {
                    store.ready(
                        partition,
                        &merchant,
                        from,
                        Seq::MAX,
                        REPUBLISH_AT_ONCE,
                        Gate::Fifo,
                    )
                };
                let ready = self.on_store(read).await.ok_or("the store failed")?;
                let orders: Vec<Arc<Order>> = ready
                    .orders
                    .iter()
                    .map(|stored| Arc::clone(&stored.order))
                    .collect();
                count += orders.len() as u64;
                if !orders.is_empty() {
                    log.republish(orders)
                        .await
                        .map_err(|error| error.to_string())?;
                }
                if ready.exhausted {
                    break;
                }
                from = ready.next;
            }
        }
        Ok(count)
    }

    async fn start_partition(self: Arc<Self>, start: StartPartition) -> Result<Opened, String> {
        let StartPartition {
            partition,
            partitions,
            recovered,
            log,
        } = start;
        self.directory.wait_loaded().await;
        let scanned = {
            let mut scanned = self.scanned.lock().unwrap_or_else(PoisonError::into_inner);
            scanned.remove(&partition)
        };
        let mut stored = match scanned {
            Some(stored) => stored,
            None => self.scan(partition).await.ok_or("the store failed")?,
        };
        if let Some(meta) = stored.meta {
            let lost = meta.incarnation != recovered.stamp.incarnation;
            if lost && followed(&meta, &recovered) {
                // Until all is published, this copy is the only one: whoever claims next on this
                // node, also after a crash, finds by the epoch that it still has to be.
                let noted = PartitionMeta {
                    epoch: recovered.stamp.token,
                    ..meta
                };
                let note = StoreBatch {
                    partition,
                    ops: vec![StoreOp::Meta(noted)],
                };
                self.on_store(move |store| store.commit(&[note]))
                    .await
                    .ok_or("the store failed")?;
                let republished = self
                    .republish(partition, &stored, recovered.cut, &log)
                    .await?;
                let event = Event::LogLost {
                    republish: republished,
                    parked: 0,
                };
                self.events.event(partition, &event);
                tracing::error!(
                    %partition, republished,
                    "the broker lost acknowledged orders: what the store had was published again"
                );
            }
            if lost || recovered.replaced_epoch != meta.epoch {
                tracing::info!(
                    %partition, stored_epoch = meta.epoch, replaced_epoch = recovered.replaced_epoch,
                    "the store's copy of the partition is not the newest and is built anew"
                );
                let drop = move |store: &dyn MerchantStore| store.drop_partition(partition);
                self.on_store(drop).await.ok_or("the store failed")?;
                stored = StoredPartition::default();
            }
        }
        let now = Clock::now();
        let config = PartitionConfig {
            repeats: self.options.repeats_of_each(partitions),
            ..self.options.partition.clone()
        };
        let machine = PartitionMachine::start(partition, recovered, stored, config, now);
        let read_after = machine.seen();
        let gauges = Arc::new(PartitionGauges::default());
        gauges.seen.store(read_after, Ordering::Release);
        let parts = Parts {
            partition,
            machine,
            log,
            courier: Arc::clone(&self.courier),
            store: self.store.clone(),
            directory: Arc::clone(&self.directory),
            capacity: Arc::clone(&self.capacity),
            shared: Arc::clone(&self.shared),
            events: Arc::clone(&self.events),
            gauges: Arc::clone(&gauges),
            tasks: self.tasks.clone(),
            hook: self.options.before_step.clone(),
            drain_deadline: self.options.drain_deadline,
        };
        let shard = &self.shards[usize::from(partition.0) % self.shards.len()];
        let (reply, started) = oneshot::channel();
        shard.arbiter.spawn_fn(move || {
            let _platform_gone = reply
                .send(PartitionActor::new(parts).start_unbounded())
                .is_err();
        });
        let address = started
            .await
            .map_err(|_| "the actor thread ended".to_owned())?;
        let intake = Arc::new(Intake {
            address: address.clone(),
            credits: Arc::new(Semaphore::new(self.options.intake_credits)),
            bytes: Arc::clone(&self.intake_bytes),
            all_kib: self.options.intake_kib,
            all: self.options.intake_credits,
            gauges: Arc::clone(&gauges),
            lost: AtomicBool::new(false),
        });
        let running = Running {
            address,
            gauges,
            intake: Arc::downgrade(&intake),
        };
        self.partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(partition, running);
        Ok(Opened { intake, read_after })
    }
}

impl PartitionHost for Platform {
    fn meta(&self, partition: Partition) -> BoxFuture<'static, Option<PartitionMeta>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let stored = inner.scan(partition).await?;
            let meta = stored.meta;
            let mut scanned = inner.scanned.lock().unwrap_or_else(PoisonError::into_inner);
            scanned.insert(partition, stored);
            meta
        })
    }

    fn shared_limits(&self) -> Option<Arc<dyn SharedLimits>> {
        Some(Arc::clone(&self.0.shared) as _)
    }

    fn start(&self, start: StartPartition) -> BoxFuture<'static, Result<Opened, String>> {
        Box::pin(Arc::clone(&self.0).start_partition(start))
    }

    fn stop(&self, partition: Partition, how: Stop) -> BoxFuture<'static, Stopped> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let running = {
                let mut partitions = inner
                    .partitions
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                partitions.remove(&partition)
            };
            inner
                .scanned
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&partition);
            let Some(Running {
                address, intake, ..
            }) = running
            else {
                return Stopped::default();
            };
            if let Some(intake) = intake.upgrade() {
                intake.credits.close();
            }
            let (reply, stopped) = oneshot::channel();
            if address.try_send(Input::Stop(how, reply)).is_err() {
                return Stopped::default();
            }
            let stopped = stopped.await.unwrap_or_default();
            // What it told the store before it ended is durable when this returns.
            let _stored = inner.on_store(|_| Ok(())).await;
            stopped
        })
    }
}

/// Whether nobody took the lost log's orders between the store's epoch and the loss: the epoch that
/// was replaced, or the one before a claim that found the loss and ended before it could say so in
/// the store.
fn followed(meta: &PartitionMeta, recovered: &Recovered) -> bool {
    let found_before = recovered.replaced.as_ref().is_some_and(|claim| {
        claim.incarnation.counter > meta.incarnation.counter && claim.replaces == meta.epoch
    });
    found_before || recovered.replaced_epoch == 0 || recovered.replaced_epoch == meta.epoch
}

/// A thread that runs actors.
fn start_shard() -> Result<Shard, Error> {
    let (reply, ready) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("actors".into())
        .spawn(move || {
            let system = actix_rt::System::new();
            let handle = system.block_on(async { actix_rt::Arbiter::current() });
            let _starter_gone = reply.send(handle).is_err();
            if let Err(error) = system.run() {
                tracing::error!(%error, "an actor thread ended");
            }
        })
        .map_err(|source| Error::Thread {
            name: "actors",
            source,
        })?;
    let arbiter = ready.recv().map_err(|_| Error::ThreadEnded)?;
    Ok(Shard {
        arbiter,
        thread: Some(thread),
    })
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.arbiter.stop();
        // The thread ends by itself; waiting for it could deadlock when it drops the last handle.
        drop(self.thread.take());
    }
}
