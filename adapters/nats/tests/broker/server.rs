use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use expediter_nats::{ConnectOptions, Connection};
use tempfile::TempDir;

/// A nats-server that can be killed, wiped and started again at the same address.
pub(crate) struct Server {
    child: Option<Child>,
    dir: TempDir,
    port: u16,
    arguments: Vec<String>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let mut server = Self::with(&[]);
        server.run().await;
        server
    }

    /// Not running yet.
    pub(crate) fn with(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
        Self {
            child: None,
            dir,
            port,
            arguments,
        }
    }

    pub(crate) async fn run(&mut self) {
        let child = Command::new(binary())
            .args([
                "-a",
                "127.0.0.1",
                "-p",
                &self.port.to_string(),
                "-js",
                "-sd",
            ])
            .arg(self.dir.path())
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server starts");
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(
                Instant::now() < deadline,
                "nats-server did not open its port"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// What a broker without a disk remembers.
    pub(crate) fn wipe(&self) {
        std::fs::remove_dir_all(self.dir.path().join("jetstream")).unwrap();
    }

    /// Keeps what the stopped server has on disk.
    pub(crate) fn snapshot(&self) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        cp(&self.dir.path().join("jetstream"), copy.path());
        copy
    }

    /// Puts back what a snapshot had of a stream, or of all.
    pub(crate) fn restore(&self, snapshot: &TempDir, stream: Option<&str>) {
        let inside = match stream {
            Some(stream) => format!("jetstream/$G/streams/{stream}"),
            None => "jetstream".to_owned(),
        };
        let there = self.dir.path().join(&inside);
        std::fs::remove_dir_all(&there).unwrap();
        cp(&snapshot.path().join(&inside), there.parent().unwrap());
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection::open(&ConnectOptions::to(&self.url(), "test"))
            .await
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("EXPEDITER_TEST_NATS_SERVER") {
        return path.into();
    }
    let pinned = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin/nats-server");
    if pinned.exists() {
        pinned
    } else {
        "nats-server".into()
    }
}

fn cp(from: &Path, into: &Path) {
    let done = Command::new("cp")
        .arg("-a")
        .args([from, into])
        .status()
        .unwrap();
    assert!(done.success());
}
