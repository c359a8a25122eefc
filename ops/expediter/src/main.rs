//! The one binary: a node, and all that people do with a platform of nodes.

mod bench;
mod cli;
mod columns;
mod config;
mod control;
mod dev;
mod node;
mod notify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use cli::{Error, Global};

/// Orders make many small allocations on one thread that are freed on another; the system's
/// allocator takes about a fifth more of a node's CPU time for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Forwards orders from NATS JetStream to merchants' own HTTP APIs, one supervised actor each.
#[derive(Debug, Parser)]
#[command(name = "expediter", version, after_help = cli::EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a node
    #[command(after_help = node::EXAMPLES)]
    Serve,
    /// Watch the main job on this machine: broker, node, merchants and orders in one command
    Dev(dev::Args),
    /// Measure how much is forwarded, and what that costs
    #[command(subcommand)]
    Bench(bench::Verb),
    /// Register merchants, look at them, delete them
    #[command(subcommand)]
    Merchant(cli::merchant::Verb),
    /// Publish orders and find out where they are
    #[command(subcommand)]
    Order(cli::order::Verb),
    /// Orders that are published on a schedule
    #[command(subcommand)]
    Job(cli::job::Verb),
    /// Look at dead letters, send them again, discard them
    #[command(subcommand, name = "deadletter")]
    DeadLetter(cli::deadletter::Verb),
    /// Follow how orders end
    #[command(subcommand)]
    Outcome(cli::outcome::Verb),
    /// Watch merchants: backlog, in flight, rate, latency, the oldest waiting order
    Top(cli::top::Args),
    /// Look at nodes and partitions
    #[command(subcommand)]
    Cluster(cli::cluster::Verb),
    /// Check the broker, the nodes and the accounts; say what to do
    Doctor(cli::doctor::Args),
    /// Show who changed what, and when
    Audit(cli::audit::Args),
    /// Print and check settings
    #[command(subcommand)]
    Config(cli::config::Verb),
    /// Print a completion script for a shell
    Completion(cli::completion::Args),
    /// Print the version
    #[command(after_help = cli::VERSION_EXAMPLES)]
    Version,
}

fn main() -> ExitCode {
    let Cli { global, verb } = Cli::parse();
    cli::exit_code(run(&global, verb))
}

fn run(global: &Global, verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::Serve => node::run(global.settings()?),
        Verb::Dev(args) => dev::run(
            args,
            global.nats.as_deref(),
            &global.settings()?,
            global.json,
        ),
        Verb::Bench(verb) => bench::run(global, verb),
        Verb::Merchant(verb) => cli::merchant::run(global, verb),
        Verb::Order(verb) => cli::order::run(global, verb),
        Verb::Job(verb) => cli::job::run(global, verb),
        Verb::DeadLetter(verb) => cli::deadletter::run(global, verb),
        Verb::Outcome(verb) => cli::outcome::run(global, verb),
        Verb::Top(args) => cli::top::run(global, args),
        Verb::Cluster(verb) => cli::cluster::run(global, verb),
        Verb::Doctor(args) => cli::doctor::run(global, args),
        Verb::Audit(args) => cli::audit::run(global, args),
        Verb::Config(verb) => cli::config::run(global, verb),
        Verb::Completion(args) => cli::completion::run::<Cli>(&args),
        Verb::Version => cli::version(global),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
