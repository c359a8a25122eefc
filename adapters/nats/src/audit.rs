//! AUDIT: writes what operators did, and reads it again.
//!
//! A record follows its effect, with how that ended: a crash between the two leaves an effect
//! without a record, never a record of what was not tried. What the effect itself keeps (a revision,
//! a decision, a dead letter) names the actor too.

use std::time::Duration;

use async_nats::HeaderMap;
use expediter_types::{MerchantId, Seq, UnixMillis};
use expediter_wire::audit::{AuditRecord, AuditTarget, decode_audit, encode_audit};
use expediter_wire::subjects;
use tokio::sync::mpsc;

use crate::broker::{Broker, NoAck};
use crate::clock::unique;
use crate::error::chain;
use crate::reader::{Delivered, From, Reader, ReaderOptions};
use crate::{Connection, Error, TailFrom};

/// A record of which nothing is known is sent again, under the same id, so many times in all.
const TRIES: usize = 3;

/// A record as it stands in AUDIT.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditItem {
    pub seq: Seq,
    /// When the broker stored it.
    pub recorded: UnixMillis,
    pub record: AuditRecord,
}

/// Which records to read; the default is all of them.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// About these merchants and what belongs to them; empty: about anything.
    pub merchants: Vec<MerchantId>,
    /// Of these verbs, or of all verbs of an object such as `merchant`; empty: of all.
    pub verbs: Vec<String>,
    /// By these actors; empty: by all.
    pub actors: Vec<String>,
}

impl AuditFilter {
    fn subjects(&self) -> Vec<String> {
        if self.merchants.is_empty() {
            return subjects::AUDIT_SUBJECTS.map(str::to_owned).into();
        }
        // The broker refuses filters that overlap.
        let mut merchants: Vec<_> = self.merchants.iter().collect();
        merchants.sort();
        merchants.dedup();
        let filters = merchants.into_iter().map(subjects::audit_filters);
        filters.flatten().collect()
    }

    fn matches(&self, record: &AuditRecord) -> bool {
        let object = record.verb.split('.').next().unwrap_or_default();
        let verb = |wanted: &String| *wanted == record.verb || wanted == object;
        (self.verbs.is_empty() || self.verbs.iter().any(verb))
            && (self.actors.is_empty() || self.actors.contains(&record.actor))
    }
}

/// Writes and reads AUDIT.
#[derive(Debug, Clone)]
pub struct Audit {
    broker: Broker,
}

impl Audit {
    /// Over that connection; before anything is changed, so that nothing is changed that cannot be
    /// recorded.
    ///
    /// # Errors
    /// [`Error::NoStream`] when there is no AUDIT; the broker does not answer.
    pub async fn open(connection: &Connection) -> Result<Self, Error> {
        let broker = Broker::new(connection);
        broker.state(subjects::AUDIT).await?;
        Ok(Self { broker })
    }

