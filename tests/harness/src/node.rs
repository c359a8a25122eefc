//! The real binary as a child process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{NodeLog, eventually};

/// Generous: the machine may be busy with other things.
const READY: Duration = Duration::from_secs(30);

/// How a node is run. Its files are below `dir`: `<name>/`, `<name>.toml`, `<name>.log`.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    dir: PathBuf,
    name: String,
    file: String,
    settings: BTreeMap<String, String>,
    env: Vec<(String, String)>,
    disk_mib: Option<u32>,
}

impl NodeOptions {
    pub(crate) fn new(dir: &Path, name: &str, nats: &[String]) -> Self {
        let settings = [
            ("nats.servers", format!("{nats:?}")),
            ("egress.allow", "[\"127.0.0.0/8\"]".to_owned()),
            ("log.format", "\"json\"".to_owned()),
            ("log.filter", "\"info\"".to_owned()),
            ("node.drain_deadline", "\"5s\"".to_owned()),
            // Tests kill nodes often.
            ("node.crash_limit", "0".to_owned()),
            ("orders.mark_every", "\"1s\"".to_owned()),
            ("store.cache", "\"32MiB\"".to_owned()),
        ];
        Self {
            dir: dir.to_owned(),
            name: name.to_owned(),
            file: name.to_owned(),
            settings: settings.map(|(key, value)| (key.to_owned(), value)).into(),
            env: Vec::new(),
            disk_mib: None,
        }
    }

    /// Its data directory is a disk of so many MiB, which vanishes with the process. Needs user
    /// namespaces.
    #[must_use]
    pub fn disk_mib(mut self, size: u32) -> Self {
        self.disk_mib = Some(size);
        self
    }

    /// Sets `section.key` to a text, such as `("orders.mark_every", "1s")`.
    #[must_use]
    pub fn set(self, key: &str, text: &str) -> Self {
        self.set_toml(key, format!("{text:?}"))
    }

    /// Sets `section.key` to a TOML value, such as `("node.in_flight", "100")`.
    #[must_use]
    pub fn set_toml(mut self, key: &str, value: impl Into<String>) -> Self {
        self.settings.insert(key.to_owned(), value.into());
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Another name for its files than the node's: two processes of one name.
    #[must_use]
    pub fn files(mut self, file: &str) -> Self {
        file.clone_into(&mut self.file);
        self
    }

    /// Starts the process and waits until it is ready.
    ///
    /// # Errors
    /// It is not within 30 s; tells the end of its log.
    pub async fn start(self) -> Result<NodeProcess> {
        let node = self.spawn()?;
        node.wait_ready(READY).await?;
        Ok(node)
    }

    /// Starts the process.
    ///
    /// # Errors
    /// There is no binary.
    pub fn spawn(self) -> Result<NodeProcess> {
        let port = free_port()?;
        let data = self.dir.join(&self.file);
        let mut settings = self.settings.clone();
        settings.insert("node.name".to_owned(), format!("{:?}", self.name));
        settings.insert(
            "node.data_dir".to_owned(),
            format!("{:?}", data.display().to_string()),
        );
        settings.insert("node.listen".to_owned(), format!("\"127.0.0.1:{port}\""));
        // Dotted keys need no sections.
        let lines: Vec<String> = settings
            .iter()
            .map(|(key, value)| format!("{key} = {value}\n"))
            .collect();
        let config = self.dir.join(format!("{}.toml", self.file));
        fs::write(&config, lines.concat())?;
        let mut node = NodeProcess {
            binary: binary()?,
            log: self.dir.join(format!("{}.log", self.file)),
            name: self.name,
            env: self.env,
            disk_mib: self.disk_mib,
            data,
            config,
            port,
            child: Mutex::new(None),
        };
        node.spawn_again()?;
        Ok(node)
    }
}

/// A node that runs (or ran) as a process of its own. Dropping it kills the process.
#[derive(Debug)]
pub struct NodeProcess {
    binary: PathBuf,
    name: String,
    env: Vec<(String, String)>,
    disk_mib: Option<u32>,
    data: PathBuf,
    config: PathBuf,
    log: PathBuf,
    port: u16,
    child: Mutex<Option<Child>>,
}

impl NodeProcess {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    #[must_use]
    pub fn config_file(&self) -> &Path {
        &self.config
    }

