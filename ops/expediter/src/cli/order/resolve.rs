use clap::ValueEnum;
use expediter_nats::{Audit, AuditItem, Connection, OrderPublisher, OutcomeItem};
use expediter_types::{DeadReason, MerchantId, OrderId, UnixMillis};
use expediter_wire::audit::AuditTarget;
use expediter_wire::control::Place;
use expediter_wire::order::parse_moment;
use serde::Serialize;

use crate::cli::dead::{self, Next, RECORD};
use crate::cli::error::note;
use crate::cli::operator::{Actor, Deed, Effect, Operator};
use crate::cli::out::Out;
use crate::cli::owners::Owners;
use crate::cli::text::{ago, clean, now};
use crate::cli::{Error, Global};

const EXAMPLES: &str = "\
An order of which nobody knows whether the merchant has it ends as a dead letter (ambiguous). Ask the
merchant, then say here what became of it:

  delivered  the merchant has it; nothing is sent
  dead       the merchant has not got it and is not to get it; nothing is sent
  retry      the merchant has not got it: it is sent again, as the order's next generation

Where the merchant's manifest says retry.on_park = \"hold\", the orders behind it go on: at once after
delivered and dead, after the next generation has ended with retry. Who resolved what is in
`expediter audit`.

Examples:
  expediter order resolve 4711 -m luigis --as delivered --reason 'they confirmed it by phone'
  expediter order resolve 4711 -m luigis --as retry --reason 'their log has no such order'
  expediter order resolve 4711 -m luigis --as retry --deadline 30m --reason 'still wanted'";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The order's id
    id: OrderId,
    /// Its merchant
    #[arg(long, short, value_name = "ID")]
    merchant: MerchantId,
    /// What became of it
    #[arg(long = "as", value_enum, value_name = "WHAT")]
    what: What,
    /// Why, for those who look later
    #[arg(long, value_parser = crate::cli::operator::reason, value_name = "TEXT")]
    reason: String,
    /// With --as retry: expires then instead: a duration such as 10m, or RFC 3339
    #[arg(long, value_name = "TIME")]
    deadline: Option<String>,
    #[command(flatten)]
    actor: Actor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// The merchant has it
    Delivered,
    /// It is to be sent again
    Retry,
    /// The merchant has not got it and is not to get it
    Dead,
}

impl What {
    fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry => "retry",
            Self::Dead => "dead",
        }
    }
}

/// A resolution for machines.
#[derive(Debug, Serialize)]
struct Resolved {
    merchant: String,
    id: String,
    /// Of the dead letter.
    generation: u32,
    /// The dead letter's sequence in OUTCOMES.
    record: u64,
    #[serde(rename = "as")]
    what: &'static str,
    /// Later orders of the merchant had waited for this.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    released: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Published>,
}

/// The next generation.
#[derive(Debug, Clone, Copy, Serialize)]
struct Published {
    generation: u32,
    /// In ORDERS.
    seq: u64,
    /// Somebody had published it just before.
    duplicate: bool,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let next = next(&args)?;
    let connection = global.connect().await?;
    let operator = Operator::new(&connection, &args.actor).await?;
    let dead = open(&connection, &args).await?;
    let generation = dead.outcome.envelope.generation;
    let deed = Deed::new(
        "order.resolve",
        AuditTarget::order(&args.merchant, &args.id),
    )
    .because(args.reason.trim())
    .detail("as", args.what.as_str())
    .detail("generation", generation)
    .detail(RECORD, dead.record);
    let mut resolved = Resolved {
        merchant: args.merchant.to_string(),
        id: args.id.to_string(),
        generation,
        record: dead.record,
        what: args.what.as_str(),
        released: false,
        next: None,
    };
    let (effect, recorded) = operator
        .run(deed, async {
            match args.what {
                What::Delivered | What::Dead => {
                    let owners = Owners::of(&connection).await?;
                    let released = owners.release(&args.merchant, &args.id, generation).await?;
                    Ok(Effect::new((released, None)).detail("released", released))
                }
                What::Retry => {
                    let next = retry(&connection, &dead, next).await?;
                    Ok(Effect::new((false, Some(next)))
                        .detail("next", next.generation)
                        .detail("seq", next.seq)
                        .detail("duplicate", next.duplicate))
                }
            }
        })
        .await?;
    (resolved.released, resolved.next) = effect;
    let mut out = Out::stdout();
    match global.json {
        true => out.json(&resolved)?,
        false => out.line(line(&resolved))?,
    }
    recorded
}

