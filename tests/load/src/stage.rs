//! The world with its nodes, and what faults do to it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use expediter_harness::{Brokers, NodeProcess, World, eventually};
use expediter_types::Merchant;
use fastrand::Rng;

use crate::fault::{Event, Fault, Target};
use crate::run::Options;
use crate::shop::{CONCURRENCY, Shop};

/// Nodes that run at the same time at most.
const MOST_NODES: usize = 4;
/// With so few no node is killed, paused or removed.
const FEWEST_NODES: usize = 2;
/// Merchants that one fault hits.
const HIT: usize = 3;
/// A node that is told to end does it within its drain deadline and the hand-over's grace.
const LEAVES: Duration = Duration::from_secs(30);
const BACK: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Node {
    process: NodeProcess,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    Down,
    Paused,
    /// It was removed.
    Gone,
}

/// What ends a fault.
#[derive(Debug)]
enum Recovery {
    StartNode(usize),
    ResumeNode(usize),
    StartBrokers(Vec<usize>),
    ResumeBroker(usize),
    Heal(Vec<String>),
}

#[derive(Debug)]
struct Due {
    at: Instant,
    recovery: Recovery,
    /// Whose fault it ends.
    event: usize,
}

/// A world with nodes and a shop.
#[derive(Debug)]
pub struct Stage {
    pub world: World,
    pub shop: Shop,
    nodes: Vec<Node>,
    names: usize,
    events: Vec<Event>,
    due: Vec<Due>,
    /// What was seen on the way that must not be.
    complaints: Vec<String>,
    rng: Rng,
}

impl Stage {
    /// Starts brokers and nodes and registers the merchants.
    ///
    /// # Errors
    /// Something does not start.
    pub async fn open(options: &Options) -> Result<Self> {
        let brokers = Brokers {
            servers: options.brokers,
            sync_always: !options.no_sync,
            ..Brokers::default()
        };
        let world = World::on(brokers).await?;
        world.make_streams(options.partitions).await?;
        let shop = Shop::open(&world, options.partitions).await?;
        let mut stage = Self {
            world,
            shop,
            nodes: Vec::new(),
            names: 0,
            events: Vec::new(),
            due: Vec::new(),
            complaints: Vec::new(),
            rng: Rng::with_seed(options.seed),
        };
        for _ in 0..options.nodes {
            stage.add_node()?;
        }
        for node in &stage.nodes {
            node.process.wait_ready(BACK).await?;
        }
        Ok(stage)
    }

    pub(crate) fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    pub(crate) fn events(&self) -> &[Event] {
        &self.events
    }

    fn add_node(&mut self) -> Result<()> {
        self.names += 1;
        let node = self.world.node(&format!("node-{}", self.names));
        self.nodes.push(Node {
            process: node.spawn()?,
            state: State::Up,
        });
        Ok(())
    }

    fn up(&self) -> Vec<usize> {
        let up = |place: &usize| self.nodes[*place].state == State::Up;
        (0..self.nodes.len()).filter(up).collect()
    }

    /// A node that may be taken away.
    fn victim(&mut self) -> Option<usize> {
        let up = self.up();
        (up.len() > FEWEST_NODES).then(|| up[self.rng.usize(0..up.len())])
    }

    /// The brokers are all up.
    fn brokers_are_whole(&self) -> bool {
        let ends = |due: &Due| {
            matches!(
                due.recovery,
                Recovery::StartBrokers(_) | Recovery::ResumeBroker(_)
            )
        };
        !self.due.iter().any(ends)
    }

    /// Lets it happen, if there is something that it can hit. Gives its number among the events.
    ///
    /// # Errors
    /// A process is not where it should be.
    pub(crate) async fn hit(&mut self, fault: Fault) -> Result<Option<usize>> {
        let begun_us = now_us();
        let Some((target, ends)) = self.apply(&fault).await? else {
            return Ok(None);
        };
        self.events.push(Event {
            ended_us: now_us(),
            fault,
            target,
            begun_us,
        });
        let event = self.events.len() - 1;
        if let Some((after, recovery)) = ends {
            let at = Instant::now() + after;
            self.due.push(Due {
                at,
                recovery,
                event,
            });
        }
        Ok(Some(event))
    }

