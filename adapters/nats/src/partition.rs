//! One partition on this node: claim, recover, start, read, and give back; again after each loss.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use expediter_ports::{LogState, Opened, PartitionHost, StartPartition, Stop};
use expediter_types::{Partition, Seq};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::broker::Broker;
use crate::claim::{Claimant, Remembered, release};
use crate::compaction::{Retention, clean, compact, compact_own};
use crate::control::serve_partition;
use crate::error::chain;
use crate::identity::Witness;
use crate::intake::{End, Intake};
use crate::jobs::{self, Timetable};
use crate::log::LogView;
use crate::recovery::{Claimed, recover};
use crate::writer::{Fence, Fenced, FencedLog, Shared};
use crate::{ControlHandler, Error};

/// After a failure that repeating does not mend at once.
const PAUSE: Duration = Duration::from_secs(2);
/// A new owner reads what was published in so many milliseconds before its claim beside what waits
/// for longer, or since the former owner's newest mark if that is less: a long outage's orders must
/// not stand before the newest ones.
const FRESH: u64 = 30_000;
/// Between the broker's clock and those of the nodes, in milliseconds.
const SKEW: u64 = 1_000;
/// The host ends within its own deadline; this much later it is not waited for any more.
const GRACE: Duration = Duration::from_secs(15);
/// A hand-over does not wait for a broker that has been away for so long.
const AWAY: Duration = Duration::from_secs(2);

/// What a partition's work needs of its node.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) claimant: Claimant,
    /// Big flows have their own connection.
    pub(crate) intake: Broker,
    pub(crate) shared: Arc<Shared>,
    pub(crate) host: Arc<dyn PartitionHost>,
    pub(crate) control: Arc<dyn ControlHandler>,
    pub(crate) view: watch::Receiver<LogView>,
    pub(crate) registry_loaded: watch::Receiver<bool>,
    pub(crate) timetable: watch::Receiver<Timetable>,
    /// Recoveries at the same time.
    pub(crate) recoveries: Semaphore,
    pub(crate) partitions: u16,
    pub(crate) drain_deadline: Duration,
    pub(crate) retention: Retention,
}

/// What a partition is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Work,
    HandOver,
    /// The node's name is another's: end without a word.
    Abandon,
}

/// What a partition of this node is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionPhase {
    /// For the registry, or for another owner to let go.
    Waiting,
    /// Claimed; OUTCOMES is read.
    Recovering,
    /// Orders flow.
    Running,
    /// Running attempts end, and what is known is published.
    HandingOver,
}

impl PartitionPhase {
    const ALL: [Self; 4] = [
        Self::Waiting,
        Self::Recovering,
        Self::Running,
        Self::HandingOver,
    ];

    /// For logs and status pages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Recovering => "recovering",
            Self::Running => "running",
            Self::HandingOver => "handing_over",
        }
    }
}

/// A phase that others look at.
#[derive(Debug, Default)]
pub(crate) struct Phase(AtomicU8);

impl Phase {
    fn set(&self, phase: PartitionPhase) {
        self.0.store(phase as u8, Ordering::Release);
    }

    pub(crate) fn get(&self) -> PartitionPhase {
        PartitionPhase::ALL[usize::from(self.0.load(Ordering::Acquire)) % PartitionPhase::ALL.len()]
    }
}

/// How an epoch ended.
enum Ended {
    /// By command; nothing is left to do.
    Done,
    /// To be claimed again, after a pause for what will not mend at once.
    Again {
        remembered: Option<Remembered>,
        pause: bool,
    },
}

