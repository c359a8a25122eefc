//! The registry as people's tools use it: every change names who made it and what it replaces.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use expediter_types::{Merchant, MerchantId, Seq, UnixMillis};
use expediter_wire::control::{self, Decision, MerchantDecision};
use expediter_wire::registry::{Registration, decode_registration, encode_registration};
use expediter_wire::{Rfc3339, parse_rfc3339, subjects};

use crate::broker::{Broker, NoAck};
use crate::clock::wall;
use crate::reader::{Delivered, From, Reader, ReaderOptions};
use crate::streams::bucket_stream;
use crate::{Connection, Error};

/// On a deletion, which has no value that could say it.
const ACTOR: &str = "Expediter-Actor";
const AT: &str = "Expediter-At";

/// A registered merchant.
#[derive(Debug, Clone, PartialEq)]
pub struct RegistryEntry {
    pub registration: Registration,
    /// Expected by the next change.
    pub revision: u64,
}

/// One change of a merchant.
#[derive(Debug, Clone, PartialEq)]
pub struct RegistryChange {
    /// `None`: deleted.
    pub merchant: Option<Merchant>,
    pub revision: u64,
    pub actor: String,
    pub at: UnixMillis,
    /// The revision that a rollback replaced.
    pub rolled_back_from: Option<u64>,
}

/// Reads and changes MERCHANTS.
#[derive(Debug, Clone)]
pub struct Registry {
    broker: Broker,
}

impl Registry {
    /// Over that connection.
    #[must_use]
    pub fn new(connection: &Connection) -> Self {
        Self {
            broker: Broker::new(connection),
        }
    }

    pub(crate) fn of(broker: Broker) -> Self {
        Self { broker }
    }

    /// All merchants, by id.
    ///
    /// # Errors
    /// No bucket, no broker, an entry that only a newer version can read.
    pub async fn list(&self) -> Result<Vec<RegistryEntry>, Error> {
        let messages = self.read(">", From::Newest).await?;
        let changes = messages
            .into_iter()
            .filter_map(|message| change(&message).transpose());
        let mut entries = Vec::new();
        for change in changes {
            entries.extend(entry(change?));
        }
        entries.sort_by(|a, b| a.registration.merchant.id.cmp(&b.registration.merchant.id));
        Ok(entries)
    }

    /// One merchant; `None` when it is not registered.
    ///
    /// # Errors
    /// As [`Registry::list`].
    pub async fn get(&self, id: &MerchantId) -> Result<Option<RegistryEntry>, Error> {
        Ok(self.newest(id).await?.and_then(entry))
    }

    /// Creates (`expected` 0) or changes (`expected`: the revision it replaces) a merchant. Gives the
    /// new revision.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it was changed meanwhile, or not taken by the broker.
    pub async fn put(&self, registration: &Registration, expected: u64) -> Result<u64, Error> {
        let id = &registration.merchant.id;
        let value = encode_registration(registration);
        self.write(id, HeaderMap::new(), value, expected).await
    }

