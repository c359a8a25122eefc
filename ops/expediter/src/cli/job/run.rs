use async_nats::HeaderMap;
use expediter_nats::{OrderPublisher, Registry};
use expediter_types::MerchantId;
use expediter_wire::audit::AuditTarget;
use expediter_wire::job::run_order;
use expediter_wire::order::order_headers;
use serde::Serialize;

use crate::cli::operator::{Actor, Deed, Effect, Operator};
use crate::cli::out::Out;
use crate::cli::text::{clean, now};
use crate::cli::{Error, Global};

const EXAMPLES: &str = "\
Publishes an order as the job's runs are, with the id <name>@<now>. The runs of the schedule come as
they would. A deadline of the job counts from now.

Examples:
  expediter job run daily-menu --merchant luigis --reason 'the menu was wrong this morning'";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The job's name
    #[arg(value_name = "NAME")]
    job: String,
    /// Its merchant
    #[arg(long, value_name = "ID")]
    merchant: MerchantId,
    /// Why, for those who look later
    #[arg(long, value_parser = crate::cli::operator::reason, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    actor: Actor,
}

#[derive(Debug, Serialize)]
struct Ran {
    merchant: String,
    job: String,
    id: String,
    /// In ORDERS.
    seq: u64,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    expediter_nats::partitions(&connection).await?;
    let Args {
        job: name,
        merchant,
        reason,
        actor,
    } = args;
    let entry = Registry::new(&connection).get(&merchant).await?;
    let none = || Error::NotFound(format!("no merchant {merchant} is registered"));
    let registered = entry.ok_or_else(none)?.registration.merchant;
    let Some(job) = registered.jobs.iter().find(|job| job.name == name) else {
        let known: Vec<&str> = registered.jobs.iter().map(|job| &*job.name).collect();
        let known = match &known[..] {
            [] => "it has none".to_owned(),
            names => format!("it has {}", names.join(", ")),
        };
        return Err(Error::NotFound(format!(
            "no job {} of {merchant}: {known}",
            clean(&name)
        )));
    };
    let order = run_order(&merchant, job, now());
    let order = order.ok_or_else(|| Error::failed("the job's name is none"))?;
    let mut headers = HeaderMap::new();
    for (name, value) in order_headers(&order) {
        headers.insert(name, &*value);
    }
    let operator = Operator::new(&connection, &actor).await?;
    let deed = Deed::new("job.run", AuditTarget::job(&merchant, &name)).because(&reason);
    let publish = async {
        let publisher = OrderPublisher::new(&connection, 1);
        let payload = job.payload.clone().into();
        let pending = publisher.publish(&merchant, headers, payload).await?;
        let published = pending.wait().await?;
        let effect = Effect::new(published.seq).detail("order", order.id.as_str());
        Ok(effect.detail("seq", published.seq))
    };
    let (seq, recorded) = operator.run(deed, publish).await?;
    let mut out = Out::stdout();
    match global.json {
        true => out.json(&Ran {
            merchant: merchant.to_string(),
            job: name,
            id: order.id.to_string(),
            seq,
        })?,
        false => out.line(format_args!("published  {merchant}  {}", order.id))?,
    }
    recorded
}
