//! Real brokers for tests: one nats-server, or three that replicate.
//!
//! They are the fleet's. The binary is `EXPEDITER_TEST_NATS_SERVER`, else the one in `PATH`, else
//! the workspace's pinned one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use expediter_fleet::Error;
use expediter_fleet::nats_server::{ClusterOptions, NatsCluster};

/// Generous: the machine may be busy with other things.
const START: Duration = Duration::from_secs(60);

/// How the brokers of a world are run. The default is one server, run as in production.
#[derive(Debug, Clone)]
pub struct Brokers {
    /// 1, or 3 that replicate. Default 1.
    pub servers: usize,
    /// `sync_interval: always`. Default true; false for more orders a second than a disk of a small
    /// machine stands.
    pub sync_always: bool,
    /// Appended to each server's configuration. Default: empty.
    pub extra_config: String,
}

impl Default for Brokers {
    fn default() -> Self {
        Self {
            servers: 1,
            sync_always: true,
            extra_config: String::new(),
        }
    }
}

impl Brokers {
    /// Starts them; they keep their data under `dir`.
    ///
    /// # Errors
    /// No binary, or they do not answer within a minute.
    pub async fn start(self, dir: &Path) -> Result<NatsCluster, Error> {
        NatsCluster::start(ClusterOptions {
            size: self.servers,
            binary: std::env::var_os("EXPEDITER_TEST_NATS_SERVER").map(PathBuf::from),
            search: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin")],
            sync_always: self.sync_always,
            extra_config: self.extra_config,
            start_timeout: START,
            ..ClusterOptions::new(dir.join("nats"))
        })
        .await
    }
}
