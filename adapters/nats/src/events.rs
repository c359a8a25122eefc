use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use expediter_ports::BoxFuture;
use expediter_types::Partition;

/// What a node's broker side counts. Called on its tasks: must not block.
pub trait NodeEvents: Debug + Send + Sync + 'static {
    /// A claim was taken.
    fn claimed(&self, _partition: Partition) {}
    /// A claim was given back.
    fn released(&self, _partition: Partition) {}
    /// Another claim replaced ours.
    fn fenced(&self, _partition: Partition) {}
    /// A reader could not be believed any more and was replaced.
    fn gap(&self, _partition: Partition) {}
    /// The broker lost acknowledged orders; the partition goes on in a new incarnation.
    fn incarnation(&self, _partition: Partition) {}
    /// The log has so many more orders of the partition than were read; 0 when it is given back.
    fn unread(&self, _partition: Partition, _orders: u64) {}
    /// Finished orders were deleted from the log.
    fn purged(&self, _messages: u64) {}
    /// Subscriptions were full and messages were dropped (readers notice and read again).
    fn slow_consumer(&self) {}
    /// A run of a recurring job was published, so long after its time.
    fn job_published(&self, _late: Duration) {}
    /// Missed runs of a recurring job were left out.
    fn job_left_out(&self, _runs: u64) {}
    /// The connection to NATS was made or lost.
    fn connected(&self, _yes: bool) {}
    /// What ORDERS holds; once a second.
    fn log_size(&self, _messages: u64, _bytes: u64) {}
    /// What ORDERS holds and may hold, in bytes (`most` below 1: unlimited); every few seconds.
    fn orders_size(&self, _bytes: u64, _most: i64) {}
    /// What OUTCOMES holds and may hold, in bytes (`most` below 1: unlimited); every few seconds.
    fn outcomes_size(&self, _bytes: u64, _most: i64) {}
}

impl NodeEvents for () {}

/// Answers control requests to this node and to partitions that it owns.
pub trait ControlHandler: Debug + Send + Sync + 'static {
    /// One request; what it returns is sent back as it is.
    fn handle(&self, partition: Partition, request: Bytes) -> BoxFuture<'static, Bytes>;
    /// The same, to the node itself.
    fn handle_node(&self, request: Bytes) -> BoxFuture<'static, Bytes>;
}
