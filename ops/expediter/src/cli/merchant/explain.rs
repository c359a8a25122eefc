use expediter_types::MerchantId;

use super::existing;
use crate::cli::{Error, Global, explain};

const EXAMPLES: &str = "\
Tells why a merchant's orders wait: which limit or state holds them, who set it and when, and when
the backlog is gone at the present pace. The node that works on the merchant answers.

Examples:
  expediter merchant explain luigis
  expediter merchant explain luigis --json | jq .because";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The merchant
    id: MerchantId,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    existing(&global.connect().await?, &args.id).await?;
    explain::run(global, &args.id, None).await
}
