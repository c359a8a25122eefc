use std::time::Duration;

use super::keys::KEYS;
use super::read::parse;
use super::*;

fn problems(text: &str) -> Vec<String> {
    let error = parse("x.toml", text).unwrap_err();
    error
        .into_problems()
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn from_environment(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(None, &Environment::with(variables))
}

#[test]
fn the_default_file_is_the_defaults() {
    assert_eq!(parse("default.toml", DEFAULT).unwrap(), Config::default());
}

#[test]
fn the_default_file_names_every_key_in_order() {
    let mut section = String::new();
    let mut named = Vec::new();
    let mut documented = false;
    for line in DEFAULT.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name.to_owned();
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            named.push(format!("{section}.{key}"));
            assert!(documented, "{key} has no comment");
        }
        // A comment may speak of the keys that follow it without an empty line.
        documented = line.starts_with('#') || documented && !line.is_empty();
        assert!(line.len() <= 100, "{line}");
    }
    assert_eq!(named, KEYS.iter().map(|key| key.name).collect::<Vec<_>>());
}

#[test]
fn unknown_names_are_refused_with_the_nearest() {
    for (text, expected) in [
        (
            "[node]\nnmae = \"a\"",
            "x.toml:2: node.nmae: unknown key; did you mean node.name?",
        ),
        (
            "\n[nats]\nspill_after = \"1s\"",
            "x.toml:3: nats.spill_after: unknown key; did you mean orders.spill_after?",
        ),
        (
            "[natz]\n",
            "x.toml:1: natz: unknown section; did you mean [nats]?",
        ),
        (
            "[store]\nzzzzzzzzzzzz = 1",
            "x.toml:2: store.zzzzzzzzzzzz: unknown key; [store] has cache",
        ),
        ("nats = 1", "x.toml:1: nats: is a section: write [nats]"),
    ] {
        assert_eq!(problems(text), [expected]);
    }
}

#[test]
fn values_are_checked_and_all_problems_told() {
    let text = "[node]\ndrain_deadline = \"1ms\"\nin_flight = 0\nlisten = \"here\"\n\
        [nats]\nreplicas = 2\norders_max_bytes = \"1KiB\"\npassword = \"hunter2\"\n\
        [nats.tls]\nrequired = \"yes\"\n[http]\nmax_response = 5\n[egress]\nallow = [\"10.0.0.0/99\"]\n\
        [telemetry]\ntrace_ratio = 1.5\n";
    let found = problems(text);
    assert_eq!(found.len(), 10, "{found:#?}");
    assert_eq!(
        found[0],
        "x.toml:2: node.drain_deadline: \"1ms\" is not a duration from 1s to 10m, such as \"500ms\" or \"1h30m\""
    );
    assert_eq!(
        found[1],
        "x.toml:3: node.in_flight: \"0\" is not a whole number from 1 to 1000000"
    );
    assert!(
        found[9].contains("trace_ratio: \"1.5\" is not a number from 0.0 to 1.0"),
        "{found:#?}"
    );
    assert!(!found.concat().contains("hunter2"));
}

#[test]
fn broken_toml_has_a_line() {
    let found = problems("[node]\nname = \"a\nshards = 1");
    assert!(found[0].starts_with("x.toml:2: "), "{found:?}");
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    assert_eq!(
        problems("[nats]\nuser = \"u\"\ntoken = \"env:T\""),
        [
            "x.toml:3: nats.token: is given besides nats.user: one way to log in at most",
            "x.toml:2: nats.user: needs nats.password"
        ]
    );
    assert_eq!(
        problems("[http]\nretry_after_max = \"0s\""),
        ["x.toml:2: http.retry_after_max: http.retry_after_min is above http.retry_after_max"]
    );
    assert_eq!(
        problems("[nats]\nservers = [\"nats://me:secret@host\"]"),
        [
            "x.toml:2: nats.servers: must not hold a user, password or token: use nats.user with \
          nats.password, or nats.token"
        ]
    );
}

#[test]
fn a_receiver_of_notifications_is_checked() {
    assert_eq!(
        problems("[notify]\nurl = \"http://10.0.0.5/hook-token\"\nevents = [\"late\"]"),
        [
            "x.toml:3: notify.events: \"late\" is not parked, suspended or expired",
            "x.toml:2: notify.url: needs notify.secret",
            "x.toml:2: notify.url: address 10.0.0.5 is private: notify.allow does not list it",
        ]
    );
    let text = "[notify]\nurl = \"http://10.0.0.5/hook\"\nsecret = \"env:S\"\n\
        events = [\"suspended\"]\nallow = [\"10.0.0.5\"]";
    let config = parse("x.toml", text).unwrap();
    assert_eq!(config.notify.events.len(), 1);
    let found =
        problems("[notify]\nurl = \"https://me:hunter2@host/\"\nsecret = \"whsec_aGVsbG8=\"");
    assert_eq!(found.len(), 3, "{found:?}");
    let told = found.concat();
    assert!(
        !told.contains("hunter2") && !told.contains("aGVsbG8"),
        "{told}"
    );
}

#[test]
fn the_environment_rules_over_the_file() {
    let config = from_environment(&[
        ("EXPEDITER_NATS_SERVERS", "nats://a:1, nats://b:2"),
        ("EXPEDITER_NODE_NAME", "kitchen-2"),
        ("EXPEDITER_NATS_TLS_REQUIRED", "true"),
        ("EXPEDITER_ORDERS_MARK_EVERY", "1s"),
        ("EXPEDITER_STORE_CACHE", "64MiB"),
        ("EXPEDITER_EGRESS_ALLOW", ""),
        ("EXPEDITER_TELEMETRY_TRACE_RATIO", "0.5"),
        ("EXPEDITER_TEST_BIN", "/x"),
        ("EXPEDITER_SIM_SEED", "7"),
        ("PATH", "/bin"),
    ])
    .unwrap();
    assert_eq!(config.nats.servers, ["nats://a:1", "nats://b:2"]);
    assert_eq!(config.node_name().as_str(), "kitchen-2");
    assert!(config.nats.tls.required && config.egress.allow.is_empty());
    assert_eq!(config.orders.mark_every, Duration::from_secs(1));
    assert_eq!(
        (config.store.cache, config.telemetry.trace_ratio),
        (64 << 20, 0.5)
    );
}

#[test]
fn wrong_variables_are_refused() {
    let told = |name, value| from_environment(&[(name, value)]).unwrap_err().to_string();
    assert_eq!(
        told("EXPEDITER_NATS_SERVRES", "x"),
        "EXPEDITER_NATS_SERVRES: no such setting; did you mean EXPEDITER_NATS_SERVERS?"
    );
    assert_eq!(told("EXPEDITER_ZZZ", "x"), "EXPEDITER_ZZZ: no such setting");
    assert_eq!(
        told("EXPEDITER_NATS_SERVER", "nats://a:1"),
        "EXPEDITER_NATS_SERVER: no such setting; did you mean EXPEDITER_NATS_SERVERS?"
    );
    assert_eq!(
        told("EXPEDITER_NODE_SHARDS", "many"),
        "EXPEDITER_NODE_SHARDS: \"many\" is not a whole number from 0 to 64"
    );
}

#[test]
fn no_two_keys_share_a_variable() {
    let mut names: Vec<String> = KEYS.iter().map(keys::Key::variable).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), KEYS.len());
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(
        Some(Path::new("/nonexistent.toml")),
        &Environment::default(),
    );
    assert_eq!(error.unwrap_err().to_string(), "reading /nonexistent.toml");
}
