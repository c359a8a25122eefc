//! Answers what operators ask about the partitions of this node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use expediter_core::Stored;
use expediter_core::partition::{
    Cancel, Cancelling, HeldBy, Located, MerchantRow, MerchantState as Row, Released,
};
use expediter_nats::ControlHandler;
use expediter_ports::BoxFuture;
use expediter_runtime::{Clock, Platform};
use expediter_types::{DeadReason, Hold, HoldState, MerchantId, NodeName, OrderId, Partition, Seq};
use expediter_wire::Rfc3339;
use expediter_wire::control::{
    CancelResult, ControlReply, ControlRequest, HoldStatus, MAX_ACCOUNT, MAX_MERCHANTS,
    MerchantState, MerchantStatus, OrderStatus, PartitionState, PartitionStatus, Place,
    decode_request, encode_reply,
};

use crate::node::NodeHealth;

mod explain;

/// Characters of a person's reason that stand in each dead letter.
const MAX_REASON: usize = 200;

/// How long a request to cancel waits for the order's outcome.
const CANCEL_PATIENCE: Duration = Duration::from_secs(2);

/// The node's answers to control requests.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    platform: Platform,
    node: NodeName,
    health: Arc<NodeHealth>,
}

impl ControlHandler for Control {
    fn handle(&self, partition: Partition, request: Bytes) -> BoxFuture<'static, Bytes> {
        let control = self.clone();
        Box::pin(async move {
            let reply = match decode_request(&request) {
                Ok(request) => control.answer(partition, request).await,
                Err(error) => error_reply(error),
            };
            encode_reply(&reply)
        })
    }

    fn handle_node(&self, request: Bytes) -> BoxFuture<'static, Bytes> {
        let reply = match decode_request(&request) {
            Ok(ControlRequest::NodeStatus) => match self.health.node_status() {
                Some(status) => ControlReply::Node(status),
                None => error_reply("the node is starting"),
            },
            Ok(_) => error_reply("the owner of a partition answers that, not a node"),
            Err(error) => error_reply(error),
        };
        Box::pin(std::future::ready(encode_reply(&reply)))
    }
}

impl Control {
    /// Answers for this node and the partitions of its platform.
    pub(crate) fn new(platform: Platform, node: NodeName, health: Arc<NodeHealth>) -> Self {
        Self {
            platform,
            node,
            health,
        }
    }

    async fn answer(&self, partition: Partition, request: ControlRequest) -> ControlReply {
        let answer = match request {
            ControlRequest::OrderShow { merchant, id } => self.order(partition, merchant, id).await,
            ControlRequest::OrderResolve {
                merchant,
                id,
                generation,
            } => self.resolve(partition, merchant, id, generation).await,
            ControlRequest::OrderExplain { merchant, id } => {
                let status = self.order(partition, merchant.clone(), id).await;
                match status {
                    Some(ControlReply::Order(status)) => {
                        explain::order(&self.platform, partition, merchant, status).await
                    }
                    other => other,
                }
            }
            ControlRequest::MerchantExplain { merchant } => {
                explain::merchant(&self.platform, partition, merchant).await
            }
            ControlRequest::MerchantStatus { merchant } => self
                .merchant(partition, merchant)
                .await
                .map(ControlReply::Merchant),
            ControlRequest::MerchantList { after } => self.merchants(partition, after).await,
            ControlRequest::MerchantDrain { merchant } => {
                let status = self.merchant(partition, merchant).await;
                status.map(|status| ControlReply::Drain {
                    remaining: status.backlog,
                })
            }
            ControlRequest::MerchantDeadLetter {
                merchant,
                reason,
                actor,
            } => self.dead_letter(partition, merchant, &reason, &actor).await,
            ControlRequest::OrderCancel {
                merchant,
                id,
                reason,
                actor,
            } => self.cancel(partition, merchant, id, &reason, &actor).await,
            ControlRequest::PartitionStatus => self.partition(partition).await,
            ControlRequest::PartitionResume => self.resume(partition).await,
            ControlRequest::PartitionAccount { seqs } => self.account(partition, seqs).await,
            ControlRequest::NodeStatus => Some(error_reply("a node answers that, not a partition")),
        };
        answer.unwrap_or_else(|| error_reply("this node does not work on the partition any more"))
    }

