//! Orders come in from the log: as many, and as much, as the store can follow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix::Addr;
use expediter_ports::{
    BoxFuture, IntakeBatch, IntakeClosed, LogMessage, LogState, PartitionIntake,
};
use expediter_types::Seq;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::gauges::PartitionGauges;
use crate::partition_actor::{Input, PartitionActor};

/// What a batch of orders takes up until the store has it; given back when dropped.
#[derive(Debug)]
pub(crate) struct Credit {
    _orders: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) address: Addr<PartitionActor>,
    pub(crate) credits: Arc<Semaphore>,
    pub(crate) all: usize,
    /// Of the node, in KiB.
    pub(crate) bytes: Arc<Semaphore>,
    pub(crate) all_kib: u32,
    pub(crate) gauges: Arc<PartitionGauges>,
    pub(crate) lost: AtomicBool,
}

impl PartitionIntake for Intake {
    fn deliver(&self, batch: IntakeBatch) -> BoxFuture<'_, Result<(), IntakeClosed>> {
        Box::pin(async move {
            let wanted = u32::try_from(batch.messages.len().min(self.all)).unwrap_or(u32::MAX);
            let size = |message: &LogMessage| match &message.order {
                Ok(order) => order.payload.len(),
                Err(bad) => bad.payload.len(),
            };
            let bytes: usize = batch.messages.iter().map(size).sum();
            let kib = u32::try_from(bytes.div_ceil(1024))
                .unwrap_or(u32::MAX)
                .min(self.all_kib);
            self.gauges.intake_waits(true);
            let orders = Arc::clone(&self.credits).acquire_many_owned(wanted).await;
            let bytes = Arc::clone(&self.bytes).acquire_many_owned(kib).await;
            self.gauges.intake_waits(false);
            let credit = Credit {
                _orders: orders.map_err(|_| IntakeClosed)?,
                _bytes: bytes.map_err(|_| IntakeClosed)?,
            };
            self.address
                .try_send(Input::Log(batch, credit))
                .map_err(|_| IntakeClosed)
        })
    }

    fn seen(&self) -> Seq {
        self.gauges.seen.load(Ordering::Acquire)
    }

    fn log_lost(&self, state: LogState) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            tracing::error!(
                ?state,
                "the broker is another one or lost acknowledged orders"
            );
            self.credits.close();
            let _ended = self.address.try_send(Input::LogLost).is_err();
        }
    }
}
