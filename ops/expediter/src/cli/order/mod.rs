//! `expediter order …`

mod cancel;
mod explain;
mod input;
mod message;
mod publish;
mod resolve;
mod show;

use clap::Subcommand;

use super::global::block_on;
use super::{Error, Global};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Publish orders for a merchant
    Publish(Box<publish::Args>),
    /// Show where an order is, and every attempt so far
    Show(show::Args),
    /// Tell why an order waits, and when it goes
    Explain(explain::Args),
    /// Take an order back that was not sent
    Cancel(cancel::Args),
    /// Say what became of an order that the merchant may have received
    Resolve(Box<resolve::Args>),
}

pub(crate) fn run(global: &Global, verb: Verb) -> Result<(), Error> {
    block_on(async {
        match verb {
            Verb::Publish(args) => Box::pin(publish::run(global, *args)).await,
            Verb::Show(args) => Box::pin(show::run(global, args)).await,
            Verb::Explain(args) => Box::pin(explain::run(global, args)).await,
            Verb::Cancel(args) => Box::pin(cancel::run(global, args)).await,
            Verb::Resolve(args) => Box::pin(resolve::run(global, *args)).await,
        }
    })
}