    async fn merchant(&self, partition: Partition, merchant: MerchantId) -> Option<MerchantStatus> {
        let id = merchant.clone();
        let found = self.platform.ask(partition, move |machine, directory| {
            let row = machine.rows(Some(&merchant), directory, Clock::now()).pop();
            row.map_or_else(|| nothing(merchant), status)
        });
        Some(self.with_oldest(partition, id, found.await?).await)
    }

    /// The oldest order may be in the store.
    async fn with_oldest(
        &self,
        partition: Partition,
        merchant: MerchantId,
        mut status: MerchantStatus,
    ) -> MerchantStatus {
        if status.backlog > status.in_flight
            && let Some(stored) = self.platform.oldest_stored(partition, merchant).await
        {
            let known = status.oldest.map_or(stored, |oldest| oldest.0.min(stored));
            status.oldest = Some(Rfc3339(known));
        }
        status
    }

    async fn merchants(&self, partition: Partition, after: String) -> Option<ControlReply> {
        let rows = self.platform.ask(partition, |machine, directory| {
            machine.rows(None, directory, Clock::now())
        });
        let mut reply = page(rows.await?, &after);
        if let ControlReply::Merchants { merchants, .. } = &mut reply {
            for status in merchants {
                let id = status.merchant.clone();
                *status = self.with_oldest(partition, id, status.clone()).await;
            }
        }
        Some(reply)
    }

    async fn dead_letter(
        &self,
        partition: Partition,
        merchant: MerchantId,
        reason: &str,
        actor: &str,
    ) -> Option<ControlReply> {
        let detail = said_by(reason, actor);
        tracing::warn!(%merchant, reason = detail, "an operator ends all waiting orders");
        let counted = self.platform.ask(partition, move |machine, directory| {
            let now = Clock::now();
            let row = machine.rows(Some(&merchant), directory, now).pop();
            machine.condemn(
                &merchant,
                DeadReason::MerchantDeleted,
                &detail,
                directory,
                now,
            );
            row.map_or((0, 0), |row| (row.backlog, u64::from(row.in_flight)))
        });
        // What waits in the store is ended step by step, and each outcome has to be written: the
        // asker asks again until nothing remains.
        let (remaining, in_flight) = counted.await?;
        Some(ControlReply::DeadLetter {
            ended: remaining.saturating_sub(in_flight),
            remaining,
        })
    }

    async fn resolve(
        &self,
        partition: Partition,
        merchant: MerchantId,
        id: OrderId,
        generation: u32,
    ) -> Option<ControlReply> {
        let released = self.platform.ask(partition, move |machine, directory| {
            machine.release_parked(&merchant, &id, generation, directory, Clock::now())
        });
        let Released { held, saved } = released.await?;
        Some(ControlReply::Resolve { held, saved })
    }

    /// Waits a little for the outcome: who asked wants to know that it stands.
    async fn cancel(
        &self,
        partition: Partition,
        merchant: MerchantId,
        id: OrderId,
        reason: &str,
        actor: &str,
    ) -> Option<ControlReply> {
        let why = said_by(reason, actor);
        tracing::info!(%merchant, order = %id, reason = why, "an order is to be cancelled");
        let asked = self.platform.ask(partition, move |machine, directory| {
            let begun = machine.cancel(&merchant, &id, &why, directory);
            (begun, machine.seen())
        });
        let (begun, seen) = asked.await?;
        let reply = |result, seq| Some(ControlReply::Cancel { result, seq, seen });
        let seq = match begun {
            Cancel::Begun { seq } => seq,
            Cancel::TooLate { seq } => return reply(CancelResult::TooLate, Some(seq)),
            Cancel::Ended { seq } => return reply(CancelResult::Ended, Some(seq)),
            Cancel::Unknown => return reply(CancelResult::Unknown, None),
        };
        let until = tokio::time::Instant::now() + CANCEL_PATIENCE;
        loop {
            let how = self
                .platform
                .ask(partition, move |machine, _| machine.cancelling(seq));
            let result = match how.await? {
                Cancelling::Cancelled => CancelResult::Cancelled,
                Cancelling::TooLate => CancelResult::TooLate,
                Cancelling::Ended => CancelResult::Ended,
                Cancelling::Waiting | Cancelling::Ending => {
                    if tokio::time::Instant::now() < until {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        continue;
                    }
                    CancelResult::Pending
                }
            };
            return reply(result, Some(seq));
        }
    }

