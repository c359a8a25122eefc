//! The streams and buckets: creates them, and refuses to work on others.

use std::time::Duration;

use async_nats::jetstream::context::CreateStreamErrorKind;
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType, SubjectTransform,
};
use expediter_wire::subjects;

use crate::broker::{Broker, ENVELOPE_ROOM};
use crate::{Connection, Difference, Error, Registry};

/// The server's default of 1,000 is too near to what many partitions and readers need.
const MAX_CONSUMERS: i32 = 4_096;

/// What the streams are created with. An existing stream must agree.
#[derive(Debug, Clone)]
pub struct Topology {
    /// 1 to 1,024. `None`: the number of the existing ORDERS, 16 for a new one. An existing number
    /// is never changed.
    pub partitions: Option<u16>,
    /// Copies of every stream; 1 (default), 3 or 5.
    pub replicas: usize,
    /// Size of ORDERS in bytes, above which publishers are refused. 0 (default) chooses for a new
    /// stream, half of the account's storage limit, or 10 GiB without one, less when the server
    /// has not so much, and takes an existing one as it is.
    pub orders_max_bytes: u64,
    /// Size of OUTCOMES in bytes. 0 (default) chooses likewise, a quarter or 5 GiB.
    pub outcomes_max_bytes: u64,
    /// How long AUDIT keeps its records; 90 d. Its size is chosen when it is made: a sixteenth of the
    /// account's storage limit, or 1 GiB without one; above it the oldest records go.
    pub audit_retention: Duration,
}

impl Default for Topology {
    fn default() -> Self {
        Self {
            partitions: None,
            replicas: 1,
            orders_max_bytes: 0,
            outcomes_max_bytes: 0,
            audit_retention: Duration::from_secs(90 * 86_400),
        }
    }
}

/// Creates what is missing, checks what is there, and gives the number of partitions.
///
/// # Errors
/// An old server, a stream with other settings (with each difference), no JetStream.
pub async fn ensure(connection: &Connection, topology: &Topology) -> Result<u16, Error> {
    let info = connection.client().server_info();
    if !new_enough(&info.version) {
        return Err(Error::ServerTooOld {
            found: info.version,
        });
    }
    let broker = Broker::new(connection);
    let (count, wanted) = all(&broker, topology).await?;
    for wanted in wanted {
        wanted.ensure(&broker).await?;
    }
    Ok(count)
}

/// How the existing streams and buckets should be, whatever sizes, copies and retention they were
/// made with.
pub(crate) async fn wanted(broker: &Broker) -> Result<Vec<Config>, Error> {
    let mut topology = Topology::default();
    if let Some(orders) = broker.info(subjects::ORDERS).await? {
        topology.replicas = orders.config.num_replicas;
    }
    if let Some(audit) = broker.info(subjects::AUDIT).await? {
        topology.audit_retention = audit.config.max_age;
    }
    let (_, wanted) = all(broker, &topology).await?;
    Ok(wanted.into_iter().map(|wanted| wanted.config).collect())
}

/// The settings of a stream that are not as wanted; its size is not compared.
pub(crate) fn differences(wanted: Config, found: &Config) -> Vec<Difference> {
    Wanted::bucket(wanted).differences(found)
}

/// All of them, and the number of partitions.
async fn all(broker: &Broker, topology: &Topology) -> Result<(u16, [Wanted; 8]), Error> {
    let info = broker.connection.client().server_info();
    let existing = broker.info(subjects::ORDERS).await?;
    let existing = existing.and_then(|info| partitions_of(&info.config));
    let count = topology
        .partitions
        .or(existing)
        .unwrap_or(16)
        .clamp(1, 1_024);
    let limit = storage_limit(broker).await?;
    let largest = i32::try_from(info.max_payload.saturating_sub(ENVELOPE_ROOM)).unwrap_or(i32::MAX);
    let wanted = [
        Wanted {
            chosen_bytes: choose(limit, 2, 10 << 30),
            config: orders(topology, count, largest),
            fixed_bytes: topology.orders_max_bytes,
        },
        Wanted {
            chosen_bytes: choose(limit, 4, 5 << 30),
            config: outcomes(topology),
            fixed_bytes: topology.outcomes_max_bytes,
        },
        Wanted {
            chosen_bytes: choose(limit, 16, 1 << 30),
            config: audit(topology),
            fixed_bytes: 0,
        },
        Wanted::bucket(bucket(topology, subjects::NODES, 1, true)),
        // The registry's history is what a rollback goes back to.
        Wanted::bucket(bucket(
            topology,
            subjects::MERCHANTS,
            Registry::HISTORY.into(),
            false,
        )),
        Wanted::bucket(bucket(topology, subjects::SHIFT, 16, false)),
        Wanted::bucket(bucket(topology, subjects::CONTROL, 1, false)),
        Wanted::bucket(bucket(topology, subjects::SCOPES, 1, false)),
    ];
    Ok((count, wanted))
}

