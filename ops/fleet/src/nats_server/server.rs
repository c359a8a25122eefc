use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::process::Signal;
use tokio::time::Instant;

use super::probe::{self, Need};
use super::{ClusterMember, Version, binary, config, ports};
use crate::{Error, child};

/// How often a port that another process took in the meantime is replaced by another one.
const PORT_TRIES: usize = 5;
const POLL: Duration = Duration::from_millis(10);

/// How to run a server. `Options::new(store_dir)` gives the defaults.
#[derive(Debug, Clone)]
pub struct Options {
    /// The binary to run. Default `None`: `nats-server` in PATH, then in `search`.
    pub binary: Option<PathBuf>,
    /// Directories that may hold a `nats-server`, after PATH. Default: none.
    pub search: Vec<PathBuf>,
    /// JetStream's directory; made if missing, kept afterwards. Beside it are written
    /// `<store_dir>.conf`, `<store_dir>.log` and `<store_dir>.lock`.
    pub store_dir: PathBuf,
    /// Default `None`: a free port between 20000 and 31999, kept over restarts.
    pub port: Option<u16>,
    /// `sync_interval: always`: an acknowledged message stands a power cut. Default false (2 minutes).
    pub sync_always: bool,
    /// The largest message, in bytes. Default `None`: the server's own (1 MiB).
    pub max_payload: Option<u32>,
    /// Default `None`: a name of its own.
    pub server_name: Option<String>,
    /// Default `None`: a single server.
    pub cluster: Option<ClusterMember>,
    /// Appended to the configuration as it is. Default: empty.
    pub extra_config: String,
    /// How long a start or restart may take until the server answers. Default 10 s.
    pub start_timeout: Duration,
    /// How long a server may take to stop after SIGTERM before it is killed. Default 5 s.
    pub stop_timeout: Duration,
}

impl Options {
    #[must_use]
    pub fn new(store_dir: impl Into<PathBuf>) -> Self {
        Self {
            binary: None,
            search: Vec::new(),
            store_dir: store_dir.into(),
            port: None,
            sync_always: false,
            max_payload: None,
            server_name: None,
            cluster: None,
            extra_config: String::new(),
            start_timeout: Duration::from_secs(10),
            stop_timeout: Duration::from_secs(5),
        }
    }
}

/// A running (or killed, or stopped) server. Dropping it kills the process and keeps the store.
#[derive(Debug)]
pub struct NatsServer {
    options: Options,
    binary: PathBuf,
    version: Version,
    name: String,
    port: u16,
    child: Mutex<Option<Child>>,
    /// Held as long as this server exists, so that a second one on the same store is refused.
    _lock: StoreLock,
}

impl NatsServer {
    /// Starts a server and waits until it answers; a single one also until its JetStream answers.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let mut server = Self::prepare(options).await?;
        for remaining in (0..PORT_TRIES).rev() {
            match server.launch_and_wait().await {
                Err(error)
                    if remaining > 0 && server.options.port.is_none() && lost_port(&error) =>
                {
                    server.port = ports::free(1)?[0];
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(server),
            }
        }
        Err(Error::NoFreePort(PORT_TRIES))
    }

    /// Everything up to the process itself.
    pub(super) async fn prepare(options: Options) -> Result<Self, Error> {
        let (binary, version) = binary::find(options.binary.as_deref(), &options.search).await?;
        // The server resolves a relative store against its own directory, not against its config's.
        let store_dir = std::path::absolute(&options.store_dir)
            .map_err(file("cannot resolve", &options.store_dir))?;
        fs::create_dir_all(&store_dir).map_err(file("cannot make", &store_dir))?;
        let options = Options {
            store_dir,
            ..options
        };
        let lock = lock_store(&options.store_dir)?;
        let port = match options.port {
            Some(port) => port,
            None => ports::free(1)?[0],
        };
        let name = match &options.server_name {
            Some(name) => name.clone(),
            None => format!("n{}-{port}", std::process::id()),
        };
        let child = Mutex::new(None);
        Ok(Self {
            options,
            binary,
            version,
            name,
            port,
            child,
            _lock: lock,
        })
    }

    pub(super) async fn launch_and_wait(&self) -> Result<(), Error> {
        let log_start = self.launch()?;
        // A member alone has no leader to answer for JetStream.
        let alone = self.options.cluster.is_none();
        let need = if alone { Need::JetStream } else { Need::Answer };
        let ready = self.wait(need, self.options.start_timeout, log_start).await;
        if ready.is_err() {
            self.kill9();
        }
        ready
    }

