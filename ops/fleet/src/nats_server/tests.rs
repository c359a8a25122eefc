use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use super::probe::{self, Need};
use super::{ClusterOptions, MIN_VERSION, NatsCluster, NatsServer, Options};
use crate::Error;

/// Generous: these machines may be busy. No test waits for it unless it fails.
const DEADLINE: Duration = Duration::from_secs(30);

/// `EXPEDITER_TEST_NATS_SERVER`, else PATH, else the workspace's `.tools/bin`.
fn binary() -> Option<PathBuf> {
    std::env::var_os("EXPEDITER_TEST_NATS_SERVER").map(PathBuf::from)
}

fn search() -> Vec<PathBuf> {
    vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin")]
}

fn options(dir: &Path) -> Options {
    Options {
        binary: binary(),
        search: search(),
        start_timeout: DEADLINE,
        ..Options::new(dir.join("nats"))
    }
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

async fn answers(server: &NatsServer) -> bool {
    probe::ask(server.port(), server.server_name(), Need::Answer)
        .await
        .is_ok()
}

/// Gone or a zombie that its new parent has not reaped yet.
fn is_dead(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('Z')),
        Err(_) => true,
    }
}

async fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

#[tokio::test]
async fn a_killed_server_comes_back_on_its_port_with_its_data() {
    let dir = dir();
    let server = NatsServer::start(options(dir.path()))
        .await
        .expect("it starts");
    assert!(server.version() >= MIN_VERSION);
    assert_eq!(server.url(), format!("nats://127.0.0.1:{}", server.port()));
    let store = server.store_dir().join("jetstream");
    assert!(store.is_dir(), "JetStream is in {}", store.display());
    std::fs::write(store.join("kept"), "").expect("written");

    let (port, pid) = (server.port(), server.pid().expect("a process"));
    server.kill9();
    assert!(is_dead(pid) && !server.is_running() && server.pid().is_none());
    assert!(!answers(&server).await);
    server.restart().await.expect("it starts again");
    assert_eq!(server.port(), port);
    assert_ne!(server.pid(), Some(pid));
    assert!(server.is_running() && store.join("kept").is_file());

    server.terminate().await;
    assert!(!server.is_running());
    let log = std::fs::read_to_string(server.log_path()).expect("a log");
    assert!(
        log.contains("Server Exiting"),
        "it had the time to stop: {log}"
    );
    assert!(matches!(server.pause(), Err(Error::NatsServerNotRunning)));
}

#[tokio::test]
async fn a_paused_server_answers_when_resumed() {
    let dir = dir();
    let server = NatsServer::start(options(dir.path()))
        .await
        .expect("it starts");
    server.pause().expect("paused");
    assert!(!answers(&server).await && server.is_running());
    server.resume().expect("resumed");
    server.wait_jetstream(DEADLINE).await.expect("it answers");
    server.pause().expect("paused");
    server.terminate().await;
    let log = std::fs::read_to_string(server.log_path()).expect("a log");
    assert!(
        log.contains("Server Exiting"),
        "a paused one stops in order, too: {log}"
    );
}

#[tokio::test]
async fn dropping_kills() {
    let dir = dir();
    let server = NatsServer::start(options(dir.path()))
        .await
        .expect("it starts");
    let pid = server.pid().expect("a process");
    drop(server);
    assert!(is_dead(pid));
}

#[tokio::test]
async fn one_store_has_one_server() {
    let dir = dir();
    let server = NatsServer::start(options(dir.path()))
        .await
        .expect("it starts");
    let second = NatsServer::start(options(dir.path())).await;
    assert!(
        matches!(second, Err(Error::StoreInUse { .. })),
        "{second:?}"
    );
    drop(server);
    NatsServer::start(options(dir.path()))
        .await
        .expect("the store is free again");
}

#[tokio::test]
async fn a_failed_start_says_why() {
    let dir = dir();
    let extra_config = "no_such_option: 7".to_owned();
    let error = NatsServer::start(Options {
        extra_config,
        ..options(dir.path())
    })
    .await;
    let error = error.expect_err("a broken configuration").to_string();
    assert!(error.contains("no_such_option"), "{error}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let error = NatsServer::start(Options {
        port: Some(port),
        ..options(dir.path())
    })
    .await;
    let error = error.expect_err("the port is taken").to_string();
    assert!(error.contains("address already in use"), "{error}");
}

