use std::time::Duration;

use expediter_types::*;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option::of;
use proptest::prelude::*;

use super::tests::{FULL, one};
use super::*;

fn durations(min: u64, max: u64) -> impl Strategy<Value = Duration> {
    (min..=max).prop_map(Duration::from_millis)
}

fn secrets() -> impl Strategy<Value = Secret> {
    prop_oneof![
        "[!-9;-~]{0,20}".prop_map(Secret::Plain),
        "[A-Z_][A-Z0-9_]{0,20}".prop_map(|name| Secret::Reference(SecretRef::Env(name))),
        "/[a-zä \"/]{1,20}".prop_map(|path| Secret::Reference(SecretRef::File(path))),
    ]
}

fn rules() -> impl Strategy<Value = ClassifyRule> {
    let status =
        of((100..=599_u16, 0..100_u16).prop_map(|(s, n)| Predicate::Status(s, (s + n).min(599))));
    let value = || of("[ -~ä]{0,10}");
    let header = of(("x-[a-z]{1,9}", value()).prop_map(|(n, v)| Predicate::Header(n, v)));
    let json = (r"(\$(\.[a-zä]{1,5}|\[[0-9]{1,3}\]){1,4})", value());
    let json = json.prop_map(|(path, value)| Predicate::Json(path, value));
    (status, header, json, 0..9_usize).prop_map(|(status, header, json, class)| ClassifyRule {
        when: [status, header, Some(json)].into_iter().flatten().collect(),
        class: AttemptClass::ALL[class],
    })
}

fn idempotencies() -> impl Strategy<Value = Idempotency> {
    prop_oneof![
        Just(Idempotency::Native),
        Just(Idempotency::UniqueRef),
        Just(Idempotency::Lookup),
        Just(Idempotency::None),
    ]
}

prop_compose! {
    fn lookups()(
        path in "[a-z/?=]{0,10}",
        after in of(durations(0, 3_600_000)),
        found in vec((rules(), any::<bool>()), 0..3),
    ) -> Lookup {
        let rule = |(rule, found): (ClassifyRule, bool)| LookupRule {
            when: rule.when,
            verdict: if found { LookupVerdict::Found } else { LookupVerdict::Absent },
        };
        let url = format!("https://a.example/{path}{{id}}?x=1");
        Lookup { url, after, rules: found.into_iter().map(rule).collect() }
    }
}

prop_compose! {
    fn adapters()(
        path in "[a-z0-9/?=&%._~-]{0,30}",
        method in prop_oneof![Just("POST"), Just("PUT"), Just("PATCH")],
        timeout in durations(1000, 600_000),
        headers in btree_map("x-[a-z0-9-]{1,20}", secrets(), 0..4),
        idempotency in idempotencies(),
        (credential, scope, lookup) in (of("[A-Za-z0-9_-]{1,64}"), 0..3_usize, lookups()),
        idempotency_window in durations(1000, 30 * 86_400_000),
        rejected in btree_set(400..=499_u16, 0..4),
        mut classify in vec(rules(), 0..3),
    ) -> Adapter {
        let scopes = [LimitScope::Merchant, LimitScope::Group, LimitScope::Credential];
        let scope = if credential.is_none() { scope.min(1) } else { scope };
        if idempotency == Idempotency::UniqueRef {
            let when = vec![Predicate::Status(409, 409)];
            classify.push(ClassifyRule { when, class: AttemptClass::AlreadyDone });
        }
        Adapter {
            url: format!("https://a.example/{path}"),
            method: method.into(),
            timeout,
            headers: headers.into_iter().collect(),
            credential,
            rate_limit_scope: scopes[scope],
            idempotency,
            lookup: (idempotency == Idempotency::Lookup).then(|| Box::new(lookup)),
            idempotency_window,
            rejected: rejected.into_iter().collect(),
            classify,
        }
    }
}

/// By period, no period twice.
fn rates() -> impl Strategy<Value = Vec<Rate>> {
    let rates = btree_map(durations(100, 86_400_000), 1..=1_000_000_u32, 0..=4);
    rates.prop_map(|rates| {
        let rates = rates.into_iter();
        rates
            .map(|(period, count)| Rate::new(count, period).unwrap())
            .collect()
    })
}

prop_compose! {
    fn limits()(
        rates in rates(),
        (burst, concurrency, mailbox) in (1..=10_000_u32, 1..=10_000_u32, 1..=10_000_u32),
        least in of(1..=10_000_u32),
        backlog in of(1..=100_000_000_u64),
        ordering in prop_oneof![Just(Ordering::None), Just(Ordering::Order), Just(Ordering::Merchant)],
    ) -> Limits {
        let min_concurrency = least.map(|least| least.min(concurrency));
        Limits { rates, burst, concurrency, min_concurrency, ordering, mailbox, backlog }
    }
}

prop_compose! {
    fn scopes()(
        group in any::<bool>(),
        id in "[A-Za-z0-9_-]{1,64}",
        rates in rates(),
        burst in 1..=10_000_u32,
        concurrency in of(1..=100_000_u32),
    ) -> Scope {
        let kind = if group { LimitScope::Group } else { LimitScope::Credential };
        Scope { kind, id, rates, burst, concurrency }
    }
}

