//! `expediter deadletter …`

mod discard;
mod list;
mod replay;
mod select;
mod show;

use clap::Subcommand;

use super::global::block_on;
use super::{Error, Global};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List dead letters
    List(list::Args),
    /// Show a dead letter: its payload, every attempt, and what was done about it
    Show(show::Args),
    /// Send dead letters again, planned first and at a rate
    Replay(replay::Args),
    /// Settle dead letters that are not to be sent again
    Discard(discard::Args),
}

pub(crate) fn run(global: &Global, verb: Verb) -> Result<(), Error> {
    block_on(async {
        match verb {
            Verb::List(args) => Box::pin(list::run(global, args)).await,
            Verb::Show(args) => Box::pin(show::run(global, args)).await,
            Verb::Replay(args) => Box::pin(replay::run(global, args)).await,
            Verb::Discard(args) => Box::pin(discard::run(global, args)).await,
        }
    })
}
