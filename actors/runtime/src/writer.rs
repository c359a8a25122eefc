//! The task that carries a partition's records to the broker, one at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use expediter_ports::{PartitionLog, PublishFailure};
use expediter_types::{Record, Seq};
use tokio::sync::mpsc;

/// First and longest wait before an undecided record is repeated.
const WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What became of a record.
#[derive(Debug)]
pub(crate) enum Written {
    Acked {
        number: u64,
        seq: Seq,
        took: Duration,
    },
    Fenced {
        current: Seq,
    },
    /// OUTCOMES is full; it is tried again.
    Refused(String),
}

/// Publishes what comes, in order, and repeats each record until it is decided. Ends when the
/// sender is dropped or the partition is fenced.
pub(crate) async fn run(
    log: Arc<dyn PartitionLog>,
    mut records: mpsc::Receiver<(u64, Record)>,
    tell: impl Fn(Written) + Send,
) {
    while let Some((number, record)) = records.recv().await {
        let started = Instant::now();
        let mut wait = WAIT.0;
        loop {
            match log.publish(number, record.clone()).await {
                Ok(seq) => {
                    tell(Written::Acked {
                        number,
                        seq,
                        took: started.elapsed(),
                    });
                    break;
                }
                Err(PublishFailure::Fenced { current }) => {
                    return tell(Written::Fenced { current });
                }
                Err(PublishFailure::Refused(why)) => tell(Written::Refused(why)),
                Err(PublishFailure::Undecided(why)) => {
                    tracing::debug!(number, %why, "a record is undecided and will be repeated");
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WAIT.1);
        }
    }
}
