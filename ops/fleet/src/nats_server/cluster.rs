use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::probe::Need;
use super::{ClusterMember, NatsServer, Options, ports};
use crate::Error;

/// How to run a cluster. `ClusterOptions::new(dir)` gives the defaults.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Members, 1 to 5. Default 3.
    pub size: usize,
    /// Gets `n0`, `n1`, … (stores) with their configurations and logs beside them.
    pub dir: PathBuf,
    /// As [`Options::sync_always`]. Default false.
    pub sync_always: bool,
    /// As [`Options::binary`].
    pub binary: Option<PathBuf>,
    /// As [`Options::search`].
    pub search: Vec<PathBuf>,
    /// As [`Options::max_payload`].
    pub max_payload: Option<u32>,
    /// Appended to each member's configuration. Default: empty.
    pub extra_config: String,
    /// How long it may take until a stream with `size` replicas can be made. Default 30 s (about 1 s
    /// on an idle machine). A member's restart has as long for each of its two steps.
    pub start_timeout: Duration,
}

impl ClusterOptions {
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            size: 3,
            dir: dir.into(),
            sync_always: false,
            binary: None,
            search: Vec::new(),
            max_payload: None,
            extra_config: String::new(),
            start_timeout: Duration::from_secs(30),
        }
    }
}

/// Servers on loopback that replicate to each other. Dropping it kills them and keeps the stores.
#[derive(Debug)]
pub struct NatsCluster {
    members: Vec<NatsServer>,
    start_timeout: Duration,
}

impl NatsCluster {
    /// Starts all members and waits until a stream with as many replicas can be made.
    pub async fn start(options: ClusterOptions) -> Result<Self, Error> {
        if !(1..=5).contains(&options.size) {
            return Err(Error::ClusterSize(options.size));
        }
        let end = Instant::now() + options.start_timeout;
        loop {
            let ports = ports::free(2 * options.size)?;
            match Self::try_start(&options, &ports, end).await {
                // Another process took one of the ports: all members have to learn of another one.
                Err(Error::NatsServerEnded { tail, .. })
                    if tail.contains("address already in use") && Instant::now() < end => {}
                result => return result,
            }
        }
    }

    async fn try_start(
        options: &ClusterOptions,
        ports: &[u16],
        end: Instant,
    ) -> Result<Self, Error> {
        let (clients, routes) = ports.split_at(options.size);
        let mut members = Vec::with_capacity(options.size);
        for index in 0..options.size {
            let cluster = (options.size > 1).then(|| ClusterMember {
                name: "expediter".into(),
                route_port: routes[index],
                routes: routes.to_vec(),
            });
            let member = Options {
                binary: options.binary.clone(),
                search: options.search.clone(),
                port: Some(clients[index]),
                sync_always: options.sync_always,
                max_payload: options.max_payload,
                server_name: Some(format!("n{index}-{}", clients[index])),
                cluster,
                extra_config: options.extra_config.clone(),
                start_timeout: options.start_timeout,
                ..Options::new(options.dir.join(format!("n{index}")))
            };
            members.push(NatsServer::prepare(member).await?);
        }
        let starts: Vec<u64> = members
            .iter()
            .map(NatsServer::launch)
            .collect::<Result<_, _>>()?;
        for (member, log_start) in members.iter().zip(starts) {
            // Each looks for its own process's end, so that a lost port is noticed in any of them.
            for need in [Need::Answer, Need::Replicas(options.size)] {
                let left = end.saturating_duration_since(Instant::now());
                member.wait(need, left, log_start).await?;
            }
        }
        Ok(Self {
            members,
            start_timeout: options.start_timeout,
        })
    }

    /// All members, in order; each can be killed, paused, restarted by itself.
    #[must_use]
    pub fn members(&self) -> &[NatsServer] {
        &self.members
    }

    /// All members' addresses, in order.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(NatsServer::url).collect()
    }

    /// All members' addresses in one text, as clients take them: `nats://…,nats://…`.
    #[must_use]
    pub fn url(&self) -> String {
        self.urls().join(",")
    }

    /// The member whose server has this name (as in a stream's `cluster.leader`).
    #[must_use]
    pub fn named(&self, server_name: &str) -> Option<&NatsServer> {
        self.members
            .iter()
            .find(|member| member.server_name() == server_name)
    }

    /// Kills member `index` with SIGKILL. Panics when there is none.
    pub fn kill9(&self, index: usize) {
        self.members[index].kill9();
    }

    /// Restarts member `index` and waits until the cluster's JetStream answers through it. Panics when
    /// there is none.
    pub async fn restart(&self, index: usize) -> Result<(), Error> {
        let member = &self.members[index];
        member.restart().await?;
        member.wait_jetstream(self.start_timeout).await
    }
}
