//! `expediter merchant …`

mod apply;
mod delete;
mod effects;
mod list;
mod resume;
mod rollback;
mod scope;
mod show;
mod sources;
mod test;

use clap::Subcommand;
use expediter_nats::{Connection, Registry, RegistryEntry, partitions};
use expediter_types::MerchantId;

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
    /// Delete a merchant; refused while its orders wait
    Delete(delete::Args),
    /// Go back to an earlier revision of a merchant
    Rollback(rollback::Args),
    /// The limits that merchants of a group or credential share
    #[command(subcommand)]
    Scope(scope::Verb),
    /// Let a merchant go on that is quarantined or closed
    Resume(resume::Args),
    /// Send a marked order to a merchant from this machine and show the exchange
    Test(test::Args),
}

pub(crate) fn run(global: &Global, verb: Verb) -> Result<(), Error> {
    block_on(async {
        match verb {
            Verb::Apply(args) => Box::pin(apply::run(global, args)).await,
            Verb::List(args) => Box::pin(list::run(global, args)).await,
            Verb::Show(args) => Box::pin(show::run(global, args)).await,
            Verb::Delete(args) => Box::pin(delete::run(global, args)).await,
            Verb::Rollback(args) => Box::pin(rollback::run(global, args)).await,
            Verb::Scope(verb) => Box::pin(scope::run(global, verb)).await,
            Verb::Resume(args) => Box::pin(resume::run(global, args)).await,
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
