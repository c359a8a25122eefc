use expediter_types::{
    Adapter, ClassifyRule, Idempotency, Limits, Merchant, Ordering, Predicate, Retry, Secret,
    format_duration,
};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// The manifest as the registry keeps it: every key written out, in one order.
#[must_use]
pub fn to_json(merchant: &Merchant) -> String {
    serde_json::to_string(&MerchantOut::from(merchant))
        .expect("all keys are strings and all numbers are finite or become null")
}

/// The manifest as people write it, as one `[[merchant]]`; several are a file when joined.
#[must_use]
pub fn to_toml(merchant: &Merchant) -> String {
    #[derive(Serialize)]
    struct File<'a> {
        merchant: [MerchantOut<'a>; 1],
    }
    toml::to_string(&File {
        merchant: [merchant.into()],
    })
    .expect("all keys are strings and no value is absent")
}

#[derive(Serialize)]
pub(super) struct MerchantOut<'a> {
    id: &'a str,
    name: &'a str,
    group: &'a str,
    adapter: AdapterOut<'a>,
    limits: LimitsOut,
    retry: RetryOut,
}

#[derive(Serialize)]
struct AdapterOut<'a> {
    kind: &'static str,
    url: &'a str,
    method: &'a str,
    timeout: String,
    idempotency: &'static str,
    idempotency_window: String,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    rejected: &'a [u16],
    #[serde(skip_serializing_if = "HeadersOut::is_empty")]
    headers: HeadersOut<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    classify: Vec<RuleOut>,
}

struct HeadersOut<'a>(&'a [(String, Secret)]);

impl HeadersOut<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for HeadersOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            map.serialize_entry(name, &secret_text(value))?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct RuleOut {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<StatusOut>,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    json: Option<String>,
    class: &'static str,
}

#[derive(Serialize)]
#[serde(untagged)]
enum StatusOut {
    One(u16),
    Range(String),
}

#[derive(Serialize)]
struct LimitsOut {
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<String>,
    burst: u32,
    concurrency: u32,
    ordering: &'static str,
    mailbox: u32,
}

#[derive(Serialize)]
struct RetryOut {
    initial: String,
    max: String,
    multiplier: f64,
    max_attempts: u32,
    deadline: String,
}

impl<'a> From<&'a Merchant> for MerchantOut<'a> {
    fn from(from: &'a Merchant) -> Self {
        Self {
            id: from.id.as_str(),
            name: &from.name,
            group: &from.group,
            adapter: (&from.adapter).into(),
            limits: (&from.limits).into(),
            retry: (&from.retry).into(),
        }
    }
}

impl<'a> From<&'a Adapter> for AdapterOut<'a> {
    fn from(from: &'a Adapter) -> Self {
        Self {
            kind: "http",
            url: &from.url,
            method: &from.method,
            timeout: format_duration(from.timeout),
            idempotency: idempotency_name(from.idempotency),
            idempotency_window: format_duration(from.idempotency_window),
            rejected: &from.rejected,
            headers: HeadersOut(&from.headers),
            classify: from.classify.iter().map(RuleOut::from).collect(),
        }
    }
}

impl From<&ClassifyRule> for RuleOut {
    fn from(from: &ClassifyRule) -> Self {
        let mut out = Self {
            status: None,
            header: None,
            json: None,
            class: from.class.as_str(),
        };
        let equals = |name: &str, value: &Option<String>| match value {
            Some(value) => format!("{name}={value}"),
            None => name.to_owned(),
        };
        for predicate in &from.when {
            match predicate {
                Predicate::Status(one, to) if one == to => out.status = Some(StatusOut::One(*one)),
                Predicate::Status(from, to) => {
                    out.status = Some(StatusOut::Range(format!("{from}-{to}")));
                }
                Predicate::Header(name, value) => out.header = Some(equals(name, value)),
                Predicate::Json(path, value) => out.json = Some(equals(path, value)),
            }
        }
        out
    }
}

impl From<&Limits> for LimitsOut {
    fn from(from: &Limits) -> Self {
        Self {
            rate: from.rates.first().map(|rate| rate.to_string()),
            burst: from.burst,
            concurrency: from.concurrency,
            ordering: ordering_name(from.ordering),
            mailbox: from.mailbox,
        }
    }
}

impl From<&Retry> for RetryOut {
    fn from(from: &Retry) -> Self {
        Self {
            initial: format_duration(from.initial),
            max: format_duration(from.max),
            multiplier: from.multiplier,
            max_attempts: from.max_attempts,
            deadline: format_duration(from.deadline),
        }
    }
}

fn secret_text(secret: &Secret) -> String {
    match secret {
        Secret::Plain(text) => text.clone(),
        Secret::Reference(reference) => reference.to_string(),
    }
}

fn idempotency_name(idempotency: Idempotency) -> &'static str {
    match idempotency {
        Idempotency::Native => "native",
        Idempotency::UniqueRef => "unique_ref",
        Idempotency::Lookup => "lookup",
        Idempotency::None => "none",
    }
}

fn ordering_name(ordering: Ordering) -> &'static str {
    match ordering {
        Ordering::None => "none",
        Ordering::Order => "order",
        Ordering::Merchant => "merchant",
    }
}