prop_compose! {
    fn breakers()(
        (consecutive, min_samples, probes) in (0..=10_000_u32, 0..=100_000_u32, 1..=100_u32),
        ratio in 0.01..=1.0_f64,
        window in durations(1000, 3_600_000),
        open in durations(100, 3_600_000),
        more in 0..=82_800_000_u64,
    ) -> Breaker {
        let max_open = open + Duration::from_millis(more);
        Breaker { consecutive, ratio, min_samples, window, open, max_open, probes }
    }
}

prop_compose! {
    fn hours()(
        zone in prop_oneof![Just("Europe/Rome"), Just("UTC"), Just("Asia/Kathmandu")],
        open in vec((1..128_u8, 0..1_440_u16, 1..=1_440_u16), 1..5),
    ) -> Hours {
        let (zone_name, zone) = crate::zone::time_zone(zone).unwrap();
        let range = |(days, from, to)| OpenRange { days, from, to: if from == to { to + 1 } else { to } };
        Hours { zone_name, zone, open: open.into_iter().map(range).collect() }
    }
}

prop_compose! {
    fn jobs()(
        name in "[A-Za-z0-9_-]{1,64}",
        (minute, hour, day) in (0..60_u8, 0..24_u8, 1..29_u8),
        zone in prop_oneof![Just("Europe/Rome"), Just("UTC")],
        (missed, priority) in (0..3_usize, 0..3_usize),
        payload in "[ -~ä\n\"]{0,40}",
        deadline in of(durations(1000, 30 * 86_400_000)),
    ) -> Job {
        Job {
            name,
            schedule: format!("{minute} {hour} {day} * *"),
            timezone: zone.into(),
            missed: [Missed::Skip, Missed::Once, Missed::All][missed],
            payload,
            content_type: "text/plain; charset=utf-8".into(),
            deadline,
            priority: Priority::ALL[priority],
        }
    }
}

prop_compose! {
    fn retries()(
        initial in durations(10, 3_600_000),
        more in 0..=82_800_000_u64,
        multiplier in 1.0..=10.0_f64,
        max_attempts in 1..=1000_u32,
        deadline in durations(1000, 30 * 86_400_000),
        margin in durations(0, 3_600_000),
        budget in 0.0..=10.0_f64,
        on_park in prop_oneof![Just(OnPark::Continue), Just(OnPark::Hold)],
    ) -> Retry {
        let max = initial + Duration::from_millis(more);
        Retry { initial, max, multiplier, max_attempts, deadline, margin, budget, on_park }
    }
}

prop_compose! {
    fn merchants()(
        id in "[A-Za-z0-9_-]{1,64}",
        name in "[ -~äß🍕]{1,50}",
        group in "[A-Za-z0-9_-]{1,64}",
        adapter in adapters(),
        limits in limits(),
        mut retry in retries(),
        breaker in breakers(),
        hours in of(hours()),
        mut jobs in vec(jobs(), 0..3),
    ) -> Merchant {
        let id = MerchantId::new(&id).unwrap();
        if limits.ordering == Ordering::None {
            retry.on_park = OnPark::Continue;
        }
        jobs.sort_by(|a, b| a.name.cmp(&b.name));
        jobs.dedup_by(|a, b| a.name == b.name);
        let hours = hours.map(std::sync::Arc::new);
        Merchant { id, name, group, adapter, limits, retry, breaker, hours, jobs }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_written_is_read(merchant in merchants()) {
        let json = to_json(&merchant);
        prop_assert_eq!(&read("-", &json).unwrap().merchants[0].merchant, &merchant);
        prop_assert_eq!(&read_stored(&json).unwrap(), &merchant);
        let toml = to_toml(&merchant);
        prop_assert_eq!(&read("-", &toml).unwrap().merchants[0].merchant, &merchant);
        prop_assert_eq!(diff(&merchant, &merchant), []);
    }

    #[test]
    fn scopes_are_read_as_written(scope in scopes()) {
        let toml = scope_to_toml(&scope);
        prop_assert_eq!(&read("-", &toml).unwrap().scopes[0].scope, &scope);
        prop_assert_eq!(&read_stored_scope(&scope_to_json(&scope), scope.kind).unwrap(), &scope);
        prop_assert_eq!(diff_scopes(&scope, &scope), []);
    }

    #[test]
    fn no_text_panics(text in "[\\[\\]{}a-z=\"',:0-9. \n\\\\ä-]{0,120}") {
        let _ = (read("a.toml", &text), read("a.json", &text), read("-", &text));
    }

    #[test]
    fn no_damage_panics(at in any::<prop::sample::Index>(), with in any::<char>()) {
        let mut text: Vec<char> = FULL.chars().collect();
        let place = at.index(text.len());
        text[place] = with;
        let _ = read("a.toml", &text.iter().collect::<String>());
        let mut text: Vec<char> = to_json(&one(FULL)).chars().collect();
        let place = at.index(text.len());
        text[place] = with;
        let _ = read("a.json", &text.iter().collect::<String>());
    }
}
