//! Why orders wait, in plain words.

use expediter_nats::{Connection, Registry, RegistryChange, ScopeEntry};
use expediter_types::{Merchant, MerchantId, OrderId, UnixMillis};
use expediter_wire::Rfc3339;
use expediter_wire::control::{HoldStatus, Place};
use expediter_wire::explain::{Explanation, Reason};
use expediter_wire::registry::ScopeRegistration;
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
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    shared: &'a [Shared],
}

/// Who made a limit what it is.
#[derive(Debug, Clone, Serialize)]
struct SetBy {
    actor: String,
    at: Rfc3339,
    revision: u64,
}

/// A limit that the merchant shares with others.
#[derive(Debug, Serialize)]
struct Shared {
    /// `group` or `credential`.
    scope: &'static str,
    name: String,
    rates: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency: Option<u32>,
    set_by: SetBy,
}

/// What the registry says of the limits that hold a merchant.
#[derive(Debug, Default)]
struct Behind {
    group: Option<String>,
    /// The limit in force moves below `limits.concurrency`, which it is said to be of.
    adaptive: Option<u32>,
    set_by: Option<SetBy>,
    shared: Vec<Shared>,
}

impl Behind {
    /// As far as it can be read: it only adds to the reasons.
    async fn of(connection: &Connection, merchant: &MerchantId, reasons: &[Reason]) -> Self {
        let about = |reason: &Reason| {
            matches!(
                reason,
                Reason::Rate { .. }
                    | Reason::Concurrency { .. }
                    | Reason::SharedLimit { .. }
                    | Reason::Held { .. }
            )
        };
        if !reasons.iter().any(about) {
            return Self::default();
        }
        let registry = Registry::new(connection);
        let history = match registry.history(merchant).await {
            Ok(history) => history,
            Err(error) => {
                note(&format!("who set the limit is not known: {error}"));
                return Self::default();
            }
        };
        let newest = history.last().and_then(|change| change.merchant.as_ref());
        let Some(newest) = newest else {
            return Self::default();
        };
        let mut behind = Self {
            group: Some(newest.group.clone()),
            ..Self::default()
        };
        for reason in reasons {
            match reason {
                Reason::Rate { .. } => {
                    behind.set_by = set_by(&history, |m| (m.limits.rates.clone(), m.limits.burst));
                }
                Reason::Concurrency { .. } => {
                    let limits = &newest.limits;
                    behind.adaptive = limits.min_concurrency.map(|_| limits.concurrency);
                    behind.set_by = set_by(&history, |m| {
                        (m.limits.concurrency, m.limits.min_concurrency)
                    });
                }
                Reason::SharedLimit { .. } => {
                    let scopes = registry.scopes_of(newest).await.unwrap_or_default();
                    behind.shared = scopes.into_iter().map(Shared::from).collect();
                }
                _ => {}
            }
        }
        behind
    }
}

impl From<ScopeEntry> for Shared {
    fn from(entry: ScopeEntry) -> Self {
        let ScopeRegistration { scope, actor, at } = entry.registration;
        Self {
            scope: scope.kind.as_str(),
            name: scope.id,
            rates: scope.rates.iter().map(ToString::to_string).collect(),
            concurrency: scope.concurrency,
            set_by: SetBy {
                actor,
                at: Rfc3339(at),
                revision: entry.revision,
            },
        }
    }
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
    let behind = Behind::of(&connection, merchant, &explanation.reasons).await;
    let now = now();
    let because: Vec<String> = explanation
        .reasons
        .iter()
        .map(|reason| words(reason, merchant, &behind, now))
        .collect();
    let mut out = Out::stdout();
    if global.json {
        return out.json(&Explained {
            explanation: &explanation,
            because: &because,
            limits_set_by: behind.set_by.as_ref(),
            shared: &behind.shared,
        });
    }
    out.text(&text(&explanation, merchant, order, &because, now))
}