    async fn apply(
        &mut self,
        fault: &Fault,
    ) -> Result<Option<(Target, Option<(Duration, Recovery)>)>> {
        let name = |node: &Node| Target::Node(node.process.name().to_owned());
        Ok(match fault {
            Fault::KillNode { down, wipe } => {
                let Some(place) = self.victim() else {
                    return Ok(None);
                };
                let node = &mut self.nodes[place];
                node.process.kill9();
                if *wipe {
                    node.process.wipe_data()?;
                }
                node.state = State::Down;
                Some((name(node), Some((*down, Recovery::StartNode(place)))))
            }
            Fault::PauseNode(lasts) => {
                let Some(place) = self.victim() else {
                    return Ok(None);
                };
                let node = &mut self.nodes[place];
                node.process.pause()?;
                node.state = State::Paused;
                Some((name(node), Some((*lasts, Recovery::ResumeNode(place)))))
            }
            Fault::RestartNode | Fault::RemoveNode => {
                let Some(place) = self.victim() else {
                    return Ok(None);
                };
                let node = &mut self.nodes[place];
                let code = node.process.terminate(LEAVES).await?;
                if code != 0 {
                    let name = node.process.name();
                    self.complaints
                        .push(format!("{name} was to end and did with {code}"));
                }
                node.state = State::Gone;
                if *fault == Fault::RestartNode {
                    node.process.spawn_again()?;
                    node.state = State::Up;
                }
                Some((name(node), None))
            }
            Fault::AddNode => {
                let running = self.nodes.iter().filter(|node| node.state != State::Gone);
                if running.count() >= MOST_NODES {
                    return Ok(None);
                }
                self.add_node()?;
                self.nodes.last().map(|node| (name(node), None))
            }
            Fault::KillBroker(down) => {
                if !self.brokers_are_whole() {
                    return Ok(None);
                }
                let place = self.leader().await;
                self.world.brokers.kill9(place);
                let recovery = Recovery::StartBrokers(vec![place]);
                Some((Target::Brokers, Some((*down, recovery))))
            }
            Fault::PauseBroker(lasts) => {
                if !self.brokers_are_whole() {
                    return Ok(None);
                }
                let place = self.leader().await;
                self.world.brokers.members()[place].pause()?;
                Some((
                    Target::Brokers,
                    Some((*lasts, Recovery::ResumeBroker(place))),
                ))
            }
            Fault::KillAllBrokers(down) => {
                if !self.brokers_are_whole() {
                    return Ok(None);
                }
                let all: Vec<usize> = (0..self.world.brokers.members().len()).collect();
                for place in &all {
                    self.world.brokers.kill9(*place);
                }
                Some((Target::Brokers, Some((*down, Recovery::StartBrokers(all)))))
            }
            Fault::Merchants(behaviour, lasts) => {
                let mut hit = Vec::new();
                for _ in 0..HIT {
                    let choice = self.shop.vulnerable();
                    let id = choice[self.rng.usize(0..choice.len())].0.id.to_string();
                    self.world.fleet.set(&id, (**behaviour).clone())?;
                    hit.push(id);
                }
                let recovery = Recovery::Heal(hit.clone());
                Some((Target::Merchants(hit), Some((*lasts, recovery))))
            }
            Fault::Registration => {
                let choice = self.shop.vulnerable();
                let mut merchant: Merchant = choice[self.rng.usize(0..choice.len())].0.clone();
                merchant.limits.concurrency = self.rng.u32(CONCURRENCY / 4..=CONCURRENCY);
                // With the brokers away nobody can change one.
                if self.world.register(&merchant).await.is_err() {
                    return Ok(None);
                }
                Some((Target::Merchants(vec![merchant.id.to_string()]), None))
            }
        })
    }

    /// Which broker leads ORDERS or OUTCOMES; the first when nobody says.
    async fn leader(&mut self) -> usize {
        let stream = ["ORDERS", "OUTCOMES"][self.rng.usize(0..2)];
        let members = self.world.brokers.members();
        let context = async_nats::jetstream::new(self.world.connection.client().clone());
        let asking = async {
            let stream = context.get_stream(stream).await.ok()?;
            let leader = stream.cached_info().cluster.as_ref()?.leader.clone()?;
            members.iter().position(|m| m.server_name() == leader)
        };
        let asked = tokio::time::timeout(Duration::from_secs(2), asking).await;
        asked.ok().flatten().unwrap_or_default()
    }

