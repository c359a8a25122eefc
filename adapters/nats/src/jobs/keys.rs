//! How far jobs are: their keys in CONTROL.

use async_nats::HeaderMap;
use bytes::Bytes;
use expediter_types::{MerchantId, Seq};
use expediter_wire::job::{self, JobState, decode_job, encode_job, job_key, parse_job_key};
use expediter_wire::subjects;

use crate::broker::{Broker, NoAck};
use crate::reader::{From, Reader, ReaderOptions};
use crate::registry::Registry;
use crate::streams::bucket_stream;
use crate::{Connection, Error};

/// How far a job is, as the owner of its merchant's partition wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobEntry {
    pub merchant: MerchantId,
    pub name: String,
    pub state: JobState,
    pub(crate) revision: Seq,
}

/// Reads how far jobs are.
#[derive(Debug, Clone)]
pub struct Jobs {
    broker: Broker,
}

impl Jobs {
    /// Over that connection.
    #[must_use]
    pub fn new(connection: &Connection) -> Self {
        Self {
            broker: Broker::new(connection),
        }
    }

    /// All jobs that an owner has seen, of one merchant or of all.
    ///
    /// # Errors
    /// No bucket, no broker, an entry that only a newer version can read.
    pub async fn list(&self, merchant: Option<&MerchantId>) -> Result<Vec<JobEntry>, Error> {
        list(&self.broker, merchant).await
    }
}

fn subject(key: &str) -> String {
    format!("$KV.{}.{key}", subjects::CONTROL)
}

async fn list(broker: &Broker, merchant: Option<&MerchantId>) -> Result<Vec<JobEntry>, Error> {
    let keys = match merchant {
        Some(merchant) => job_key(merchant, "*"),
        None => job::KEYS.to_owned(),
    };
    let options = ReaderOptions {
        stream: bucket_stream(subjects::CONTROL),
        filters: vec![subject(&keys)],
        from: From::Newest,
        name: "jobs".to_owned(),
    };
    let mut messages = Vec::new();
    let reader = Reader::open(broker, &options).await?;
    reader.drain(|message| messages.push(message)).await?;
    let mut entries = Vec::new();
    let prefix = subject("");
    for message in messages {
        let named = message.subject.as_str().strip_prefix(&prefix);
        let Some((merchant, name)) = named.and_then(parse_job_key) else {
            continue;
        };
        if message.headers.as_ref().is_some_and(is_deletion) {
            continue;
        }
        let state = decode_job(&message.payload);
        entries.push(JobEntry {
            name: name.to_owned(),
            state: state.map_err(Error::format(format!("job {name} of {merchant}")))?,
            merchant,
            revision: message.seq,
        });
    }
    Ok(entries)
}

fn is_deletion(headers: &HeaderMap) -> bool {
    headers.get("KV-Operation").is_some() || headers.get("Nats-Marker-Reason").is_some()
}

/// How far a job is, if an owner has seen it, and the revision to replace.
pub(super) async fn read(
    broker: &Broker,
    merchant: &MerchantId,
    name: &str,
) -> Result<(Option<JobState>, Seq), Error> {
    let stream = bucket_stream(subjects::CONTROL);
    let subject = subject(&job_key(merchant, name));
    let Some(message) = broker.last(&stream, &subject).await? else {
        return Ok((None, 0));
    };
    if is_deletion(&message.headers) {
        return Ok((None, message.sequence));
    }
    let state = decode_job(&message.payload);
    let state = state.map_err(Error::format(format!("job {name} of {merchant}")))?;
    Ok((Some(state), message.sequence))
}

/// Writes how far a job is in place of a revision.
pub(super) async fn write(
    broker: &Broker,
    merchant: &MerchantId,
    name: &str,
    state: &JobState,
    replaces: Seq,
) -> Result<Seq, NoAck> {
    let mut headers = HeaderMap::new();
    let number = replaces.to_string();
    headers.insert("Nats-Expected-Last-Subject-Sequence", number.as_str());
    let subject = subject(&job_key(merchant, name));
    let ack = broker.publish(subject, headers, encode_job(state)).await?;
    Ok(ack.seq)
}

/// Deletes a job's key of that revision; another one stays.
pub(super) async fn delete(
    broker: &Broker,
    merchant: &MerchantId,
    name: &str,
    revision: Seq,
) -> Result<(), NoAck> {
    let mut headers = HeaderMap::new();
    headers.insert("KV-Operation", "DEL");
    let number = revision.to_string();
    headers.insert("Nats-Expected-Last-Subject-Sequence", number.as_str());
    let subject = subject(&job_key(merchant, name));
    match broker.publish(subject, headers, Bytes::new()).await {
        Ok(_) | Err(NoAck::WrongLast { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes the keys of jobs that are not registered, as the registry itself says.
pub(super) async fn sweep(broker: &Broker) -> Result<(), Error> {
    let registry = Registry::of(broker.clone());
    for entry in list(broker, None).await? {
        let JobEntry {
            merchant,
            name,
            revision,
            ..
        } = &entry;
        let registered = registry.get(merchant).await?;
        let known = registered.is_some_and(|found| {
            let jobs = &found.registration.merchant.jobs;
            jobs.iter().any(|job| job.name == *name)
        });
        if !known {
            let deleted = delete(broker, merchant, name, *revision).await;
            deleted.map_err(Error::broker(format!("deleting job {name} of {merchant}")))?;
            tracing::info!(%merchant, job = name, "a job that is gone is forgotten");
        }
    }
    Ok(())
}
