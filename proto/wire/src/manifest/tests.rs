use std::time::Duration;

use super::*;
use expediter_types::*;

pub(super) const FULL: &str = r#"
[[merchant]]
id = "luigis"
name = "Luigi's Sandwiches"
group = "sandwiches"
[merchant.adapter]
kind = "http"
url = "https://pos.luigis.example/orders"
method = "POST"
timeout = "35s"
headers = { X-Api-Key = "env:LUIGIS_KEY", x-shop = "12" }
idempotency = "native"
rejected = [422, 409]
[[merchant.adapter.classify]]
status = "500-599"
json = "$.error.code=DUPLICATE"
class = "already_done"
[[merchant.adapter.classify]]
status = 409
class = "retry"
[merchant.limits]
rate = "20/s"
burst = 20
concurrency = 8
ordering = "none"
mailbox = 64
[merchant.retry]
initial = "500ms"
max = "5m"
multiplier = 2.0
max_attempts = 12
deadline = "24h"
"#;

pub(super) fn one(text: &str) -> Merchant {
    let mut manifest = read("a.toml", text).unwrap();
    assert_eq!(manifest.merchants.len(), 1);
    manifest.merchants.remove(0).merchant
}

pub(super) fn problems(file: &str, text: &str) -> Vec<String> {
    read(file, text)
        .unwrap_err()
        .problems
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn every_key_is_read() {
    let merchant = one(FULL);
    assert_eq!(
        (merchant.name.as_str(), merchant.group.as_str()),
        ("Luigi's Sandwiches", "sandwiches")
    );
    let adapter = &merchant.adapter;
    assert_eq!(adapter.timeout, Duration::from_secs(35));
    assert_eq!(adapter.idempotency, Idempotency::Native);
    assert_eq!(adapter.rejected, [409, 422]);
    let key = Secret::Reference(SecretRef::Env("LUIGIS_KEY".into()));
    assert_eq!(
        adapter.headers,
        [
            ("x-api-key".into(), key),
            ("x-shop".into(), Secret::Plain("12".into()))
        ]
    );
    let duplicate = Predicate::Json("$.error.code".into(), Some("DUPLICATE".into()));
    assert_eq!(
        adapter.classify[0].when,
        [Predicate::Status(500, 599), duplicate]
    );
    assert_eq!(adapter.classify[0].class, AttemptClass::AlreadyDone);
    assert_eq!(adapter.classify[1].when, [Predicate::Status(409, 409)]);
    assert_eq!(merchant.limits.rates, ["20/s".parse().unwrap()]);
    assert_eq!(merchant.limits.burst, 20);
    let retry = Retry {
        max_attempts: 12,
        ..Retry::default()
    };
    assert_eq!(merchant.retry, retry);
}

#[test]
fn id_and_url_are_enough() {
    let expected = Merchant::to(MerchantId::new("a").unwrap(), "http://a.example/");
    assert_eq!(
        one("[merchant]\nid = \"a\"\nadapter.url = \"http://a.example/\""),
        expected
    );
    for (file, json) in [
        (
            "m.json",
            r#"{"id":"a","adapter":{"url":"http:\/\/a.example/"}}"#,
        ),
        (
            "m.json",
            r#"[{"id":"a","adapter":{"url":"http://a.example/"}}]"#,
        ),
        (
            "-",
            r#" {"merchant":[{"id":"a","adapter":{"url":"http://a.example/"}}]}"#,
        ),
        (
            "-",
            "[\n{\"id\":\"a\",\"adapter\":{\"url\":\"http://a.example/\"}}]",
        ),
        (
            "-",
            r#"{"merchant":{"id":"a","adapter":{"url":"http://a.example/"}}}"#,
        ),
    ] {
        let manifest = read(file, json).unwrap();
        assert_eq!(manifest.merchants[0].merchant, expected, "{json}");
    }
}

#[test]
fn every_problem_is_named_with_line_key_and_range() {
    let text = r#"
[[merchant]]
id = "luigis"
[merchant.adapter]
url = "https://luigis.example/"
timeout = "1h"
methode = "PUT"
headers = { Host = "x", a = 1, "b c" = "d", traceparent = "x", ok = "env:1X" }
rejected = [409, 500, "x"]
[[merchant.adapter.classify]]
status = 99
class = "deliverd"
[[merchant.adapter.classify]]
class = "local"
[merchant.limits]
concurrency = 0
brust = 3
rate = "often"
deadline = "1h"
mailbox = "64"
[merchant.retry]
initial = "2h"
multiplier = 11
max_attempts = 1.5
deadline = "31d"
[[merchant]]
name = ""
"#;
    let found = problems("m.toml", text);
    for expected in [
        "m.toml:6: merchant[0].adapter.timeout: 1h is not from 1s to 10m",
        "m.toml:7: merchant[0].adapter.methode: unknown key; did you mean method?",
        "m.toml:8: merchant[0].adapter.headers.Host: is set by the platform",
        "m.toml:8: merchant[0].adapter.headers.a: expected text, or env:NAME or file:PATH, found a whole number",
        "m.toml:8: merchant[0].adapter.headers.b c: is no header name",
        "m.toml:8: merchant[0].adapter.headers.traceparent: is set by the platform",
        "m.toml:8: merchant[0].adapter.headers.ok: after env: comes",
        "m.toml:9: merchant[0].adapter.rejected[1]: expected a list of statuses from 400 to 499",
        "m.toml:9: merchant[0].adapter.rejected[2]: expected",
        "m.toml:11: merchant[0].adapter.classify[0].status: expected a status such as 409",
        "m.toml:12: merchant[0].adapter.classify[0].class: \"deliverd\" is not one of",
        "did you mean delivered?",
        "m.toml:14: merchant[0].adapter.classify[1].class: \"local\" is not one of",
        "merchant[0].adapter.classify[1]: a rule has at least one of",
        "m.toml:16: merchant[0].limits.concurrency: 0 is not from 1 to 10000",
        "m.toml:17: merchant[0].limits.brust: unknown key; did you mean burst?",
        "m.toml:18: merchant[0].limits.rate: \"often\" is not a rate",
        "m.toml:19: merchant[0].limits.deadline: unknown key here; it belongs under retry",
        "m.toml:20: merchant[0].limits.mailbox: expected a whole number from 1 to 10000, found text",
        "m.toml:22: merchant[0].retry.initial: 2h is not from 10ms to 1h",
        "m.toml:23: merchant[0].retry.multiplier: 11 is not from 1.0 to 10.0",
        "m.toml:24: merchant[0].retry.max_attempts: expected a whole number from 1 to 1000, found a number",
        "m.toml:25: merchant[0].retry.deadline: 31d is not from 1s to 30d",
        "m.toml:26: merchant[1].id: is missing",
        "m.toml:26: merchant[1].adapter.url: is missing",
        "m.toml:27: merchant[1].name: must be 1 to 200 characters",
    ] {
        assert!(
            found.iter().any(|p| p.contains(expected)),
            "{expected}\n{found:#?}"
        );
    }
    assert_eq!(found.len(), 25, "{found:#?}");
}

#[test]
fn json_problems_have_lines_too() {
    let text = "{\"merchant\": [\n  {\"id\": \"a\", \"adapter\": {\"url\": \"http://a/\"}},\n  {\"id\": \"b c\",\n   \"adapter\": {\n     \"url\": \"ftp://a/\"},\n   \"limits\": {\"rate\": null, \"rate\": \"1/s\"}\n  }]}";
    let found = problems("m.json", text);
    for expected in [
        "m.json:3: merchant[1].id: merchant id \"b c\" must be",
        "m.json:5: merchant[1].adapter.url: must start with http",
        "m.json:6: merchant[1].limits.rate: is given twice",
        "m.json:6: merchant[1].limits.rate: expected text or a list of rates, found null",
    ] {
        assert!(
            found.iter().any(|p| p.contains(expected)),
            "{expected}\n{found:#?}"
        );
    }
    for (text, expected) in [
        ("{\"a\":\n tru}", "m.json:2: \"tru\" is no JSON value"),
        ("{\"a\" 1}", "m.json:1: expected a colon, found '1'"),
        (
            "[1,\n",
            "m.json:2: expected a value, found the end of the document",
        ),
        (
            "{} x",
            "m.json:1: expected the end of the document, found 'x'",
        ),
        ("{\"a\": 01}", "\"01\" is no number"),
        ("{\"a\": \"\\x\"}", "an escape"),
        ("{\"a\": \"x\n\"}", "does not end"),
        (&"[".repeat(100), "nested too deeply"),
        ("{}", "merchant.id: is missing"),
        ("[]", "no merchant here"),
        ("7", "expected merchants, found a whole number"),
    ] {
        let found = problems("m.json", text);
        assert!(
            found.iter().any(|p| p.contains(expected)),
            "{expected}\n{found:#?}"
        );
    }
}

#[test]
fn toml_errors_have_their_lines() {
    let found = problems("m.toml", "[[merchant]]\nid = luigis\nname = \"a\nx = 1\n");
    assert!(
        found.len() >= 2 && found[0].starts_with("m.toml:2: "),
        "{found:#?}"
    );
    assert!(problems("m.toml", "")[0].contains("no merchant here"));
    let found = problems("m.toml", "[merchants]\nid = \"a\"\n");
    assert!(
        found[0].contains("m.toml:1: merchants: unknown key; did you mean merchant?"),
        "{found:?}"
    );
    let found = problems("m.toml", "[merchant]\nid = 1979-05-27\nadapter = 3\n");
    assert!(
        found[0].contains("expected text, found a date or time"),
        "{found:?}"
    );
    assert!(
        found[1].contains("merchant.adapter: expected a table"),
        "{found:?}"
    );
}

#[test]
fn plain_secrets_are_warned_of_and_never_shown() {
    let text = |value: &str| {
        format!(
            "[merchant]\nid = \"a\"\n[merchant.adapter]\nurl = \"http://a/\"\nheaders = {{ Authorization = {value} }}"
        )
    };
    let manifest = read("m.toml", &text("\"Bearer hunter2\"")).unwrap();
    let warning = manifest.warnings[0].to_string();
    assert!(
        warning.starts_with("m.toml:5: merchant.adapter.headers.Authorization: looks like"),
        "{warning}"
    );
    assert!(!warning.contains("hunter2"));
    let found = problems("m.toml", &text("\"hunter2\\n\"")).join("\n");
    assert!(
        found.contains("printable ASCII") && !found.contains("hunter2"),
        "{found}"
    );
    assert!(
        read("m.toml", &text("\"env:TOKEN\""))
            .unwrap()
            .warnings
            .is_empty()
    );

    let old = &manifest.merchants[0].merchant;
    let new = one(&text("\"Bearer hunter3\""));
    let key = "adapter.headers.authorization".to_owned();
    let hidden = Some("(hidden)".to_owned());
    assert_eq!(
        diff(old, &new),
        [Change {
            key: key.clone(),
            from: hidden.clone(),
            to: hidden.clone()
        }]
    );
    let by_reference = one(&text("\"env:TOKEN\""));
    assert_eq!(
        diff(old, &by_reference),
        [Change {
            key,
            from: hidden,
            to: Some("env:TOKEN".into())
        }]
    );
}

#[test]
fn the_query_of_a_url_is_not_shown() {
    let (old, mut new) = (one(FULL), one(FULL));
    new.adapter.url = "https://pos.example/orders?key=hunter2".to_owned();
    let changes = diff(&old, &new);
    let [change] = changes.as_slice() else {
        panic!("{changes:?}");
    };
    let shown = "https://pos.example/orders?(hidden)".to_owned();
    assert_eq!(
        (change.key.as_str(), &change.to),
        ("adapter.url", &Some(shown))
    );
}

#[test]
fn differences_are_named_by_key() {
    let old = one(FULL);
    let mut new = old.clone();
    assert_eq!(diff(&old, &new), []);
    new.limits.rates = Vec::new();
    new.retry.max_attempts = 3;
    new.adapter.rejected = vec![400];
    let change = |key: &str, from: &str, to: Option<&str>| Change {
        key: key.into(),
        from: Some(from.into()),
        to: to.map(Into::into),
    };
    let expected = [
        change("adapter.rejected", "[409,422]", Some("[400]")),
        change("limits.rate", "20/s", None),
        change("retry.max_attempts", "12", Some("3")),
    ];
    assert_eq!(diff(&old, &new), expected);
}

#[test]
fn an_id_appears_once_in_a_set() {
    let a = "[merchant]\nid = \"a\"\nadapter.url = \"http://a/\"";
    let b = "\n\n[merchant]\nid = \"a\"\nadapter.url = \"http://b/\"";
    let error = read_all([("a.toml", a), ("b.toml", b)])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("b.toml:3: merchant.id: \"a\" is given twice, first at a.toml:1"),
        "{error}"
    );
    let error = read_all([("a.toml", "x"), ("b.toml", "y")]).unwrap_err();
    assert_eq!(
        error
            .problems
            .iter()
            .map(|p| p.file.as_str())
            .collect::<Vec<_>>(),
        ["a.toml", "b.toml"]
    );
}

#[test]
fn keys_and_paths_of_rules_are_checked() {
    let read_rule = |rule: &str| {
        read(
            "-",
            &format!(
                r#"{{"id":"a","adapter":{{"url":"http://a/","classify":[{{"class":"retry",{rule}}}]}}}}"#
            ),
        )
    };
    for good in [
        r#""json":"$.a.b[0].c-d""#,
        r#""json":"$[0]=x=y""#,
        r#""json":"$.größe""#,
        r#""header":"X-Foo=bar=baz""#,
        r#""status":"429""#,
    ] {
        assert!(read_rule(good).is_ok(), "{good}");
    }
    for bad in [
        r#""json":"$""#,
        r#""json":"a.b""#,
        r#""json":"$..a""#,
        r#""json":"$.a[x]""#,
        r#""json":"$.a[1""#,
        r#""json":"$.a[]""#,
        r#""json":"$a""#,
        r#""header":"""#,
        r#""header":"a b""#,
        r#""status":"599-500""#,
        r#""status":600"#,
        r#""status":true"#,
    ] {
        assert!(read_rule(bad).is_err(), "{bad}");
    }
}
