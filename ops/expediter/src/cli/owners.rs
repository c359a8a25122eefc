//! Asks the nodes that work on partitions.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use expediter_nats::{Connection, Registry, partitions, request, request_node};
use expediter_types::{MerchantId, NodeName, OrderId, Partition, Seq};
use expediter_wire::control::{
    CancelResult, ControlReply, ControlRequest, MerchantStatus, OrderStatus, PartitionStatus,
    decode_reply, encode_request,
};
use expediter_wire::explain::Explanation;
use expediter_wire::nodes::NodeStatus;
use expediter_wire::subjects;
use futures::StreamExt;

use super::Error;
use super::global::with_causes;

/// An owner answers within milliseconds, or it is stuck.
const PATIENCE: Duration = Duration::from_secs(3);

/// Nodes follow decisions within a second.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(5);

/// A release is in the owner's mark within so long.
const RELEASED_WITHIN: Duration = Duration::from_secs(10);

/// The owners of all partitions.
#[derive(Debug, Clone)]
pub(super) struct Owners {
    connection: Connection,
    partitions: u16,
}

/// All merchants with something to do.
#[derive(Debug, Default)]
pub(super) struct Busy {
    pub(super) merchants: HashMap<MerchantId, MerchantStatus>,
    /// Nobody answered for these.
    pub(super) silent: Vec<Partition>,
}

/// What the owner did about those behind a parked order.
#[derive(Debug, Clone, Copy)]
struct Released {
    /// There were such until then.
    held: bool,
    /// It would survive the owner's end.
    saved: bool,
}

impl Owners {
    /// Of the streams behind this connection.
    pub(super) async fn of(connection: &Connection) -> Result<Self, Error> {
        let partitions = partitions(connection).await?;
        Ok(Self {
            connection: connection.clone(),
            partitions,
        })
    }

    /// All partitions.
    pub(super) fn partitions(&self) -> impl Iterator<Item = Partition> {
        (0..self.partitions).map(Partition)
    }

    /// How a node stands.
    pub(super) async fn node_status(&self, node: &NodeName) -> Result<NodeStatus, Error> {
        let question = encode_request(&ControlRequest::NodeStatus);
        let answer = request_node(&self.connection, node, question, PATIENCE).await?;
        match decode_reply(&answer).map_err(anyhow::Error::from)? {
            ControlReply::Node(status) => Ok(status),
            ControlReply::Error { message } => Err(Error::failed(message)),
            _ => Err(Error::failed(format!("node {node} answers something else"))),
        }
    }

    /// Lets a paused partition go on; true when it was paused.
    pub(super) async fn resume(&self, partition: Partition) -> Result<bool, Error> {
        match self
            .ask(partition, &ControlRequest::PartitionResume)
            .await?
        {
            ControlReply::Resumed { paused } => Ok(paused),
            _ => Err(strange(partition)),
        }
    }

    /// Which of these sequences do not wait at the owner, of those that it has passed; and how far
    /// that is. At most [`MAX_ACCOUNT`] of them.
    pub(super) async fn account(
        &self,
        partition: Partition,
        seqs: &[Seq],
    ) -> Result<(Seq, Vec<Seq>), Error> {
        let question = ControlRequest::PartitionAccount {
            seqs: seqs.to_vec(),
        };
        match self.ask(partition, &question).await? {
            ControlReply::Account { seen, closed } => Ok((seen, closed)),
            _ => Err(strange(partition)),
        }
    }

    /// The partition of a merchant.
    pub(super) fn partition(&self, merchant: &MerchantId) -> Partition {
        subjects::partition_of(merchant.as_str(), self.partitions)
    }

    /// How a merchant stands.
    pub(super) async fn status(&self, merchant: &MerchantId) -> Result<MerchantStatus, Error> {
        let partition = self.partition(merchant);
        let request = ControlRequest::MerchantStatus {
            merchant: merchant.clone(),
        };
        match self.ask(partition, &request).await? {
            ControlReply::Merchant(status) => Ok(status),
            _ => Err(strange(partition)),
        }
    }