    /// Writes a record once and gives its sequence.
    ///
    /// # Errors
    /// The broker did not take it, or did not say so within about 15 s.
    pub async fn record(&self, record: &AuditRecord) -> Result<Seq, Error> {
        let subject = subjects::audit(&record.target);
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", unique().as_str());
        let payload = encode_audit(record);
        let mut tries = 0;
        let reason = loop {
            tries += 1;
            let sent = self
                .broker
                .publish(subject.clone(), headers.clone(), payload.clone());
            match sent.await {
                Ok(ack) => return Ok(ack.seq),
                Err(NoAck::Undecided(_)) if tries < TRIES => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) => break error.to_string(),
            }
        };
        Err(Error::Publish { subject, reason })
    }

    /// The newest record about exactly this.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn newest(&self, target: &AuditTarget) -> Result<Option<AuditRecord>, Error> {
        let subject = subjects::audit(target);
        let message = self.broker.last(subjects::AUDIT, &subject).await?;
        // What only a newer version can read says nothing to this one.
        Ok(message.and_then(|message| decode_audit(&message.payload).ok()))
    }

    /// Reads the records up to the newest one there is now, oldest first, into `sink`.
    ///
    /// # Errors
    /// The broker does not answer, or stops delivering.
    pub async fn read(
        &self,
        filter: &AuditFilter,
        from: TailFrom,
        sink: &mpsc::Sender<AuditItem>,
    ) -> Result<(), Error> {
        let from = self.begin(from).await?;
        let mut reader = self.reader(filter, from).await?;
        for _ in 0..reader.pending_at_start() {
            let delivered = tokio::time::timeout(Duration::from_secs(10), reader.next())
                .await
                .map_err(|_| Error::plain("AUDIT delivers nothing"))?
                .map_err(|broken| Error::plain(format!("reading AUDIT: {broken}")))?;
            if !pass(&delivered, filter, sink).await {
                break;
            }
        }
        reader.close().await;
        Ok(())
    }

    /// Reads the records, oldest first, and those that follow, into `sink` until its receiver is
    /// gone.
    ///
    /// # Errors
    /// The broker does not answer at the beginning. Later interruptions are repaired.
    pub async fn follow(
        &self,
        filter: &AuditFilter,
        from: TailFrom,
        sink: &mpsc::Sender<AuditItem>,
    ) -> Result<(), Error> {
        let mut from = self.begin(from).await?;
        let mut reader = self.reader(filter, from).await?;
        loop {
            let delivered = tokio::select! {
                () = sink.closed() => break,
                delivered = reader.next() => delivered,
            };
            match delivered {
                Ok(delivered) => {
                    from = From::Seq(delivered.seq + 1);
                    if !pass(&delivered, filter, sink).await {
                        break;
                    }
                }
                Err(broken) => {
                    tracing::debug!(%broken, "following AUDIT is interrupted");
                    reader = loop {
                        tokio::time::sleep(Duration::from_millis(500)).await;
                        match self.reader(filter, from).await {
                            Ok(reader) => break reader,
                            Err(error) => tracing::debug!(error = chain(&error), "trying again"),
                        }
                    };
                }
            }
        }
        reader.close().await;
        Ok(())
    }

    async fn begin(&self, from: TailFrom) -> Result<From, Error> {
        Ok(match from {
            TailFrom::Now => From::Seq(self.broker.state(subjects::AUDIT).await?.last + 1),
            TailFrom::Since(at) => From::Time(at),
            TailFrom::After(seq) => From::Seq(seq + 1),
        })
    }

    async fn reader(&self, filter: &AuditFilter, from: From) -> Result<Reader, Error> {
        let options = ReaderOptions {
            stream: subjects::AUDIT.to_owned(),
            filters: filter.subjects(),
            from,
            name: "audit".to_owned(),
        };
        Reader::open(&self.broker, &options).await
    }
}

/// Hands a record on that matches; false when nobody takes it any more.
async fn pass(delivered: &Delivered, filter: &AuditFilter, sink: &mpsc::Sender<AuditItem>) -> bool {
    let (seq, recorded) = (delivered.seq, delivered.at);
    match decode_audit(&delivered.payload) {
        Ok(record) if filter.matches(&record) => {
            let item = AuditItem {
                seq,
                recorded,
                record,
            };
            sink.send(item).await.is_ok()
        }
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(
                seq,
                error = chain(&error),
                "a record of AUDIT is not readable"
            );
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expediter_wire::Rfc3339;
    use expediter_wire::audit::{AuditResult, AuditTarget};

    #[test]
    fn filters_select_by_verb_object_and_actor() {
        let merchant = MerchantId::new("luigis").unwrap();
        let record = AuditRecord {
            at: Rfc3339(1),
            actor: "ann".into(),
            verb: "merchant.apply".into(),
            target: AuditTarget::merchant(&merchant),
            reason: String::new(),
            result: AuditResult::Ok,
            details: Default::default(),
        };
        let filter = |verbs: &[&str], actors: &[&str]| AuditFilter {
            merchants: Vec::new(),
            verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
            actors: actors.iter().map(|actor| (*actor).to_owned()).collect(),
        };
        for (verbs, actors, fits) in [
            (&[][..], &[][..], true),
            (&["merchant.apply"], &["bob", "ann"], true),
            (&["merchant"], &[], true),
            (&["merch", "order"], &[], false),
            (&[], &["an"], false),
        ] {
            assert_eq!(
                filter(verbs, actors).matches(&record),
                fits,
                "{verbs:?} {actors:?}"
            );
        }
    }

    #[test]
    fn the_same_merchant_twice_is_one_filter() {
        let merchant = MerchantId::new("luigis").unwrap();
        let filter = AuditFilter {
            merchants: vec![merchant.clone(), merchant],
            ..AuditFilter::default()
        };
        assert_eq!(
            filter.subjects(),
            ["audit.merchant.luigis", "audit.*.luigis.*"]
        );
        assert_eq!(AuditFilter::default().subjects(), ["audit.>"]);
    }
}
