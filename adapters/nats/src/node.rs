//! A node's side of the broker: what it starts, in which order it ends.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use expediter_ports::{PartitionHost, RegistrySink, panic_text};
use expediter_types::{NodeName, Partition, Seq, UnixMillis};
use expediter_wire::subjects;
use futures::FutureExt as _;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::broker::Broker;
use crate::claim::Claimant;
use crate::clock::millis;
use crate::compaction::{Marks, Retention};
use crate::control::serve_node;
use crate::error::chain;
use crate::jobs::Timetable;
use crate::lease::{Freshness, Lease};
use crate::members::{self, Members, watch_members};
use crate::ownership::{Board, Course, own};
use crate::partition::{Environment, PartitionPhase};
use crate::writer::{Pace, Shared};
use crate::{ConnectOptions, Connection, ControlHandler, Error, NodeEvents, Topology};
use crate::{directory, ensure, instance, log, slices};

/// Recoveries at the same time: each reads what may be long.
const RECOVERIES: usize = 8;

/// How a node works with the broker.
#[derive(Debug, Clone)]
pub struct Options {
    pub connect: ConnectOptions,
    /// Unique among the nodes; the same after a restart, which then goes on at once.
    pub node: NodeName,
    pub topology: Topology,
    /// Within which the host ends a handed-over partition; 30 s.
    pub drain_deadline: Duration,
    /// The longest attempt any merchant may have; 10 min.
    pub attempt_timeout: Duration,
    /// After so many crashes of its owners within ten minutes a partition starts paused; 3. 0: never.
    pub crash_limit: usize,
    /// How long OUTCOMES keeps outcomes; 7 d.
    pub outcomes_retention: Duration,
    /// How long OUTCOMES keeps dead letters; 30 d.
    pub dead_retention: Duration,
}

impl Options {
    /// With the defaults.
    #[must_use]
    pub fn new(node: NodeName, servers: &str) -> Self {
        Self {
            connect: ConnectOptions::to(servers, &format!("expediter {node}")),
            node,
            topology: Topology::default(),
            drain_deadline: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(600),
            crash_limit: 3,
            outcomes_retention: Duration::from_secs(7 * 86_400),
            dead_retention: Duration::from_secs(30 * 86_400),
        }
    }
}

/// A running node. Dropped without [`Node::leave`] it ends like a crash.
pub struct Node {
    control: Connection,
    intake: Connection,
    partitions: u16,
    instance: String,
    freshness: Arc<Freshness>,
    board: Arc<Board>,
    members: watch::Receiver<Arc<Members>>,
    registry_loaded: watch::Receiver<bool>,
    course: watch::Sender<Course>,
    leaving: watch::Sender<bool>,
    stop_lease: watch::Sender<bool>,
    failure: watch::Receiver<Option<Failure>>,
    owning: watch::Receiver<bool>,
    leased: watch::Receiver<bool>,
    tasks: Mutex<JoinSet<()>>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// What a node is at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    pub connected: bool,
    pub registry_loaded: bool,
    /// Requests to merchants may leave.
    pub lease_fresh: bool,
    /// Nodes that live, this one included.
    pub live_nodes: usize,
    /// The other nodes are known, and the partitions are what the map made of them.
    pub map_applied: bool,
    /// What the map gives this node, and what it still gives away.
    pub partitions: Vec<(Partition, PartitionPhase)>,
}

impl NodeStatus {
    /// Everything that this node is to do, it does.
    #[must_use]
    pub fn ready(&self) -> bool {
        let running = self
            .partitions
            .iter()
            .all(|(_, phase)| *phase == PartitionPhase::Running);
        self.connected && self.registry_loaded && self.lease_fresh && self.map_applied && running
    }
}

/// Why a node cannot go on.
#[derive(Debug, Clone)]
enum Failure {
    NameInUse { name: NodeName, instance: String },
    Task { task: &'static str, why: String },
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NameInUse { name, instance } => Self::NameInUse { name, instance },
            Failure::Task { task, why } => Self::TaskFailed { task, why },
        }
    }
}