    /// Deletes a merchant of that revision.
    ///
    /// # Errors
    /// As [`Registry::put`].
    pub async fn delete(&self, id: &MerchantId, actor: &str, expected: u64) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        headers.insert("KV-Operation", "DEL");
        headers.insert(ACTOR, one_line(actor).as_str());
        headers.insert(AT, Rfc3339(wall()).to_string().as_str());
        self.write(id, headers, Bytes::new(), expected)
            .await
            .map(drop)
    }

    /// The newest changes of a merchant, oldest first; the bucket keeps 16.
    ///
    /// # Errors
    /// As [`Registry::list`].
    pub async fn history(&self, id: &MerchantId) -> Result<Vec<RegistryChange>, Error> {
        let messages = self.read(id.as_str(), From::Seq(1)).await?;
        let changes = messages
            .iter()
            .filter_map(|message| change(message).transpose());
        changes
            .map(|change| change.map(|(_, change)| change))
            .collect()
    }

    /// Lets a quarantined merchant go on, on whichever node it is.
    ///
    /// # Errors
    /// The broker did not take it.
    pub async fn resume(&self, id: &MerchantId, actor: &str, reason: &str) -> Result<(), Error> {
        let decision = MerchantDecision {
            state: Decision::Resumed,
            reason: reason.to_owned(),
            actor: actor.to_owned(),
            at: Rfc3339(wall()),
        };
        let subject = format!("$KV.{}.{}", subjects::CONTROL, control::decision_key(id));
        let value = control::encode_decision(&decision);
        let taken = self
            .broker
            .publish(subject.clone(), HeaderMap::new(), value)
            .await;
        let failed = |error: NoAck| Error::Publish {
            subject,
            reason: error.to_string(),
        };
        taken.map(drop).map_err(failed)
    }

    async fn write(
        &self,
        id: &MerchantId,
        headers: HeaderMap,
        value: Bytes,
        expected: u64,
    ) -> Result<u64, Error> {
        let subject = subject(id);
        let mut replaces = expected;
        for _ in 0..3 {
            let mut headers = headers.clone();
            let number = replaces.to_string();
            headers.insert("Nats-Expected-Last-Subject-Sequence", number.as_str());
            let error = match self
                .broker
                .publish(subject.clone(), headers, value.clone())
                .await
            {
                Ok(ack) => return Ok(ack.seq),
                Err(error) => error,
            };
            let newest = self.newest(id).await?;
            let revision = newest.as_ref().map_or(0, |(_, change)| change.revision);
            if let Some((stored, _)) = &newest
                && *stored == value
                && revision > expected
            {
                // The answer to this very change was lost.
                return Ok(revision);
            }
            match newest {
                // Not there, as expected: a deletion stands there instead of nothing.
                Some((_, change)) if expected == 0 && change.merchant.is_none() => {
                    replaces = revision;
                }
                None if expected == 0 => replaces = 0,
                Some((_, change)) if revision != expected => {
                    let (actor, at) = (change.actor, change.at);
                    return Err(Error::Conflict {
                        merchant: id.clone(),
                        actor,
                        at,
                        revision,
                    });
                }
                None => {
                    let actor = "nobody known; it is gone".to_owned();
                    return Err(Error::Conflict {
                        merchant: id.clone(),
                        actor,
                        at: 0,
                        revision,
                    });
                }
                Some(_) => {
                    if let NoAck::Refused { .. } = error {
                        return Err(Error::Publish {
                            subject,
                            reason: error.to_string(),
                        });
                    }
                }
            }
        }
        let reason = "the broker does not take it".to_owned();
        Err(Error::Publish { subject, reason })
    }

    async fn newest(&self, id: &MerchantId) -> Result<Option<(Bytes, RegistryChange)>, Error> {
        let stream = bucket_stream(subjects::MERCHANTS);
        let Some(message) = self.broker.last(&stream, &subject(id)).await? else {
            return Ok(None);
        };
        let message = Delivered {
            subject: message.subject,
            headers: Some(message.headers),
            payload: message.payload,
            seq: message.sequence,
            at: crate::clock::millis(message.time),
            pending: 0,
        };
        change(&message)
    }

    async fn read(&self, keys: &str, from: From) -> Result<Vec<Delivered>, Error> {
        let options = ReaderOptions {
            stream: bucket_stream(subjects::MERCHANTS),
            filters: vec![format!("$KV.{}.{keys}", subjects::MERCHANTS)],
            from,
            name: "registry".to_owned(),
        };
        let mut reader = Reader::open(&self.broker, &options).await?;
        let mut messages = Vec::new();
        for _ in 0..reader.pending_at_start() {
            let message = tokio::time::timeout(Duration::from_secs(10), reader.next())
                .await
                .map_err(|_| Error::plain("MERCHANTS delivers nothing"))?
                .map_err(|broken| Error::plain(format!("reading MERCHANTS: {broken}")))?;
            messages.push(message);
        }
        reader.close().await;
        Ok(messages)
    }
}

/// The key of a merchant in MERCHANTS.
pub(crate) fn subject(id: &MerchantId) -> String {
    format!("$KV.{}.{id}", subjects::MERCHANTS)
}

fn entry((value, change): (Bytes, RegistryChange)) -> Option<RegistryEntry> {
    let RegistryChange {
        merchant,
        revision,
        actor,
        at,
        rolled_back_from,
    } = change;
    drop(value);
    let registration = Registration {
        merchant: merchant?,
        actor,
        at,
        rolled_back_from,
    };
    Some(RegistryEntry {
        registration,
        revision,
    })
}

/// `None` for keys that are no merchants.
fn change(message: &Delivered) -> Result<Option<(Bytes, RegistryChange)>, Error> {
    let key = message
        .subject
        .as_str()
        .rsplit('.')
        .next()
        .unwrap_or_default();
    if MerchantId::new(key).is_err() {
        return Ok(None);
    }
    let revision: Seq = message.seq;
    let header = |name: &str| {
        let headers = message.headers.as_ref()?;
        headers.get(name).map(|value| value.as_str().to_owned())
    };
    let change = if header("KV-Operation").is_some() || header("Nats-Marker-Reason").is_some() {
        RegistryChange {
            merchant: None,
            revision,
            actor: header(ACTOR).unwrap_or_else(|| "unknown".to_owned()),
            at: header(AT)
                .and_then(|text| parse_rfc3339(&text).ok())
                .unwrap_or(message.at),
            rolled_back_from: None,
        }
    } else {
        let value = decode_registration(&message.payload);
        let value = value.map_err(Error::format(format!("merchant {key}")))?;
        let Registration {
            merchant,
            actor,
            at,
            rolled_back_from,
        } = value;
        RegistryChange {
            merchant: Some(merchant),
            revision,
            actor,
            at,
            rolled_back_from,
        }
    };
    Ok(Some((message.payload.clone(), change)))
}

/// Headers carry no line breaks.
fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
