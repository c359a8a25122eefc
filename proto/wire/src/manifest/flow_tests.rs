//! The keys of flow control: what is refused, and what reads as what.

use std::time::Duration;

use expediter_types::*;

use super::tests::{one, problems};
use super::*;

#[track_caller]
fn has(found: &[String], expected: &[&str]) {
    for expected in expected {
        assert!(
            found.iter().any(|problem| problem.contains(expected)),
            "{expected}\n{found:#?}"
        );
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

fn with(section: &str) -> String {
    format!("[merchant]\nid = \"a\"\nadapter.url = \"http://a/\"\n{section}")
}

fn warnings(text: &str) -> Vec<String> {
    let manifest = read("m.toml", text).unwrap();
    manifest.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn several_rates_go_by_their_periods() {
    let merchant = one(&with("limits.rate = [\"10000/15min\", \"20/s\"]"));
    let rates = ["20/s", "10000/15min"].map(|rate| rate.parse().unwrap());
    assert_eq!(merchant.limits.rates, rates);
    assert!(to_toml(&merchant).contains("rate = [\"20/s\", \"10000/15min\"]"));
    let merchant = one(&with("limits.rate = [\"20/s\"]"));
    assert!(to_toml(&merchant).contains("rate = \"20/s\""));

    has(
        &problems(
            "m.toml",
            &with("limits.rate = [\"20/s\", \"often\", \"5/1s\", 7]"),
        ),
        &[
            "m.toml:4: merchant.limits.rate[1]: \"often\" is not a rate",
            "m.toml:4: merchant.limits.rate[2]: 5/s has the same period as 20/s",
            "m.toml:4: merchant.limits.rate[3]: expected text, found a whole number",
        ],
    );
    let five = "limits.rate = [\"1/s\", \"2/m\", \"3/h\", \"4/2h\", \"5/3h\"]";
    has(
        &problems("m.toml", &with(five)),
        &["merchant.limits.rate: has 5 rates, 1 to 4 are accepted"],
    );
    has(
        &problems("m.toml", &with("limits.rate = []")),
        &["merchant.limits.rate: has 0 rates"],
    );
    has(
        &warnings(&with("limits.rate = [\"20/s\", \"1200/min\"]")),
        &["m.toml:4: merchant.limits.rate[1]: 1200/min limits nothing: 20/s allows no more"],
    );
    has(
        &warnings(&with("limits.rate = [\"20/s\", \"1199/min\"]")),
        &[],
    );
}

#[test]
fn ranges_of_limits_retries_and_the_breaker_are_named() {
    let text = r#"
[merchant.limits]
concurrency = 8
min_concurrency = 9
backlog = 0
[merchant.retry]
margin = "2h"
budget = 11
on_park = "hold"
[merchant.breaker]
consecutive = -1
ratio = 0
min_samples = 100001
window = "0s"
open = "10s"
max_open = "5s"
probes = 0
prob = 3
"#;
    has(
        &problems("m.toml", &with(text)),
        &[
            "m.toml:7: merchant.limits.min_concurrency: 9 is not from 1 to 8",
            "m.toml:8: merchant.limits.backlog: 0 is not from 1 to 100000000",
            "m.toml:10: merchant.retry.margin: 2h is not from 0s to 1h",
            "m.toml:11: merchant.retry.budget: 11 is not from 0.0 to 10.0",
            "m.toml:12: merchant.retry.on_park: hold asks for limits.ordering",
            "m.toml:14: merchant.breaker.consecutive: -1 is not from 0 to 10000",
            "m.toml:15: merchant.breaker.ratio: 0 is not from 0.01 to 1.0",
            "m.toml:16: merchant.breaker.min_samples: 100001 is not from 0 to 100000",
            "m.toml:17: merchant.breaker.window: 0s is not from 1s to 1h",
            "m.toml:19: merchant.breaker.max_open: 5s is not from 10s to 1d",
            "m.toml:20: merchant.breaker.probes: 0 is not from 1 to 100",
            "m.toml:21: merchant.breaker.prob: unknown key; did you mean probes?",
        ],
    );
    let merchant = one(&with("breaker.open = \"10m\"\nretry.margin = \"0s\""));
    assert_eq!(merchant.breaker.max_open, Duration::from_secs(600));
    assert_eq!(merchant.retry.margin, Duration::ZERO);
    let merchant = one(&with(
        "limits.ordering = \"order\"\nretry.on_park = \"hold\"",
    ));
    assert_eq!(merchant.retry.on_park, OnPark::Hold);
}

#[test]
fn opening_hours_are_read() {
    let text = "[merchant.hours]\ntimezone = \"europe/rome\"\nopen = [\"mon-fri 10:00-14:00\", \"fri 18:00-02:00\"]";
    let hours = one(&with(text)).hours.unwrap();
    assert_eq!(hours.zone_name, "Europe/Rome");
    let range = |days, from, to| OpenRange { days, from, to };
    assert_eq!(
        hours.open,
        [range(0b1_1111, 600, 840), range(0b1_0000, 1_080, 120)]
    );
    // Thursday, a quarter past nine in winter.
    let open = OpenState::Closed {
        until: Some(1_795_683_600_000),
    };
    assert_eq!(hours.at(1_795_680_900_000), open);

    has(
        &problems(
            "m.toml",
            &with(
                "[merchant.hours]\ntimezone = \"Europe/Rom\"\nopen = [\"mon 9-5\", \"mo 10:00-11:00\"]",
            ),
        ),
        &[
            "m.toml:5: merchant.hours.timezone: \"Europe/Rom\" is no time zone; did you mean Europe/Rome?",
            "m.toml:6: merchant.hours.open[0]: \"mon 9-5\" is not of the form",
            "m.toml:6: merchant.hours.open[1]: \"mo 10:00-11:00\" is not of the form",
        ],
    );
    has(
        &problems(
            "m.toml",
            &with("[merchant.hours]\nopne = \"daily 00:00-24:00\""),
        ),
        &[
            "m.toml:5: merchant.hours.opne: unknown key; did you mean open?",
            "merchant.hours.timezone: is missing",
            "merchant.hours.open: is missing",
        ],
    );
}

#[test]
fn jobs_are_read() {
    let text = r#"
[[merchant.job]]
name = "menu"
schedule = "30  9 * * mon-fri"
payload = { kind = "menu", sizes = [1, 2.5], all = true }
[[merchant.job]]
name = "ping"
schedule = "*/15 * * * *"
timezone = "Europe/Rome"
missed = "skip"
payload = "PING"
content_type = "text/plain"
deadline = "10m"
priority = "low"
"#;
    let jobs = one(&with(text)).jobs;
    assert_eq!(jobs[0].schedule, "30 9 * * mon-fri");
    assert_eq!(
        (jobs[0].timezone.as_str(), jobs[0].missed, jobs[0].priority),
        ("UTC", Missed::Once, Priority::Normal)
    );
    // Within a line TOML keeps no order.
    let payload: serde_json::Value = serde_json::from_str(&jobs[0].payload).unwrap();
    assert_eq!(
        payload,
        serde_json::json!({"kind": "menu", "sizes": [1, 2.5], "all": true})
    );
    assert_eq!(
        (jobs[1].payload.as_str(), jobs[1].missed),
        ("PING", Missed::Skip)
    );
    assert_eq!(jobs[1].deadline, Some(Duration::from_secs(600)));

    let json = r#"{"id":"a","adapter":{"url":"http://a/"},"job":[{"name":"n","schedule":"0 0 1 1 *","payload":{"z":null,"a":[{}]}}]}"#;
    let manifest = read("m.json", json).unwrap();
    assert_eq!(
        manifest.merchants[0].merchant.jobs[0].payload,
        r#"{"z":null,"a":[{}]}"#
    );
    let plain = with("[[merchant.job]]\nname = \"n\"\nschedule = \"0 0 1 1 *\"\npayload = \"x\"");
    has(
        &warnings(&plain),
        &["m.toml:7: merchant.job[0].payload: is sent as application/json"],
    );
}

#[test]
fn what_is_wrong_with_jobs_is_named() {
    let text = r#"
[[merchant.job]]
name = "a b"
schedule = "0 9 30 feb *"
timezone = "Rome"
missed = "never"
payload = 7
priority = "urgent"
[[merchant.job]]
schedule = "61 9 * * *"
payload = { at = 2026-01-01 }
deadline = "31d"
content_type = "json"
[[merchant.job]]
name = "x"
schedule = "@daily"
payload = []
[[merchant.job]]
name = "y"
schedule = "0 0 * * *"
payload = []
[[merchant.job]]
name = "y"
schedule = "0 1 * * *"
payload = []
"#;
    has(
        &problems("m.toml", &with(text)),
        &[
            "m.toml:6: merchant.job[0].name: \"a b\" must be 1-64 of",
            "m.toml:7: merchant.job[0].schedule: \"0 9 30 feb *\" never comes",
            "m.toml:8: merchant.job[0].timezone: \"Rome\" is no time zone; did you mean Europe/Rome?",
            "m.toml:9: merchant.job[0].missed: \"never\" is not one of skip, once, all",
            "m.toml:10: merchant.job[0].payload: expected text, or a table or list",
            "m.toml:11: merchant.job[0].priority: \"urgent\" is not one of high, normal, low",
            "m.toml:12: merchant.job[1].name: is missing",
            "m.toml:13: merchant.job[1].schedule: \"61 9 * * *\" is no schedule",
            "m.toml:14: merchant.job[1].payload: has a date or time, which JSON cannot write",
            "m.toml:15: merchant.job[1].deadline: 31d is not from 1s to 30d",
            "m.toml:16: merchant.job[1].content_type: must be a media type",
            "m.toml:19: merchant.job[2].schedule: has 1 fields",
            "m.toml:26: merchant.job[4].name: \"y\" is given twice",
        ],
    );
    has(
        &problems("m.toml", &with("[merchant.job]\nname = \"x\"")),
        &["m.toml:4: merchant.job: expected a list of jobs: write [[merchant.job]], found a table"],
    );
    let infinite = "[[merchant.job]]\nname = \"n\"\nschedule = \"0 0 1 1 *\"\npayload = [inf]";
    has(
        &problems("m.toml", &with(infinite)),
        &["merchant.job[0].payload: has a number that JSON cannot write"],
    );
}

#[test]
fn keys_of_the_adapter_ask_for_each_other() {
    let adapter = |rest: &str| {
        format!("[merchant]\nid = \"a\"\n[merchant.adapter]\nurl = \"http://a/\"\n{rest}")
    };
    has(
        &problems(
            "m.toml",
            &adapter("rate_limit_scope = \"credential\"\nidempotency = \"unique_ref\""),
        ),
        &[
            "m.toml:5: merchant.adapter.rate_limit_scope: credential asks for adapter.credential",
            "m.toml:6: merchant.adapter.idempotency: unique_ref asks for a classify rule with class already_done",
        ],
    );
    has(
        &problems("m.toml", &adapter("idempotency = \"lookup\"")),
        &["m.toml:5: merchant.adapter.idempotency: lookup asks for [merchant.adapter.lookup]"],
    );
    has(
        &problems("m.toml", &adapter("lookup.url = \"http://a/{id}\"")),
        &["m.toml:5: merchant.adapter.lookup: is only used with idempotency"],
    );
    let lookup = r#"
idempotency = "lookup"
credential = "a.b"
[merchant.adapter.lookup]
url = "http://{id}.example/x"
[[merchant.adapter.lookup.rules]]
status = 99
verdict = "gone"
[[merchant.adapter.lookup.rules]]
class = "retry"
"#;
    has(
        &problems("m.toml", &adapter(lookup)),
        &[
            "m.toml:7: merchant.adapter.credential: \"a.b\" must be 1-64 of",
            "m.toml:9: merchant.adapter.lookup.url: must contain {id} after the host",
            "m.toml:11: merchant.adapter.lookup.rules[0].status: expected a status",
            "m.toml:12: merchant.adapter.lookup.rules[0].verdict: \"gone\" is not one of found, absent",
            "merchant.adapter.lookup.rules[1].class: unknown key here; it belongs under adapter.classify",
            "merchant.adapter.lookup.rules[1].verdict: is missing",
            "merchant.adapter.lookup.rules[1]: a rule has at least one of",
        ],
    );
    for bad in [
        "http://a/",
        "ftp://a/{id}",
        "http://u@a/{id}",
        "{id}",
        "http://a/{id}/{x}",
    ] {
        let text = adapter(&format!("idempotency = \"lookup\"\nlookup.url = \"{bad}\""));
        assert!(read("m.toml", &text).is_err(), "{bad}");
    }
    let good = one(&adapter(
        "timeout = \"9s\"\nidempotency = \"lookup\"\nlookup.url = \"http://a?q={id}\"",
    ));
    assert_eq!(good.adapter.settles_after(), Duration::from_secs(9));
    assert_eq!(good.adapter.lookup.unwrap().url, "http://a?q={id}");
    let soon = one(&adapter(
        "idempotency = \"lookup\"\nlookup = { url = \"http://a?q={id}\", after = \"200ms\" }",
    ));
    assert_eq!(soon.adapter.settles_after(), Duration::from_millis(200));
}

#[test]
fn scopes_are_read_beside_merchants() {
    let text = r#"
[[group]]
id = "pizza"
rate = ["50/s", "20000/h"]
burst = 10
[[credential]]
id = "pizza"
concurrency = 40
[[credential]]
id = "idle"
[[merchant]]
id = "a"
adapter.url = "http://a/"
"#;
    let manifest = read("m.toml", text).unwrap();
    assert_eq!(manifest.merchants.len(), 1);
    let scopes: Vec<_> = manifest
        .scopes
        .iter()
        .map(|s| (s.scope.kind, s.scope.id.as_str(), s.line))
        .collect();
    assert_eq!(
        scopes,
        [
            (LimitScope::Group, "pizza", 2),
            (LimitScope::Credential, "pizza", 6),
            (LimitScope::Credential, "idle", 9)
        ]
    );
    assert_eq!(manifest.scopes[0].scope.rates.len(), 2);
    assert_eq!(manifest.scopes[1].scope.concurrency, Some(40));
    has(
        &manifest
            .warnings
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        &["m.toml:9: credential[1]: limits nothing"],
    );
    let json = r#"{"group": [{"id": "pizza", "burst": 2, "rate": "1/s"}]}"#;
    assert_eq!(read("m.json", json).unwrap().scopes[0].scope.burst, 2);
    let change = |key: &str, from: Option<&str>, to: &str| Change {
        key: key.into(),
        from: from.map(Into::into),
        to: Some(to.into()),
    };
    let old = &manifest.scopes[1].scope;
    let new = Scope {
        burst: 3,
        rates: vec!["1/s".parse().unwrap()],
        ..old.clone()
    };
    let expected = [change("burst", Some("1"), "3"), change("rate", None, "1/s")];
    assert_eq!(diff_scopes(old, &new), expected);

    has(
        &problems(
            "m.toml",
            "[[group]]\nid = \"a b\"\nconcurrency = 100001\nrates = \"1/s\"\n[[credential]]\n[[group]]\nid = \"b\"\nburst = 0",
        ),
        &[
            "m.toml:2: group[0].id: \"a b\" must be 1-64 of",
            "m.toml:3: group[0].concurrency: 100001 is not from 1 to 100000",
            "m.toml:4: group[0].rates: unknown key; did you mean rate?",
            "m.toml:5: credential[0].id: is missing: every credential has an id",
            "m.toml:8: group[1].burst: 0 is not from 1 to 10000",
        ],
    );
    has(
        &problems(
            "m.toml",
            "[[group]]\nid = \"b\"\nburst = 2\nrate = \"1/s\"\n[[group]]\nid = \"b\"\nrate = \"1/s\"",
        ),
        &["m.toml:5: group.id: \"b\" is given twice, first at m.toml:1"],
    );
}

#[test]
fn jobs_differ_by_their_names() {
    let job = |name: &str, hour: u8| {
        format!(
            "[[merchant.job]]\nname = \"{name}\"\nschedule = \"0 {hour} * * *\"\npayload = \"1\"\n"
        )
    };
    let old = one(&with(&format!("{}{}", job("b", 1), job("c", 2))));
    let new = one(&with(&format!(
        "{}{}{}",
        job("a", 1),
        job("b", 1),
        job("c", 3)
    )));
    let changes = diff(&old, &new);
    assert!(
        changes
            .iter()
            .all(|c| c.key.starts_with("job.a.") || c.key == "job.c.schedule"),
        "{changes:?}"
    );
    assert!(changes.iter().any(|c| c.key == "job.c.schedule"));
}
