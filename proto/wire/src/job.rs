//! Recurring jobs: the order of a run, and how far a job is, in the KV bucket CONTROL.

use bytes::Bytes;
use expediter_types::{Envelope, Job, MerchantId, NodeName, OrderId, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::json::{self, V1, as_text};
use crate::{Rfc3339, WireError};

/// `ce-type` of the orders of jobs.
pub const RUN_TYPE: &str = "expediter.job";
/// Follows every key of a job; for all merchants.
pub const KEYS: &str = "job.*.*";

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobState {
    /// As in the manifest. Another schedule, or zone, there begins anew.
    pub schedule: String,
    pub timezone: String,
    /// All runs up to it were published or left out; the first time: when the job was first seen.
    pub settled: Rfc3339,
    /// Of the newest published run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<Rfc3339>,
    /// When this was written.
    pub at: Rfc3339,
    /// Who wrote it.
    #[serde(with = "as_text")]
    pub node: NodeName,
}

#[derive(Serialize, Deserialize)]
struct Versioned {
    v: V1,
    #[serde(flatten)]
    state: JobState,
}

/// Writes how far a job is.
#[must_use]
pub fn encode_job(state: &JobState) -> Bytes {
    json::encode_bytes(&Versioned {
        v: V1,
        state: state.clone(),
    })
}

/// Reads what [`encode_job`] writes.
pub fn decode_job(bytes: &[u8]) -> Result<JobState, WireError> {
    json::decode::<Versioned>("job", bytes).map(|value| value.state)
}

/// The key of a job in CONTROL: `job.<merchant>.<name>`.
#[must_use]
pub fn job_key(merchant: &MerchantId, name: &str) -> String {
    format!("job.{merchant}.{name}")
}

/// The merchant and the name of such a key; `None` for keys of another kind.
#[must_use]
pub fn parse_job_key(key: &str) -> Option<(MerchantId, &str)> {
    let (merchant, name) = key.strip_prefix("job.")?.split_once('.')?;
    let merchant = MerchantId::new(merchant).ok()?;
    MerchantId::new(name).ok().map(|_| (merchant, name))
}

/// The order of a run; `None` when the job's name is none that a manifest can have.
///
/// Its id is `<name>@<time>`: the same run is the same order, whoever publishes it, however often.
#[must_use]
pub fn run_order(merchant: &MerchantId, job: &Job, run: UnixMillis) -> Option<Envelope> {
    let time = Rfc3339(run).to_string();
    let id = OrderId::new(&format!("{}@{time}", job.name)).ok()?;
    let after = |span: std::time::Duration| {
        run.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    };
    Some(Envelope {
        id,
        merchant: merchant.clone(),
        generation: 1,
        created: run,
        deadline: job.deadline.map(after),
        not_before: None,
        key: None,
        priority: job.priority,
        event_type: Some(RUN_TYPE.into()),
        source: Some(format!("job/{}", job.name).into()),
        time: Some(time.into()),
        content_type: Some(job.content_type.as_str().into()),
        traceparent: None,
        test: false,
        origin: None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expediter_types::{Missed, Priority};

    use super::*;
    use crate::order::order_headers;

    fn job() -> Job {
        Job {
            name: "daily-menu".into(),
            schedule: "30 9 * * *".into(),
            timezone: "Europe/Rome".into(),
            missed: Missed::Once,
            payload: "{}".into(),
            content_type: "application/json".into(),
            deadline: Some(Duration::from_secs(600)),
            priority: Priority::High,
        }
    }

    #[test]
    fn a_run_is_an_order() {
        let merchant = MerchantId::new("luigis").unwrap();
        let order = run_order(&merchant, &job(), 1_770_000_000_000).unwrap();
        let headers = order_headers(&order);
        let shown: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        assert_eq!(
            shown,
            [
                "Nats-Msg-Id: luigis/daily-menu@2026-02-02T02:40:00.000Z",
                "ce-id: daily-menu@2026-02-02T02:40:00.000Z",
                "ce-type: expediter.job",
                "ce-source: job/daily-menu",
                "ce-time: 2026-02-02T02:40:00.000Z",
                "content-type: application/json",
                "Expediter-Deadline: 2026-02-02T02:50:00.000Z",
                "Expediter-Priority: high",
            ]
        );
        let longest = Job {
            name: "n".repeat(64),
            ..job()
        };
        assert!(run_order(&merchant, &longest, 0).is_some());
    }

    #[test]
    fn keys_are_read_back() {
        let merchant = MerchantId::new("luigis").unwrap();
        let key = job_key(&merchant, "daily-menu");
        assert_eq!(parse_job_key(&key), Some((merchant, "daily-menu")));
        for other in [
            "merchant.luigis",
            "job.luigis",
            "job.luigis.a.b",
            "job.a b.c",
        ] {
            assert_eq!(parse_job_key(other), None, "{other}");
        }
    }
}