/// What was typed, checked as a node will read it.
fn next(args: &Args) -> Result<Next, Error> {
    let deadline = match (&args.deadline, args.what) {
        (None, _) => None,
        (Some(_), What::Delivered | What::Dead) => {
            return Err(Error::Usage("--deadline goes with --as retry".to_owned()));
        }
        (Some(text), What::Retry) => {
            let moment: UnixMillis = parse_moment(text, now())
                .map_err(|wrong| Error::Usage(format!("--deadline {text:?}: {wrong}")))?;
            Some(moment)
        }
    };
    Ok(Next {
        deadline,
        priority: None,
    })
}

/// The dead letter, when it is one that a person has to resolve and nobody has.
async fn open(connection: &Connection, args: &Args) -> Result<OutcomeItem, Error> {
    let Args { id, merchant, .. } = args;
    let owners = Owners::of(connection).await?;
    match owners.order(merchant, id).await {
        Ok(status) if is_waiting(status.place) => {
            return Err(Error::Conflict(format!(
                "order {id} of {merchant} has not ended: generation {} of it is with the platform",
                status.generation.unwrap_or(1)
            )));
        }
        Ok(_) => {}
        Err(error) => note(&format!("no node could be asked: {error}")),
    }
    let (dead, reason) = dead::newest(connection, merchant, id).await?;
    if reason != DeadReason::Ambiguous {
        return Err(Error::failed(format!(
            "order {id} of {merchant} is a dead letter for another reason ({reason}): it is known \
             that the merchant has not got it"
        )));
    }
    let audit = Audit::open(connection).await?;
    match dead::resolution(&audit, &dead).await? {
        Some(before) => Err(Error::Conflict(taken(args, &before))),
        None => Ok(dead),
    }
}

fn is_waiting(place: Place) -> bool {
    matches!(place, Place::InFlight | Place::Mailbox | Place::Store)
}

fn taken(args: &Args, before: &AuditItem) -> String {
    let record = &before.record;
    let what = match record.details.get("as").and_then(|what| what.as_str()) {
        Some(what) => format!("resolved as {what}"),
        None => format!("settled by {}", record.verb),
    };
    format!(
        "order {} of {} was {what} by {} {}: {}",
        args.id,
        args.merchant,
        clean(&record.actor),
        ago(record.at.0, now()),
        clean(&record.reason)
    )
}

async fn retry(
    connection: &Connection,
    dead: &OutcomeItem,
    next: Next,
) -> Result<Published, Error> {
    let envelope = dead::next_generation(dead, next, now())
        .map_err(|why| Error::failed(format!("it cannot be tried again: {why}")))?;
    let publisher = OrderPublisher::new(connection, 1);
    let published = dead::publish(connection, &publisher, &envelope, dead).await?;
    Ok(Published {
        generation: envelope.generation,
        seq: published.seq,
        duplicate: published.duplicate,
    })
}

fn line(resolved: &Resolved) -> String {
    let Resolved {
        merchant, id, what, ..
    } = resolved;
    let line = format!("resolved  {merchant}  {id}  {what}");
    match resolved.next {
        Some(next) if next.duplicate => format!(
            "{line}  generation {} had been published already, sequence {}",
            next.generation, next.seq
        ),
        Some(next) => format!(
            "{line}  generation {}, sequence {}",
            next.generation, next.seq
        ),
        None if resolved.released => format!("{line}  the orders behind it go on"),
        None => line,
    }
}
