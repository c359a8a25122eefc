//! Why orders wait: the machine's facts, put in the order in which they count.

use expediter_core::merchant::Wait;
use expediter_core::partition::{
    Directory as _, Explained, HeldBy, MerchantState as Row, OrderWait,
};
use expediter_core::scopes::Held;
use expediter_runtime::{Clock, Platform};
use expediter_types::{Merchant, MerchantId, Now, Partition, UnixMillis};
use expediter_wire::Rfc3339;
use expediter_wire::control::{ControlReply, OrderStatus, Place};
use expediter_wire::explain::{Explanation, Reason};

use super::{nothing, status};

/// Orders ahead are counted no further.
const COUNTED: usize = 100_000;

/// Why a merchant's orders wait.
pub(super) async fn merchant(
    platform: &Platform,
    partition: Partition,
    merchant: MerchantId,
) -> Option<ControlReply> {
    let id = merchant.clone();
    let asked = platform.ask(partition, move |machine, directory| {
        let now = Clock::now();
        let manifest = directory.merchant(&id);
        (machine.explain(&id, directory, now), manifest, now)
    });
    let (explained, manifest, now) = asked.await?;
    let shared = || shared(platform, manifest.as_deref(), now);
    let reasons = of_merchant(&explained, shared);
    let waiting = explained.row.as_ref().map_or(0, |row| row.backlog);
    let goes =
        from(&explained, now.wall).and_then(|from| goes(waiting, explained.ended_per_minute, from));
    Some(reply(explained, merchant, None, reasons, None, false, goes))
}

/// Why an order waits.
pub(super) async fn order(
    platform: &Platform,
    partition: Partition,
    merchant: MerchantId,
    order: OrderStatus,
) -> Option<ControlReply> {
    let (id, place) = (merchant.clone(), order.place);
    let waits = matches!(place, Place::Mailbox | Place::Store | Place::InFlight);
    let stored = match order.seq.filter(|_| waits) {
        Some(seq) => platform.stored(partition, merchant.clone(), seq).await,
        None => None,
    };
    let older = match order.seq.filter(|_| waits) {
        Some(seq) => {
            let below = platform.stored_below(partition, merchant.clone(), seq, COUNTED);
            below.await.unwrap_or(0)
        }
        None => 0,
    };
    let seq = order.seq;
    let asked = platform.ask(partition, move |machine, directory| {
        let now = Clock::now();
        let held = seq.and_then(|seq| machine.held(seq));
        let wait = held
            .or(stored)
            .map(|stored| machine.explain_order(&stored, older as u64, directory));
        let manifest = directory.merchant(&id);
        (machine.explain(&id, directory, now), wait, manifest, now)
    });
    let (explained, wait, manifest, now) = asked.await?;
    let shared = || shared(platform, manifest.as_deref(), now);
    let ahead = wait.as_ref().map(|wait| wait.ahead);
    let reasons = match waits {
        true => of_order(
            &order,
            wait.as_ref(),
            || of_merchant(&explained, shared),
            ahead,
            now.wall,
        ),
        false => Vec::new(),
    };
    let freely = wait.as_ref().is_some_and(|wait| !wait.parked_key);
    let from = from(&explained, now.wall).filter(|_| waits && freely);
    let goes = ahead
        .zip(from)
        .and_then(|(ahead, from)| goes(ahead + 1, explained.ended_per_minute, from))
        // Those ahead may have gone by the time that it waits for.
        .map(|at| order.due.map_or(at, |due| at.max(due.0)));
    let more = older >= COUNTED;
    Some(reply(
        explained,
        merchant,
        Some(order),
        reasons,
        ahead,
        more,
        goes,
    ))
}

fn reply(
    explained: Explained,
    merchant: MerchantId,
    order: Option<OrderStatus>,
    reasons: Vec<Reason>,
    ahead: Option<u64>,
    ahead_or_more: bool,
    goes: Option<UnixMillis>,
) -> ControlReply {
    let per_minute = explained.ended_per_minute;
    let merchant = explained.row.map_or_else(|| nothing(merchant), status);
    ControlReply::Explanation(Box::new(Explanation {
        merchant,
        order,
        reasons,
        ahead,
        ahead_or_more,
        per_minute,
        goes: goes.map(Rfc3339),
    }))
}

/// From when on orders of the merchant go, as far as is known; `None`: somebody has to do something.
fn from(explained: &Explained, now: UnixMillis) -> Option<UnixMillis> {
    if explained.paused {
        return None;
    }
    match explained.row.as_ref().map(|row| &row.state) {
        Some(Row::Open) | None => Some(now),
        Some(Row::Closed { until, .. }) => Some(now.max(*until)),
        Some(Row::Held(HeldBy::OutsideHours { until })) => until.map(|until| now.max(until)),
        Some(Row::Held(HeldBy::ByOperator(_)) | Row::Quarantined | Row::Unknown) => None,
    }
}

