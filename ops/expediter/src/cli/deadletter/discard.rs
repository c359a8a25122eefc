use expediter_types::OrderId;
use expediter_wire::audit::AuditTarget;
use serde::Serialize;

use super::select::{Letter, Selection};
use crate::cli::dead::RECORD;
use crate::cli::error::note;
use crate::cli::operator::{Actor, Deed, Effect, Operator};
use crate::cli::out::Out;
use crate::cli::owners::Owners;
use crate::cli::text::counted;
use crate::cli::{Error, Global};

const EXAMPLES: &str = "\
Settles open dead letters that are not to be sent again: they are listed no more, and orders that an
ambiguous one holds back go on. Nothing is deleted before `nats.dead_letter_retention`.

Examples:
  expediter deadletter discard 4711 --merchant luigis --reason 'delivered by phone'
  expediter deadletter discard --reason-is unknown_merchant --reason 'a test' --dry-run
  expediter deadletter discard --merchant luigis --since 2h --reason 'test orders' --yes";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// One order's; needs --merchant
    id: Option<OrderId>,
    #[command(flatten)]
    selection: Chosen,
    /// Why, for those who look later
    #[arg(long = "reason", value_parser = crate::cli::operator::reason, value_name = "TEXT")]
    why: String,
    /// Only count them
    #[arg(long)]
    dry_run: bool,
    /// Discard more than one
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    actor: Actor,
}

/// As [`Selection`]; `--reason` is the operator's own here.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Chosen {
    /// Only of this merchant; can be repeated
    #[arg(long, short, value_name = "ID")]
    merchant: Vec<expediter_types::MerchantId>,
    /// Only of merchants of this group
    #[arg(long, value_name = "NAME", conflicts_with = "merchant")]
    group: Option<String>,
    /// Only with this reason, such as ambiguous; can be repeated
    #[arg(long, value_parser = super::select::reason, value_name = "REASON")]
    reason_is: Vec<expediter_types::DeadReason>,
    /// Only what ended since then: so long ago, such as 2h, or RFC 3339
    #[arg(long, value_parser = crate::cli::text::past, value_name = "WHEN")]
    since: Option<expediter_types::UnixMillis>,
    /// Only what ended before then
    #[arg(long, value_parser = crate::cli::text::past, value_name = "WHEN")]
    until: Option<expediter_types::UnixMillis>,
}

impl From<Chosen> for Selection {
    fn from(from: Chosen) -> Self {
        Self {
            merchant: from.merchant,
            group: from.group,
            reason: from.reason_is,
            since: from.since,
            until: from.until,
        }
    }
}

impl Chosen {
    /// It names this reason.
    pub(super) fn asks_for(&self, reason: expediter_types::DeadReason) -> bool {
        self.reason_is.contains(&reason)
    }

    /// The open dead letters that are meant.
    ///
    /// # Errors
    /// Nothing was chosen, or nothing is open of it.
    pub(super) async fn letters(
        self,
        connection: &expediter_nats::Connection,
        id: Option<&OrderId>,
    ) -> Result<Vec<Letter>, Error> {
        let selection = Selection::from(self);
        if id.is_some() && selection.merchant.len() != 1 {
            return Err(Error::Usage(
                "an order's id needs its --merchant".to_owned(),
            ));
        }
        if id.is_none() && selection.is_everything() {
            return Err(Error::Usage(
                "say which: an order's id, or --merchant, --group, --reason-is, --since".to_owned(),
            ));
        }
        let letters = selection.open(connection, id).await?;
        match letters.is_empty() {
            true => Err(Error::NotFound(
                "no open dead letter is of that choice; see `expediter deadletter list --all`"
                    .to_owned(),
            )),
            false => Ok(letters),
        }
    }
}

#[derive(Debug, Serialize)]
struct Discarded {
    discarded: usize,
    dry_run: bool,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    let letters = args
        .selection
        .letters(&connection, args.id.as_ref())
        .await?;
    let mut out = Out::stdout();
    let told = |out: &mut Out, discarded: usize| match global.json {
        true => out.json(&Discarded {
            discarded,
            dry_run: args.dry_run,
        }),
        false => {
            let what = counted(discarded as u64, "dead letter");
            match args.dry_run {
                true => out.line(format_args!("would discard {what}")),
                false => out.line(format_args!("discarded {what}")),
            }
        }
    };
    if args.dry_run {
        return told(&mut out, letters.len());
    }
    if letters.len() > 1 && !args.yes {
        return Err(Error::Usage(format!(
            "{} are meant: --yes discards them, --dry-run counts them",
            counted(letters.len() as u64, "dead letter")
        )));
    }
    let operator = Operator::new(&connection, &args.actor).await?;
    let owners = Owners::of(&connection).await?;
    for (done, letter) in letters.iter().enumerate() {
        let envelope = &letter.item.outcome.envelope;
        let deed = Deed::new(
            "deadletter.discard",
            AuditTarget::order(&envelope.merchant, &envelope.id),
        )
        .because(args.why.trim())
        .detail("generation", envelope.generation)
        .detail(RECORD, letter.item.record);
        let ambiguous = letter.reason == expediter_types::DeadReason::Ambiguous;
        let effect = async {
            // What an ambiguous one holds back goes on.
            let released = ambiguous && {
                let (merchant, id) = (&envelope.merchant, &envelope.id);
                owners.release(merchant, id, envelope.generation).await?
            };
            Ok(Effect::new(()).detail("released", released))
        };
        let discarded = operator.run(deed, effect).await;
        if let Err(error) = discarded.and_then(|((), recorded)| recorded) {
            if letters.len() > 1 {
                note(&format!("{done} of {} were discarded", letters.len()));
            }
            return Err(error);
        }
    }
    told(&mut out, letters.len())
}
