//! Recurring jobs: `[[merchant.job]]`.

use std::time::Duration;

use expediter_types::{Job, Missed, Priority};
use serde::ser::{Error, SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::adapter::label;
use super::document::{Node, Value};
use super::reader::{Fields, JOB, Reader};
use crate::schedule::Schedule;
use crate::zone::time_zone;

/// Jobs of a merchant, at most.
const MAX_JOBS: (usize, &str) = (32, "jobs");
/// Bytes of a payload, at most: all of a manifest is one value of the registry.
const MAX_PAYLOAD: usize = 16_384;

const MISSED: [(&str, Missed); 3] = [
    ("skip", Missed::Skip),
    ("once", Missed::Once),
    ("all", Missed::All),
];

/// The jobs of a merchant.
pub(super) fn read(reader: &mut Reader<'_>, merchant: &Fields<'_, '_>) -> Vec<Job> {
    let mut jobs: Vec<Job> = Vec::new();
    for fields in reader.tables(merchant, "job", MAX_JOBS, JOB) {
        let Some(job) = job(reader, &fields) else {
            continue;
        };
        if jobs.iter().any(|other| other.name == job.name) {
            let line = fields.node("name").map_or(fields.line, |node| node.line);
            let message = format!("{:?} is given twice: jobs have different names", job.name);
            reader.problem(line, &fields.key("name"), message);
        }
        jobs.push(job);
    }
    jobs
}

fn job(reader: &mut Reader<'_>, fields: &Fields<'_, '_>) -> Option<Job> {
    reader.missing(fields, "name", "it names the job, and its orders");
    reader.missing(
        fields,
        "schedule",
        "five fields of cron such as \"30 9 * * mon-fri\"",
    );
    reader.missing(fields, "payload", "the body of its orders");
    let name = reader.parsed(fields, "name", label);
    let zone = match fields.node("timezone") {
        Some(_) => reader.parsed(fields, "timezone", time_zone),
        None => time_zone("UTC").ok(),
    };
    let timezone = zone.map(|(name, _)| name);
    let schedule = reader.parsed(fields, "schedule", |text| {
        // A zone that is unknown is told at its own key.
        let zone = timezone.as_deref().unwrap_or("UTC");
        Schedule::parse(text, zone)
            .map(|_| text.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
    });
    let payload = payload(reader, fields);
    let content_type = reader.parsed(fields, "content_type", media_type);
    let missed = reader.choice(fields, "missed", &MISSED);
    let range = (Duration::from_secs(1), Duration::from_secs(30 * 86_400));
    let deadline = reader.duration(fields, "deadline", range);
    let priorities = Priority::ALL.map(|class| (class.as_str(), class));
    let priority = reader.choice(fields, "priority", &priorities);
    Some(Job {
        name: name?,
        schedule: schedule?,
        timezone: timezone?,
        missed: missed.unwrap_or(Missed::Once),
        payload: payload?,
        content_type: content_type.unwrap_or_else(|| "application/json".to_owned()),
        deadline,
        priority: priority.unwrap_or_default(),
    })
}

/// A text as it is; a table or list as JSON.
fn payload(reader: &mut Reader<'_>, fields: &Fields<'_, '_>) -> Option<String> {
    let node = fields.node("payload")?;
    let key = fields.key("payload");
    let text = match &node.value {
        Value::Text(text) => {
            let is_json = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
            if !is_json && fields.node("content_type").is_none() {
                let message = "is sent as application/json, but is none: name a content_type";
                reader.warning(node.line, &key, message);
            }
            text.clone().into_owned()
        }
        Value::Table(_) | Value::List(_) => match serde_json::to_string(&Compact(node)) {
            Ok(text) => text,
            Err(error) => {
                reader.problem(node.line, &key, error.to_string());
                return None;
            }
        },
        _ => {
            reader.expected(node, &key, "text, or a table or list that is sent as JSON");
            return None;
        }
    };
    if text.len() > MAX_PAYLOAD {
        let message = format!("{} bytes, at most {MAX_PAYLOAD} are accepted", text.len());
        reader.problem(node.line, &key, message);
        return None;
    }
    Some(text)
}

fn media_type(text: &str) -> Result<String, String> {
    let fits = (1..=256).contains(&text.len()) && text.contains('/') && text.trim() == text;
    if fits && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    Err("must be a media type such as text/plain, up to 256 printable ASCII characters".into())
}

/// A value of the document as JSON, in its own order.
struct Compact<'n, 'd>(&'n Node<'d>);

impl Serialize for Compact<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0.value {
            Value::Text(text) => serializer.serialize_str(text),
            Value::Integer(number) => serializer.serialize_i64(*number),
            Value::Float(number) if number.is_finite() => serializer.serialize_f64(*number),
            Value::Float(_) => Err(S::Error::custom("has a number that JSON cannot write")),
            Value::Flag(flag) => serializer.serialize_bool(*flag),
            Value::Null => serializer.serialize_unit(),
            Value::List(list) => {
                let mut out = serializer.serialize_seq(Some(list.len()))?;
                list.iter()
                    .try_for_each(|node| out.serialize_element(&Compact(node)))?;
                out.end()
            }
            Value::Table(entries) => {
                let mut out = serializer.serialize_map(Some(entries.len()))?;
                for entry in entries {
                    out.serialize_entry(&*entry.name, &Compact(&entry.node))?;
                }
                out.end()
            }
            Value::Other(kind) => {
                let message = format!("has {kind}, which JSON cannot write: write text");
                Err(S::Error::custom(message))
            }
        }
    }
}