/// The change that made this part of the manifest what it is; `None` when it is older than what the
/// registry keeps.
fn set_by<P: PartialEq>(
    history: &[RegistryChange],
    part: impl Fn(&Merchant) -> P,
) -> Option<SetBy> {
    let part = |change: &RegistryChange| change.merchant.as_ref().map(&part);
    let newest = part(history.last()?);
    let same = history.iter().rev().take_while(|c| part(c) == newest);
    let first = same.last()?;
    // The oldest that is kept may only have kept it.
    let all = history.len() < usize::from(Registry::HISTORY);
    let known = all || first.revision != history.first()?.revision;
    known.then(|| SetBy {
        actor: first.actor.clone(),
        at: Rfc3339(first.at),
        revision: first.revision,
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
            format!("{}{more} of the merchant", counted(ahead, "order")),
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

fn words(reason: &Reason, merchant: &MerchantId, behind: &Behind, now: UnixMillis) -> String {
    let by = |by: &HoldStatus| {
        format!(
            "by {} {}: {}",
            clean(&by.actor),
            ago(by.at.0, now),
            clean(&by.reason)
        )
    };
    let set = |by: &SetBy| {
        format!(
            " (set by {} {}, revision {})",
            clean(&by.actor),
            ago(by.at.0, now),
            by.revision
        )
    };
    let limit = || behind.set_by.as_ref().map(set).unwrap_or_default();
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
                "group" => (
                    "its group is",
                    format!("--group {}", behind.group.as_deref().unwrap_or("NAME")),
                ),
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
        Reason::PartitionPaused => {
            "its partition is paused, because the nodes that worked on it crashed: \
             `expediter cluster status` shows it, `expediter cluster resume` lets it go on"
                .to_owned()
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
        Reason::Concurrency { limit: most } => {
            let count = counted(u64::from(*most), "attempt");
            match behind.adaptive {
                Some(ceiling) => format!(
                    "{count} in flight, which is what it bears at present, of at most {ceiling}{}",
                    limit()
                ),
                None => format!("{count} in flight, which is the limit{}", limit()),
            }
        }
        Reason::Rate { limit: rate } => format!("the rate limit {rate}{}", limit()),
        Reason::SharedLimit {
            scope,
            name,
            held,
            until,
        } => {
            let is_it = |shared: &&Shared| {
                let named = name.as_ref().is_none_or(|name| *name == shared.name);
                named && scope.as_ref().is_none_or(|scope| scope == shared.scope)
            };
            let why = match (held.as_deref(), until) {
                (Some("closed"), Some(until)) => {
                    format!(
                        ", which a merchant asked to leave alone: it opens {}",
                        ago(until.0, now)
                    )
                }
                (Some("rate"), _) => ", whose rate is used up".to_owned(),
                (Some("concurrency"), _) => ", whose attempts in flight are used up".to_owned(),
                (Some("no_slice"), _) => ", of which other nodes have all".to_owned(),
                _ => String::new(),
            };
            let which = match (scope.as_deref(), name) {
                (Some("node"), _) => return format!("the node's own limit (node.rate){why}"),
                (Some(scope), Some(name)) => format!(" by {scope} {name}"),
                _ => String::new(),
            };
            let limits = behind.shared.iter().filter(is_it).map(|shared| {
                let concurrency = shared.concurrency.map(|most| format!("{most} in flight"));
                let parts: Vec<_> = shared.rates.iter().cloned().chain(concurrency).collect();
                let set = set(&shared.set_by);
                format!(
                    "{} {}: {}{set}",
                    shared.scope,
                    shared.name,
                    parts.join(", ")
                )
            });
            let limits: Vec<_> = limits.collect();
            let told = match limits.as_slice() {
                [] if which.is_empty() => {
                    ": `expediter merchant scope list`, or the node's own (node.rate)".to_owned()
                }
                [] => String::new(),
                limits => format!(": {}", limits.join("; ")),
            };
            format!("a limit that merchants share{which}{told}{why}")
        }
        Reason::DeadLettersWait => {
            "so many of its dead letters wait for the broker that nothing of it starts".to_owned()
        }
        Reason::MemoryFull => {
            "orders in memory are too large for more of this merchant: the rest waits in the store"
                .to_owned()
        }
        Reason::Capacity => "the node's attempts in flight are used up (node.in_flight)".to_owned(),
        Reason::RetryBudget => {
            "it was tried before, and the retry budget is used up (retry.budget)".to_owned()
        }
        Reason::Local => "a fault of the node itself, a moment ago: see its /readyz".to_owned(),
        Reason::OlderFirst => "others of the merchant go first".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(scope: Option<&str>, name: Option<&str>) -> Reason {
        Reason::SharedLimit {
            scope: scope.map(str::to_owned),
            name: name.map(str::to_owned),
            held: name.map(|_| "rate".to_owned()),
            until: None,
        }
    }

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
        let behind = Behind {
            set_by: Some(set_by.clone()),
            shared: vec![Shared {
                scope: "credential",
                name: "vendor".to_owned(),
                rates: vec!["5/s".to_owned()],
                concurrency: Some(3),
                set_by: SetBy {
                    revision: 9,
                    ..set_by
                },
            }],
            ..Behind::default()
        };
        let now = 1_770_000_060_000;
        assert_eq!(
            words(&shared(None, None), &luigis, &behind, now),
            "a limit that merchants share: credential vendor: 5/s, 3 in flight (set by bob 1 min \
             ago, revision 9)"
        );
        assert_eq!(
            words(&shared(Some("group"), Some("pizza")), &luigis, &behind, now),
            "a limit that merchants share by group pizza, whose rate is used up"
        );
        assert_eq!(
            words(&held, &luigis, &Behind::default(), now),
            "the merchant is paused by ann 1 min ago: kitchen fire; go on: `expediter merchant \
             resume luigis`"
        );
        let rate = Reason::Rate {
            limit: "20/s".into(),
        };
        assert_eq!(
            words(&rate, &luigis, &behind, now),
            "the rate limit 20/s (set by bob 1 min ago, revision 7)"
        );
    }

    #[test]
    fn a_limit_is_of_who_changed_it_last() {
        let change = |revision: u64, actor: &str, change: fn(&mut Merchant)| {
            let id = MerchantId::new("luigis").unwrap();
            let mut merchant = Merchant::to(id, "https://pos.example/");
            merchant.limits.rates = vec!["20/s".parse().unwrap()];
            change(&mut merchant);
            RegistryChange {
                merchant: Some(merchant),
                revision,
                actor: actor.to_owned(),
                at: revision,
                rolled_back_from: None,
            }
        };
        let history = [
            change(1, "eve", |m| m.limits.rates.clear()),
            change(2, "ann", |_| {}),
            change(3, "bob", |m| m.limits.backlog = Some(1_000)),
        ];
        let of_rates = |history: &[RegistryChange]| {
            set_by(history, |m| m.limits.rates.clone()).map(|by| by.actor)
        };
        assert_eq!(of_rates(&history).as_deref(), Some("ann"));
        let full: Vec<_> = (5..5 + u64::from(Registry::HISTORY))
            .map(|n| change(n, "bob", |_| {}))
            .collect();
        assert_eq!(of_rates(&full), None, "whoever set it is no longer kept");
    }
}
