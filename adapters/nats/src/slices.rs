//! Leases this node's slices of the limits that merchants share: the KV bucket SCOPES.
//!
//! One task for each limit in demand carries out what [`Lessee`] plans; without demand nothing is
//! written.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use expediter_core::slices::{Demand, Lessee};
use expediter_ports::{SharedLimit, SharedLimits};
use expediter_types::{NodeName, Seq, SliceTable};
use expediter_wire::slices::{decode_slices, encode_slices, parse_slices_key, slices_key};
use expediter_wire::subjects;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::broker::{Broker, NoAck};
use crate::clock::boot;
use crate::error::chain;
use crate::follow::{Change, Follow, Op, Sink, follow};
use crate::streams::bucket_stream;

/// A write without an answer is asked about after this: a lease must not run out over it.
const PATIENCE: Duration = Duration::from_millis(700);

/// What the key of one limit is, as the follower saw it last.
#[derive(Debug, Clone, Default)]
struct Seen {
    revision: Seq,
    table: SliceTable,
    /// How often the bucket was found to be another one.
    lost: u64,
}

/// Leases for ever; ends when its future is dropped.
pub(crate) async fn lease_slices(broker: Broker, node: NodeName, limits: Arc<dyn SharedLimits>) {
    #[expect(
        clippy::disallowed_methods,
        reason = "drained at once: its reader does nothing that waits"
    )]
    let (changes, mut changed) = mpsc::unbounded_channel();
    let what = Follow {
        bucket: subjects::SCOPES,
        keys: ">",
        always_whole: true,
    };
    let begin = |limit: SharedLimit,
                 all: &mut HashMap<SharedLimit, watch::Sender<Seen>>,
                 hungry: &mut HashMap<SharedLimit, watch::Sender<u64>>,
                 tasks: &mut JoinSet<(SharedLimit, u64)>| {
        let (told, news) = watch::channel(0);
        hungry.insert(limit.clone(), told);
        let seen = all.entry(limit.clone()).or_default().subscribe();
        let lost = seen.borrow().lost;
        let one = One {
            broker: broker.clone(),
            limits: Arc::clone(&limits),
            lessee: Lessee::new(node.clone()),
            limit,
            lost,
        };
        tasks.spawn(one.keep(seen, news));
    };
    let leasing = async {
        let mut limits_seen: HashMap<SharedLimit, watch::Sender<Seen>> = HashMap::new();
        let mut hungry: HashMap<SharedLimit, watch::Sender<u64>> = HashMap::new();
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                Some(news) = changed.recv() => take(&mut limits_seen, &*limits, news),
                limit = limits.wanted() => {
                    match hungry.get(&limit) {
                        Some(told) => told.send_modify(|count| *count += 1),
                        None => begin(limit, &mut limits_seen, &mut hungry, &mut tasks),
                    }
                }
                Some(Ok((limit, heard))) = tasks.join_next() => {
                    // Wanted again just when it ended.
                    let again = hungry.remove(&limit).is_some_and(|told| *told.borrow() != heard);
                    if again {
                        begin(limit, &mut limits_seen, &mut hungry, &mut tasks);
                    }
                }
            }
        }
    };
    tokio::select! {
        () = follow(&broker, what, Follower(changes)) => {}
        () = leasing => {}
    }
}

enum News {
    Changed(SharedLimit, Seq, SliceTable),
    Recreated,
}

fn take(
    all: &mut HashMap<SharedLimit, watch::Sender<Seen>>,
    limits: &dyn SharedLimits,
    news: News,
) {
    match news {
        News::Changed(limit, revision, table) => {
            // Also where nothing of it is wanted just now.
            limits.close(&limit, table.closed_until);
            all.entry(limit).or_default().send_modify(|seen| {
                (seen.revision, seen.table) = (revision, table);
            });
        }
        News::Recreated => {
            for seen in all.values() {
                seen.send_modify(|seen| {
                    *seen = Seen {
                        lost: seen.lost + 1,
                        ..Seen::default()
                    };
                });
            }
        }
    }
}

