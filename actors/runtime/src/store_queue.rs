//! The store's own thread: group commit, and reads in their place between the writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use expediter_core::partition::{Load, Loaded};
use expediter_core::store::{Gate, Ready, StoreBatch};
use expediter_ports::{MerchantStore, StoreError};
use expediter_types::Partition;

/// At most so many changes in one commit.
const COMMIT_OPS: usize = 2_000;
/// A commit begins so long after the one before at the earliest, unless it is full or somebody waits
/// to read. Each one syncs the disk, which the broker may share: a merchant whose every answer is
/// a change must not slow down the others through it.
const COMMIT_EVERY: Duration = Duration::from_millis(50);

/// A call on the store, on its thread.
type Call = Box<dyn FnOnce(&dyn MerchantStore) -> Result<(), StoreError> + Send>;

enum Job {
    /// Calls back when it is durable.
    Commit(StoreBatch, Box<dyn FnOnce() + Send>),
    /// Runs after everything queued before it is durable.
    Call(Call),
    Stop,
}

/// Handle of the store's thread.
#[derive(Debug, Clone)]
pub(crate) struct StoreQueue {
    jobs: Sender<Job>,
    waiting: Arc<AtomicUsize>,
}

/// What the thread tells about itself.
pub(crate) trait StoreWatch: Send + 'static {
    /// A commit of so many changes took so long.
    fn committed(&self, ops: usize, took: Duration);
    /// The store cannot go on, and neither can the process.
    fn failed(&self, error: StoreError);
}

impl StoreQueue {
    /// Starts the thread; it ends when the queue is stopped or the store fails.
    pub(crate) fn start(
        store: Arc<dyn MerchantStore>,
        watch: impl StoreWatch,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (jobs, receiver) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&waiting);
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                if let Err(error) = run(&*store, &receiver, &counter, &watch) {
                    watch.failed(error);
                }
            })?;
        Ok((Self { jobs, waiting }, thread))
    }

    /// Queues changes; `done` is called when they are durable.
    pub(crate) fn commit(&self, batch: StoreBatch, done: impl FnOnce() + Send + 'static) {
        self.waiting.fetch_add(batch.ops.len(), Ordering::Relaxed);
        self.push(Job::Commit(batch, Box::new(done)));
    }

    /// Queues a load; `done` is called with what it brought.
    pub(crate) fn load(
        &self,
        partition: Partition,
        load: Load,
        done: impl FnOnce(Load, Loaded) + Send + 'static,
    ) {
        self.call(move |store| {
            let loaded = read(store, partition, &load)?;
            done(load, loaded);
            Ok(())
        });
    }

    /// Queues any call.
    pub(crate) fn call(
        &self,
        call: impl FnOnce(&dyn MerchantStore) -> Result<(), StoreError> + Send + 'static,
    ) {
        self.push(Job::Call(Box::new(call)));
    }

    /// Changes that wait for a commit.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Ends the thread after what is queued.
    pub(crate) fn stop(&self) {
        self.push(Job::Stop);
    }

    /// After a failure the thread is gone and the process is ending: nothing is left to do.
    fn push(&self, job: Job) {
        let _process_is_ending = self.jobs.send(job).is_err();
    }
}

fn run(
    store: &dyn MerchantStore,
    jobs: &Receiver<Job>,
    waiting: &AtomicUsize,
    watch: &impl StoreWatch,
) -> Result<(), StoreError> {
    let (mut batches, mut callbacks, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    let mut committed: Option<Instant> = None;
    while let Ok(first) = jobs.recv() {
        let (mut ops, mut stop) = (0, false);
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Commit(batch, done) => {
                    ops += batch.ops.len();
                    batches.push(batch);
                    callbacks.push(done);
                }
                Job::Call(call) => calls.push(call),
                Job::Stop => stop = true,
            }
            next = if ops >= COMMIT_OPS || stop {
                None
            } else if calls.is_empty() {
                // Only changes so far, which nobody waits for.
                let early = committed.map_or(Duration::ZERO, |at| {
                    COMMIT_EVERY.saturating_sub(at.elapsed())
                });
                jobs.recv_timeout(early).ok()
            } else {
                jobs.try_recv().ok()
            };
        }
        if !batches.is_empty() {
            let started = Instant::now();
            store.commit(&batches)?;
            watch.committed(ops, started.elapsed());
            committed = Some(Instant::now());
            waiting.fetch_sub(ops, Ordering::Relaxed);
            batches.clear();
            for done in callbacks.drain(..) {
                done();
            }
        }
        // A read may see changes that were queued after it; never fewer than before it.
        for call in calls.drain(..) {
            call(store)?;
        }
        if stop {
            return Ok(());
        }
    }
    Ok(())
}

fn read(store: &dyn MerchantStore, p: Partition, load: &Load) -> Result<Loaded, StoreError> {
    Ok(match load {
        Load::Ready {
            merchant,
            from,
            up_to,
            limit,
            gate,
            also,
        } => {
            let mut besides = Vec::with_capacity(also.len());
            for seq in also {
                besides.extend(store.get(p, merchant, *seq)?);
            }
            let ready = match limit {
                0 => Ready::default(),
                _ => store.ready(p, merchant, *from, *up_to, *limit, *gate)?,
            };
            Loaded::Ready(ready, besides)
        }
        Load::Condemned { merchant, from } => {
            let ready = store.ready(p, merchant, *from, u64::MAX, load.limit(), Gate::Fifo)?;
            Loaded::Ready(ready, Vec::new())
        }
        Load::Due {
            merchant,
            until,
            limit,
            gate,
        } => Loaded::Due(store.due(p, merchant, *until, *limit, *gate)?),
        Load::KeyHead { merchant, key } => Loaded::KeyHead(store.key_head(p, merchant, *key)?),
        Load::Expired { until } => Loaded::Expired(store.expired(p, *until, load.limit())?),
        Load::One { merchant, seq } => Loaded::One(store.get(p, merchant, *seq)?),
        Load::First { merchant } => Loaded::First(store.first(p, merchant)?),
    })
}