/// The number of partitions of the existing ORDERS.
///
/// # Errors
/// There is none, or it has no partitions.
pub async fn partitions(connection: &Connection) -> Result<u16, Error> {
    let info = Broker::new(connection).info(subjects::ORDERS).await?;
    info.and_then(|info| partitions_of(&info.config))
        .ok_or_else(|| Error::NoStream {
            stream: subjects::ORDERS.to_owned(),
        })
}

/// Bytes of the largest order that ORDERS takes, headers included.
///
/// # Errors
/// There is no ORDERS.
pub async fn largest_order(connection: &Connection) -> Result<usize, Error> {
    let info = Broker::new(connection).info(subjects::ORDERS).await?;
    let info = info.ok_or_else(|| Error::NoStream {
        stream: subjects::ORDERS.to_owned(),
    })?;
    let whole = connection.client().server_info().max_payload;
    let limit = usize::try_from(info.config.max_message_size).ok();
    Ok(limit.filter(|limit| *limit > 0).unwrap_or(whole).min(whole))
}

struct Wanted {
    config: Config,
    /// 0: `chosen_bytes` for a new stream, anything for an existing one.
    fixed_bytes: u64,
    chosen_bytes: i64,
}

impl Wanted {
    /// Of any size.
    fn bucket(config: Config) -> Self {
        Self {
            config,
            fixed_bytes: 0,
            chosen_bytes: -1,
        }
    }

    async fn ensure(self, broker: &Broker) -> Result<(), Error> {
        let name = self.config.name.clone();
        if broker.info(&name).await?.is_none() {
            self.create(broker).await?;
        }
        let found = broker.info(&name).await?;
        let found = found
            .ok_or_else(|| Error::NoStream {
                stream: name.clone(),
            })?
            .config;
        let differences = self.differences(&found);
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::StreamDiffers {
            stream: name,
            differences,
        })
    }

    async fn create(&self, broker: &Broker) -> Result<(), Error> {
        let fixed = i64::try_from(self.fixed_bytes).unwrap_or(i64::MAX);
        let mut max_bytes = if self.fixed_bytes > 0 {
            fixed
        } else {
            self.chosen_bytes
        };
        loop {
            let config = Config {
                max_bytes,
                ..self.config.clone()
            };
            let error = match broker.context.create_stream(config).await {
                Ok(_) => {
                    tracing::info!(stream = self.config.name, max_bytes, "created");
                    return Ok(());
                }
                Err(error) => error,
            };
            // The code stands in the kind of this error, not in its source.
            let code = match error.kind() {
                CreateStreamErrorKind::JetStream(api) => Some(api.error_code().0),
                _ => None,
            };
            match code {
                // Another node was faster; what it made is checked next.
                Some(10_058) => return Ok(()),
                // The server has not that much left.
                Some(10_047 | 10_023) if self.fixed_bytes == 0 && max_bytes > 64 << 20 => {
                    max_bytes /= 2;
                }
                // What may age out and be discarded need not have room set aside for it.
                Some(10_047 | 10_023)
                    if self.config.discard == DiscardPolicy::Old && max_bytes > 0 =>
                {
                    max_bytes = -1;
                }
                _ => {
                    let what = format!("creating stream {}", self.config.name);
                    return Err(Error::broker(what)(error));
                }
            }
        }
    }

    fn differences(&self, found: &Config) -> Vec<Difference> {
        let want = &self.config;
        let mut list = List(Vec::new());
        list.check(
            "subjects",
            &sorted(&want.subjects),
            &sorted(&found.subjects),
        );
        list.check("subject_transform", &transform(want), &transform(found));
        list.check("retention", &want.retention, &found.retention);
        list.check("storage", &want.storage, &found.storage);
        list.check("discard", &want.discard, &found.discard);
        list.check("num_replicas", &want.num_replicas, &found.num_replicas);
        list.check("max_age", &want.max_age, &found.max_age);
        list.check(
            "max_msgs",
            &limit(want.max_messages),
            &limit(found.max_messages),
        );
        list.check(
            "max_msgs_per_subject",
            &limit(want.max_messages_per_subject),
            &limit(found.max_messages_per_subject),
        );
        list.check(
            "discard_new_per_subject",
            &want.discard_new_per_subject,
            &found.discard_new_per_subject,
        );
        list.check("max_consumers", &want.max_consumers, &found.max_consumers);
        list.check(
            "duplicate_window",
            &want.duplicate_window,
            &found.duplicate_window,
        );
        list.check("deny_delete", &want.deny_delete, &found.deny_delete);
        list.check("deny_purge", &want.deny_purge, &found.deny_purge);
        list.check("allow_rollup_hdrs", &want.allow_rollup, &found.allow_rollup);
        list.check(
            "allow_msg_ttl",
            &want.allow_message_ttl,
            &found.allow_message_ttl,
        );
        list.check(
            "subject_delete_marker_ttl",
            &want.subject_delete_marker_ttl,
            &found.subject_delete_marker_ttl,
        );
        list.check("no_ack", &want.no_ack, &found.no_ack);
        list.check("sealed", &want.sealed, &found.sealed);
        list.check("mirror", &false, &found.mirror.is_some());
        let sourced = found
            .sources
            .as_ref()
            .is_some_and(|sources| !sources.is_empty());
        list.check("sources", &false, &sourced);
        // Acknowledged before it is written: never for orders.
        let lazy = found.persist_mode == Some(PersistenceMode::Async);
        list.check("persist_mode async", &false, &lazy);
        if self.fixed_bytes > 0 {
            let fixed = i64::try_from(self.fixed_bytes).unwrap_or(i64::MAX);
            list.check("max_bytes", &fixed, &found.max_bytes);
        }
        let largest = want.max_message_size;
        let fits = found.max_message_size > 0 && found.max_message_size <= largest;
        if largest > 0 && !fits {
            list.0.push(Difference {
                setting: "max_msg_size",
                wanted: format!("1 to {largest}"),
                found: found.max_message_size.to_string(),
            });
        }
        list.0
    }
}

