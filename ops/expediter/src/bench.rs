//! `expediter bench`: how much the platform forwards, and what that costs.
//!
//! Constraints: broker, node and merchants are real processes of their own, started here, bound to
//! the loopback interface and to the life of this process, which is the publisher. What arrived is
//! judged by the merchants and by the outcomes in the broker, never by what the node says of itself;
//! what it cost is read from the kernel.

mod args;
mod figures;
mod isolation;
mod measure;
mod merchants;
mod outcomes;
mod probe;
mod process;
mod publisher;
mod report;
mod scratch;
mod stage;
mod stage_args;

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
    /// Forward orders to merchants that are well, beside merchants in trouble, and compare
    #[command(after_help = isolation::EXAMPLES, after_long_help = isolation::FIGURES)]
    Isolation(isolation::IsolationArgs),
    /// The simulated merchants, as a process
    #[command(hide = true)]
    Fleet(merchants::FleetArgs),
}

/// `expediter bench …`
pub(crate) fn run(global: &Global, verb: Verb) -> Result<(), Error> {
    let (text, faults) = match verb {
        Verb::Fleet(args) => return merchants::serve(args),
        Verb::Forward(args) => {
            let report = alone(forward(args.checked()?))?;
            let text = if global.json {
                report.json()?
            } else {
                report.text()
            };
            (text, report.faults())
        }
        Verb::Isolation(args) => {
            let report = alone(isolation::run(args))?;
            let text = if global.json {
                report.json()?
            } else {
                report.text()
            };
            (text, report.faults())
        }
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    out.flush()?;
    match faults {
        None => Ok(()),
        Some(faults) => Err(Error::failed(faults)),
    }
}

/// On one thread: the publisher shall take little from those that are measured.
fn alone<T>(bench: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the publisher")?;
    runtime.block_on(bench)
}

/// All runs; ends early, with everything it started, on SIGINT and SIGTERM.
async fn forward(args: ForwardArgs) -> Result<Report, Error> {
    let mut stop = StopSignals::new()?;
    let mut runs: Vec<Measured> = Vec::new();
    let remarks = args.stage.remarks();
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
