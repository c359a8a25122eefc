//! What all benchmarks are told of what runs: broker, node, orders, and where their data go.

use std::path::PathBuf;

use clap::value_parser;
use expediter_fleet::merchants::BENCH_BODY_MIN;

use super::scratch;

// A doc comment would replace the verb's own description.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct StageArgs {
    /// Attempts that the node may have in flight
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub(super) in_flight: u32,
    /// Orders of a merchant that the node holds in memory; the others of a backlog are in its store
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u32).range(1..=10_000))]
    pub(super) mailbox: u32,
    /// Size of an order's body
    #[arg(long, value_name = "BYTES", default_value_t = 1_024, value_parser = value_parser!(u32).range(BENCH_BODY_MIN as i64..=900_000))]
    pub(super) body_bytes: u32,
    /// The broker syncs its disk before each acknowledgement
    #[arg(long)]
    pub(super) sync_always: bool,
    /// Decides which merchant's order comes when
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) seed: u64,
    /// A setting of the node, as in its configuration file; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    pub(super) set: Vec<(String, String)>,
    /// nats-server to run [default: the one in PATH, else in .tools/bin]
    #[arg(long, value_name = "FILE")]
    pub(super) nats_server: Option<PathBuf>,
    /// Where the data of broker and node are kept meanwhile, on a disk like that of production
    /// [default: the system's directory for temporary files]
    #[arg(long, value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,
    /// Keep data and logs of the runs
    #[arg(long)]
    pub(super) keep: bool,
}

impl StageArgs {
    pub(super) fn dir(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// What makes figures worth less, for people.
    pub(super) fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if cfg!(debug_assertions) {
            remarks.push("this is a debug build: its figures say nothing".to_owned());
        }
        if scratch::in_memory(&self.dir()) {
            remarks.push(format!(
                "{} is in memory, not on a disk: choose another with --dir",
                self.dir().display()
            ));
        }
        remarks
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if key.contains('.') => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, such as node.shards=1".to_owned()),
    }
}