struct List(Vec<Difference>);

impl List {
    fn check<T: PartialEq + std::fmt::Debug>(
        &mut self,
        setting: &'static str,
        want: &T,
        found: &T,
    ) {
        if want != found {
            let (wanted, found) = (format!("{want:?}"), format!("{found:?}"));
            self.0.push(Difference {
                setting,
                wanted,
                found,
            });
        }
    }
}

fn base(topology: &Topology, name: &str, subjects: &[&str]) -> Config {
    Config {
        name: name.to_owned(),
        subjects: subjects
            .iter()
            .map(|subject| (*subject).to_owned())
            .collect(),
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        num_replicas: topology.replicas,
        max_age: Duration::ZERO,
        max_bytes: -1,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        max_consumers: MAX_CONSUMERS,
        duplicate_window: Duration::from_secs(120),
        deny_delete: true,
        ..Config::default()
    }
}

fn orders(topology: &Topology, partitions: u16, largest: i32) -> Config {
    Config {
        subject_transform: Some(SubjectTransform {
            source: subjects::ORDERS_SUBJECTS[0].to_owned(),
            destination: subjects::orders_transform(partitions),
        }),
        max_message_size: largest,
        ..base(topology, subjects::ORDERS, &subjects::ORDERS_SUBJECTS)
    }
}

fn outcomes(topology: &Topology) -> Config {
    base(topology, subjects::OUTCOMES, &subjects::OUTCOMES_SUBJECTS)
}

fn audit(topology: &Topology) -> Config {
    Config {
        // The verb of an operator must not fail for what was recorded long ago.
        discard: DiscardPolicy::Old,
        max_age: topology.audit_retention,
        ..base(topology, subjects::AUDIT, &subjects::AUDIT_SUBJECTS)
    }
}

fn bucket(topology: &Topology, name: &str, history: i64, leases: bool) -> Config {
    let every_key = format!("$KV.{name}.>");
    Config {
        max_messages_per_subject: history,
        allow_rollup: true,
        allow_direct: true,
        allow_message_ttl: leases,
        // Without it an expired key vanishes without a word to those who watch.
        subject_delete_marker_ttl: leases.then_some(Duration::from_secs(60)),
        ..base(topology, &bucket_stream(name), &[&every_key])
    }
}

/// The stream behind a bucket.
pub(crate) fn bucket_stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

async fn storage_limit(broker: &Broker) -> Result<Option<i64>, Error> {
    let account = broker.context.query_account().await;
    let account = account.map_err(Error::broker(
        "asking for the account's limits: is JetStream enabled?",
    ))?;
    let tiered = account
        .tiers
        .values()
        .filter_map(|tier| tier.limits.max_storage)
        .min();
    Ok(account
        .limits
        .max_storage
        .or(tiered)
        .filter(|limit| *limit > 0))
}

fn choose(limit: Option<i64>, share: i64, without: i64) -> i64 {
    limit.map_or(without, |limit| (limit / share).max(1))
}

fn partitions_of(config: &Config) -> Option<u16> {
    let destination = &config.subject_transform.as_ref()?.destination;
    let number = destination.split_once("partition(")?.1.split(',').next()?;
    number.trim().parse().ok().filter(|count| *count > 0)
}

fn new_enough(version: &str) -> bool {
    let mut numbers = version
        .split(['.', '-'])
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    (major, minor) >= (2, 14)
}

fn sorted(subjects: &[String]) -> Vec<String> {
    let mut subjects = subjects.to_vec();
    subjects.sort();
    subjects
}

fn transform(config: &Config) -> Option<(&str, String)> {
    let transform = config.subject_transform.as_ref()?;
    Some((&transform.source, transform.destination.replace(' ', "")))
}

/// 0 and -1 both mean none.
fn limit(number: i64) -> i64 {
    number.max(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_partitions_are_read() {
        for (version, fits) in [("2.14.0", true), ("2.15.1", true), ("3.0.0-dev", true)] {
            assert_eq!(new_enough(version), fits, "{version}");
        }
        for old in ["2.13.9", "2.9.10", "", "x"] {
            assert!(!new_enough(old), "{old}");
        }
        assert_eq!(
            partitions_of(&orders(&Topology::default(), 64, 1)),
            Some(64)
        );
        assert_eq!(partitions_of(&Config::default()), None);
    }
}
