//! All keys: their names, and how a value gets into the [`Config`].

use expediter_http::Egress;
use expediter_telemetry::logs::Format;
use expediter_wire::notification::Happened;

use expediter_types::InvalidRate;

use super::Config;
use super::value::{Given, Read, quoted};

/// One key of the file, and one variable of the environment.
#[derive(Debug)]
pub(super) struct Key {
    /// `nats.tls.ca_file`
    pub(super) name: &'static str,
    pub(super) set: fn(&mut Config, &Given<'_>) -> Read<()>,
}

impl Key {
    /// `EXPEDITER_NATS_TLS_CA_FILE`
    pub(super) fn variable(&self) -> String {
        format!(
            "{PREFIX}{}",
            self.name.replace('.', "_").to_ascii_uppercase()
        )
    }
}

/// What all our variables begin with.
pub(super) const PREFIX: &str = "EXPEDITER_";

const MILLIS: u64 = 1;
const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

/// `key: name, |config, given| place = value`
macro_rules! keys {
    ($($name:literal: |$config:ident, $given:ident| $place:expr => $value:expr,)*) => {
        &[$(Key {
            name: $name,
            set: |$config, $given| {
                $place = $value;
                Ok(())
            },
        },)*]
    };
}

/// In the order of `default.toml`.
pub(super) const KEYS: &[Key] = keys! {
    "node.name": |c, v| c.node.name => v.optional(|_| v.parsed("1 to 64 of A-Z a-z 0-9 _ -"))?,
    "node.data_dir": |c, v| c.node.data_dir => v.path()?.ok_or("must name a directory")?,
    "node.listen": |c, v| c.node.listen => v.parsed("an address such as 127.0.0.1:8321")?,
    "node.drain_deadline": |c, v| c.node.drain_deadline => v.duration(SECOND..=10 * MINUTE)?,
    "node.crash_limit": |c, v| c.node.crash_limit => v.count(0..=20)?,
    "node.shards": |c, v| c.node.shards => v.count(0..=64)?,
    "node.in_flight": |c, v| c.node.in_flight => v.count(1..=1_000_000)?,
    "node.rate": |c, v| c.node.rate => v.optional(|text| text.parse().map_err(|error: InvalidRate| error.to_string()))?,
    "node.intake_credits": |c, v| c.node.intake_credits => v.count(64..=65_536)?,
    "node.open_files": |c, v| c.node.open_files => v.whole(0..=10_000_000)?,

    "nats.servers": |c, v| c.nats.servers => servers(v)?,
    "nats.creds_file": |c, v| c.nats.creds_file => v.path()?,
    "nats.user": |c, v| c.nats.user => v.optional_text()?,
    "nats.password": |c, v| c.nats.password => v.reference()?,
    "nats.token": |c, v| c.nats.token => v.reference()?,
    "nats.nkey_file": |c, v| c.nats.nkey_file => v.path()?,
    "nats.partitions": |c, v| c.nats.partitions => partitions(v)?,
    "nats.replicas": |c, v| c.nats.replicas => replicas(v)?,
    "nats.orders_max_bytes": |c, v| c.nats.orders_max_bytes => v.size_or_zero(64 * MIB..=64 * TIB)?,
    "nats.outcomes_max_bytes": |c, v| c.nats.outcomes_max_bytes => v.size_or_zero(64 * MIB..=64 * TIB)?,
    "nats.outcomes_retention": |c, v| c.nats.outcomes_retention => v.duration(HOUR..=365 * DAY)?,
    "nats.dead_letter_retention": |c, v| c.nats.dead_letter_retention => v.duration(HOUR..=365 * DAY)?,
    "nats.audit_retention": |c, v| c.nats.audit_retention => v.duration(HOUR..=3_650 * DAY)?,
    "nats.tls.required": |c, v| c.nats.tls.required => v.flag()?,
    "nats.tls.first": |c, v| c.nats.tls.first => v.flag()?,
    "nats.tls.ca_file": |c, v| c.nats.tls.ca_file => v.path()?,
    "nats.tls.cert_file": |c, v| c.nats.tls.cert_file => v.path()?,
    "nats.tls.key_file": |c, v| c.nats.tls.key_file => v.path()?,

    "orders.unknown_merchant_grace": |c, v| c.orders.unknown_merchant_grace => v.duration(SECOND..=7 * DAY)?,
    "orders.repeats_window": |c, v| c.orders.repeats_window => v.count(1_000..=100_000_000)?,
    "orders.spill_after": |c, v| c.orders.spill_after => v.duration(100 * MILLIS..=MINUTE)?,
    "orders.mark_every": |c, v| c.orders.mark_every => v.duration(500 * MILLIS..=MINUTE)?,
    "orders.outcome_linger": |c, v| c.orders.outcome_linger => v.duration(0..=SECOND)?,
    "orders.idle_after": |c, v| c.orders.idle_after => v.duration(SECOND..=HOUR)?,
    "orders.panics": |c, v| c.orders.panics => v.count(1..=1_000)?,
    "orders.panic_window": |c, v| c.orders.panic_window => v.duration(SECOND..=HOUR)?,

    "http.connect_timeout": |c, v| c.http.connect_timeout => v.duration(100 * MILLIS..=30 * SECOND)?,
    "http.max_response": |c, v| c.http.max_response => v.size(4 * KIB..=16 * MIB)?,
    "http.retry_after_min": |c, v| c.http.retry_after_min => v.duration(0..=DAY)?,
    "http.retry_after_max": |c, v| c.http.retry_after_max => v.duration(0..=DAY)?,
    "http.rate_limited_pause": |c, v| c.http.rate_limited_pause => v.duration(0..=DAY)?,
    "http.user_agent": |c, v| c.http.user_agent => user_agent(v)?,
    "http.pool_idle_per_host": |c, v| c.http.pool_idle_per_host => v.count(0..=10_000)?,
    "http.pool_idle": |c, v| c.http.pool_idle => v.duration(0..=HOUR)?,
    "http.pool_idle_unrepeatable": |c, v| c.http.pool_idle_unrepeatable => v.duration(0..=HOUR)?,
    "http.ca_files": |c, v| c.http.ca_files => v.list()?.into_iter().map(Into::into).collect(),

    "egress.allow": |c, v| c.egress.allow => egress(v)?,

    "notify.url": |c, v| c.notify.url => v.optional_text()?,
    "notify.secret": |c, v| c.notify.secret => v.reference()?,
    "notify.events": |c, v| c.notify.events => notify_events(v)?,
    "notify.every": |c, v| c.notify.every => v.duration(0..=HOUR)?,
    "notify.timeout": |c, v| c.notify.timeout => v.duration(SECOND..=MINUTE)?,
    "notify.give_up_after": |c, v| c.notify.give_up_after => v.duration(MINUTE..=DAY)?,
    "notify.allow": |c, v| c.notify.allow => egress(v)?,

    "store.cache": |c, v| c.store.cache => v.size(8 * MIB..=TIB)?,

    "log.format": |c, v| c.log.format => log_format(v)?,
    "log.filter": |c, v| c.log.filter => v.optional_text()?.ok_or("must be a level such as info")?,

    "telemetry.otlp_endpoint": |c, v| c.telemetry.otlp_endpoint => v.optional(endpoint)?,
    "telemetry.trace_ratio": |c, v| c.telemetry.trace_ratio => v.number(0.0..=1.0)?,
};

pub(super) fn servers(given: &Given<'_>) -> Read<Vec<String>> {
    let servers = given.list()?;
    if servers.is_empty() {
        return Err("must name at least one server, such as nats://127.0.0.1:4222".to_owned());
    }
    match servers.iter().find_map(|server| server_problem(server)) {
        Some(problem) => Err(problem),
        None => Ok(servers),
    }
}

/// What is wrong with a NATS address. It may hold a password, so it is not repeated.
fn server_problem(server: &str) -> Option<String> {
    let rest = match server.split_once("://") {
        Some(("nats" | "tls" | "ws" | "wss", rest)) => rest,
        Some(_) => return Some("must be nats:// or tls:// addresses".to_owned()),
        None => server,
    };
    if rest.contains('@') {
        let message = "must not hold a user, password or token: use nats.user with nats.password, or nats.token";
        return Some(message.to_owned());
    }
    let host = rest.trim_end_matches('/');
    let broken = host.is_empty() || host.contains(['/', ' ', '?', '#']);
    broken.then(|| {
        format!(
            "{} is not an address such as nats://127.0.0.1:4222",
            quoted(server)
        )
    })
}

fn partitions(given: &Given<'_>) -> Read<u16> {
    u16::try_from(given.whole(0..=1_024)?).map_err(|error| error.to_string())
}

fn replicas(given: &Given<'_>) -> Read<usize> {
    let replicas = given.count(1..=5)?;
    if [1, 3, 5].contains(&replicas) {
        Ok(replicas)
    } else {
        Err(format!("{replicas} is not 1, 3 or 5"))
    }
}

fn user_agent(given: &Given<'_>) -> Read<Option<String>> {
    given.optional(|text| {
        let printable = text
            .bytes()
            .all(|byte| byte == b' ' || byte.is_ascii_graphic());
        match printable && text.len() <= 200 {
            true => Ok(text.to_owned()),
            false => Err("must be at most 200 visible ASCII characters".to_owned()),
        }
    })
}

fn egress(given: &Given<'_>) -> Read<Vec<String>> {
    let allow = given.list()?;
    match Egress::new(&allow) {
        Ok(_) => Ok(allow),
        Err(error) => Err(error.to_string()),
    }
}

/// What [`Happened`] is called in settings.
fn word_of(happened: Happened) -> &'static str {
    match happened {
        Happened::OrderParked => "parked",
        Happened::MerchantSuspended => "suspended",
        Happened::OrderExpired => "expired",
    }
}

fn notify_events(given: &Given<'_>) -> Read<Vec<Happened>> {
    let read = |word: &String| {
        let found = Happened::ALL
            .into_iter()
            .find(|kind| word_of(*kind) == word);
        found.ok_or_else(|| format!("{} is not parked, suspended or expired", quoted(word)))
    };
    given.list()?.iter().map(read).collect()
}

fn log_format(given: &Given<'_>) -> Read<Format> {
    match given.text()? {
        "auto" => Ok(Format::Auto),
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        other => Err(format!("{} is not auto, text or json", quoted(other))),
    }
}

fn endpoint(text: &str) -> Read<String> {
    let host = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    match host.is_some_and(|host| !host.is_empty() && !host.starts_with('/')) {
        true => Ok(text.to_owned()),
        // It may hold a password.
        false => Err("must be a URL such as http://127.0.0.1:4318".to_owned()),
    }
}
