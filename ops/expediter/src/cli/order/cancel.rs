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
    #[arg(long, short, value_name = "ID")]
    merchant: MerchantId,
    /// Why, for those who look later; stands in the order's outcome
    #[arg(long, value_parser = crate::cli::operator::reason, value_name = "TEXT")]
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
    let mut answered = None;
    let cancel = async {
        let (result, seq, seen) = owners
            .cancel(&merchant, &id, &reason, operator.actor())
            .await?;
        answered = Some((result, seq));
        // What is published after that was not there to be cancelled.
        let reads = result == CancelResult::Unknown && owners.newest(&merchant).await? > seen;
        match refused(result, &id, &merchant, seen, reads) {
            Some(refused) => Err(refused),
            None => Ok(Effect::new(()).detail("result", result)),
        }
    };
    let cancelled = operator.run(deed, cancel).await;
    let mut out = Out::stdout();
    if let Some((result, seq)) = answered.filter(|_| global.json) {
        out.json(&Asked {
            merchant: merchant.to_string(),
            id: id.to_string(),
            result,
            seq,
        })?;
    }
    let ((), recorded) = cancelled?;
    if !global.json {
        out.line(format_args!("cancelled  {merchant}  {id}"))?;
    }
    recorded
}

/// Why the order is not cancelled; `None`: it is. `reads`: there is more in the log than its owner
/// has read.
fn refused(
    result: CancelResult,
    id: &OrderId,
    merchant: &MerchantId,
    seen: u64,
    reads: bool,
) -> Option<Error> {
    let show = format!("see `expediter order show {id} --merchant {merchant}`");
    Some(match result {
        CancelResult::Cancelled => return None,
        CancelResult::TooLate => Error::Conflict(format!(
            "too late: order {id} is in flight or may have been received; {show}"
        )),
        CancelResult::Ended => {
            Error::Conflict(format!("too late: order {id} had ended before; {show}"))
        }
        CancelResult::Pending => Error::failed(format!(
            "order {id} is being cancelled, but its outcome is not confirmed yet; {show}"
        )),
        CancelResult::Unknown if reads => Error::failed(format!(
            "no order {id} of {merchant} is known up to sequence {seen}, and its node is still \
             reading what came after that: try again"
        )),
        CancelResult::Unknown => Error::NotFound(format!(
            "no order {id} of {merchant} is known up to sequence {seen}: it was not published, or \
             ended long ago"
        )),
    })
}
