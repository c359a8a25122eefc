use expediter_types::{MerchantId, OrderId};

use crate::cli::{Error, Global, explain};

const EXAMPLES: &str = "\
Tells why an order waits: which limit or state holds it, who set it and when, how many are ahead,
and when it goes at the present pace. The node that works on the merchant answers.

Examples:
  expediter order explain 4711 --merchant luigis
  expediter order explain 4711 --merchant luigis --json | jq .because";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The order's id
    id: OrderId,
    /// Its merchant
    #[arg(long, short, value_name = "ID")]
    merchant: MerchantId,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    explain::run(global, &args.merchant, Some(&args.id)).await
}