#[tokio::test]
async fn a_missing_or_old_binary_is_named() {
    let dir = dir();
    let missing = Options {
        binary: Some("/no/such/nats-server".into()),
        ..options(dir.path())
    };
    let error = NatsServer::start(missing)
        .await
        .expect_err("missing")
        .to_string();
    assert!(
        error.contains("/no/such/nats-server") && error.contains("install"),
        "{error}"
    );

    let script = |name: &str, says: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).expect("written");
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&path, executable).expect("made executable");
        path
    };
    let old = Options {
        binary: Some(script("old", "nats-server: v2.9.10")),
        ..options(dir.path())
    };
    let error = NatsServer::start(old)
        .await
        .expect_err("too old")
        .to_string();
    assert!(
        error.contains("2.9.10") && error.contains("2.14.0"),
        "{error}"
    );
    let odd = Options {
        binary: Some(script("odd", "hello")),
        ..options(dir.path())
    };
    let error = NatsServer::start(odd)
        .await
        .expect_err("no version")
        .to_string();
    assert!(error.contains("hello"), "{error}");
}

#[tokio::test]
async fn settings_reach_the_server() {
    let dir = dir();
    let options = Options {
        max_payload: Some(2_000_000),
        server_name: Some("a-\"quoted\"-name".into()),
        sync_always: true,
        ..options(dir.path())
    };
    let server = NatsServer::start(options).await.expect("it starts");
    let config = std::fs::read_to_string(dir.path().join("nats.conf")).expect("a configuration");
    assert!(config.contains("sync_interval: always"), "{config}");
    let log = std::fs::read_to_string(server.log_path()).expect("a log");
    assert!(log.contains("a-\"quoted\"-name"), "{log}");
}

#[tokio::test]
async fn a_cluster_stands_the_loss_of_any_member() {
    let dir = dir();
    let options = ClusterOptions {
        binary: binary(),
        search: search(),
        start_timeout: DEADLINE,
        ..ClusterOptions::new(dir.path())
    };
    let cluster = NatsCluster::start(options).await.expect("it starts");
    assert_eq!((cluster.members().len(), cluster.urls().len()), (3, 3));
    cluster.kill9(0);
    // The others elect a leader if it was that one, which takes up to 9 s.
    cluster.members()[1]
        .wait_jetstream(DEADLINE)
        .await
        .expect("two of three answer");
    cluster.restart(0).await.expect("it is back");
    let name = cluster.members()[0].server_name();
    assert_eq!(
        cluster.named(name).map(NatsServer::port),
        Some(cluster.members()[0].port())
    );
}

const HELPER_DIR: &str = "EXPEDITER_TEST_FLEET_DIR";

/// Not a test by itself: the process that the next test kills.
#[test]
fn helper_that_starts_a_server_and_waits() {
    let Some(dir) = std::env::var_os(HELPER_DIR) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // The thread that asks for the server ends at once: the server has to live on.
    let dir = PathBuf::from(dir);
    let start = std::thread::spawn(move || runtime.block_on(NatsServer::start(options(&dir))));
    let server = start.join().expect("no panic").expect("it starts");
    println!(
        "\npid {} port {}",
        server.pid().expect("a process"),
        server.port()
    );
    #[expect(
        clippy::disallowed_methods,
        reason = "a process that is there to be killed"
    )]
    std::thread::sleep(2 * DEADLINE);
}

#[tokio::test]
async fn the_server_dies_with_its_parent_and_not_with_a_thread() {
    let dir = dir();
    let helper = "nats_server::tests::helper_that_starts_a_server_and_waits";
    let mut parent = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", helper, "--nocapture"])
        .env(HELPER_DIR, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the helper starts");
    let said = BufReader::new(parent.stdout.take().expect("piped"))
        .lines()
        .map_while(Result::ok);
    let line = said
        .into_iter()
        .find(|line| line.starts_with("pid "))
        .expect("the helper's server");
    let numbers: Vec<u32> = line
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let [pid, port] = numbers[..] else {
        panic!("{line}")
    };

    assert!(
        !is_dead(pid),
        "the thread that started it has ended, it has not"
    );
    let alive = std::net::TcpStream::connect(("127.0.0.1", port as u16));
    assert!(alive.is_ok());
    parent.kill().expect("killed with SIGKILL");
    parent.wait().expect("reaped");
    assert!(
        eventually(|| is_dead(pid)).await,
        "the server outlived its parent"
    );
}
