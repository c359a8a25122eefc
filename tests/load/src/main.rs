//! `expediter-chaos`: breaks a cluster on this machine, and judges what became of the orders.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use expediter_load::{Options, Report, run};

const EXAMPLES: &str = "\
Starts brokers, nodes and merchants as processes on this machine, publishes orders, breaks things by a
seeded schedule, waits for quiet and judges: every acknowledged order has one outcome, none is called
delivered that was not, repeats only where an attempt was in flight at a fault, order and limits kept,
merchants without idempotency got nothing twice. Ends with 1 when something was not so, with 2 when it
could not be found out. The binary `expediter` is the one beside this one, or EXPEDITER_TEST_BIN; data
and logs are kept with EXPEDITER_TEST_KEEP=1.

Examples:
  expediter-chaos
  expediter-chaos --minutes 30 --brokers 3 --rate 600 --seed 7 --json
  expediter-chaos --scenario brokers --brokers 3 --minutes 5";

#[derive(Debug, Parser)]
#[command(name = "expediter-chaos", version, about = "Break a cluster, and judge what became of the orders", after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    options: Options,
    /// The report as one line of JSON
    #[arg(long)]
    json: bool,
    /// Do not tell of each fault
    #[arg(long, short)]
    quiet: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match chaos(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all was as promised.
fn chaos(cli: &Cli) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let tell = |line: &str| {
        if !cli.quiet {
            eprintln!("{line}");
        }
    };
    let report: Report = runtime.block_on(async {
        tokio::select! {
            report = Box::pin(run(&cli.options, tell)) => report,
            // So that processes and files go with it.
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                bail!("stopped, nothing was judged")
            }
        }
    })?;
    if cli.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(report.is_clean())
}

fn print(report: &Report) {
    let seconds = |time: Option<f64>| time.map_or("none".to_owned(), |time| format!("{time:.2} s"));
    let kinds: Vec<String> = report
        .kinds
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    println!(
        "faults                 {} ({})",
        report.faults,
        kinds.join(", ")
    );
    println!("kill -9                {}", report.kill9);
    println!("orders                 {}", report.orders);
    println!("lost                   {}", report.lost);
    println!("out of order           {}", report.out_of_order);
    println!(
        "duplicated             {}, {} of them unexplained",
        report.duplicated, report.duplicated_unexplained
    );
    println!(
        "parked                 {}, {} of them unexplained",
        report.parked, report.parked_unexplained
    );
    println!("limits broken          {}", report.limits_broken);
    println!(
        "take-over              {} at most, {} near a broker's fault, median {} of {}",
        seconds(report.max_takeover_s),
        seconds(report.max_takeover_broker_fault_s),
        seconds(report.median_takeover_s),
        report.takeovers
    );
    for violation in report.violations.iter().take(20) {
        println!("! {violation}");
    }
    if report.violations.len() > 20 {
        println!("! and {} more", report.violations.len() - 20);
    }
}
