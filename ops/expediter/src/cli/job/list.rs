use expediter_nats::Registry;
use expediter_types::{Merchant, MerchantId};

use super::row::{moment, rows};
use crate::cli::out::Out;
use crate::cli::table::table;
use crate::cli::text::clean;
use crate::cli::{Error, Global};

const EXAMPLES: &str = "\
Jobs are `[[merchant.job]]` in manifests. The order of a run has the id <name>@<time of the run>.

Examples:
  expediter job list
  expediter job list --merchant luigis
  expediter job list --json | jq -r '\"\\(.merchant) \\(.name) \\(.next)\"'";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only of this merchant
    #[arg(long, value_name = "ID")]
    merchant: Option<MerchantId>,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    expediter_nats::partitions(&connection).await?;
    let registry = Registry::new(&connection);
    let entries = match &args.merchant {
        Some(id) => {
            let entry = registry.get(id).await?;
            let none = || Error::NotFound(format!("no merchant {id} is registered"));
            vec![entry.ok_or_else(none)?]
        }
        None => registry.list().await?,
    };
    let merchants = entries.iter().map(|entry| &entry.registration.merchant);
    let merchants: Vec<&Merchant> = merchants.collect();
    let rows = rows(&connection, &merchants, args.merchant.as_ref()).await?;
    let mut out = Out::stdout();
    if global.json {
        for row in &rows {
            out.buffer_json(row)?;
        }
        return out.flush();
    }
    let header = [
        "MERCHANT", "JOB", "SCHEDULE", "ZONE", "MISSED", "LAST RUN", "NEXT RUN",
    ];
    let rows = rows.iter().map(|row| {
        vec![
            row.merchant.clone(),
            clean(&row.name),
            clean(&row.schedule),
            clean(&row.timezone),
            row.missed.to_owned(),
            moment(row.last, "-"),
            moment(row.next, "-"),
        ]
    });
    out.text(&table(&header, rows))
}