    /// How a partition stands.
    pub(super) async fn partition_status(
        &self,
        partition: Partition,
    ) -> Result<PartitionStatus, Error> {
        match self
            .ask(partition, &ControlRequest::PartitionStatus)
            .await?
        {
            ControlReply::Partition(status) => Ok(status),
            _ => Err(strange(partition)),
        }
    }

    /// Unfinished orders of a merchant.
    pub(super) async fn remaining(&self, merchant: &MerchantId) -> Result<u64, Error> {
        let partition = self.partition(merchant);
        let request = ControlRequest::MerchantDrain {
            merchant: merchant.clone(),
        };
        match self.ask(partition, &request).await? {
            ControlReply::Drain { remaining } => Ok(remaining),
            _ => Err(strange(partition)),
        }
    }

    /// Ends a merchant's waiting orders; gives how many it began to end and how many are left.
    pub(super) async fn dead_letter(
        &self,
        merchant: &MerchantId,
        reason: &str,
        actor: &str,
    ) -> Result<(u64, u64), Error> {
        let partition = self.partition(merchant);
        let request = ControlRequest::MerchantDeadLetter {
            merchant: merchant.clone(),
            reason: reason.to_owned(),
            actor: actor.to_owned(),
        };
        match self.ask(partition, &request).await? {
            ControlReply::DeadLetter { ended, remaining } => Ok((ended, remaining)),
            _ => Err(strange(partition)),
        }
    }

    /// Where an order is.
    pub(super) async fn order(
        &self,
        merchant: &MerchantId,
        id: &OrderId,
    ) -> Result<OrderStatus, Error> {
        let partition = self.partition(merchant);
        let request = ControlRequest::OrderShow {
            merchant: merchant.clone(),
            id: id.clone(),
        };
        match self.ask(partition, &request).await? {
            ControlReply::Order(status) => Ok(status),
            _ => Err(strange(partition)),
        }
    }

    /// Why an order waits, or, without one, all of the merchant's.
    pub(super) async fn explain(
        &self,
        merchant: &MerchantId,
        order: Option<&OrderId>,
    ) -> Result<Explanation, Error> {
        let partition = self.partition(merchant);
        let merchant = merchant.clone();
        let request = match order.cloned() {
            Some(id) => ControlRequest::OrderExplain { merchant, id },
            None => ControlRequest::MerchantExplain { merchant },
        };
        match self.ask(partition, &request).await? {
            ControlReply::Explanation(explanation) => Ok(*explanation),
            _ => Err(strange(partition)),
        }
    }

    /// Takes an order back; gives what came of it, its sequence, and how far the partition was read.
    pub(super) async fn cancel(
        &self,
        merchant: &MerchantId,
        id: &OrderId,
        reason: &str,
        actor: &str,
    ) -> Result<(CancelResult, Option<Seq>, Seq), Error> {
        let partition = self.partition(merchant);
        let request = ControlRequest::OrderCancel {
            merchant: merchant.clone(),
            id: id.clone(),
            reason: reason.to_owned(),
            actor: actor.to_owned(),
        };
        match self.ask(partition, &request).await? {
            ControlReply::Cancel { result, seq, seen } => Ok((result, seq, seen)),
            _ => Err(strange(partition)),
        }
    }

