//! What goes wrong, and how often.

use std::time::Duration;

use expediter_fleet::merchants::{Behaviour, Ending};
use fastrand::Rng;

/// Which faults there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Scenario {
    /// All of them.
    #[default]
    All,
    /// Nodes are killed, paused and restarted.
    Nodes,
    /// Brokers are killed, paused and restarted, and nodes are killed.
    Brokers,
    /// Nodes come and go as planned.
    Rebalance,
    /// Merchants hang, fail and reset, and registrations change.
    Merchants,
}

/// One fault. What it hits is chosen when it happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// SIGKILL; started again after `down`, with an emptied data directory if `wipe`.
    KillNode { down: Duration, wipe: bool },
    /// SIGSTOP, and SIGCONT after that.
    PauseNode(Duration),
    /// SIGTERM; started again when it ended.
    RestartNode,
    /// One node more.
    AddNode,
    /// SIGTERM, for good.
    RemoveNode,
    /// SIGKILL of the leader of ORDERS or OUTCOMES; started again after that.
    KillBroker(Duration),
    /// SIGSTOP of the leader, and SIGCONT after that.
    PauseBroker(Duration),
    /// SIGKILL of all brokers; started again after that.
    KillAllBrokers(Duration),
    /// Some merchants behave so for a while.
    Merchants(Box<Behaviour>, Duration),
    /// A registration gets another concurrency.
    Registration,
}

/// What a fault hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Node(String),
    Brokers,
    Merchants(Vec<String>),
}

/// A fault that happened.
#[derive(Debug, Clone)]
pub struct Event {
    pub fault: Fault,
    pub target: Target,
    /// In microseconds since 1970.
    pub begun_us: u64,
    /// When its cause was gone, in microseconds since 1970; a killed node's is gone at once, since
    /// others take over.
    pub ended_us: u64,
}

impl Fault {
    /// The fault's name, as the report has it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::KillNode { wipe: false, .. } => "kill_node",
            Self::KillNode { wipe: true, .. } => "kill_and_wipe_node",
            Self::PauseNode(_) => "pause_node",
            Self::RestartNode => "restart_node",
            Self::AddNode => "add_node",
            Self::RemoveNode => "remove_node",
            Self::KillBroker(_) => "kill_broker",
            Self::PauseBroker(_) => "pause_broker",
            Self::KillAllBrokers(_) => "kill_all_brokers",
            Self::Merchants(..) => "merchants",
            Self::Registration => "registration",
        }
    }

    /// It ends processes with SIGKILL.
    #[must_use]
    pub fn is_kill(&self) -> bool {
        matches!(
            self,
            Self::KillNode { .. } | Self::KillBroker(_) | Self::KillAllBrokers(_)
        )
    }

    /// It hits the brokers.
    #[must_use]
    pub fn is_of_brokers(&self) -> bool {
        matches!(
            self,
            Self::KillBroker(_) | Self::PauseBroker(_) | Self::KillAllBrokers(_)
        )
    }
}

impl Scenario {
    /// The next fault.
    pub(crate) fn draw(self, rng: &mut Rng) -> Fault {
        // Of a hundred: kill, pause, restart, add, remove, broker killed, paused, all brokers killed,
        // merchants, registration.
        let weights: [u32; 10] = match self {
            Self::All => [52, 8, 5, 5, 5, 7, 2, 2, 9, 5],
            Self::Nodes => [70, 20, 10, 0, 0, 0, 0, 0, 0, 0],
            Self::Brokers => [40, 0, 0, 0, 0, 35, 15, 10, 0, 0],
            Self::Rebalance => [0, 0, 40, 30, 30, 0, 0, 0, 0, 0],
            Self::Merchants => [0, 0, 0, 0, 0, 0, 0, 0, 70, 30],
        };
        let mut left = rng.u32(0..weights.iter().sum());
        let kind = weights.iter().position(|weight| {
            let hit = left < *weight;
            left = left.saturating_sub(*weight);
            hit
        });
        let mut between = |from: u64, to: u64| Duration::from_millis(rng.u64(from..to));
        match kind.unwrap_or_default() {
            0 => {
                let down = between(0, 6_000);
                let wipe = rng.u32(0..5) == 0;
                Fault::KillNode { down, wipe }
            }
            1 => Fault::PauseNode(between(500, 30_000)),
            2 => Fault::RestartNode,
            3 => Fault::AddNode,
            4 => Fault::RemoveNode,
            5 => Fault::KillBroker(between(0, 5_000)),
            6 => Fault::PauseBroker(between(500, 8_000)),
            7 => Fault::KillAllBrokers(between(0, 3_000)),
            8 => {
                let lasts = between(1_000, 8_000);
                Fault::Merchants(Box::new(trouble(rng)), lasts)
            }
            _ => Fault::Registration,
        }
    }
}

fn trouble(rng: &mut Rng) -> Behaviour {
    let ending = |ending| Behaviour {
        ending,
        ..Behaviour::default()
    };
    match rng.u32(0..5) {
        0 => ending(Ending::Hang),
        1 => ending(Ending::Reset),
        2 => ending(Ending::Close),
        3 => ending(Ending::Cut),
        _ => Behaviour::status(503),
    }
}
