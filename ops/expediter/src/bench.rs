//! `expediter bench`: how much the platform forwards, and what that costs.
//!
//! Constraints: broker, node and merchants are real processes of their own, started here, bound to
//! the loopback interface and to the life of this process, which is the publisher. What arrived is
//! judged by the merchants and by the outcomes in the broker, never by what the node says of itself;
//! what it cost is read from the kernel.

mod args;
mod figures;
mod measure;
mod merchants;
mod outcomes;
mod probe;
mod process;
mod publisher;
mod report;
mod scratch;
mod stage;

use std::io::{self, Write as _};

use anyhow::Context as _;
use indicatif::ProgressBar;

use crate::cli::{Error, Global};
use crate::node::StopSignals;
use args::ForwardArgs;
use measure::Measured;
use report::Report;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Forward orders to simulated merchants, and measure
    #[command(after_help = args::EXAMPLES, after_long_help = args::FIGURES)]
    Forward(ForwardArgs),
    /// The simulated merchants, as a process
    #[command(hide = true)]
    Fleet(merchants::FleetArgs),
}

/// `expediter bench …`
pub(crate) fn run(global: &Global, verb: Verb) -> Result<(), Error> {
    let args = match verb {
        Verb::Fleet(args) => return merchants::serve(args),
        Verb::Forward(args) => args.checked()?,
    };
    // One thread: the publisher shall take little from those that are measured.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the publisher")?;
    let report = runtime.block_on(forward(args))?;
    let text = if global.json {
        report.json()?
    } else {
        report.text()
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    out.flush()?;
    match report.faults() {
        None => Ok(()),
        Some(faults) => Err(Error::failed(faults)),
    }
}

/// All runs; ends early, with everything it started, on SIGINT and SIGTERM.
async fn forward(args: ForwardArgs) -> Result<Report, Error> {
    let mut stop = StopSignals::new()?;
    let mut runs: Vec<Measured> = Vec::new();
    let remarks = args.remarks();
    remarks.iter().for_each(|remark| note(remark));
    for number in 1..=args.runs {
        let progress = ProgressBar::no_length().with_style(measure::progress_style());
        if args.runs > 1 {
            progress.set_prefix(format!("run {number} of {}: ", args.runs));
        }
        let measured = tokio::select! {
            measured = measure::run(&args, number, &progress) => measured,
            signal = stop.next() => Err(anyhow::anyhow!("ended by {signal}")),
        };
        progress.finish_and_clear();
        runs.push(measured?);
    }
    Ok(Report::new(args, runs, remarks))
}

/// A line for people, to stderr; one that nobody can read is no failure.
fn note(line: &str) {
    let _unread = writeln!(io::stderr().lock(), "{line}").is_err();
}
