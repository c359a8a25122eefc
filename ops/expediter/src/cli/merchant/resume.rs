use std::time::{Duration, Instant};

use expediter_nats::Registry;
use expediter_types::MerchantId;
use expediter_wire::audit::AuditTarget;
use expediter_wire::control::{MerchantState, MerchantStatus};
use serde::Serialize;

use super::existing;
use crate::cli::error::note;
use crate::cli::operator::{Actor, Deed, Effect, Operator};
use crate::cli::out::Out;
use crate::cli::owners::Owners;
use crate::cli::{Error, Global};

/// Nodes follow decisions within a second.
const PATIENCE: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
A merchant is quarantined when its actor crashes too often, and closed when it refuses our
credentials, its endpoint is wrong, or it asked to wait. The decision is kept: it holds also when no
node runs now.

Examples:
  expediter merchant resume luigis
  expediter merchant resume luigis --reason 'mended in release 7'";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The merchant
    id: MerchantId,
    /// Why, for those who look later
    #[arg(long, default_value = "resumed by an operator", value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    actor: Actor,
}

#[derive(Debug, Serialize)]
struct Resumed {
    merchant: String,
    action: &'static str,
    /// How it stood before; `None`: no node answered.
    before: Option<MerchantState>,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    existing(&connection, &args.id).await?;
    let owners = Owners::of(&connection).await?;
    let operator = Operator::new(&connection, &args.actor).await?;
    let before = owners.status(&args.id).await;
    let (mut action, mut recorded) = ("unchanged", Ok(()));
    if before.as_ref().map_or(true, is_stopped) {
        let registry = Registry::new(&connection);
        let deed = Deed::new("merchant.resume", AuditTarget::merchant(&args.id))
            .because(&args.reason)
            .detail("before", before.as_ref().ok().map(|status| status.state));
        let effect = async {
            let resumed = registry.resume(&args.id, operator.actor(), &args.reason);
            Ok(Effect::new(resumed.await?))
        };
        ((), recorded) = operator.run(deed, effect).await?;
        action = "resumed";
        let noticed = match &before {
            Ok(_) => is_noticed(&owners, &args.id).await,
            Err(_) => false,
        };
        if !noticed {
            note("the decision is kept; no node has confirmed it yet");
        }
    } else {
        note(&format!("{} is neither quarantined nor closed", args.id));
    }
    let mut out = Out::stdout();
    if global.json {
        let before = before.ok().map(|status| status.state);
        out.json(&Resumed {
            merchant: args.id.to_string(),
            action,
            before,
        })?;
    } else {
        out.line(format_args!("{action}  {}", args.id))?;
    }
    recorded
}

fn is_stopped(status: &MerchantStatus) -> bool {
    matches!(
        status.state,
        MerchantState::Quarantined | MerchantState::Closed
    )
}

async fn is_noticed(owners: &Owners, id: &MerchantId) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if owners
            .status(id)
            .await
            .is_ok_and(|status| !is_stopped(&status))
        {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}
