//! `expediter job …`

mod list;
mod row;
mod run;

use clap::Subcommand;

use super::global::block_on;
use super::{Error, Global};

pub(super) use row::{Row, rows};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List recurring jobs with their last and next run
    List(list::Args),
    /// Publish a run of a job now, besides those of its schedule
    Run(run::Args),
}

pub(crate) fn run(global: &Global, verb: Verb) -> Result<(), Error> {
    block_on(async {
        match verb {
            Verb::List(args) => Box::pin(list::run(global, args)).await,
            Verb::Run(args) => Box::pin(run::run(global, args)).await,
        }
    })
}
