use std::io::{BufRead, IsTerminal};
use std::time::{Duration, Instant};

use expediter_nats::Registry;
use expediter_types::{MerchantId, format_duration, parse_duration};
use expediter_wire::audit::AuditTarget;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::existing;
use crate::cli::error::note;
use crate::cli::operator::{Actor, Deed, Effect, Operator, Recorded};
use crate::cli::out::Out;
use crate::cli::owners::Owners;
use crate::cli::text::{count, counted};
use crate::cli::{Error, Global};

/// Between two questions to the owner.
const LOOK: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
A deleted merchant can be brought back: expediter merchant rollback ID. Orders that are published
for it meanwhile wait for the grace of orders.unknown_merchant_grace, then become dead letters.

Examples:
  expediter merchant delete luigis
  expediter merchant delete luigis --drain --timeout 1h
  expediter merchant delete luigis --dead-letter --reason 'closed for good' --yes";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The merchant
    id: MerchantId,
    /// Wait until its orders are delivered or ended by themselves
    #[arg(long, conflicts_with = "dead_letter")]
    drain: bool,
    /// End its waiting orders as dead letters; attempts in flight end first
    #[arg(long, requires = "reason")]
    dead_letter: bool,
    /// Why, written down with each dead letter
    #[arg(long, requires = "dead_letter", value_parser = crate::cli::operator::reason, value_name = "TEXT")]
    reason: Option<String>,
    /// How long to wait with --drain or --dead-letter
    #[arg(long, default_value = "15m", value_parser = parse_duration, value_name = "DURATION")]
    timeout: Duration,
    /// Do not ask on a terminal
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    actor: Actor,
}

#[derive(Debug, Serialize)]
struct Deleted {
    merchant: String,
    action: &'static str,
    dead_lettered: u64,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    let entry = existing(&connection, &args.id).await?;
    let owners = Owners::of(&connection).await?;
    let operator = Operator::new(&connection, &args.actor).await?;
    let waiting = Waiting {
        owners: &owners,
        id: &args.id,
    };
    let newest = owners.newest(&args.id).await?;
    let remaining = waiting.count(newest).await?;
    let (mut dead_lettered, mut end_recorded) = (0, Ok(()));
    if remaining != Some(0) {
        let told = remaining.map_or_else(
            || "The owner has not read all its orders yet".to_owned(),
            |n| {
                if n == 1 {
                    "1 order waits".to_owned()
                } else {
                    format!("{} orders wait", count(n))
                }
            },
        );
        match (&args.reason, args.drain) {
            (Some(reason), _) if args.dead_letter => {
                confirm(
                    &args,
                    &format!("{told}, and will not be sent. End as dead letters?"),
                )?;
                (dead_lettered, end_recorded) =
                    end(&waiting, &operator, newest, reason, args.timeout).await?;
            }
            (_, true) => waiting.drain(newest, args.timeout).await?,
            _ => {
                return Err(Error::failed(format!(
                    "{told} for {}: it is not deleted\nWait for them with --drain, or end them with \
                     --dead-letter --reason TEXT",
                    args.id
                )));
            }
        }
    } else if !args.drain && !args.dead_letter {
        confirm(&args, &format!("Delete merchant {}?", args.id))?;
    }
    let deed = Deed::new("merchant.delete", AuditTarget::merchant(&args.id))
        .because(args.reason.as_deref().unwrap_or_default())
        .detail("before", entry.revision);
    let registry = Registry::new(&connection);
    let effect = async {
        let deleted = registry.delete(&args.id, operator.actor(), entry.revision);
        Ok(Effect::new(deleted.await?))
    };
    let ((), recorded) = operator.run(deed, effect).await?;
    let mut out = Out::stdout();
    if global.json {
        let merchant = args.id.to_string();
        out.json(&Deleted {
            merchant,
            action: "deleted",
            dead_lettered,
        })?;
    } else {
        out.line(format_args!("deleted  {}", args.id))?;
        if dead_lettered > 0 {
            note(&format!(
                "{} dead-lettered",
                counted(dead_lettered, "order")
            ));
        }
    }
    end_recorded.and(recorded)
}

