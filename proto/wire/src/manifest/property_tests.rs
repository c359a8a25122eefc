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

prop_compose! {
    fn adapters()(
        path in "[a-z0-9/?=&%._~-]{0,30}",
        method in prop_oneof![Just("POST"), Just("PUT"), Just("PATCH")],
        timeout in durations(1000, 600_000),
        headers in btree_map("x-[a-z0-9-]{1,20}", secrets(), 0..4),
        native in any::<bool>(),
        idempotency_window in durations(1000, 30 * 86_400_000),
        rejected in btree_set(400..=499_u16, 0..4),
        classify in vec(rules(), 0..3),
    ) -> Adapter {
        Adapter {
            url: format!("https://a.example/{path}"),
            method: method.into(),
            timeout,
            headers: headers.into_iter().collect(),
            idempotency: if native { Idempotency::Native } else { Idempotency::None },
            idempotency_window,
            rejected: rejected.into_iter().collect(),
            classify,
            ..Adapter::to("")
        }
    }
}

prop_compose! {
    fn limits()(
        rate in of((1..=1_000_000_u32, durations(100, 86_400_000))),
        (burst, concurrency, mailbox) in (1..=10_000_u32, 1..=10_000_u32, 1..=10_000_u32),
        ordering in prop_oneof![Just(Ordering::None), Just(Ordering::Order), Just(Ordering::Merchant)],
    ) -> Limits {
        let rates = rate.map(|(count, period)| Rate::new(count, period).unwrap());
        let rates = rates.into_iter().collect();
        Limits { rates, burst, concurrency, ordering, mailbox, ..Limits::default() }
    }
}

prop_compose! {
    fn retries()(
        initial in durations(10, 3_600_000),
        more in 0..=82_800_000_u64,
        multiplier in 1.0..=10.0_f64,
        max_attempts in 1..=1000_u32,
        deadline in durations(1000, 30 * 86_400_000),
    ) -> Retry {
        Retry { initial, max: initial + Duration::from_millis(more), multiplier, max_attempts, deadline, ..Retry::default() }
    }
}

prop_compose! {
    fn merchants()(
        id in "[A-Za-z0-9_-]{1,64}",
        name in "[ -~äß🍕]{1,50}",
        group in "[A-Za-z0-9_-]{1,64}",
        adapter in adapters(),
        limits in limits(),
        retry in retries(),
    ) -> Merchant {
        let id = MerchantId::new(&id).unwrap();
        Merchant { name, group, adapter, limits, retry, ..Merchant::to(id, "") }
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