    /// Returns where this run's part of the log begins.
    pub(super) fn launch(&self) -> Result<u64, Error> {
        let config = config::Config {
            server_name: &self.name,
            port: self.port,
            store_dir: &self.options.store_dir,
            sync_always: self.options.sync_always,
            max_payload: self.options.max_payload,
            cluster: self.options.cluster.as_ref(),
            extra: &self.options.extra_config,
        };
        let path = beside(&self.options.store_dir, "conf");
        fs::write(&path, config.render()).map_err(file("cannot write", &path))?;
        let log_path = self.log_path();
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(file("cannot write", &log_path))?;
        let log_start = log.metadata().map_or(0, |meta| meta.len());
        let child = child::start(&self.binary, &path, log).map_err(|source| Error::Process {
            what: "starting nats-server",
            source,
        })?;
        tracing::debug!(pid = child.id(), port = self.port, store = %self.options.store_dir.display(),
            "nats-server started");
        if let Some(former) = self.child().replace(child) {
            let _ = child::kill(former);
        }
        Ok(log_start)
    }

    /// Waits until the server answers and its JetStream has a leader.
    pub async fn wait_jetstream(&self, deadline: Duration) -> Result<(), Error> {
        self.wait(Need::JetStream, deadline, 0).await
    }

    pub(super) async fn wait(
        &self,
        need: Need,
        deadline: Duration,
        log_start: u64,
    ) -> Result<(), Error> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.ended() {
                let (log, tail) = (self.log_path(), self.log_tail_from(log_start));
                return Err(Error::NatsServerEnded { status, log, tail });
            }
            let Err(why) = probe::ask(self.port, &self.name, need).await else {
                return Ok(());
            };
            if Instant::now() >= end {
                let (log, tail) = (self.log_path(), self.log_tail_from(log_start));
                return Err(Error::NatsServerNotReady {
                    port: self.port,
                    why,
                    log,
                    tail,
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// `Some` when there is no process (any more).
    fn ended(&self) -> Option<String> {
        match self.child().as_mut() {
            None => Some("not running".to_owned()),
            Some(child) => match child.try_wait() {
                Ok(None) => None,
                Ok(Some(status)) => Some(status.to_string()),
                Err(error) => Some(error.to_string()),
            },
        }
    }

    /// `nats://127.0.0.1:<port>`, the same over restarts.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id, `None` when it was killed or stopped.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    #[must_use]
    pub fn server_name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn store_dir(&self) -> &Path {
        &self.options.store_dir
    }

    /// What the server writes, over all its runs.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        beside(&self.options.store_dir, "log")
    }

    /// False when it was killed or stopped, or ended by itself.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.ended().is_none()
    }

    /// SIGKILL, and waits for the end of the process (milliseconds). Nothing to do when it is not
    /// running.
    pub fn kill9(&self) {
        if let Some(child) = self.child().take()
            && let Err(error) = child::kill(child)
        {
            tracing::debug!(%error, "nats-server was already gone");
        }
    }

    /// SIGTERM, and SIGKILL when it has not ended after `stop_timeout`. A paused server is resumed.
    pub async fn terminate(&self) {
        let signalled = self.resume().and_then(|()| self.signal(Signal::TERM));
        let end = Instant::now() + self.options.stop_timeout;
        while signalled.is_ok() && self.is_running() && Instant::now() < end {
            tokio::time::sleep(POLL).await;
        }
        self.kill9();
    }

    /// Starts it again, on the same port and store; stops it first (as [`Self::terminate`]) when it is
    /// running. Waits as [`Self::start`] does.
    pub async fn restart(&self) -> Result<(), Error> {
        self.terminate().await;
        self.launch_and_wait().await
    }

    /// SIGSTOP: connections stay open, nothing answers.
    pub fn pause(&self) -> Result<(), Error> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<(), Error> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), Error> {
        match self.child().as_ref() {
            None => Err(Error::NatsServerNotRunning),
            Some(child) => child::signal(child, signal).map_err(|source| Error::Process {
                what: "signalling nats-server",
                source,
            }),
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_tail_from(&self, start: u64) -> String {
        tail(&self.log_path(), start, 20).unwrap_or_default()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill9();
    }
}

fn tail(path: &Path, start: u64, lines: usize) -> std::io::Result<String> {
    const ENOUGH: u64 = 16 * 1024;
    let mut log = File::open(path)?;
    let start = start.max(log.metadata()?.len().saturating_sub(ENOUGH));
    log.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}

fn lost_port(error: &Error) -> bool {
    match error {
        Error::NatsServerEnded { tail, .. } => tail.contains("address already in use"),
        _ => false,
    }
}

/// Unlocks by itself, because closing the file is not enough: a child that is being forked at that
/// moment for another server has it open, too, until its exec.
#[derive(Debug)]
struct StoreLock(File);

impl Drop for StoreLock {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

fn lock_store(store: &Path) -> Result<StoreLock, Error> {
    let path = beside(store, "lock");
    let lock = File::options().create(true).append(true).open(&path);
    let lock = lock.map_err(file("cannot write", &path))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(StoreLock(lock)),
        Err(_) => Err(Error::StoreInUse {
            store: store.to_owned(),
        }),
    }
}

fn beside(store: &Path, extension: &str) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    PathBuf::from(name)
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}
