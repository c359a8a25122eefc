use expediter_types::{
    Adapter, Breaker, ClassifyRule, Hours, Idempotency, Job, Limits, Lookup, LookupRule,
    LookupVerdict, Merchant, OnPark, Ordering, Predicate, Rate, Retry, Scope, Secret,
    format_duration,
};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::hours::range_text;

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

/// A group's or credential's limits as the registry keeps them; the kind is not in it.
#[must_use]
pub fn scope_to_json(scope: &Scope) -> String {
    serde_json::to_string(&ScopeOut::from(scope)).expect("all keys are strings")
}

/// The same as people write them, as one `[[group]]` or `[[credential]]`.
#[must_use]
pub fn scope_to_toml(scope: &Scope) -> String {
    let file = std::collections::BTreeMap::from([(scope.kind.as_str(), [ScopeOut::from(scope)])]);
    toml::to_string(&file).expect("all keys are strings and no value is absent")
}

#[derive(Serialize)]
pub(super) struct ScopeOut<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "RatesOut::is_empty")]
    rate: RatesOut<'a>,
    burst: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency: Option<u32>,
}

impl<'a> From<&'a Scope> for ScopeOut<'a> {
    fn from(from: &'a Scope) -> Self {
        Self {
            id: &from.id,
            rate: RatesOut(&from.rates),
            burst: from.burst,
            concurrency: from.concurrency,
        }
    }
}

/// One as text, several as a list.
struct RatesOut<'a>(&'a [Rate]);

impl RatesOut<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for RatesOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            [rate] => serializer.collect_str(rate),
            rates => serializer.collect_seq(rates.iter().map(|rate| rate.to_string())),
        }
    }
}

#[derive(Serialize)]
pub(super) struct MerchantOut<'a> {
    id: &'a str,
    name: &'a str,
    group: &'a str,
    adapter: AdapterOut<'a>,
    limits: LimitsOut<'a>,
    retry: RetryOut,
    breaker: BreakerOut,
    #[serde(skip_serializing_if = "Option::is_none")]
    hours: Option<HoursOut<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    job: Vec<JobOut<'a>>,
}

#[derive(Serialize)]
struct AdapterOut<'a> {
    kind: &'static str,
    url: &'a str,
    method: &'a str,
    timeout: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<&'a str>,
    rate_limit_scope: &'static str,
    idempotency: &'static str,
    idempotency_window: String,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    rejected: &'a [u16],
    #[serde(skip_serializing_if = "HeadersOut::is_empty")]
    headers: HeadersOut<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lookup: Option<LookupOut<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    classify: Vec<RuleOut>,
}

#[derive(Serialize)]
struct LookupOut<'a> {
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<RuleOut>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum StatusOut {
    One(u16),
    Range(String),
}

#[derive(Serialize)]
struct LimitsOut<'a> {
    #[serde(skip_serializing_if = "RatesOut::is_empty")]
    rate: RatesOut<'a>,
    burst: u32,
    concurrency: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_concurrency: Option<u32>,
    ordering: &'static str,
    mailbox: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    backlog: Option<u64>,
}

#[derive(Serialize)]
struct RetryOut {
    initial: String,
    max: String,
    multiplier: f64,
    max_attempts: u32,
    deadline: String,
    margin: String,
    budget: f64,
    on_park: &'static str,
}

#[derive(Serialize)]
struct BreakerOut {
    consecutive: u32,
    ratio: f64,
    min_samples: u32,
    window: String,
    open: String,
    max_open: String,
    probes: u32,
}

#[derive(Serialize)]
struct HoursOut<'a> {
    timezone: &'a str,
    open: Vec<String>,
}

#[derive(Serialize)]
struct JobOut<'a> {
    name: &'a str,
    schedule: &'a str,
    timezone: &'a str,
    missed: &'static str,
    payload: &'a str,
    content_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<String>,
    priority: &'static str,
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
            breaker: (&from.breaker).into(),
            hours: from.hours.as_deref().map(HoursOut::from),
            job: from.jobs.iter().map(JobOut::from).collect(),
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
            credential: from.credential.as_deref(),
            rate_limit_scope: from.rate_limit_scope.as_str(),
            idempotency: idempotency_name(from.idempotency),
            idempotency_window: format_duration(from.idempotency_window),
            rejected: &from.rejected,
            headers: HeadersOut(&from.headers),
            lookup: from.lookup.as_deref().map(LookupOut::from),
            classify: from.classify.iter().map(RuleOut::from).collect(),
        }
    }
}

impl<'a> From<&'a Lookup> for LookupOut<'a> {
    fn from(from: &'a Lookup) -> Self {
        Self {
            url: &from.url,
            after: from.after.map(format_duration),
            rules: from.rules.iter().map(RuleOut::from).collect(),
        }
    }
}

impl From<&ClassifyRule> for RuleOut {
    fn from(from: &ClassifyRule) -> Self {
        Self {
            class: Some(from.class.as_str()),
            ..Self::when(&from.when)
        }
    }
}

impl From<&LookupRule> for RuleOut {
    fn from(from: &LookupRule) -> Self {
        let verdict = match from.verdict {
            LookupVerdict::Found => "found",
            LookupVerdict::Absent => "absent",
        };
        Self {
            verdict: Some(verdict),
            ..Self::when(&from.when)
        }
    }
}

impl RuleOut {
    fn when(predicates: &[Predicate]) -> Self {
        let mut out = Self {
            status: None,
            header: None,
            json: None,
            class: None,
            verdict: None,
        };
        let equals = |name: &str, value: &Option<String>| match value {
            Some(value) => format!("{name}={value}"),
            None => name.to_owned(),
        };
        for predicate in predicates {
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

impl<'a> From<&'a Limits> for LimitsOut<'a> {
    fn from(from: &'a Limits) -> Self {
        Self {
            rate: RatesOut(&from.rates),
            burst: from.burst,
            concurrency: from.concurrency,
            min_concurrency: from.min_concurrency,
            ordering: ordering_name(from.ordering),
            mailbox: from.mailbox,
            backlog: from.backlog,
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
            margin: format_duration(from.margin),
            budget: from.budget,
            on_park: match from.on_park {
                OnPark::Continue => "continue",
                OnPark::Hold => "hold",
            },
        }
    }
}

impl From<&Breaker> for BreakerOut {
    fn from(from: &Breaker) -> Self {
        Self {
            consecutive: from.consecutive,
            ratio: from.ratio,
            min_samples: from.min_samples,
            window: format_duration(from.window),
            open: format_duration(from.open),
            max_open: format_duration(from.max_open),
            probes: from.probes,
        }
    }
}

impl<'a> From<&'a Hours> for HoursOut<'a> {
    fn from(from: &'a Hours) -> Self {
        Self {
            timezone: &from.zone_name,
            open: from.open.iter().map(range_text).collect(),
        }
    }
}

impl<'a> From<&'a Job> for JobOut<'a> {
    fn from(from: &'a Job) -> Self {
        Self {
            name: &from.name,
            schedule: &from.schedule,
            timezone: &from.timezone,
            missed: from.missed.as_str(),
            payload: &from.payload,
            content_type: &from.content_type,
            deadline: from.deadline.map(format_duration),
            priority: from.priority.as_str(),
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
