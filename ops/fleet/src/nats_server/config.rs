use std::fmt::Write as _;
use std::path::Path;

/// The part of a server's configuration that makes it a member of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterMember {
    /// The cluster's name, the same for all members.
    pub name: String,
    /// Where the other members reach this one, on 127.0.0.1.
    pub route_port: u16,
    /// The route ports of all members; its own among them does no harm.
    pub routes: Vec<u16>,
}

#[derive(Debug)]
pub(super) struct Config<'a> {
    pub(super) server_name: &'a str,
    pub(super) port: u16,
    pub(super) store_dir: &'a Path,
    pub(super) sync_always: bool,
    pub(super) max_payload: Option<u32>,
    pub(super) cluster: Option<&'a ClusterMember>,
    pub(super) extra: &'a str,
}

impl Config<'_> {
    pub(super) fn render(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "server_name: {}", quoted(self.server_name))?;
        writeln!(out, "listen: \"127.0.0.1:{}\"", self.port)?;
        if let Some(bytes) = self.max_payload {
            writeln!(out, "max_payload: {bytes}")?;
        }
        writeln!(out, "jetstream {{")?;
        writeln!(
            out,
            "  store_dir: {}",
            quoted(&self.store_dir.to_string_lossy())
        )?;
        if self.sync_always {
            writeln!(out, "  sync_interval: always")?;
        }
        writeln!(out, "}}")?;
        if let Some(member) = self.cluster {
            writeln!(out, "cluster {{")?;
            writeln!(out, "  name: {}", quoted(&member.name))?;
            writeln!(out, "  listen: \"127.0.0.1:{}\"", member.route_port)?;
            writeln!(out, "  routes: [")?;
            for port in &member.routes {
                writeln!(out, "    \"nats-route://127.0.0.1:{port}\"")?;
            }
            writeln!(out, "  ]")?;
            writeln!(out, "}}")?;
        }
        writeln!(out, "{}", self.extra)
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
