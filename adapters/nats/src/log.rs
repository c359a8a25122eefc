//! One look a second at ORDERS, shared by all partitions of the node.

use std::sync::Arc;
use std::time::Duration;

use async_nats::datetime::DateTime;
use expediter_wire::subjects;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::broker::{Broker, StreamState};
use crate::error::chain;
use crate::identity::{Identity, Witness, check};
use crate::{Error, NodeEvents, Topology, ensure};

const EVERY: Duration = Duration::from_secs(1);
/// All streams and buckets are looked at every so many looks.
const ALL: u32 = 30;

/// ORDERS as it was at the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogView {
    pub(crate) state: StreamState,
    /// Rises when the log is found to be another one.
    pub(crate) generation: u64,
    /// Rises when the looks are answered by another leader, or by the same one elected again.
    pub(crate) leadership: u64,
    /// When the look began.
    pub(crate) asked: Instant,
}

impl LogView {
    /// Before the first look.
    pub(crate) fn none() -> Self {
        Self {
            state: StreamState::default(),
            generation: 0,
            leadership: 0,
            asked: Instant::now(),
        }
    }
}

/// One look's answer.
struct Look {
    state: StreamState,
    led: Led,
    /// It is not the log that was seen before.
    lost: bool,
}

/// Name and election of the leader that answered; nothing where a stream is not replicated.
type Led = Option<(Option<String>, Option<DateTime>)>;

/// How full OUTCOMES is, is asked with every so manieth look.
const FILL: u32 = 5;

/// Looks for ever; ends when its future is dropped. Creates the streams anew when the broker came
/// back without them.
pub(crate) async fn look(
    broker: Broker,
    topology: Topology,
    events: Arc<dyn NodeEvents>,
    view: watch::Sender<LogView>,
) {
    let mut witness: Option<Witness> = None;
    let mut led: Led = None;
    let mut interval = tokio::time::interval(EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for look in 1_u32.. {
        interval.tick().await;
        if look.is_multiple_of(ALL) {
            mend(&broker, &topology).await;
        }
        if look.is_multiple_of(FILL) {
            match broker.info(subjects::OUTCOMES).await {
                Ok(Some(info)) => events.outcomes_size(info.state.bytes, info.config.max_bytes),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(error = chain(&error), "OUTCOMES cannot be looked at")
                }
            }
        }
        let asked = Instant::now();
        match once(&broker, &topology, &mut witness).await {
            Ok(look) => {
                events.log_size(look.state.messages, look.state.bytes);
                let another = led != look.led;
                led = look.led;
                view.send_modify(|view| {
                    view.state = look.state;
                    view.generation += u64::from(look.lost);
                    view.leadership += u64::from(another);
                    view.asked = asked;
                });
            }
            Err(error) => tracing::debug!(error = chain(&error), "ORDERS cannot be looked at"),
        }
    }
}

async fn once(
    broker: &Broker,
    topology: &Topology,
    witness: &mut Option<Witness>,
) -> Result<Look, Error> {
    let info = match broker.info(subjects::ORDERS).await? {
        Some(info) => info,
        None => {
            tracing::error!("the broker has lost its streams: creating them anew");
            mend(broker, topology).await;
            let info = broker.info(subjects::ORDERS).await?;
            info.ok_or_else(|| Error::NoStream {
                stream: subjects::ORDERS.to_owned(),
            })?
        }
    };
    let state = StreamState::from(&info);
    let led = info
        .cluster
        .map(|cluster| (cluster.leader, cluster.leader_since));
    let lost = match witness {
        None => false,
        Some(witness) => check(broker, witness).await? != Identity::Same,
    };
    if lost {
        // The buckets and OUTCOMES may be gone as well.
        mend(broker, topology).await;
    }
    if lost || witness.is_none() {
        *witness = Some(Witness {
            created: state.created,
            seq: 0,
            at: 0,
        });
    }
    if let Some(witness) = witness
        && state.messages > 0
    {
        witness.advance(state.last, state.last_at);
    }
    Ok(Look { state, led, lost })
}

/// Makes what is missing; what differs is somebody's doing, and left alone.
async fn mend(broker: &Broker, topology: &Topology) {
    match ensure(&broker.connection, topology).await {
        Ok(_) => {}
        Err(error @ Error::Broker { .. }) => {
            tracing::debug!(error = chain(&error), "the streams cannot be looked at");
        }
        Err(error) => tracing::error!(
            error = chain(&error),
            "the streams are not as they should be"
        ),
    }
}