struct Follower(mpsc::UnboundedSender<News>);

impl Sink for Follower {
    fn change(&mut self, change: Change) {
        let Some((kind, id)) = parse_slices_key(&change.key) else {
            return;
        };
        let table = match change.op {
            Op::Put(value) => decode_slices(&value),
            Op::Delete | Op::Expire => Ok(SliceTable::default()),
        };
        match table {
            Ok(table) => {
                let news = News::Changed((kind, id.to_owned()), change.revision, table);
                let _ending = self.0.send(news).is_err();
            }
            Err(error) => {
                tracing::error!(
                    key = change.key,
                    error = chain(&error),
                    "slices are not readable"
                );
            }
        }
    }

    fn synced(&mut self) {}

    async fn recreated(&mut self) {
        let _ending = self.0.send(News::Recreated).is_err();
    }
}

fn now() -> u64 {
    u64::try_from(boot().as_micros()).unwrap_or(u64::MAX)
}

/// One limit in demand.
struct One {
    broker: Broker,
    limits: Arc<dyn SharedLimits>,
    lessee: Lessee,
    limit: SharedLimit,
    lost: u64,
}

impl One {
    /// Until nothing of it is wanted and held.
    async fn keep(
        mut self,
        mut seen: watch::Receiver<Seen>,
        mut hungry: watch::Receiver<u64>,
    ) -> (SharedLimit, u64) {
        // The follower may be behind: the first table is asked for.
        self.settle().await;
        loop {
            let news = seen.borrow_and_update().clone();
            let heard = *hungry.borrow_and_update();
            if news.lost != self.lost {
                self.lost = news.lost;
                self.lessee.recreated(now());
            }
            self.lessee.observe(news.revision, news.table, now());
            let want = self.limits.want(&self.limit);
            let demand = want.map_or_else(Demand::default, |want| Demand {
                wants: want.wants,
                in_use: want.in_use,
                closed_until: want.closed_until,
            });
            let whole = want.map_or(0, |want| want.whole);
            self.limits.close(&self.limit, self.lessee.closed_until());
            if let Some((over, table)) = self.lessee.plan(demand, whole, now()) {
                self.lease(whole);
                self.write(over, &table).await;
            }
            self.lease(whole);
            if demand == Demand::default() && self.lessee.is_out() {
                return (self.limit, heard);
            }
            let at = self.lessee.next_at(now());
            let wait = Duration::from_micros(at.saturating_sub(now()));
            tokio::select! {
                _ = seen.changed() => {}
                _ = hungry.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn lease(&self, whole: u32) {
        let slice = self.lessee.slice(whole, now());
        self.limits.lease(&self.limit, slice, self.lessee.until());
    }

    fn subject(&self) -> String {
        let key = slices_key(self.limit.0, &self.limit.1);
        format!("$KV.{}.{key}", subjects::SCOPES)
    }

    async fn write(&mut self, over: Seq, table: &SliceTable) {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", over.to_string());
        let value = encode_slices(table);
        let written = self
            .broker
            .publish_within(self.subject(), headers, value, PATIENCE);
        match written.await {
            Ok(ack) => {
                self.limits.written();
                self.lessee.confirmed(ack.seq, now());
            }
            Err(error) => {
                if !matches!(error, NoAck::WrongLast { .. }) {
                    let limit = &self.limit.1;
                    tracing::debug!(limit, %error, "a slice was not written");
                }
                self.settle().await;
            }
        }
    }

    /// Reads what the key is, until that is known.
    async fn settle(&mut self) {
        let stream = bucket_stream(subjects::SCOPES);
        loop {
            let subject = self.subject();
            let read = tokio::time::timeout(PATIENCE, self.broker.last(&stream, &subject));
            match read.await {
                Ok(Ok(None)) => return self.lessee.settle(0, SliceTable::default(), now()),
                Ok(Ok(Some(message))) => {
                    // What nobody can read is written anew.
                    let table = decode_slices(&message.payload).unwrap_or_default();
                    return self.lessee.settle(message.sequence, table, now());
                }
                Ok(Err(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}