/// Works until commanded otherwise.
pub(crate) async fn work(
    environment: Arc<Environment>,
    partition: Partition,
    mut command: watch::Receiver<Command>,
    phase: Arc<Phase>,
) {
    let mut remembered = None;
    let mut loaded = environment.registry_loaded.clone();
    loop {
        phase.set(PartitionPhase::Waiting);
        tokio::select! {
            biased;
            _ = commanded(&mut command) => return,
            // Without the registry every merchant would be unknown.
            ready = loaded.wait_for(|loaded| *loaded) => if ready.is_err() { return },
        }
        let meta = environment.host.meta(partition).await;
        let given_up = || *command.borrow() != Command::Work;
        let lapses = *environment.shared.freshness.lapses().borrow();
        let claimed = environment
            .claimant
            .claim(partition, meta, remembered, given_up)
            .await;
        let ended = match claimed {
            Ok(None) => return,
            Ok(Some(claimed)) => epoch(&environment, claimed, lapses, &mut command, &phase).await,
            Err(error) => Err(error),
        };
        let pause = match ended {
            Ok(Ended::Done) => return,
            Ok(Ended::Again {
                remembered: known,
                pause,
            }) => {
                remembered = known.or(remembered);
                pause
            }
            Err(error) => {
                tracing::error!(%partition, error = chain(&error), "the partition cannot be opened");
                true
            }
        };
        if pause {
            phase.set(PartitionPhase::Waiting);
            tokio::select! {
                _ = commanded(&mut command) => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }
}

async fn commanded(command: &mut watch::Receiver<Command>) -> Command {
    match command.wait_for(|command| *command != Command::Work).await {
        Ok(command) => *command,
        Err(_) => Command::Abandon,
    }
}

/// From the claim to its end. `lapses` of the node's lease, before it was claimed.
async fn epoch(
    environment: &Environment,
    claimed: Claimed,
    lapses: u64,
    command: &mut watch::Receiver<Command>,
    phase: &Phase,
) -> Result<Ended, Error> {
    let partition = claimed.partition;
    let events = &environment.shared.events;
    events.claimed(partition);
    let (token, counter) = (claimed.token, claimed.claim.incarnation.counter);
    tracing::info!(%partition, token, incarnation = counter, "claimed");
    phase.set(PartitionPhase::Recovering);
    let recovering = async {
        let _turn = environment.recoveries.acquire().await;
        recover(&environment.claimant.broker, &claimed).await
    };
    let recovered = tokio::select! {
        biased;
        command = commanded(command) => {
            return give_back(environment, &claimed, command, unstarted(&claimed)).await;
        }
        recovered = recovering => match recovered {
            Err(Error::Fenced { current, .. }) => {
                return Ok(fenced(environment, &claimed, current, None));
            }
            Err(error) => {
                give_back(environment, &claimed, Command::HandOver, unstarted(&claimed)).await?;
                return Err(error);
            }
            Ok(recovered) => recovered,
        },
    };
    let former = match (&claimed.replaced, claimed.meta) {
        (_, Some(meta)) => meta.incarnation,
        (Some(replaced), None) => replaced.incarnation,
        (None, None) => claimed.claim.incarnation,
    };
    let (witness, witnessed) = watch::channel(first_witness(&claimed));
    let stamp = recovered.stamp;
    // What came while nobody read, however much waits before it.
    let fresh_since = recovered
        .marked_at
        .max(claimed.claim.at.saturating_sub(FRESH))
        .saturating_sub(SKEW);
    let shared = environment.shared.clone();
    let Fence { log, fenced: fence } =
        FencedLog::open(shared, partition, stamp, former, witnessed.clone(), lapses);
    let start = StartPartition {
        partition,
        partitions: environment.partitions,
        recovered,
        log: Arc::new(Fenced(log.clone())),
    };
    let Opened { intake, read_after } = match environment.host.start(start).await {
        Ok(opened) => opened,
        Err(reason) => {
            log.end();
            give_back(
                environment,
                &claimed,
                Command::HandOver,
                unstarted(&claimed),
            )
            .await?;
            return Err(Error::Host { partition, reason });
        }
    };
    phase.set(PartitionPhase::Running);
    tracing::info!(%partition, token, read_after, "running");
    let reading = Intake {
        broker: environment.intake.clone(),
        partition,
        token,
        incarnation: claimed.claim.incarnation,
        host: intake.clone(),
        events: events.clone(),
        view: environment.view.clone(),
        taken: read_after,
        witness,
        fresh_since: Some(fresh_since),
        missing: 0,
    };
    let mut side = side_tasks(environment, &claimed, witnessed.clone());
    let standing = log.clone();
    side.spawn(async move { standing.stand().await });
    let end = run(reading, fence, command).await;
    drop(side);
    environment.shared.marks.forget(partition);
    events.unread(partition, 0);
    let remembered = Some((claimed.claim.incarnation, *witnessed.borrow()));
    match end {
        Running::Commanded(Command::HandOver | Command::Work) => {
            phase.set(PartitionPhase::HandingOver);
            let stopping = environment.host.stop(partition, Stop::HandOver);
            let within = environment.drain_deadline + GRACE;
            let alone = async {
                tokio::time::sleep(environment.drain_deadline).await;
                away(&environment.claimant.broker).await;
            };
            let stopped = tokio::select! {
                stopped = tokio::time::timeout(within, stopping) => stopped.ok(),
                () = alone => None,
            };
            log.end();
            let Some(stopped) = stopped else {
                // Not released: what it still does is fenced when another claims.
                if environment.claimant.broker.connection.connected() {
                    tracing::error!(%partition, "the partition did not end in time");
                } else {
                    tracing::warn!(%partition, "NATS is away: not handed over");
                }
                environment.host.stop(partition, Stop::Fenced).await;
                return Ok(Ended::Done);
            };
            give_back(environment, &claimed, Command::HandOver, stopped).await
        }
        Running::Commanded(Command::Abandon) => {
            log.end();
            environment.host.stop(partition, Stop::Fenced).await;
            Ok(Ended::Done)
        }
        Running::Ended(end) => {
            log.end();
            if let End::LogLost { state, .. } = &end {
                let (first, last, created) = (state.first, state.last, state.created);
                intake.log_lost(LogState {
                    first,
                    last,
                    created,
                });
            }
            environment.host.stop(partition, Stop::Fenced).await;
            Ok(after(environment, &claimed, end, remembered))
        }
    }
}

enum Running {
    Commanded(Command),
    Ended(End),
}

async fn run(
    reading: Intake,
    mut fence: watch::Receiver<Option<Seq>>,
    command: &mut watch::Receiver<Command>,
) -> Running {
    let fenced = async {
        match fence
            .wait_for(Option::is_some)
            .await
            .map(|current| *current)
        {
            Ok(Some(current)) => current,
            // The writer lives as long as this epoch.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        current = fenced => Running::Ended(End::ClaimGone(current)),
        command = commanded(command) => Running::Commanded(command),
        end = reading.run() => Running::Ended(end),
    }
}

/// Says what happened, and what comes next.
fn after(
    environment: &Environment,
    claimed: &Claimed,
    end: End,
    remembered: Option<Remembered>,
) -> Ended {
    let partition = claimed.partition;
    match end {
        End::ClaimGone(current) => fenced(environment, claimed, current, remembered),
        End::LogLost { cut, state } => {
            let last = state.last;
            tracing::error!(%partition, cut, last, "the log is not the one that was read");
            environment.shared.events.incarnation(partition);
            Ended::Again {
                remembered,
                pause: false,
            }
        }
        End::Closed => {
            tracing::warn!(%partition, "the partition's host takes no more: opening it again");
            Ended::Again {
                remembered,
                pause: true,
            }
        }
    }
}

fn fenced(
    environment: &Environment,
    claimed: &Claimed,
    current: Seq,
    remembered: Option<Remembered>,
) -> Ended {
    let (partition, token) = (claimed.partition, claimed.token);
    if current > token {
        tracing::warn!(%partition, token, current, "fenced: another claim stands");
        environment.shared.events.fenced(partition);
    } else {
        tracing::error!(%partition, token, current, "OUTCOMES has lost the claim: claiming again");
    }
    Ended::Again {
        remembered,
        pause: false,
    }
}

/// Of a partition whose work did not begin.
fn unstarted(claimed: &Claimed) -> expediter_ports::Stopped {
    expediter_ports::Stopped {
        paused: claimed.claim.crashes.paused,
        ..Default::default()
    }
}

async fn give_back(
    environment: &Environment,
    claimed: &Claimed,
    command: Command,
    stopped: expediter_ports::Stopped,
) -> Result<Ended, Error> {
    if command == Command::Abandon {
        return Ok(Ended::Done);
    }
    let partition = claimed.partition;
    let incarnation = claimed.claim.incarnation;
    let stamp = expediter_types::Stamp {
        token: claimed.token,
        incarnation,
    };
    let broker = &environment.claimant.broker;
    let releasing = async {
        tokio::select! {
            released = release(broker, &claimed.claim, partition, stamp, stopped) => Some(released),
            () = away(broker) => None,
        }
    };
    let released = tokio::time::timeout(GRACE, releasing).await;
    match released.ok().flatten().ok_or(()) {
        Ok(Ok(())) => {
            tracing::info!(%partition, token = claimed.token, "released");
            environment.shared.events.released(partition);
        }
        // The others wait for the end of the lease instead.
        Ok(Err(error)) => tracing::warn!(%partition, error = chain(&error), "not released"),
        Err(_) => tracing::warn!(%partition, "not released in time"),
    }
    Ok(Ended::Done)
}

/// Resolves when the broker has been away for [`AWAY`] at a stretch.
async fn away(broker: &Broker) {
    let mut state = broker.connection.watch();
    loop {
        if state.wait_for(|state| !state.connected).await.is_err() {
            return;
        }
        let back = state.wait_for(|state| state.connected);
        if tokio::time::timeout(AWAY, back).await.is_err() {
            return;
        }
    }
}

/// Control requests, recurring jobs, cleaning, compaction (of the whole log with partition 0); end when dropped.
fn side_tasks(
    environment: &Environment,
    claimed: &Claimed,
    witness: watch::Receiver<Witness>,
) -> JoinSet<()> {
    let partition = claimed.partition;
    let mut tasks = JoinSet::new();
    let client = environment.claimant.broker.connection.client().clone();
    tasks.spawn(serve_partition(
        client,
        partition,
        environment.claimant.node.clone(),
        claimed.token,
        environment.control.clone(),
    ));
    let jobs = jobs::Context::new(
        environment.shared.clone(),
        environment.claimant.node.clone(),
        partition,
        environment.partitions,
    );
    tasks.spawn(jobs::keep(Arc::new(jobs), environment.timetable.clone()));
    let (shared, token, keep) = (
        environment.shared.clone(),
        claimed.token,
        environment.retention,
    );
    tasks.spawn(async move { clean(&shared, partition, token, keep).await });
    let (shared, view) = (environment.shared.clone(), environment.view.clone());
    tasks.spawn(async move { compact_own(&shared, partition, view, witness).await });
    if partition == Partition(0) {
        let (shared, count) = (environment.shared.clone(), environment.partitions);
        let view = environment.view.clone();
        tasks.spawn(async move { compact(&shared, count, view).await });
    }
    tasks
}

/// What the store remembers of this very log, else only the stream itself.
fn first_witness(claimed: &Claimed) -> Witness {
    let incarnation = claimed.claim.incarnation;
    let stored = claimed.meta.filter(|meta| meta.incarnation == incarnation);
    Witness {
        created: incarnation.created,
        seq: stored.map_or(0, |meta| meta.last_taken),
        at: stored.map_or(0, |meta| meta.last_taken_at),
    }
}