/// Ends the orders that wait; a deed of its own, which stands also when the deletion fails.
async fn end(
    waiting: &Waiting<'_>,
    operator: &Operator,
    newest: u64,
    reason: &str,
    timeout: Duration,
) -> Result<(u64, Recorded), Error> {
    let deed = Deed::new("merchant.dead_letter", AuditTarget::merchant(waiting.id)).because(reason);
    let effect = async {
        let ended = waiting.end(newest, reason, operator.actor(), timeout);
        let ended = ended.await?;
        Ok(Effect::new(ended).detail("dead_lettered", ended))
    };
    operator.run(deed, effect).await
}

/// Asks only where somebody can answer: a script says what it wants by its flags.
fn confirm(args: &Args, question: &str) -> Result<(), Error> {
    if args.yes || !std::io::stdin().is_terminal() {
        return Ok(());
    }
    ask(question)
}

/// Asks a person at the terminal; anything but yes is no.
pub(super) fn ask(question: &str) -> Result<(), Error> {
    note(&format!("{question} [y/N]"));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Error::failed("nothing was deleted")),
    }
}

struct Waiting<'a> {
    owners: &'a Owners,
    id: &'a MerchantId,
}

impl Waiting<'_> {
    /// Its unfinished orders; `None` while the owner has not read up to `newest`.
    async fn count(&self, newest: u64) -> Result<Option<u64>, Error> {
        let status = self
            .owners
            .partition_status(self.owners.partition(self.id))
            .await?;
        let remaining = self.owners.remaining(self.id).await?;
        Ok((remaining > 0 || status.seen >= newest).then_some(remaining))
    }

    async fn drain(&self, newest: u64, timeout: Duration) -> Result<(), Error> {
        let progress = progress("waiting for its orders");
        let deadline = Instant::now() + timeout;
        loop {
            let remaining = self.count_patiently(newest, deadline).await?;
            if remaining == Some(0) {
                progress.finish_and_clear();
                return Ok(());
            }
            if Instant::now() >= deadline {
                progress.finish_and_clear();
                return Err(over(self.id, remaining, timeout));
            }
            progress.set_message(left(remaining));
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Gives how many became dead letters, as far as is known.
    async fn end(
        &self,
        newest: u64,
        reason: &str,
        actor: &str,
        timeout: Duration,
    ) -> Result<u64, Error> {
        let progress = progress("ending its orders");
        let deadline = Instant::now() + timeout;
        let (mut most, mut first) = (0, true);
        loop {
            let remaining = self.count_patiently(newest, deadline).await?;
            if remaining == Some(0) {
                progress.finish_and_clear();
                return Ok(most);
            }
            if Instant::now() >= deadline {
                progress.finish_and_clear();
                return Err(over(self.id, remaining, timeout));
            }
            // Once is enough for what waits; what arrived or was in flight since is ended with
            // the next request.
            let (ended, _) = match self.owners.dead_letter(self.id, reason, actor).await {
                Ok(answer) => answer,
                Err(error) if first => return Err(error),
                Err(_) => (0, 0),
            };
            first = false;
            most = most.max(ended);
            progress.set_message(left(remaining));
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A partition that moves to another node is without an owner for a moment.
    async fn count_patiently(&self, newest: u64, deadline: Instant) -> Result<Option<u64>, Error> {
        let patience = deadline.min(Instant::now() + Duration::from_secs(15));
        loop {
            match self.count(newest).await {
                Err(error) if Instant::now() >= patience => return Err(error),
                Err(_) => tokio::time::sleep(LOOK).await,
                counted => return counted,
            }
        }
    }
}

fn left(remaining: Option<u64>) -> String {
    remaining.map_or_else(
        || "the owner is still reading".to_owned(),
        |n| format!("{} left", counted(n, "order")),
    )
}

fn over(id: &MerchantId, remaining: Option<u64>, timeout: Duration) -> Error {
    Error::failed(format!(
        "{id} is not deleted: after {} {}",
        format_duration(timeout),
        left(remaining)
    ))
}

/// A line that moves on a terminal; nothing elsewhere.
fn progress(what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})");
    let bar = ProgressBar::new_spinner().with_prefix(what);
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
