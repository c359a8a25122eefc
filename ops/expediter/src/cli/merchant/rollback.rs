use expediter_nats::RegistryChange;
use expediter_types::{Merchant, MerchantId};
use expediter_wire::audit::AuditTarget;
use expediter_wire::manifest::{self, Change};
use expediter_wire::registry::Registration;
use serde::Serialize;

use crate::cli::operator::{Actor, Deed, Effect, Operator};
use crate::cli::out::Out;
use crate::cli::text::{clean, now};
use crate::cli::{Error, Global};

const EXAMPLES: &str = "\
The revision before the present one is taken without --to; a deleted merchant comes back as it was.
A rollback is a revision of its own, and can be rolled back.

Examples:
  expediter merchant rollback luigis
  expediter merchant rollback luigis --to 12";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The merchant
    id: MerchantId,
    /// The revision to go back to; see `expediter merchant show ID --history`
    #[arg(long, value_name = "REVISION")]
    to: Option<u64>,
    #[command(flatten)]
    actor: Actor,
}

#[derive(Debug, Serialize)]
struct RolledBack {
    merchant: String,
    action: &'static str,
    revision: u64,
    to: u64,
    changes: Vec<Change>,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    let registry = super::registry(&connection).await?;
    let operator = Operator::new(&connection, &args.actor).await?;
    let history = registry.history(&args.id).await?;
    let Some(current) = history.last().cloned() else {
        return Err(Error::NotFound(format!(
            "no merchant {} was ever registered",
            args.id
        )));
    };
    let (to, merchant) = target(&args.id, &history, args.to)?;
    let changes = match &current.merchant {
        Some(present) => manifest::diff(present, &merchant),
        None => Vec::new(),
    };
    let mut out = Out::stdout();
    let unchanged = current.merchant.as_ref() == Some(&merchant);
    let (revision, recorded) = if unchanged {
        (current.revision, Ok(()))
    } else {
        // A deleted merchant is registered anew.
        let expected = if current.merchant.is_some() {
            current.revision
        } else {
            0
        };
        let registration = Registration {
            merchant,
            actor: operator.actor().to_owned(),
            at: now(),
            rolled_back_from: Some(current.revision),
        };
        let deed = Deed::new("merchant.rollback", AuditTarget::merchant(&args.id))
            .detail("before", current.revision)
            .detail("to", to)
            .detail("changes", &changes);
        let effect = async {
            let revision = registry.put(&registration, expected).await?;
            Ok(Effect::new(revision).detail("revision", revision))
        };
        operator.run(deed, effect).await?
    };
    let action = if unchanged {
        "unchanged"
    } else {
        "rolled back"
    };
    if global.json {
        let merchant = args.id.to_string();
        out.json(&RolledBack {
            merchant,
            action,
            revision,
            to,
            changes,
        })?;
        return recorded;
    }
    out.buffer(&format!(
        "{action}  {}  to revision {to}, as revision {revision}",
        args.id
    ))?;
    for Change { key, from, to } in &changes {
        let value = |value: &Option<String>| {
            value
                .as_deref()
                .map_or_else(|| "(absent)".to_owned(), clean)
        };
        out.buffer(&format!(
            "  {}: {} -> {}",
            clean(key),
            value(from),
            value(to)
        ))?;
    }
    out.flush()?;
    recorded
}

/// The revision to go back to, and what it was.
fn target(
    id: &MerchantId,
    history: &[RegistryChange],
    to: Option<u64>,
) -> Result<(u64, Merchant), Error> {
    let found = match to {
        Some(to) => history.iter().find(|change| change.revision == to),
        None => {
            let mut earlier = history.iter().rev().skip(1);
            earlier.find(|change| change.merchant.is_some())
        }
    };
    match (found, to) {
        (
            Some(RegistryChange {
                merchant: Some(merchant),
                revision,
                ..
            }),
            _,
        ) => Ok((*revision, merchant.clone())),
        (Some(_), _) => Err(Error::Usage(format!(
            "that revision is the deletion of {id}: use `expediter merchant delete {id}`"
        ))),
        (None, Some(to)) => {
            let kept: Vec<String> = history
                .iter()
                .map(|change| change.revision.to_string())
                .collect();
            Err(Error::NotFound(format!(
                "{id} has no revision {to}; kept are {}",
                kept.join(", ")
            )))
        }
        (None, None) => Err(Error::NotFound(format!("{id} has no earlier revision"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: u64, url: Option<&str>) -> RegistryChange {
        let id = MerchantId::new("luigis").unwrap();
        RegistryChange {
            merchant: url.map(|url| Merchant::to(id, url)),
            revision,
            actor: "ann".to_owned(),
            at: 1,
            rolled_back_from: None,
        }
    }

    #[test]
    fn the_revision_before_is_taken_unless_another_is_named() {
        let id = MerchantId::new("luigis").unwrap();
        let history = [
            change(3, Some("http://a/")),
            change(5, Some("http://b/")),
            change(9, None),
        ];
        let url = |to| target(&id, &history, to).map(|(revision, m)| (revision, m.adapter.url));
        assert_eq!(url(None).unwrap(), (5, "http://b/".to_owned()));
        assert_eq!(url(Some(3)).unwrap(), (3, "http://a/".to_owned()));
        assert!(matches!(url(Some(4)), Err(Error::NotFound(text)) if text.contains("3, 5, 9")));
        assert!(matches!(url(Some(9)), Err(Error::Usage(_))));
        assert!(matches!(
            target(&id, &history[..1], None),
            Err(Error::NotFound(_))
        ));
    }
}
