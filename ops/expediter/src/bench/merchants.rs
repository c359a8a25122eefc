//! The simulated merchants, as a process of their own.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use expediter_fleet::merchants::{Behaviour, Fleet, Options, Record};
use expediter_types::parse_duration;

use crate::cli::Error;

/// What `expediter bench fleet` is told.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct FleetArgs {
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    latency: Duration,
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    jitter: Duration,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Judge the arrivals as those of a benchmark
    #[arg(long)]
    judge: bool,
}

/// Prints `{"listen":"<address>"}` and serves until the process is ended.
pub(super) fn serve(args: FleetArgs) -> Result<(), Error> {
    let fleet = Fleet::start(Options {
        listen: args.listen,
        threads: args.threads,
        behaviour: Behaviour {
            latency: args.latency,
            jitter: args.jitter,
            ..Behaviour::default()
        },
        record: Record::Counts,
        judge: args.judge,
    });
    let fleet = fleet.map_err(anyhow::Error::from)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::json!({ "listen": fleet.addr() }))?;
    out.flush()?;
    loop {
        std::thread::park();
    }
}
