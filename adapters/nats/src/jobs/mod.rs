//! Publishes the runs of recurring jobs: the owner of a merchant's partition does, while it owns it.
//!
//! A run is one order whoever publishes it, because its id is its time: an owner that crashes between
//! a publish and the write of how far the job is leaves a run that the next owner publishes again, and
//! the broker's window or the platform's table of ids closes the repeat. How far a job is stands in
//! CONTROL, changed only by comparison.

mod keeper;
mod keys;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use expediter_types::{Job, Merchant, MerchantId, NodeName, Partition};
use expediter_wire::subjects;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::writer::Shared;
use keeper::Keeper;

pub use keys::{JobEntry, Jobs};

/// Calls to the broker for jobs at the same time, for each partition: many jobs run at full hours.
const WIDTH: usize = 16;
/// Merchants are often registered together.
const SETTLING: Duration = Duration::from_millis(50);
/// How often jobs that are gone are looked for.
const SWEEP: Duration = Duration::from_secs(3_600);

/// The registered merchants that have jobs.
pub(crate) type Timetable = BTreeMap<MerchantId, Arc<Merchant>>;

/// What the registry says of a merchant.
pub(crate) fn list(
    timetable: &watch::Sender<Timetable>,
    id: &MerchantId,
    now: Option<&Arc<Merchant>>,
) {
    let now = now.filter(|merchant| !merchant.jobs.is_empty());
    timetable.send_if_modified(|timetable| match now {
        Some(merchant) => {
            let before = timetable.insert(id.clone(), merchant.clone());
            before.is_none_or(|before| before.jobs != merchant.jobs)
        }
        None => timetable.remove(id).is_some(),
    });
}

/// What publishes the runs of one partition.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) node: NodeName,
    pub(crate) partition: Partition,
    pub(crate) partitions: u16,
    pub(crate) calls: Semaphore,
}

impl Context {
    pub(crate) fn new(
        shared: Arc<Shared>,
        node: NodeName,
        partition: Partition,
        partitions: u16,
    ) -> Self {
        let calls = Semaphore::new(WIDTH);
        Self {
            shared,
            node,
            partition,
            partitions,
            calls,
        }
    }
}

/// Keeps the jobs of a partition for ever; ends, with all it began, when its future is dropped.
pub(crate) async fn keep(context: Arc<Context>, mut timetable: watch::Receiver<Timetable>) {
    let mut kept: BTreeMap<(MerchantId, String), watch::Sender<Option<Job>>> = BTreeMap::new();
    let mut keepers = JoinSet::new();
    if context.partition == Partition(0) {
        keepers.spawn(sweep(context.clone()));
    }
    loop {
        let wanted = wanted(&context, &timetable.borrow_and_update());
        kept.retain(|name, job| {
            let gone = !wanted.contains_key(name);
            if gone {
                job.send_replace(None);
            }
            !gone
        });
        for (name, job) in wanted {
            match kept.get(&name) {
                Some(known) => {
                    known.send_if_modified(|known| {
                        let changed = known.as_ref() != Some(&job);
                        *known = Some(job);
                        changed
                    });
                }
                None => {
                    let (sender, receiver) = watch::channel(Some(job));
                    let (merchant, name) = name;
                    let keeper = Keeper::new(context.clone(), merchant.clone(), name.clone());
                    keepers.spawn(keeper.keep(receiver));
                    kept.insert((merchant, name), sender);
                }
            }
        }
        while keepers.try_join_next().is_some() {}
        if timetable.changed().await.is_err() {
            // The registry is followed as long as the node lives.
            return std::future::pending().await;
        }
        tokio::time::sleep(SETTLING).await;
    }
}

fn wanted(context: &Context, timetable: &Timetable) -> BTreeMap<(MerchantId, String), Job> {
    let own = timetable.iter().filter(|(id, _)| {
        subjects::partition_of(id.as_str(), context.partitions) == context.partition
    });
    let jobs = own.flat_map(|(id, merchant)| {
        let named = |job: &Job| ((id.clone(), job.name.clone()), job.clone());
        merchant.jobs.iter().map(named)
    });
    jobs.collect()
}

/// Deletes what is left of jobs that were removed while nobody worked on their partition.
async fn sweep(context: Arc<Context>) {
    loop {
        if let Err(error) = keys::sweep(&context.shared.broker).await {
            tracing::debug!(
                error = crate::error::chain(&error),
                "jobs that are gone are looked for later"
            );
        }
        tokio::time::sleep(SWEEP).await;
    }
}