    /// Ends the faults whose time is over; all of them if `all`.
    ///
    /// # Errors
    /// A process does not come back.
    pub(crate) async fn recover(&mut self, all: bool) -> Result<()> {
        let now = Instant::now();
        let (over, due) = std::mem::take(&mut self.due)
            .into_iter()
            .partition(|due| all || due.at <= now);
        self.due = due;
        for Due {
            recovery, event, ..
        } in over
        {
            match recovery {
                Recovery::StartNode(place) => {
                    let node = &mut self.nodes[place];
                    node.process.spawn_again()?;
                    node.state = State::Up;
                    // Its fault was over when it died.
                    continue;
                }
                Recovery::ResumeNode(place) => {
                    let node = &mut self.nodes[place];
                    node.process.resume()?;
                    node.state = State::Up;
                }
                Recovery::StartBrokers(places) => {
                    let members = self.world.brokers.members();
                    let starts = places.iter().map(|place| members[*place].restart());
                    // At the same time: none of three answers before the second is there.
                    for started in futures::future::join_all(starts).await {
                        started?;
                    }
                }
                Recovery::ResumeBroker(place) => self.world.brokers.members()[place].resume()?,
                Recovery::Heal(ids) => {
                    for (merchant, behaviour) in self.shop.vulnerable() {
                        let id = merchant.id.as_str();
                        if ids.iter().any(|hit| hit == id) {
                            self.world.fleet.set(id, behaviour.clone())?;
                        }
                    }
                }
            }
            self.events[event].ended_us = now_us();
        }
        Ok(())
    }

    /// Whether the nodes' books are closed, now.
    pub(crate) async fn look(&mut self) {
        for place in self.up() {
            let node = &self.nodes[place].process;
            let figure = node.metric("expediter_orders_unaccounted");
            // One that starts, or stands still with the brokers, says nothing.
            if let Ok(Ok(open)) = tokio::time::timeout(Duration::from_secs(1), figure).await
                && open != 0.0
            {
                let text = format!("{}: {open} orders are unaccounted for", node.name());
                self.complaints.push(text);
            }
        }
    }

    /// When the next fault ends.
    pub(crate) fn next_recovery(&self) -> Option<Instant> {
        self.due.iter().map(|due| due.at).min()
    }

    /// Ends every fault, and waits until everything runs.
    ///
    /// # Errors
    /// It does not.
    pub async fn calm(&mut self) -> Result<()> {
        self.recover(true).await?;
        for broker in self.world.brokers.members() {
            broker.wait_jetstream(BACK).await?;
        }
        self.world.reconnected(BACK).await?;
        for node in self.nodes.iter_mut() {
            if node.state == State::Up {
                if !node.process.is_running() {
                    // One that finds its name in use is right to end.
                    let log = node.process.log().tail(20);
                    if !log.contains("is in use by instance") {
                        let name = node.process.name();
                        self.complaints
                            .push(format!("{name} ended by itself:\n{log}"));
                    }
                    node.process.spawn_again()?;
                }
                node.process.wait_ready(BACK).await?;
            }
        }
        Ok(())
    }

    /// What the nodes say of themselves that must not be.
    ///
    /// # Errors
    /// A node does not answer.
    pub async fn complaints(&self) -> Result<Vec<String>> {
        let mut wrong = self.complaints.clone();
        for node in &self.nodes {
            let name = node.process.name();
            for line in node.process.log().lines() {
                if ["panicked", "a promise is broken"]
                    .iter()
                    .any(|bad| line.text.contains(bad))
                {
                    wrong.push(format!("{name}: {}", line.text));
                }
            }
            if node.state == State::Up {
                let accounted = eventually("the books are closed", BACK, async || {
                    let open = node.process.metric("expediter_orders_unaccounted").await?;
                    Ok((open == 0.0).then_some(()))
                });
                if let Err(error) = accounted.await {
                    wrong.push(format!("{name}: {error:#}"));
                }
            }
        }
        Ok(wrong)
    }

    /// Kills everything and starts one node anew, under the name of the first, which keeps its data
    /// unless `wipe`.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start_over(&mut self, wipe: bool) -> Result<()> {
        self.nodes.truncate(1);
        let node = self.nodes.first_mut().context("no node")?;
        node.process.kill9();
        if wipe {
            node.process.wipe_data()?;
        }
        node.process.restart().await
    }

    /// Kills all nodes.
    pub fn kill_all(&mut self) {
        for node in &self.nodes {
            node.process.kill9();
        }
    }
}

pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0))
}