    async fn partition(&self, partition: Partition) -> Option<ControlReply> {
        let node = self.node.clone();
        let status = self.platform.ask(partition, move |machine, directory| {
            let decided = directory.decided();
            let rows = machine.rows(None, directory, Clock::now());
            PartitionStatus {
                partition: partition.0,
                node,
                epoch: machine.stamp().token,
                state: PartitionState::Running,
                seen: machine.seen(),
                low_water: machine.low_water(),
                unfinished: machine.unfinished(),
                in_flight: u64::from(machine.running()),
                merchants: rows.iter().filter(|row| row.backlog > 0).count() as u64,
                decided,
                paused: machine.is_paused(),
            }
        });
        status.await.map(ControlReply::Partition)
    }

    async fn resume(&self, partition: Partition) -> Option<ControlReply> {
        let reply = self.platform.ask(partition, |machine, directory| {
            let paused = machine.resume_all(directory, Clock::now());
            ControlReply::Resumed { paused }
        });
        reply.await
    }

    async fn account(&self, partition: Partition, mut seqs: Vec<Seq>) -> Option<ControlReply> {
        seqs.truncate(MAX_ACCOUNT);
        let reply = self.platform.ask(partition, move |machine, _| {
            let seen = machine.seen();
            seqs.retain(|seq| *seq <= seen && !machine.is_open(*seq));
            ControlReply::Account { seen, closed: seqs }
        });
        reply.await
    }

    async fn order(
        &self,
        partition: Partition,
        merchant: MerchantId,
        id: OrderId,
    ) -> Option<ControlReply> {
        let asked = self.platform.ask(partition, move |machine, _| {
            (machine.locate(&merchant, &id), machine.seen())
        });
        let (located, seen) = asked.await?;
        let status = match located {
            Located::Mailbox { stored, running } => {
                let place = if running.is_some() {
                    Place::InFlight
                } else {
                    Place::Mailbox
                };
                found(place, seen, &stored)
            }
            Located::Store { merchant, seq } => {
                match self.platform.stored(partition, merchant, seq).await {
                    Some(stored) => found(Place::Store, seen, &stored),
                    // It was finished, or taken into a mailbox, in between.
                    None => at(Place::Store, seen, Some(seq)),
                }
            }
            Located::Finishing { seq } | Located::Finished { seq } => {
                at(Place::Finished, seen, Some(seq))
            }
            Located::Unknown => at(Place::Unknown, seen, None),
        };
        Some(ControlReply::Order(status))
    }
}

/// A reason and who gave it, in one line.
fn said_by(reason: &str, actor: &str) -> String {
    let line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let detail = format!("{} ({})", line(reason), line(actor));
    detail.chars().take(MAX_REASON).collect()
}

fn error_reply(message: impl ToString) -> ControlReply {
    ControlReply::Error {
        message: message.to_string(),
    }
}

/// Those with something to do, by id, as many as fit in a reply.
fn page(mut rows: Vec<MerchantRow>, after: &str) -> ControlReply {
    rows.retain(|row| row.merchant.as_str() > after && is_of_interest(row));
    rows.sort_by(|a, b| a.merchant.cmp(&b.merchant));
    let more = rows.len() > MAX_MERCHANTS;
    rows.truncate(MAX_MERCHANTS);
    ControlReply::Merchants {
        merchants: rows.into_iter().map(status).collect(),
        more,
    }
}

fn is_of_interest(row: &MerchantRow) -> bool {
    row.backlog > 0 || !matches!(row.state, Row::Open | Row::Unknown)
}

fn hold_status(by: &Hold) -> HoldStatus {
    HoldStatus {
        scope: by.scope.as_str().to_owned(),
        reason: by.reason.to_string(),
        actor: by.actor.to_string(),
        at: Rfc3339(by.at),
    }
}

/// Nearest rank.
fn percentile(samples: &[u32], percent: usize) -> Option<u32> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

fn nothing(merchant: MerchantId) -> MerchantStatus {
    MerchantStatus {
        merchant,
        state: MerchantState::Idle,
        backlog: 0,
        mailbox: 0,
        in_flight: 0,
        closed_because: None,
        closed_until: None,
        hold: None,
        opens: None,
        oldest: None,
        per_minute: 0,
        p50_ms: None,
        p99_ms: None,
        last_error: None,
    }
}