    /// Lets the orders go on that wait behind a parked one, which a person has resolved; true when
    /// there were any.
    ///
    /// # Errors
    /// The owner does not answer, or could not write it down: then it is not said to be resolved.
    pub(super) async fn release(
        &self,
        merchant: &MerchantId,
        id: &OrderId,
        generation: u32,
    ) -> Result<bool, Error> {
        let registered = Registry::new(&self.connection).get(merchant).await?;
        if !registered.is_some_and(|entry| entry.registration.merchant.holds_on_park()) {
            return Ok(false);
        }
        let deadline = Instant::now() + RELEASED_WITHIN;
        let mut held = false;
        loop {
            let reply = self.resolve(merchant, id, generation).await?;
            held |= reply.held;
            if reply.saved {
                return Ok(held);
            }
            if Instant::now() >= deadline {
                return Err(Error::failed(format!(
                    "the node that works on {merchant} let its orders go on, but could not write \
                     that down in {} s: repeat this when NATS is well",
                    RELEASED_WITHIN.as_secs()
                )));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn resolve(
        &self,
        merchant: &MerchantId,
        id: &OrderId,
        generation: u32,
    ) -> Result<Released, Error> {
        let partition = self.partition(merchant);
        let request = ControlRequest::OrderResolve {
            merchant: merchant.clone(),
            id: id.clone(),
            generation,
        };
        match self.ask(partition, &request).await? {
            ControlReply::Resolve { held, saved } => Ok(Released { held, saved }),
            _ => Err(strange(partition)),
        }
    }

    /// Waits until the owners of these partitions follow a decision; gives those that do not, in
    /// time or at all. Empty `of`: all partitions.
    pub(super) async fn following(&self, revision: u64, of: Vec<Partition>) -> Vec<Partition> {
        let all = || (0..self.partitions).map(Partition).collect();
        let mut left = if of.is_empty() { all() } else { of };
        let deadline = tokio::time::Instant::now() + FOLLOWED_WITHIN;
        loop {
            let asked = left.iter().map(|p| async move {
                let status = self.partition_status(*p).await;
                (*p, status.is_ok_and(|status| status.decided >= revision))
            });
            let asked: Vec<(Partition, bool)> = futures::stream::iter(asked)
                .buffer_unordered(16)
                .collect()
                .await;
            left = asked
                .into_iter()
                .filter_map(|(partition, follows)| (!follows).then_some(partition))
                .collect();
            left.sort_unstable();
            if left.is_empty() || tokio::time::Instant::now() >= deadline {
                return left;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All merchants with something to do, of all partitions that are owned.
    pub(super) async fn busy(&self) -> Busy {
        let lists = (0..self.partitions).map(|number| self.busy_of(Partition(number)));
        let mut busy = Busy::default();
        let mut lists = futures::stream::iter(lists).buffer_unordered(16);
        while let Some((partition, list)) = lists.next().await {
            match list {
                Ok(list) => {
                    busy.merchants
                        .extend(list.into_iter().map(|s| (s.merchant.clone(), s)));
                }
                Err(_) => busy.silent.push(partition),
            }
        }
        busy
    }

    async fn busy_of(
        &self,
        partition: Partition,
    ) -> (Partition, Result<Vec<MerchantStatus>, Error>) {
        let mut all: Vec<MerchantStatus> = Vec::new();
        loop {
            let after = all
                .last()
                .map(|last| last.merchant.to_string())
                .unwrap_or_default();
            let page = match self
                .ask(partition, &ControlRequest::MerchantList { after })
                .await
            {
                Ok(ControlReply::Merchants { merchants, more }) => (merchants, more),
                Ok(_) => return (partition, Err(strange(partition))),
                Err(error) => return (partition, Err(error)),
            };
            let (merchants, more) = page;
            let done = !more || merchants.is_empty();
            all.extend(merchants);
            if done {
                return (partition, Ok(all));
            }
        }
    }

    /// The newest order of a merchant in the log; 0 when there is none.
    pub(super) async fn newest(&self, merchant: &MerchantId) -> Result<Seq, Error> {
        use async_nats::jetstream::stream::LastRawMessageErrorKind;
        let context = async_nats::jetstream::new(self.connection.client().clone());
        let stream = context
            .get_stream_no_info(subjects::ORDERS)
            .await
            .map_err(anyhow::Error::from)?;
        let subject = subjects::orders(self.partition(merchant), merchant);
        match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => Ok(message.sequence),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(0),
            Err(error) => Err(Error::failed(format!(
                "reading ORDERS: {}",
                with_causes(&error)
            ))),
        }
    }

    async fn ask(
        &self,
        partition: Partition,
        question: &ControlRequest,
    ) -> Result<ControlReply, Error> {
        let answer = request(
            &self.connection,
            partition,
            encode_request(question),
            PATIENCE,
        )
        .await?;
        match decode_reply(&answer) {
            Ok(ControlReply::Error { message }) => Err(Error::failed(format!(
                "the owner of partition {partition} says: {message}"
            ))),
            Ok(reply) => Ok(reply),
            Err(error) => Err(Error::failed(with_causes(&error))),
        }
    }
}

fn strange(partition: Partition) -> Error {
    Error::failed(format!(
        "the owner of partition {partition} answers another question: is it of another version?"
    ))
}
