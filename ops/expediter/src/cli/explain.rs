//! Why orders wait, in plain words.

use expediter_nats::{Connection, Registry, RegistryChange};
use expediter_types::{Merchant, MerchantId, OrderId, UnixMillis};
use expediter_wire::control::{HoldStatus, Place};
use expediter_wire::explain::{Explanation, Reason};
use serde::Serialize;

use super::error::note;
use super::out::Out;
use super::owners::Owners;
use super::text::{ago, clean, count, counted, now, when_and_ago};
use super::{Error, Global};

/// An explanation for machines.
#[derive(Debug, Serialize)]
struct Explained<'a> {
    #[serde(flatten)]
    explanation: &'a Explanation,
    /// The reasons in plain words, in the same order.
    because: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    limits_set_by: Option<&'a SetBy>,
}

/// Who made a limit what it is.
#[derive(Debug, Serialize)]
struct SetBy {
    actor: String,
    at: expediter_wire::Rfc3339,
    revision: u64,
}

/// Asks the owner, and says what it answers.
pub(super) async fn run(
    global: &Global,
    merchant: &MerchantId,
    order: Option<&OrderId>,
) -> Result<(), Error> {
    let connection = global.connect().await?;
    let owners = Owners::of(&connection).await?;
    let explanation = owners.explain(merchant, order).await?;
    if let Some((status, id)) = explanation.order.as_ref().zip(order)
        && !status.found
    {
        return Err(Error::NotFound(format!(
            "no order {id} of {merchant} is known up to sequence {}; an ended one: \
             `expediter order show {id} --merchant {merchant}`",
            status.seen
        )));
    }
    let limits = explanation
        .reasons
        .iter()
        .any(|reason| matches!(reason, Reason::Rate { .. } | Reason::Concurrency { .. }));
    let set_by = match limits {
        true => set_by(&connection, merchant).await,
        false => None,
    };
    let now = now();
    let because: Vec<String> = explanation
        .reasons
        .iter()
        .map(|reason| words(reason, merchant, set_by.as_ref(), now))
        .collect();
    let mut out = Out::stdout();
    if global.json {
        return out.json(&Explained {
            explanation: &explanation,
            because: &because,
            limits_set_by: set_by.as_ref(),
        });
    }
    out.text(&text(&explanation, merchant, order, &because, now))
}

/// The newest change of the merchant's limits; `None` when it cannot be told.
async fn set_by(connection: &Connection, merchant: &MerchantId) -> Option<SetBy> {
    let history = match Registry::new(connection).history(merchant).await {
        Ok(history) => history,
        Err(error) => {
            note(&format!("who set the limit is not known: {error}"));
            return None;
        }
    };
    let limits = |change: &RegistryChange| {
        change
            .merchant
            .as_ref()
            .map(|m: &Merchant| m.limits.clone())
    };
    let mut newest: Option<&RegistryChange> = None;
    for change in history.iter().rev() {
        match newest {
            Some(later) if limits(later) != limits(change) => break,
            _ => newest = Some(change),
        }
    }
    newest.map(|change| SetBy {
        actor: change.actor.clone(),
        at: expediter_wire::Rfc3339(change.at),
        revision: change.revision,
    })
}

fn text(
    explanation: &Explanation,
    merchant: &MerchantId,
    order: Option<&OrderId>,
    because: &[String],
    now: UnixMillis,
) -> String {
    let status = &explanation.merchant;
    let mut lines = Vec::new();
    let place = explanation.order.as_ref().map(|order| order.place);
    lines.push(match (order, place) {
        (Some(id), Some(Place::InFlight)) => format!("order {id} of {merchant} is being sent"),
        (Some(id), Some(Place::Mailbox)) => format!("order {id} of {merchant} waits in memory"),
        (Some(id), Some(Place::Store)) => format!("order {id} of {merchant} waits in the store"),
        (Some(id), _) => format!(
            "order {id} of {merchant} has ended: see `expediter order show {id} --merchant {merchant}`"
        ),
        (None, _) if status.backlog == 0 => format!("{merchant} has no unfinished orders"),
        (None, _) => format!(
            "{} of {merchant} unfinished: {} in flight, {} in memory",
            counted(status.backlog, "order"),
            count(status.in_flight),
            count(status.mailbox)
        ),
    });
    let mut fact = |name: &str, value: String| lines.push(format!("{name:<8} {value}"));
    let waits =
        place.is_none_or(|place| matches!(place, Place::InFlight | Place::Mailbox | Place::Store));
    if because.is_empty() && waits && (order.is_some() || status.backlog > 0) {
        fact("why", "nothing holds it: it goes at once".to_owned());
    }
    for (number, reason) in because.iter().enumerate() {
        fact(if number == 0 { "why" } else { "and" }, reason.clone());
    }
    if let Some(ahead) = explanation.ahead {
        let more = if explanation.ahead_or_more {
            " or more"
        } else {
            ""
        };
        fact(
            "ahead",
            format!("{}{more} of the merchant", counted(ahead, "older order")),
        );
    }
    if waits {
        fact(
            "pace",
            format!(
                "{} a minute, as of late",
                counted(explanation.per_minute, "order")
            ),
        );
    }
    if let Some(goes) = explanation.goes {
        let what = if order.is_some() {
            "it goes"
        } else {
            "the backlog is gone"
        };
        fact("then", format!("{what} {} at this pace", ago(goes.0, now)));
    }
    if let Some(order) = &explanation.order {
        if let Some(deadline) = order.deadline.filter(|_| waits) {
            fact("expires", when_and_ago(deadline.0, now));
        }
        if order.ambiguous {
            fact(
                "note",
                "its newest attempt may have been received".to_owned(),
            );
        }
    } else if let Some(oldest) = status.oldest {
        fact("oldest", when_and_ago(oldest.0, now));
    }
    if let Some(error) = &status.last_error {
        fact("error", format!("the newest: {}", clean(error)));
    }
    lines.join("\n") + "\n"
}

