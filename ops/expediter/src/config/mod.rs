//! A node's settings: typed, checked, and the same for all verbs.
//!
//! Constraints: `default.toml` is the manual and the default at once. The file comes first, then the
//! environment, then flags. Every problem is found in one run, and no message shows a secret.

mod keys;
mod options;
mod read;
mod secrets;
mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use expediter_telemetry::logs::Format;
use expediter_types::{NodeName, Rate, SecretRef};
use expediter_wire::notification::Happened;

pub(crate) use read::{ConfigError, Environment, Problem};
pub(crate) use secrets::ProcessSecrets;

/// The annotated defaults, as `expediter config default` prints them.
pub(crate) const DEFAULT: &str = include_str!("default.toml");

/// Everything that can be set; units, ranges and meaning are in `default.toml`.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Config {
    pub(crate) node: Node,
    pub(crate) nats: Nats,
    pub(crate) orders: Orders,
    pub(crate) http: Http,
    pub(crate) egress: EgressRules,
    pub(crate) notify: Notify,
    pub(crate) store: Store,
    pub(crate) log: Log,
    pub(crate) telemetry: Telemetry,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// `None`: see [`Config::node_name`].
    pub(crate) name: Option<NodeName>,
    pub(crate) data_dir: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) drain_deadline: Duration,
    pub(crate) crash_limit: usize,
    /// 0: one for each two cores.
    pub(crate) shards: usize,
    pub(crate) in_flight: usize,
    /// `None`: unlimited.
    pub(crate) rate: Option<Rate>,
    pub(crate) intake_credits: usize,
    /// 0: the hard limit.
    pub(crate) open_files: u64,
}

/// `[nats]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Nats {
    pub(crate) servers: Vec<String>,
    pub(crate) creds_file: Option<PathBuf>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<SecretRef>,
    pub(crate) token: Option<SecretRef>,
    pub(crate) nkey_file: Option<PathBuf>,
    /// 0: what the streams have.
    pub(crate) partitions: u16,
    pub(crate) replicas: usize,
    /// 0: chosen.
    pub(crate) orders_max_bytes: u64,
    /// 0: chosen.
    pub(crate) outcomes_max_bytes: u64,
    pub(crate) outcomes_retention: Duration,
    pub(crate) dead_letter_retention: Duration,
    pub(crate) audit_retention: Duration,
    pub(crate) tls: NatsTls,
}

/// `[nats.tls]`
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct NatsTls {
    pub(crate) required: bool,
    pub(crate) first: bool,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) cert_file: Option<PathBuf>,
    pub(crate) key_file: Option<PathBuf>,
}

/// `[orders]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Orders {
    pub(crate) unknown_merchant_grace: Duration,
    pub(crate) repeats_window: usize,
    pub(crate) spill_after: Duration,
    pub(crate) mark_every: Duration,
    pub(crate) outcome_linger: Duration,
    pub(crate) idle_after: Duration,
    pub(crate) panics: usize,
    pub(crate) panic_window: Duration,
}

/// `[http]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Http {
    pub(crate) connect_timeout: Duration,
    pub(crate) max_response: u64,
    pub(crate) retry_after_min: Duration,
    pub(crate) retry_after_max: Duration,
    pub(crate) rate_limited_pause: Duration,
    /// `None`: `expediter/<version>`.
    pub(crate) user_agent: Option<String>,
    pub(crate) pool_idle_per_host: usize,
    pub(crate) pool_idle: Duration,
    pub(crate) pool_idle_unrepeatable: Duration,
    pub(crate) ca_files: Vec<PathBuf>,
}

/// `[egress]`
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct EgressRules {
    pub(crate) allow: Vec<String>,
}

/// `[notify]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Notify {
    /// `None`: nobody is notified. Its path may be secret.
    pub(crate) url: Option<String>,
    pub(crate) secret: Option<SecretRef>,
    pub(crate) events: Vec<Happened>,
    pub(crate) every: Duration,
    pub(crate) timeout: Duration,
    pub(crate) give_up_after: Duration,
    pub(crate) allow: Vec<String>,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Store {
    /// Bytes.
    pub(crate) cache: u64,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Log {
    pub(crate) format: Format,
    pub(crate) filter: String,
}

/// `[telemetry]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Telemetry {
    pub(crate) otlp_endpoint: Option<String>,
    pub(crate) trace_ratio: f64,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: None,
            data_dir: PathBuf::from("data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 8321)),
            drain_deadline: Duration::from_secs(20),
            crash_limit: 3,
            shards: 0,
            in_flight: 5_000,
            rate: None,
            intake_credits: 4_096,
            open_files: 0,
        }
    }
}

impl Default for Nats {
    fn default() -> Self {
        Self {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            creds_file: None,
            user: None,
            password: None,
            token: None,
            nkey_file: None,
            partitions: 0,
            replicas: 1,
            orders_max_bytes: 0,
            outcomes_max_bytes: 0,
            outcomes_retention: Duration::from_secs(7 * 86_400),
            dead_letter_retention: Duration::from_secs(30 * 86_400),
            audit_retention: Duration::from_secs(90 * 86_400),
            tls: NatsTls::default(),
        }
    }
}

impl Default for Orders {
    fn default() -> Self {
        Self {
            unknown_merchant_grace: Duration::from_secs(600),
            repeats_window: 5_000_000,
            spill_after: Duration::from_secs(2),
            mark_every: Duration::from_secs(3),
            outcome_linger: Duration::from_millis(10),
            idle_after: Duration::from_secs(30),
            panics: 5,
            panic_window: Duration::from_secs(60),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            max_response: 1 << 20,
            retry_after_min: Duration::from_secs(1),
            retry_after_max: Duration::from_secs(3_600),
            rate_limited_pause: Duration::from_secs(1),
            user_agent: None,
            pool_idle_per_host: 32,
            pool_idle: Duration::from_secs(50),
            pool_idle_unrepeatable: Duration::from_secs(1),
            ca_files: Vec::new(),
        }
    }
}

impl Default for Notify {
    fn default() -> Self {
        Self {
            url: None,
            secret: None,
            events: vec![
                Happened::OrderParked,
                Happened::MerchantSuspended,
                Happened::OrderExpired,
            ],
            every: Duration::from_secs(60),
            timeout: Duration::from_secs(10),
            give_up_after: Duration::from_secs(900),
            allow: Vec::new(),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self { cache: 128 << 20 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: Format::Auto,
            filter: "info".to_owned(),
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            trace_ratio: 1.0,
        }
    }
}

impl Config {
    /// The defaults, then the file, then the environment.
    ///
    /// # Errors
    /// The file cannot be read, or everything that is wrong with the two.
    pub(crate) fn load(
        file: Option<&Path>,
        environment: &Environment,
    ) -> Result<Self, ConfigError> {
        read::load(file, environment)
    }

    /// Other NATS servers, separated by commas.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(crate) fn set_servers(&mut self, servers: &str) -> Result<(), String> {
        self.nats.servers = keys::servers(&value::Given::Variable(servers))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
