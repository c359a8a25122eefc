//! Gives this node the partitions that the map gives it, and takes away the others.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use expediter_ports::Stop;
use expediter_types::{NodeName, Partition};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::members::Members;
use crate::partition::{Command, Environment, PartitionPhase, Phase, work};

/// Nodes often come and go together; the map is used when it stood so long.
const SETTLING: Duration = Duration::from_millis(500);

/// What this node works on, for its status.
#[derive(Debug, Default)]
pub(crate) struct Board {
    partitions: Mutex<BTreeMap<Partition, Arc<Phase>>>,
    map_applied: AtomicBool,
}

impl Board {
    pub(crate) fn phases(&self) -> Vec<(Partition, PartitionPhase)> {
        let partitions = self.partitions();
        partitions
            .iter()
            .map(|(partition, phase)| (*partition, phase.get()))
            .collect()
    }

    /// The partitions are those of a map that was made of all nodes.
    pub(crate) fn map_applied(&self) -> bool {
        self.map_applied.load(Ordering::Acquire)
    }

    /// Those that a claim is held on.
    pub(crate) fn claimed(&self) -> Vec<Partition> {
        let phases = self.phases().into_iter();
        phases
            .filter(|(_, phase)| *phase != PartitionPhase::Waiting)
            .map(|(p, _)| p)
            .collect()
    }

    fn set(&self, partition: Partition, phase: Option<Arc<Phase>>) {
        let mut partitions = self.partitions();
        match phase {
            Some(phase) => partitions.insert(partition, phase),
            None => partitions.remove(&partition),
        };
    }

    fn partitions(&self) -> MutexGuard<'_, BTreeMap<Partition, Arc<Phase>>> {
        self.partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the node as a whole does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    Work,
    Leave,
    Abandon,
}

/// Runs the partitions; returns when all have ended after [`Course::Leave`] or [`Course::Abandon`].
pub(crate) async fn own(
    environment: Arc<Environment>,
    board: Arc<Board>,
    mut course: watch::Receiver<Course>,
) {
    let mut members = environment.claimant.members.clone();
    let node = environment.claimant.node.clone();
    let mut commands: BTreeMap<Partition, watch::Sender<Command>> = BTreeMap::new();
    let mut tasks: JoinSet<Partition> = JoinSet::new();
    loop {
        let now = *course.borrow_and_update();
        let synced = members.borrow_and_update().synced;
        let wanted = match now {
            Course::Work => wanted(&members.borrow_and_update(), &node, environment.partitions),
            Course::Leave | Course::Abandon => Vec::new(),
        };
        for (partition, command) in &commands {
            if !wanted.contains(partition) {
                let end = if now == Course::Abandon {
                    Command::Abandon
                } else {
                    Command::HandOver
                };
                command.send_if_modified(|command| {
                    // Never back to work: the task ends first.
                    let ends = *command != end && *command != Command::Abandon;
                    *command = if ends { end } else { *command };
                    ends
                });
            }
        }
        for partition in wanted {
            // One that is ending is begun again when it has ended.
            if commands.contains_key(&partition) {
                continue;
            }
            let (command, commanded) = watch::channel(Command::Work);
            let phase = Arc::new(Phase::default());
            commands.insert(partition, command);
            board.set(partition, Some(phase.clone()));
            let (environment, host) = (environment.clone(), environment.host.clone());
            tasks.spawn(async move {
                // A panic in the adapter must not take the other partitions along.
                let running = tokio::spawn(work(environment, partition, commanded, phase));
                if let Err(error) = AbortOnDrop(running).wait().await {
                    tracing::error!(%partition, %error, "the partition's task has failed");
                    // What it had started knows nothing of that, and would go on beside the next.
                    host.stop(partition, Stop::Fenced).await;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                partition
            });
        }
        if synced {
            board.map_applied.store(true, Ordering::Release);
        }
        if now != Course::Work && tasks.is_empty() {
            return;
        }
        tokio::select! {
            Some(ended) = tasks.join_next() => {
                if let Ok(partition) = ended {
                    commands.remove(&partition);
                    board.set(partition, None);
                }
            }
            changed = members.changed(), if now == Course::Work => {
                if changed.is_err() {
                    return;
                }
                settle(&mut members, &node).await;
            }
            changed = course.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// Waits until the members stand still; a node alone needs not.
async fn settle(members: &mut watch::Receiver<Arc<Members>>, node: &NodeName) {
    loop {
        let alone = {
            let members = members.borrow_and_update();
            members.synced && members.live.keys().all(|name| name == node)
        };
        if alone {
            return;
        }
        match tokio::time::timeout(SETTLING, members.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

fn wanted(members: &Members, node: &NodeName, partitions: u16) -> Vec<Partition> {
    if !members.synced {
        return Vec::new();
    }
    let all = (0..partitions).map(Partition);
    all.filter(|partition| members.owner(*partition) == Some(node))
        .collect()
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl AbortOnDrop {
    async fn wait(mut self) -> Result<(), tokio::task::JoinError> {
        (&mut self.0).await
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