    /// Starts the process again with everything as it was; kills it first when it runs.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_again(&mut self) -> Result<()> {
        self.kill9();
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = match self.disk_mib {
            None => Command::new(&self.binary),
            Some(size) => {
                fs::create_dir_all(&self.data)?;
                let mount = format!("mount -t tmpfs -o size={size}m tmpfs \"$0\" && exec \"$@\"");
                let mut unshare = Command::new("unshare");
                unshare.args(["-Urm", "sh", "-c", &mount]);
                unshare.arg(&self.data).arg(&self.binary);
                unshare
            }
        };
        command.arg("serve").arg("--config").arg(&self.config);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // What is meant for the tests is no setting of a node.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("EXPEDITER_") {
                command.env_remove(name);
            }
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let child = expediter_fleet::spawn_bound(command)
            .with_context(|| format!("starting {}", self.binary.display()))?;
        *self.child() = Some(child);
        Ok(())
    }

    /// Starts it again and waits until it is ready.
    ///
    /// # Errors
    /// As [`NodeOptions::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.spawn_again()?;
        self.wait_ready(READY).await
    }

    /// Waits until `/readyz` says 200.
    ///
    /// # Errors
    /// It does not, or the process ended.
    pub async fn wait_ready(&self, deadline: Duration) -> Result<()> {
        let what = format!("{} is ready", self.name);
        let ready = eventually(&what, deadline, || async {
            if let Some(status) = self.exited() {
                return Ok(Some(Err(anyhow::anyhow!("{} ended: {status}", self.name))));
            }
            let (status, page) = self.get("/readyz").await?;
            if status != 200 {
                bail!("{status} {page}");
            }
            Ok(Some(Ok(())))
        });
        let ready = ready.await.and_then(|ready| ready);
        ready.with_context(|| format!("the end of its log:\n{}", self.log().tail(20)))
    }

    /// SIGKILL, and waits for the end of the process.
    pub fn kill9(&self) {
        if let Some(mut child) = self.child().take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// SIGSTOP: connections stay open, nothing answers.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGTERM, and waits for the exit code.
    ///
    /// # Errors
    /// It did not end within the deadline.
    pub async fn terminate(&self, deadline: Duration) -> Result<i32> {
        self.signal(Signal::TERM)?;
        self.wait_exit(deadline).await
    }

    /// Waits for the exit code; minus the signal when one ended it.
    ///
    /// # Errors
    /// It did not end within the deadline.
    pub async fn wait_exit(&self, deadline: Duration) -> Result<i32> {
        let what = format!("{} ends", self.name);
        let ended = eventually(&what, deadline, || async { Ok(self.exited()) }).await;
        let ended =
            ended.with_context(|| format!("the end of its log:\n{}", self.log().tail(20)))?;
        *self.child() = None;
        let signal = || ended.signal().map_or(0, |signal| -signal);
        Ok(ended.code().unwrap_or_else(signal))
    }

    #[must_use]
    pub fn is_running(&self) -> bool {
        self.child().is_some() && self.exited().is_none()
    }

    /// Removes the data directory. The process has to be down.
    ///
    /// # Errors
    /// It runs, or there is none.
    pub fn wipe_data(&self) -> Result<()> {
        if self.is_running() {
            bail!("{} runs", self.name);
        }
        fs::remove_dir_all(&self.data).context("wiping the data directory")
    }

    /// Status and body of a page of the node.
    ///
    /// # Errors
    /// It does not answer within 2 s.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let asked = tokio::time::timeout(Duration::from_secs(2), get(self.port, path));
        asked.await.context("no answer in 2 s")?
    }

    /// A metric, summed over its label sets; with labels, such as `name{class="retry"}`, that one.
    ///
    /// # Errors
    /// The node does not answer, or has no such metric.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let (_, page) = self.get("/metrics").await?;
        let value = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let bare = series.split('{').next().unwrap_or_default();
            let wanted = series == name || bare == name;
            wanted.then(|| value.parse::<f64>().ok())?
        };
        let values: Vec<f64> = page.lines().filter_map(value).collect();
        if values.is_empty() {
            bail!("no metric {name}");
        }
        Ok(values.iter().sum())
    }

    /// Waits until it works on such a number of partitions, and gives the number.
    ///
    /// # Errors
    /// It does not within the deadline.
    pub async fn owns(&self, deadline: Duration, is_it: impl Fn(f64) -> bool) -> Result<f64> {
        let what = format!("partitions move to or from {}", self.name);
        eventually(&what, deadline, || async {
            let owned = self.metric("expediter_partitions_owned").await?;
            Ok(is_it(owned).then_some(owned))
        })
        .await
    }

    /// Resident memory of the process, in MiB.
    ///
    /// # Errors
    /// It does not run.
    pub fn rss_mib(&self) -> Result<f64> {
        self.memory_mib("VmRSS:")
    }

    /// The most of it since the process started.
    ///
    /// # Errors
    /// It does not run.
    pub fn peak_rss_mib(&self) -> Result<f64> {
        self.memory_mib("VmHWM:")
    }

    fn memory_mib(&self, name: &str) -> Result<f64> {
        let pid = self.pid().context("it does not run")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with(name));
        let kib = line
            .and_then(|line| line.split_whitespace().nth(1))
            .with_context(|| format!("no {name}"))?;
        Ok(kib.parse::<f64>()? / 1024.0)
    }

    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// Sets how many files it may open from now on; what is open stays so. Gives the limit before.
    ///
    /// # Errors
    /// It does not run.
    pub fn limit_open_files(&self, limit: u64) -> Result<u64> {
        let pid = self.process_id()?;
        let before = rustix::process::prlimit(
            Some(pid),
            Resource::Nofile,
            Rlimit {
                current: Some(limit),
                maximum: getrlimit(Resource::Nofile).maximum,
            },
        )?;
        Ok(before.current.unwrap_or(u64::MAX))
    }

    /// What it wrote so far, over all its runs.
    #[must_use]
    pub fn log(&self) -> NodeLog {
        NodeLog::read(&self.log)
    }

    /// The node says of itself that nothing is wrong: no unexpected WARN or ERROR in its log, no panic, no
    /// violated invariant, every order accounted for.
    ///
    /// # Errors
    /// Says what is wrong.
    pub async fn check(&self, allowed: &[&str]) -> Result<()> {
        self.log().check(allowed)?;
        if self.is_running() {
            let unaccounted = self.metric("expediter_orders_unaccounted").await?;
            anyhow::ensure!(
                unaccounted == 0.0,
                "{} has {unaccounted} unaccounted",
                self.name
            );
        }
        Ok(())
    }

    fn exited(&self) -> Option<ExitStatus> {
        self.child()
            .as_mut()
            .and_then(|child| child.try_wait().ok().flatten())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(rustix::process::kill_process(self.process_id()?, signal)?)
    }

    fn process_id(&self) -> Result<Pid> {
        let pid = self
            .pid()
            .with_context(|| format!("{} does not run", self.name))?;
        Pid::from_raw(i32::try_from(pid)?).context("not a process id")
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Status and body of a page of a server on loopback. Small enough not to need a client: HTTP/1.0
/// has neither chunks nor reuse.
///
/// # Errors
/// It does not answer.
pub async fn get(port: u16, path: &str) -> Result<(u16, String)> {
    let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status.context("no HTTP answer")?, body.to_owned()))
}

/// The product: `EXPEDITER_TEST_BIN`, else the one of the same profile as this test.
///
/// # Errors
/// It was not built.
pub fn binary() -> Result<PathBuf> {
    if let Some(binary) = std::env::var_os("EXPEDITER_TEST_BIN") {
        // Tests run in their crate's directory; the path was given at the root.
        let binary = PathBuf::from(binary);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        return Ok(if binary.is_absolute() {
            binary
        } else {
            root.join(binary)
        });
    }
    // A test is in `deps`, below the binaries of its profile.
    let this = std::env::current_exe()?;
    let mut beside = this.ancestors().skip(1).take(2);
    let binary = beside
        .find(|dir| dir.join("expediter").is_file())
        .with_context(|| {
            format!(
                "no expediter beside {}: cargo build -p expediter",
                this.display()
            )
        })?;
    Ok(binary.join("expediter"))
}

/// Below the kernel's own ports and the brokers': while a node is down nothing takes its port.
fn free_port() -> Result<u16> {
    for attempt in 0..200 {
        let port = 12_000 + u16::try_from(RandomState::new().hash_one(attempt) % 8_000)?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port")
}
