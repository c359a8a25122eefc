//! What a change of a merchant does to the orders that wait.

use std::time::Duration;

use expediter_types::{Idempotency, Merchant, Ordering, format_duration};
use expediter_wire::control::{MerchantState, MerchantStatus};

use crate::cli::text::{about, count, counted};

/// One sentence for each effect; empty when there is nothing to say.
pub(super) fn effects(
    old: Option<&Merchant>,
    new: &Merchant,
    status: Option<&MerchantStatus>,
) -> Vec<String> {
    let mut all = Vec::new();
    let waiting = status.map_or(0, |status| status.backlog);
    if waiting > 0 {
        all.push(backlog(new, waiting));
    }
    let Some(old) = old else {
        if waiting > 0 {
            all.push(
                "they were published before the merchant was registered, and go out at once"
                    .to_owned(),
            );
        }
        return all;
    };
    let in_flight = status.map_or(0, |status| status.in_flight);
    let (before, after) = (&old.limits, &new.limits);
    if before.concurrency != after.concurrency {
        let mut text = format!(
            "concurrency {} -> {}",
            before.concurrency, after.concurrency
        );
        if in_flight > u64::from(after.concurrency) {
            text = format!(
                "{text}: {} now, which end by themselves",
                counted(in_flight, "attempt")
            );
        }
        all.push(text);
    }
    if before.ordering != after.ordering {
        all.push(ordering(after.ordering).to_owned());
    }
    if old.adapter.url != new.adapter.url && waiting > 0 {
        all.push("the orders that wait go to the new URL".to_owned());
    }
    if old.adapter.idempotency != new.adapter.idempotency {
        all.push(idempotency(new.adapter.idempotency).to_owned());
    }
    if old.retry.deadline != new.retry.deadline {
        all.push(format!(
            "deadline {} -> {}: for orders taken from now on, those that wait keep theirs",
            format_duration(old.retry.deadline),
            format_duration(new.retry.deadline)
        ));
    }
    if new.retry.max_attempts < old.retry.max_attempts && waiting > 0 {
        all.push(format!(
            "orders that were attempted {} times or more end as dead letters at their next failure",
            new.retry.max_attempts.saturating_sub(1).max(1)
        ));
    }
    if let Some(status) = status
        && status.state == MerchantState::Closed
    {
        let because = status
            .closed_because
            .map_or("closed", |cause| cause.as_str());
        all.push(format!(
            "it is closed now ({because}) and will be tried again at once"
        ));
    }
    all
}

fn backlog(merchant: &Merchant, waiting: u64) -> String {
    let orders = if waiting == 1 {
        "1 order waits".to_owned()
    } else {
        format!("{} orders wait", count(waiting))
    };
    // The one that takes longest rules.
    let rates = merchant.limits.rates.iter();
    match rates.max_by_key(|rate| rate.interval_ns()) {
        None => format!("{orders}; no rate limit"),
        Some(rate) => {
            let nanos = u128::from(rate.interval_ns()) * u128::from(waiting);
            let time =
                Duration::from_secs(u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX));
            format!("{orders}; at {rate} they take {}", about(time))
        }
    }
}

fn idempotency(new: Idempotency) -> &'static str {
    match new {
        Idempotency::Native => {
            "idempotency: attempts that may have arrived will be repeated with the same \
             Idempotency-Key: the merchant must honour it"
        }
        Idempotency::UniqueRef => {
            "idempotency: attempts that may have arrived will be repeated: the merchant must refuse \
             an order that it has with an answer of class already_done"
        }
        Idempotency::Lookup => {
            "idempotency: the merchant is asked for the order before an attempt that may have \
             arrived is repeated"
        }
        Idempotency::None => {
            "idempotency: attempts that may have arrived will no longer be repeated, their orders \
             become dead letters"
        }
    }
}

fn ordering(new: Ordering) -> &'static str {
    match new {
        Ordering::None => "ordering: orders that wait may go in any order from now on",
        Ordering::Order => {
            "ordering: of the orders with one key, the one that waits longest goes alone from now \
             on; attempts in flight end first"
        }
        Ordering::Merchant => {
            "ordering: one order at a time in publish order from now on; attempts in flight end \
             first"
        }
    }
}

#[cfg(test)]
mod tests {
    use expediter_types::MerchantId;

    use super::*;

    fn merchant() -> Merchant {
        let mut merchant = Merchant::to(MerchantId::new("luigis").unwrap(), "https://a.example/");
        merchant.limits.rates = vec!["20/s".parse().unwrap()];
        merchant
    }

    fn status(backlog: u64, in_flight: u64) -> MerchantStatus {
        MerchantStatus {
            merchant: MerchantId::new("luigis").unwrap(),
            state: MerchantState::Active,
            backlog,
            mailbox: 0,
            in_flight,
            closed_because: None,
            closed_until: None,
            hold: None,
            opens: None,
            per_minute: 0,
            p50_ms: None,
            p99_ms: None,
            oldest: None,
            last_error: None,
        }
    }

    #[test]
    fn the_backlog_takes_as_long_as_its_rate() {
        let (old, mut new) = (merchant(), merchant());
        new.limits.concurrency = 2;
        assert_eq!(
            effects(Some(&old), &new, Some(&status(1_204, 5))),
            [
                "1,204 orders wait; at 20/s they take about 1 min",
                "concurrency 8 -> 2: 5 attempts now, which end by themselves"
            ]
        );
        new.limits.rates = Vec::new();
        assert_eq!(
            effects(Some(&old), &new, Some(&status(1, 0)))[0],
            "1 order waits; no rate limit"
        );
    }

    #[test]
    fn risky_changes_are_called_out() {
        let (old, mut new) = (merchant(), merchant());
        new.limits.ordering = Ordering::Merchant;
        new.adapter.idempotency = Idempotency::Native;
        new.retry.deadline = Duration::from_secs(3_600);
        let told = effects(Some(&old), &new, None);
        assert_eq!(told.len(), 3);
        assert!(told[2].starts_with("deadline 1d -> 1h"), "{told:?}");
        assert_eq!(
            effects(Some(&old), &old, Some(&status(0, 0))),
            Vec::<String>::new()
        );
    }

    #[test]
    fn orders_published_before_the_registration_are_named() {
        let told = effects(None, &merchant(), Some(&status(40, 0)));
        assert_eq!(told[0], "40 orders wait; at 20/s they take about 2 s");
        assert!(told[1].contains("before the merchant was registered"));
    }
}
