//! `expediter merchant …`

mod apply;
mod delete;
mod effects;
mod explain;
mod hold;
mod list;
mod rollback;
mod scope;
mod show;
mod sources;
mod test;

use clap::Subcommand;
use expediter_nats::{Connection, Registry, RegistryEntry, partitions};
use expediter_types::MerchantId;
use expediter_wire::control::Decision;

use super::global::block_on;
use super::{Error, Global};

pub(super) use show::standing;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Register merchants, or change them, as files say
    Apply(apply::Args),
    /// List merchants with their limits and what waits for them
    List(list::Args),
    /// Show a merchant: its manifest, and how it stands
    Show(show::Args),
    /// Tell why a merchant's orders wait, and when they are gone
    Explain(explain::Args),
    /// Delete a merchant; refused while its orders wait
    Delete(delete::Args),
    /// Go back to an earlier revision of a merchant
    Rollback(rollback::Args),
    /// The limits that merchants of a group or credential share
    #[command(subcommand)]
    Scope(scope::Verb),
    /// Let the orders of a merchant or a group wait: taken into the backlog, not sent
    Pause(hold::PauseArgs),
    /// Pause, and wait until no attempt is in flight
    Drain(hold::PauseArgs),
    /// Let a merchant or a group go on that is paused, drained, quarantined or closed
    Resume(hold::ResumeArgs),
    /// Send a marked order to a merchant from this machine and show the exchange
    Test(test::Args),
}

pub(crate) fn run(global: &Global, verb: Verb) -> Result<(), Error> {
    block_on(async {
        match verb {
            Verb::Apply(args) => Box::pin(apply::run(global, args)).await,
            Verb::List(args) => Box::pin(list::run(global, args)).await,
            Verb::Show(args) => Box::pin(show::run(global, args)).await,
            Verb::Explain(args) => Box::pin(explain::run(global, args)).await,
            Verb::Delete(args) => Box::pin(delete::run(global, args)).await,
            Verb::Rollback(args) => Box::pin(rollback::run(global, args)).await,
            Verb::Scope(verb) => Box::pin(scope::run(global, verb)).await,
            Verb::Pause(args) => Box::pin(hold::pause(global, args, Decision::Paused)).await,
            Verb::Drain(args) => Box::pin(hold::pause(global, args, Decision::Draining)).await,
            Verb::Resume(args) => Box::pin(hold::resume(global, args)).await,
            Verb::Test(args) => Box::pin(test::run(global, args)).await,
        }
    })
}

/// The registry, once it is there.
async fn registry(connection: &Connection) -> Result<Registry, Error> {
    partitions(connection).await?;
    Ok(Registry::new(connection))
}

/// A merchant's entry, or the error that says that there is none.
async fn existing(connection: &Connection, id: &MerchantId) -> Result<RegistryEntry, Error> {
    let entry = registry(connection).await?.get(id).await?;
    entry.ok_or_else(|| Error::NotFound(format!("no merchant {id} is registered")))
}