fn words(
    reason: &Reason,
    merchant: &MerchantId,
    set_by: Option<&SetBy>,
    now: UnixMillis,
) -> String {
    let by = |by: &HoldStatus| {
        format!(
            "by {} {}: {}",
            clean(&by.actor),
            ago(by.at.0, now),
            clean(&by.reason)
        )
    };
    let limit = || {
        set_by.map_or_else(String::new, |by| {
            format!(
                " (set by {} {}, revision {})",
                clean(&by.actor),
                ago(by.at.0, now),
                by.revision
            )
        })
    };
    match reason {
        Reason::InFlight => "an attempt is under way".to_owned(),
        Reason::Marking => "its attempt is written down in OUTCOMES first".to_owned(),
        Reason::NotRegistered => format!(
            "no merchant {merchant} is registered; after orders.unknown_merchant_grace its orders \
             become dead letters"
        ),
        Reason::Quarantined => format!(
            "its actor keeps crashing: it is quarantined until `expediter merchant resume {merchant}`"
        ),
        Reason::Held { state, by: hold } => {
            let (what, resume) = match hold.scope.as_str() {
                "group" => ("its group is", "--group NAME".to_owned()),
                _ => ("the merchant is", merchant.to_string()),
            };
            format!(
                "{what} {state} {}; go on: `expediter merchant resume {resume}`",
                by(hold)
            )
        }
        Reason::OutsideHours { opens: Some(opens) } => {
            format!(
                "outside its opening hours; it opens {}",
                when_and_ago(opens.0, now)
            )
        }
        Reason::OutsideHours { opens: None } => "its opening hours never open it".to_owned(),
        Reason::Closed { because, until } => {
            let until = ago(until.0, now);
            match because.as_str() {
                "rate_limited" => format!("the merchant asked to wait; it opens {until}"),
                "breaker" => {
                    format!("it failed too often: the circuit breaker is open, probed {until}")
                }
                "suspended" => format!("it refuses our credentials; probed {until}"),
                "misconfigured" => format!("its endpoint is wrong; probed {until}"),
                other => format!("closed: {}; until {until}", clean(other)),
            }
        }
        Reason::HandsOver => "its node gives it to another one".to_owned(),
        Reason::OutcomesWait => {
            "nothing starts until NATS has acknowledged the outcomes that wait".to_owned()
        }
        Reason::ParkedKey => format!(
            "an older order was parked as ambiguous: `expediter deadletter list --merchant \
             {merchant}`, then `expediter order resolve`"
        ),
        Reason::NotBefore { until } => {
            format!(
                "its publisher wants it sent not before {}",
                when_and_ago(until.0, now)
            )
        }
        Reason::Retry { at, attempts } => format!(
            "{} failed; it is tried again {}",
            counted(u64::from(*attempts), "attempt"),
            ago(at.0, now)
        ),
        Reason::BehindItsKey => "orders that share a key go one after the other".to_owned(),
        Reason::Concurrency { limit: most } => format!(
            "{} in flight, which is the limit{}",
            counted(u64::from(*most), "attempt"),
            limit()
        ),
        Reason::Rate { limit: rate } => format!("the rate limit {rate}{}", limit()),
        Reason::SharedLimit => {
            "a limit that merchants share: `expediter merchant scope list`".to_owned()
        }
        Reason::Capacity => "the node's attempts in flight are used up (node.in_flight)".to_owned(),
        Reason::RetryBudget => {
            "it was tried before, and the retry budget is used up (retry.budget)".to_owned()
        }
        Reason::Local => "a fault of the node itself, a moment ago: see its /readyz".to_owned(),
        Reason::OlderFirst => "older orders go first".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expediter_wire::Rfc3339;

    #[test]
    fn causes_are_told_with_who_and_when() {
        let luigis = MerchantId::new("luigis").unwrap();
        let hold = HoldStatus {
            scope: "merchant".into(),
            reason: "kitchen fire".into(),
            actor: "ann".into(),
            at: Rfc3339(1_770_000_000_000),
        };
        let held = Reason::Held {
            state: "paused".into(),
            by: hold,
        };
        let set_by = SetBy {
            actor: "bob".into(),
            at: Rfc3339(1_770_000_000_000),
            revision: 7,
        };
        let now = 1_770_000_060_000;
        assert_eq!(
            words(&held, &luigis, None, now),
            "the merchant is paused by ann 1 min ago: kitchen fire; go on: `expediter merchant \
             resume luigis`"
        );
        let rate = Reason::Rate {
            limit: "20/s".into(),
        };
        assert_eq!(
            words(&rate, &luigis, Some(&set_by), now),
            "the rate limit 20/s (set by bob 1 min ago, revision 7)"
        );
    }
}