/// When the last of so many has gone, at so many a minute from then on.
fn goes(waiting: u64, per_minute: u64, from: UnixMillis) -> Option<UnixMillis> {
    let millis = waiting.saturating_mul(60_000).checked_div(per_minute)?;
    (waiting > 0).then(|| from.saturating_add(millis))
}

fn of_order(
    order: &OrderStatus,
    wait: Option<&OrderWait>,
    of_merchant: impl FnOnce() -> Vec<Reason>,
    ahead: Option<u64>,
    now: UnixMillis,
) -> Vec<Reason> {
    if order.place == Place::InFlight {
        return vec![Reason::InFlight];
    }
    let mut reasons = Vec::new();
    if wait.is_some_and(|wait| wait.marking) {
        reasons.push(Reason::Marking);
    }
    if let Some(due) = order.due.filter(|due| due.0 > now) {
        let attempts = u32::try_from(order.attempts.len()).unwrap_or(u32::MAX);
        reasons.push(match attempts {
            0 => Reason::NotBefore { until: due },
            attempts => Reason::Retry { at: due, attempts },
        });
    }
    if wait.is_some_and(|wait| wait.parked_key) {
        reasons.push(Reason::ParkedKey);
    }
    reasons.extend(of_merchant());
    if ahead.is_some_and(|ahead| ahead > 0) {
        reasons.push(Reason::OlderFirst);
    }
    reasons
}

/// The shared limits of a merchant that hold it now, as far as this node knows.
fn shared(platform: &Platform, merchant: Option<&Merchant>, now: Now) -> Vec<Reason> {
    let wall = |at: u64| Rfc3339(now.wall + at.saturating_sub(now.mono) / 1_000);
    let all = merchant.map(|merchant| platform.shared_status(merchant));
    let holding = all.into_iter().flatten().filter_map(|status| {
        let (held, until) = match status.held? {
            Held::Rate(at) => ("rate", Some(wall(at))),
            Held::Concurrency => ("concurrency", None),
            Held::Closed(at) => ("closed", Some(wall(at))),
            Held::NoSlice => ("no_slice", None),
        };
        let (scope, name) = match status.limit {
            Some((scope, name)) => (scope.as_str(), Some(name)),
            None => ("node", None),
        };
        Some(Reason::SharedLimit {
            scope: Some(scope.to_owned()),
            name,
            held: Some(held.to_owned()),
            until,
        })
    });
    holding.collect()
}

fn of_merchant(explained: &Explained, shared: impl FnOnce() -> Vec<Reason>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    match explained.row.as_ref().map(|row| &row.state) {
        Some(Row::Unknown) => reasons.push(Reason::NotRegistered),
        Some(Row::Quarantined) => reasons.push(Reason::Quarantined),
        Some(Row::Held(HeldBy::OutsideHours { until })) => {
            let opens = until.map(Rfc3339);
            reasons.push(Reason::OutsideHours { opens });
        }
        Some(Row::Held(HeldBy::ByOperator(hold))) => reasons.push(Reason::Held {
            state: hold.state.as_str().to_owned(),
            by: super::hold_status(hold),
        }),
        Some(Row::Closed { because, until }) => reasons.push(Reason::Closed {
            because: because.as_str().to_owned(),
            until: Rfc3339(*until),
        }),
        Some(Row::Open) | None => {}
    }
    if explained.paused {
        reasons.push(Reason::PartitionPaused);
    }
    if explained.hands_over {
        reasons.push(Reason::HandsOver);
    }
    if explained.outcomes_wait {
        reasons.push(Reason::OutcomesWait);
    }
    if explained.dead_letters_wait {
        reasons.push(Reason::DeadLettersWait);
    }
    if explained.memory_full {
        reasons.push(Reason::MemoryFull);
    }
    match explained.waits {
        Wait::Nothing | Wait::Closed | Wait::Halted => {}
        Wait::Key => reasons.push(Reason::BehindItsKey),
        Wait::Concurrency(limit) => reasons.push(Reason::Concurrency { limit }),
        Wait::Rate(rate) => reasons.push(Reason::Rate {
            limit: rate.to_string(),
        }),
        Wait::Local => reasons.push(Reason::Local),
        Wait::Budget => reasons.push(Reason::RetryBudget),
        Wait::Capacity => reasons.push(Reason::Capacity),
        Wait::Shared => {
            let holding = shared();
            let none = holding.is_empty().then_some(Reason::SharedLimit {
                scope: None,
                name: None,
                held: None,
                until: None,
            });
            reasons.extend(holding.into_iter().chain(none));
        }
    }
    reasons
}
