//! Real brokers for tests: one nats-server, or three that replicate.
//!
//! They are the fleet's, run as in production (`sync_interval: always`). The binary is
//! `EXPEDITER_TEST_NATS_SERVER`, else the one in `PATH`, else the workspace's pinned one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use expediter_fleet::Error;
use expediter_fleet::nats_server::{ClusterOptions, NatsCluster, NatsServer, Options};

/// Generous: the machine may be busy with other things.
const START: Duration = Duration::from_secs(60);

/// Starts one server that keeps its data under `dir`.
///
/// # Errors
/// No binary, or it did not answer within a minute.
pub async fn single(dir: &Path) -> Result<NatsServer, Error> {
    configured(dir, "").await
}

/// The same with more configuration.
///
/// # Errors
/// As for [`single`].
pub async fn configured(dir: &Path, extra: &str) -> Result<NatsServer, Error> {
    server(dir, extra, true).await
}

/// One that does not sync each message, for floods that no disk of a small machine stands.
///
/// # Errors
/// As for [`single`].
pub async fn unsynced(dir: &Path) -> Result<NatsServer, Error> {
    server(dir, "", false).await
}

async fn server(dir: &Path, extra: &str, sync_always: bool) -> Result<NatsServer, Error> {
    NatsServer::start(Options {
        binary: binary(),
        search: pinned(),
        sync_always,
        start_timeout: START,
        extra_config: extra.to_owned(),
        ..Options::new(dir.join("nats"))
    })
    .await
}

/// Starts three servers that keep their data under `dir`, and returns when they replicate.
///
/// # Errors
/// As for [`single`].
pub async fn cluster3(dir: &Path) -> Result<NatsCluster, Error> {
    NatsCluster::start(ClusterOptions {
        binary: binary(),
        search: pinned(),
        sync_always: true,
        start_timeout: START,
        ..ClusterOptions::new(dir)
    })
    .await
}

fn binary() -> Option<PathBuf> {
    std::env::var_os("EXPEDITER_TEST_NATS_SERVER").map(PathBuf::from)
}

fn pinned() -> Vec<PathBuf> {
    vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin")]
}