impl Node {
    /// Waits for NATS, makes or checks the streams, takes the node's name and begins to work. May be
    /// dropped while it waits.
    ///
    /// # Errors
    /// Streams of other settings, an old server, the name in use, refused credentials.
    pub async fn start(
        options: Options,
        host: Arc<dyn PartitionHost>,
        registry: Arc<dyn RegistrySink>,
        control: Arc<dyn ControlHandler>,
        events: Arc<dyn NodeEvents>,
    ) -> Result<Self, Error> {
        let connection = Connection::open(&options.connect).await?;
        let intake = Connection::open(&options.connect).await?;
        let mut topology = options.topology.clone();
        let partitions = ensure_soon(&connection, &topology).await?;
        topology.partitions = Some(partitions);
        let broker = Broker::new(&connection);
        let board = Arc::new(Board::default());
        let instance = instance::new();
        let lease = Lease::take(&broker, &options.node, &instance, board.clone()).await?;
        let freshness = lease.freshness();

        let (course, courses) = watch::channel(Course::Work);
        let (leaving, leavings) = watch::channel(false);
        let (stop_lease, lease_stops) = watch::channel(false);
        let (members_in, members) = members::channel();
        let (loaded_in, registry_loaded) = watch::channel(false);
        let (timetable_in, timetable) = watch::channel(Timetable::new());
        let (view_in, view) = watch::channel(log::LogView::none());
        let (failure_in, failure) = watch::channel(None);
        let (owning_in, owning) = watch::channel(true);
        let (leased_in, leased) = watch::channel(true);
        let shared = Shared {
            broker: broker.clone(),
            freshness: freshness.clone(),
            purges: Pace::new(),
            marks: Marks::default(),
            events: events.clone(),
        };
        let shared_limits = host.shared_limits();
        let environment = Environment {
            claimant: Claimant {
                broker: broker.clone(),
                node: options.node.clone(),
                instance: instance.clone(),
                members: members.clone(),
                patience: options.drain_deadline + options.attempt_timeout,
                crash_limit: options.crash_limit,
            },
            intake: Broker::new(&intake),
            shared: Arc::new(shared),
            host,
            control: control.clone(),
            view,
            registry_loaded: registry_loaded.clone(),
            timetable,
            recoveries: Semaphore::new(RECOVERIES),
            partitions,
            drain_deadline: options.drain_deadline,
            retention: Retention {
                outcomes: options.outcomes_retention,
                dead: options.dead_retention,
            },
        };

        let mut tasks = Tasks {
            set: JoinSet::new(),
            failure: failure_in.clone(),
            course: course.clone(),
        };
        let (name, taken_course) = (options.node.clone(), course.clone());
        tasks.spawn("lease", async move {
            if let Err(error) = lease.keep(leavings, lease_stops).await {
                tracing::error!(error = chain(&error), "the node must end");
                taken_course.send_replace(Course::Abandon);
                if let Error::NameInUse { instance, .. } = error {
                    failure_in.send_replace(Some(Failure::NameInUse { name, instance }));
                }
            }
            leased_in.send_replace(false);
        });
        let (own_name, fresh) = (options.node.clone(), freshness.clone());
        let watching = watch_members(broker.clone(), fresh, own_name, members_in);
        tasks.spawn("members", watching);
        let following = directory::follow_merchants(
            broker.clone(),
            options.node.clone(),
            registry.clone(),
            loaded_in,
            timetable_in,
        );
        tasks.spawn("registry", following);
        let decisions = directory::follow_decisions(broker.clone(), registry);
        tasks.spawn("decisions", decisions);
        if let Some(limits) = shared_limits {
            let leasing = slices::lease_slices(broker.clone(), options.node.clone(), limits);
            tasks.spawn("slices", leasing);
        }
        tasks.spawn("log", log::look(broker, topology, events.clone(), view_in));
        let reporting = report(connection.clone(), intake.clone(), events);
        tasks.spawn("connections", reporting);
        let (client, node) = (connection.client().clone(), options.node.clone());
        let answering = serve_node(client, node, instance.clone(), control);
        tasks.spawn("control", answering);
        let owning_board = board.clone();
        tasks.spawn("ownership", async move {
            own(Arc::new(environment), owning_board, courses).await;
            owning_in.send_replace(false);
        });
        Ok(Self {
            control: connection,
            intake,
            partitions,
            instance,
            freshness,
            board,
            members,
            registry_loaded,
            course,
            leaving,
            stop_lease,
            failure,
            owning,
            leased,
            tasks: Mutex::new(tasks.set),
        })
    }