fn status(row: MerchantRow) -> MerchantStatus {
    let (mut closure, mut hold, mut opens) = (None, None, None);
    let state = match row.state {
        Row::Open if row.backlog == 0 => MerchantState::Idle,
        Row::Open => MerchantState::Active,
        Row::Closed { because, until } => {
            closure = Some((because, until));
            MerchantState::Closed
        }
        Row::Quarantined => MerchantState::Quarantined,
        Row::Unknown => MerchantState::Unknown,
        Row::Held(HeldBy::OutsideHours { until }) => {
            opens = until.map(Rfc3339);
            MerchantState::OutsideHours
        }
        Row::Held(HeldBy::ByOperator(by)) => {
            let state = match by.state {
                HoldState::Paused => MerchantState::Paused,
                HoldState::Draining => MerchantState::Draining,
            };
            hold = Some(hold_status(&by));
            state
        }
    };
    MerchantStatus {
        state,
        hold,
        opens,
        backlog: row.backlog,
        mailbox: u64::from(row.mailbox),
        in_flight: u64::from(row.in_flight),
        closed_because: closure.map(|(because, _)| because),
        closed_until: closure.map(|(_, until)| Rfc3339(until)),
        last_error: Some(row.last_error).filter(|error| !error.is_empty()),
        oldest: row.oldest.map(Rfc3339),
        per_minute: row.per_minute,
        p50_ms: percentile(&row.latencies, 50),
        p99_ms: percentile(&row.latencies, 99),
        ..nothing(row.merchant)
    }
}

fn at(place: Place, seen: Seq, seq: Option<Seq>) -> OrderStatus {
    OrderStatus {
        found: seq.is_some(),
        place,
        seen,
        seq,
        generation: None,
        created: None,
        due: None,
        deadline: None,
        ambiguous: false,
        outcome: None,
        attempts: Vec::new(),
    }
}

fn found(place: Place, seen: Seq, stored: &Stored) -> OrderStatus {
    let (order, state) = (&stored.order, &stored.state);
    OrderStatus {
        generation: Some(order.envelope.generation),
        created: Some(Rfc3339(order.envelope.created)),
        due: state.due.map(Rfc3339),
        deadline: Some(Rfc3339(stored.deadline)),
        ambiguous: state.ambiguous,
        attempts: state.history.clone(),
        ..at(place, seen, Some(order.seq))
    }
}

#[cfg(test)]
mod tests {
    use expediter_types::ClosedBecause;

    use super::*;

    fn row(id: &str, state: Row, backlog: u64) -> MerchantRow {
        MerchantRow {
            merchant: MerchantId::new(id).unwrap(),
            state,
            backlog,
            in_flight: 0,
            mailbox: 0,
            delivered: 0,
            latencies: Vec::new(),
            last_error: String::new(),
            per_minute: 0,
            oldest: None,
        }
    }

    #[test]
    fn a_page_has_what_is_of_interest_by_id() {
        let closed = Row::Closed {
            because: ClosedBecause::Suspended,
            until: 5,
        };
        let rows = vec![
            row("d", Row::Open, 1),
            row("b", closed, 0),
            row("c", Row::Open, 0),
            row("a", Row::Open, 1),
            row("e", Row::Quarantined, 0),
        ];
        let ControlReply::Merchants { merchants, more } = page(rows, "a") else {
            panic!()
        };
        let ids: Vec<&str> = merchants
            .iter()
            .map(|status| status.merchant.as_str())
            .collect();
        assert_eq!((ids, more), (vec!["b", "d", "e"], false));
        assert_eq!(merchants[0].closed_until, Some(Rfc3339(5)));
    }

    #[test]
    fn the_largest_page_fits_a_message() {
        let rows = (0..=MAX_MERCHANTS).map(|n| MerchantRow {
            last_error: "\u{7}".repeat(200),
            ..row(&format!("{n:064}"), Row::Open, u64::MAX)
        });
        let reply = page(rows.collect(), "");
        assert!(matches!(reply, ControlReply::Merchants { more: true, .. }));
        assert!(encode_reply(&reply).len() < 1 << 20);
    }
}
