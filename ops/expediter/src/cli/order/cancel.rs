use expediter_types::{MerchantId, OrderId};
use expediter_wire::audit::AuditTarget;
use expediter_wire::control::CancelResult;
use serde::Serialize;

use crate::cli::operator::{Actor, Deed, Effect, Operator};
use crate::cli::out::Out;
use crate::cli::owners::Owners;
use crate::cli::{Error, Global};

const EXAMPLES: &str = "\
Takes an order back that was not sent: it ends as `cancelled`. While an attempt runs, or when an
earlier one may have been received, it is too late, and the order goes on.

Exit codes: 0 cancelled, 3 the order is not known, 4 too late or ended before.

Examples:
  expediter order cancel 4711 --merchant luigis --reason 'guest left'";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The order's id
    id: OrderId,
    /// Its merchant
    #[arg(long, value_name = "ID")]
    merchant: MerchantId,
    /// Why, for those who look later; stands in the order's outcome
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    actor: Actor,
}

#[derive(Debug, Serialize)]
struct Asked {
    merchant: String,
    id: String,
    result: CancelResult,
    /// In ORDERS.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    let owners = Owners::of(&connection).await?;
    let Args {
        id,
        merchant,
        reason,
        actor,
    } = args;
    let operator = Operator::new(&connection, &actor).await?;
    let deed = Deed::new("order.cancel", AuditTarget::order(&merchant, &id)).because(&reason);
    let cancel = async {
        let done = owners
            .cancel(&merchant, &id, &reason, operator.actor())
            .await?;
        let result = serde_json::to_value(done.0).unwrap_or_default();
        Ok(Effect::new(done).detail("result", result))
    };
    let ((result, seq, seen), recorded) = operator.run(deed, cancel).await?;
    let mut out = Out::stdout();
    if global.json {
        out.json(&Asked {
            merchant: merchant.to_string(),
            id: id.to_string(),
            result,
            seq,
        })?;
    }
    let show = format!("see `expediter order show {id} --merchant {merchant}`");
    match result {
        CancelResult::Cancelled => {
            if !global.json {
                out.line(format_args!("cancelled  {merchant}  {id}"))?;
            }
            recorded
        }
        CancelResult::TooLate => Err(Error::Conflict(format!(
            "too late: order {id} is in flight or may have been received; {show}"
        ))),
        CancelResult::Ended => Err(Error::Conflict(format!(
            "too late: order {id} had ended before; {show}"
        ))),
        CancelResult::Pending => Err(Error::failed(format!(
            "order {id} is being cancelled, but its outcome is not confirmed yet; {show}"
        ))),
        CancelResult::Unknown => Err(Error::NotFound(format!(
            "no order {id} of {merchant} is known up to sequence {seen}: it was not published, or \
             ended long ago"
        ))),
    }
}