    /// Gives all partitions away, in order, then the node's name. Returns when nothing of the node
    /// runs any more; again at once.
    pub async fn leave(&self) {
        // The others compute the map without this node while it hands over.
        self.leaving.send_replace(true);
        self.course.send_if_modified(|course| {
            let works = *course == Course::Work;
            *course = if works { Course::Leave } else { *course };
            works
        });
        // An error means that the task is gone already.
        drop(self.owning.clone().wait_for(|owning| !owning).await);
        self.stop_lease.send_replace(true);
        let given_up = async { drop(self.leased.clone().wait_for(|leased| !leased).await) };
        drop(tokio::time::timeout(Duration::from_secs(3), given_up).await);
        let mut tasks =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        self.intake.close().await;
        self.control.close().await;
    }

    /// For probes and status pages; asks nobody.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        NodeStatus {
            connected: self.control.connected() && self.intake.connected(),
            registry_loaded: *self.registry_loaded.borrow(),
            lease_fresh: self.freshness.fresh(),
            live_nodes: self.members.borrow().live.len(),
            map_applied: self.board.map_applied(),
            partitions: self.board.phases(),
        }
    }

    /// Of ORDERS.
    #[must_use]
    pub fn partitions(&self) -> u16 {
        self.partitions
    }

    /// Differs for each start of the process; stands in the node's lease.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// For the client functions of this crate.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.control
    }

    /// The broker's timestamp of a message in ORDERS; `None`: there is no such message.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn published_at(&self, seq: Seq) -> Result<Option<UnixMillis>, Error> {
        let broker = Broker::new(&self.control);
        let found = broker.message(subjects::ORDERS, seq).await?;
        Ok(found.map(|message| millis(message.time)))
    }

    /// Resolves when the node cannot go on: its name is another's, or a part of it has panicked. Its
    /// partitions have been told to stop; the process should end.
    pub async fn failed(&self) -> Error {
        let mut failure = self.failure.clone();
        match failure
            .wait_for(Option::is_some)
            .await
            .map(|failure| failure.clone())
        {
            Ok(Some(failure)) => failure.into(),
            // The node has left.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

/// JetStream may need a moment longer than the server's port.
async fn ensure_soon(connection: &Connection, topology: &Topology) -> Result<u16, Error> {
    let mut wait = Duration::from_millis(100);
    loop {
        match ensure(connection, topology).await {
            Err(error @ Error::Broker { .. }) => {
                let servers = connection.servers();
                tracing::info!(error = chain(&error), "waiting for JetStream at {servers}");
            }
            other => return other,
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(5));
    }
}

/// What runs until the node ends.
struct Tasks {
    set: JoinSet<()>,
    failure: watch::Sender<Option<Failure>>,
    course: watch::Sender<Course>,
}

impl Tasks {
    /// One that panics takes the node along: without it the node would only seem to work.
    fn spawn(&mut self, task: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let (failure, course) = (self.failure.clone(), self.course.clone());
        self.set.spawn(async move {
            let Err(panic) = AssertUnwindSafe(work).catch_unwind().await else {
                tracing::debug!(task, "ended");
                return;
            };
            let why = panic_text(&*panic).to_owned();
            tracing::error!(task, why, "the node must end");
            course.send_replace(Course::Abandon);
            failure.send_replace(Some(Failure::Task { task, why }));
        });
    }
}

/// Tells the events what the connections go through.
async fn report(control: Connection, intake: Connection, events: Arc<dyn NodeEvents>) {
    let (mut control, mut intake) = (control.watch(), intake.watch());
    let (mut connected, mut slow) = (false, 0);
    loop {
        let (one, other) = (*control.borrow_and_update(), *intake.borrow_and_update());
        let both = one.connected && other.connected;
        if both != connected {
            events.connected(both);
            connected = both;
        }
        let dropped = one.slow_consumers + other.slow_consumers;
        (slow..dropped).for_each(|_| events.slow_consumer());
        slow = dropped;
        let changed = tokio::select! {
            changed = control.changed() => changed,
            changed = intake.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}
