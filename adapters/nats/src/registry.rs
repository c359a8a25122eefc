//! The registry as people's tools use it: every change names who made it and what it replaces.

use async_nats::HeaderMap;
use bytes::Bytes;
use expediter_ports::DecisionSubject;
use expediter_types::{LimitScope, Merchant, MerchantId, UnixMillis};
use expediter_wire::control::{self, MerchantDecision};
use expediter_wire::registry::{
    Registration, ScopeRegistration, decode_registration, decode_scope, encode_registration,
    encode_scope, parse_scope_key, scope_key,
};
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

/// The registered limits of a group or credential.
#[derive(Debug, Clone, PartialEq)]
pub struct ScopeEntry {
    pub registration: ScopeRegistration,
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
    /// Changes of a merchant that are kept.
    pub const HISTORY: u8 = 16;

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
        let mut entries = Vec::new();
        for value in self.read(">", From::Newest).await? {
            if let Some(id) = value.merchant() {
                entries.extend(entry(value.change(&id)?));
            }
        }
        entries.sort_by(|a, b| a.registration.merchant.id.cmp(&b.registration.merchant.id));
        Ok(entries)
    }

    /// The limits of all groups and credentials, groups first, by name.
    ///
    /// # Errors
    /// As [`Registry::list`].
    pub async fn scopes(&self) -> Result<Vec<ScopeEntry>, Error> {
        let mut entries = Vec::new();
        for value in self.read("*", From::Newest).await? {
            entries.extend(value.scope()?);
        }
        let by = |entry: &ScopeEntry| {
            let scope = &entry.registration.scope;
            (scope.kind, scope.id.clone())
        };
        entries.sort_by_key(by);
        Ok(entries)
    }

    /// One merchant; `None` when it is not registered.
    ///
    /// # Errors
    /// As [`Registry::list`].
    pub async fn get(&self, id: &MerchantId) -> Result<Option<RegistryEntry>, Error> {
        let newest = self.newest(id.as_str()).await?;
        Ok(match newest {
            Some(value) => entry(value.change(id)?),
            None => None,
        })
    }

    /// The limits of a group or credential; `None` when it has none.
    ///
    /// # Errors
    /// As [`Registry::list`].
    pub async fn scope(&self, kind: LimitScope, id: &str) -> Result<Option<ScopeEntry>, Error> {
        match self.newest(&scope_key(kind, id)).await? {
            Some(value) => value.scope(),
            None => Ok(None),
        }
    }

    /// The limits that this merchant shares with others: of its group and its credential, where these
    /// have some.
    ///
    /// # Errors
    /// As [`Registry::list`].
    pub async fn scopes_of(&self, merchant: &Merchant) -> Result<Vec<ScopeEntry>, Error> {
        let mut found = Vec::new();
        found.extend(self.scope(LimitScope::Group, &merchant.group).await?);
        if let Some(credential) = &merchant.adapter.credential {
            found.extend(self.scope(LimitScope::Credential, credential).await?);
        }
        Ok(found)
    }

    /// Creates (`expected` 0) or changes (`expected`: the revision it replaces) a merchant. Gives the
    /// new revision.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it was changed meanwhile, or not taken by the broker.
    pub async fn put(&self, registration: &Registration, expected: u64) -> Result<u64, Error> {
        let id = &registration.merchant.id;
        let value = encode_registration(registration);
        self.write(id.as_str(), HeaderMap::new(), value, expected)
            .await
    }

    /// Creates or changes the limits of a group or credential, as [`Registry::put`] a merchant.
    ///
    /// # Errors
    /// As [`Registry::put`].
    pub async fn put_scope(
        &self,
        registration: &ScopeRegistration,
        expected: u64,
    ) -> Result<u64, Error> {
        let key = scope_key(registration.scope.kind, &registration.scope.id);
        let value = encode_scope(registration);
        self.write(&key, HeaderMap::new(), value, expected).await
    }

    /// Deletes a merchant of that revision.
    ///
    /// # Errors
    /// As [`Registry::put`].
    pub async fn delete(&self, id: &MerchantId, actor: &str, expected: u64) -> Result<(), Error> {
        self.delete_key(id.as_str(), actor, expected).await
    }

    /// Deletes the limits, of that revision, of a group or credential: its merchants keep their own.
    ///
    /// # Errors
    /// As [`Registry::put`].
    pub async fn delete_scope(
        &self,
        kind: LimitScope,
        id: &str,
        actor: &str,
        expected: u64,
    ) -> Result<(), Error> {
        self.delete_key(&scope_key(kind, id), actor, expected).await
    }

    async fn delete_key(&self, key: &str, actor: &str, expected: u64) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        headers.insert("KV-Operation", "DEL");
        headers.insert(ACTOR, one_line(actor).as_str());
        headers.insert(AT, Rfc3339(wall()).to_string().as_str());
        let written = self.write(key, headers, Bytes::new(), expected).await;
        written.map(drop)
    }

    /// The newest changes of a merchant, oldest first: the newest [`Registry::HISTORY`].
    ///
    /// # Errors
    /// As [`Registry::list`].
    pub async fn history(&self, id: &MerchantId) -> Result<Vec<RegistryChange>, Error> {
        let values = self.read(id.as_str(), From::Seq(1)).await?;
        values.iter().map(|value| value.change(id)).collect()
    }

    /// The newest decision about a merchant or a group, and its revision (0 for none).
    ///
    /// # Errors
    /// The broker does not answer, or only a newer version can read it.
    pub async fn decision(
        &self,
        subject: &DecisionSubject,
    ) -> Result<(Option<MerchantDecision>, u64), Error> {
        let stream = bucket_stream(subjects::CONTROL);
        let key = decision_subject(subject);
        let Some(message) = self.broker.last(&stream, &key).await? else {
            return Ok((None, 0));
        };
        let revision = message.sequence;
        if message.headers.get("KV-Operation").is_some() {
            return Ok((None, revision));
        }
        let decision = control::decode_decision(&message.payload);
        let decision = decision.map_err(Error::format(format!("the decision {key}")))?;
        Ok((Some(decision), revision))
    }

    /// Decides about a merchant or a group, on whichever nodes it is; `replaces`: the revision of
    /// the decision that was read. Gives the new revision; nodes follow within a second.
    ///
    /// # Errors
    /// [`Error::Decided`] when somebody was faster; the broker did not take it.
    pub async fn decide(
        &self,
        subject: &DecisionSubject,
        decision: &MerchantDecision,
        replaces: u64,
    ) -> Result<u64, Error> {
        let key = decision_subject(subject);
        let value = control::encode_decision(decision);
        let mut last = String::new();
        for _ in 0..3 {
            let mut headers = HeaderMap::new();
            let number = replaces.to_string();
            headers.insert("Nats-Expected-Last-Subject-Sequence", number.as_str());
            match self
                .broker
                .publish(key.clone(), headers, value.clone())
                .await
            {
                Ok(ack) => return Ok(ack.seq),
                Err(error) => last = error.to_string(),
            }
            let (newest, revision) = self.decision(subject).await?;
            match newest {
                // The answer to this very decision was lost.
                Some(newest) if newest == *decision => return Ok(revision),
                Some(newest) if revision != replaces => {
                    let subject = match subject {
                        DecisionSubject::Merchant(id) => format!("merchant {id}"),
                        DecisionSubject::Group(group) => format!("group {group}"),
                    };
                    let actor = newest.actor;
                    return Err(Error::Decided { subject, actor });
                }
                _ => {}
            }
        }
        Err(Error::Publish {
            subject: key,
            reason: last,
        })
    }

    async fn write(
        &self,
        key: &str,
        headers: HeaderMap,
        value: Bytes,
        expected: u64,
    ) -> Result<u64, Error> {
        let subject = subject(key);
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
            let newest = self.newest(key).await?;
            let revision = newest.as_ref().map_or(0, |stored| stored.revision);
            if let Some(stored) = &newest
                && stored.payload == value
                && revision > expected
            {
                // The answer to this very change was lost.
                return Ok(revision);
            }
            match newest {
                // Not there, as expected: a deletion stands there instead of nothing.
                Some(stored) if expected == 0 && stored.is_deletion() => replaces = revision,
                None if expected == 0 => replaces = 0,
                Some(stored) if revision != expected => {
                    let (actor, at) = stored.made_by();
                    return Err(Error::Conflict {
                        key: key.to_owned(),
                        actor,
                        at,
                        revision,
                    });
                }
                None => {
                    return Err(Error::Conflict {
                        key: key.to_owned(),
                        actor: "nobody known; it is gone".to_owned(),
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

    async fn newest(&self, key: &str) -> Result<Option<Stored>, Error> {
        let stream = bucket_stream(subjects::MERCHANTS);
        let message = self.broker.last(&stream, &subject(key)).await?;
        Ok(message.map(|message| Stored {
            key: key.to_owned(),
            headers: message.headers,
            payload: message.payload,
            revision: message.sequence,
            at: crate::clock::millis(message.time),
        }))
    }

    async fn read(&self, keys: &str, from: From) -> Result<Vec<Stored>, Error> {
        let options = ReaderOptions {
            stream: bucket_stream(subjects::MERCHANTS),
            filters: vec![format!("$KV.{}.{keys}", subjects::MERCHANTS)],
            from,
            name: "registry".to_owned(),
        };
        let reader = Reader::open(&self.broker, &options).await?;
        let mut messages = Vec::new();
        reader
            .drain(|message| messages.push(Stored::of(message)))
            .await?;
        Ok(messages)
    }
}

fn decision_subject(subject: &DecisionSubject) -> String {
    let key = match subject {
        DecisionSubject::Merchant(id) => control::decision_key(id),
        DecisionSubject::Group(group) => control::group_decision_key(group),
    };
    format!("$KV.{}.{key}", subjects::CONTROL)
}

/// The subject of a key of MERCHANTS.
pub(crate) fn subject(key: &str) -> String {
    format!("$KV.{}.{key}", subjects::MERCHANTS)
}

fn entry(change: RegistryChange) -> Option<RegistryEntry> {
    let registration = Registration {
        merchant: change.merchant?,
        actor: change.actor,
        at: change.at,
        rolled_back_from: change.rolled_back_from,
    };
    Some(RegistryEntry {
        registration,
        revision: change.revision,
    })
}

/// One revision of a key, as it stands in the broker.
struct Stored {
    key: String,
    headers: HeaderMap,
    payload: Bytes,
    revision: u64,
    at: UnixMillis,
}

impl Stored {
    fn of(message: Delivered) -> Self {
        let prefix = subject("");
        let key = message.subject.as_str().strip_prefix(&prefix);
        Self {
            key: key.unwrap_or_default().to_owned(),
            headers: message.headers.unwrap_or_default(),
            payload: message.payload,
            revision: message.seq,
            at: message.at,
        }
    }

    /// The merchant that the key names.
    fn merchant(&self) -> Option<MerchantId> {
        MerchantId::new(&self.key).ok()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }

    fn is_deletion(&self) -> bool {
        self.header("KV-Operation").is_some() || self.header("Nats-Marker-Reason").is_some()
    }

    fn change(&self, id: &MerchantId) -> Result<RegistryChange, Error> {
        if self.is_deletion() {
            let (actor, at) = self.made_by();
            return Ok(RegistryChange {
                merchant: None,
                revision: self.revision,
                actor,
                at,
                rolled_back_from: None,
            });
        }
        let value = decode_registration(&self.payload);
        let value = value.map_err(Error::format(format!("merchant {id}")))?;
        Ok(RegistryChange {
            merchant: Some(value.merchant),
            revision: self.revision,
            actor: value.actor,
            at: value.at,
            rolled_back_from: value.rolled_back_from,
        })
    }

    /// `None`: deleted, or no group or credential.
    fn scope(&self) -> Result<Option<ScopeEntry>, Error> {
        let Some((kind, _)) = parse_scope_key(&self.key).filter(|_| !self.is_deletion()) else {
            return Ok(None);
        };
        let registration = decode_scope(kind, &self.payload).map_err(Error::format(&self.key))?;
        Ok(Some(ScopeEntry {
            registration,
            revision: self.revision,
        }))
    }

    /// Who wrote it, and when, whatever it is.
    fn made_by(&self) -> (String, UnixMillis) {
        let known = match self.merchant() {
            Some(_) if !self.is_deletion() => decode_registration(&self.payload)
                .ok()
                .map(|value| (value.actor, value.at)),
            None if !self.is_deletion() => self
                .scope()
                .ok()
                .flatten()
                .map(|entry| (entry.registration.actor, entry.registration.at)),
            _ => None,
        };
        known.unwrap_or_else(|| {
            let actor = self.header(ACTOR).unwrap_or("unknown").to_owned();
            let at = self.header(AT).and_then(|text| parse_rfc3339(text).ok());
            (actor, at.unwrap_or(self.at))
        })
    }
}

/// Headers carry no line breaks.
fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
