//! Whether the log is still the one that was read: a broker that comes back shorter or empty gives
//! the same sequences to other messages.

use std::time::Duration;

use expediter_types::{Seq, UnixMillis};
use expediter_wire::subjects;

use crate::Error;
use crate::broker::{Broker, StreamState};
use crate::clock::millis;
use crate::reader::{From, Reader, ReaderOptions};

/// A message of the log that somebody remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Witness {
    /// When the stream was created.
    pub(crate) created: UnixMillis,
    /// 0: nothing is remembered but the stream.
    pub(crate) seq: Seq,
    /// Its timestamp there; 0 when only the sequence is known.
    pub(crate) at: UnixMillis,
}

impl Witness {
    /// Remembers a newer message.
    pub(crate) fn advance(&mut self, seq: Seq, at: UnixMillis) {
        if seq > self.seq {
            (self.seq, self.at) = (seq, at);
        }
    }
}

/// What became of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    Same,
    /// Acknowledged messages above `cut` were lost.
    Lost {
        cut: Seq,
        state: StreamState,
    },
}

/// A new leader may not have read all of its own log yet: only what stays short is short.
const CONFIRMATIONS: u32 = 5;
const CONFIRMATION: Duration = Duration::from_millis(500);

/// Looks for the witness in the log.
pub(crate) async fn check(broker: &Broker, witness: &Witness) -> Result<Identity, Error> {
    let mut looks = 0;
    loop {
        let state = broker.state(subjects::ORDERS).await?;
        if state.created != witness.created {
            return Ok(Identity::Lost { cut: 0, state });
        }
        if witness.seq == 0 || witness.seq < state.first {
            // Purged, as marks allow.
            return Ok(Identity::Same);
        }
        if witness.seq <= state.last {
            let found = broker.message(subjects::ORDERS, witness.seq).await?;
            // A missing one was purged with its merchant's finished orders: a sequence that was
            // given again would be there.
            let same =
                found.is_none_or(|found| witness.at == 0 || millis(found.time) == witness.at);
            if same {
                return Ok(Identity::Same);
            }
        } else if looks < CONFIRMATIONS {
            looks += 1;
            tokio::time::sleep(CONFIRMATION).await;
            continue;
        }
        let cut = surviving(broker, witness.at, state).await?;
        return Ok(Identity::Lost {
            cut: cut.min(witness.seq),
            state,
        });
    }
}

/// Judges the log by a mark, for want of a message that anybody remembers: what was stored well
/// after the mark must lie above what the mark had seen.
pub(crate) async fn check_by_mark(
    broker: &Broker,
    seen: Seq,
    marked_at: UnixMillis,
) -> Result<Identity, Error> {
    let mut looks = 0;
    let mut state = broker.state(subjects::ORDERS).await?;
    while seen > state.last && looks < CONFIRMATIONS {
        looks += 1;
        tokio::time::sleep(CONFIRMATION).await;
        state = broker.state(subjects::ORDERS).await?;
    }
    let later = first_after(broker, marked_at + CLOCKS).await?;
    if seen <= state.last && later.is_none_or(|later| later > seen) {
        return Ok(Identity::Same);
    }
    let cut = surviving(broker, marked_at, state).await?;
    Ok(Identity::Lost {
        cut: cut.min(seen),
        state,
    })
}

/// How far the clocks of a cluster's servers may differ, in milliseconds.
const CLOCKS: u64 = 5_000;

/// The last message that is older than the loss: what was stored afterwards is younger than `at`.
async fn surviving(broker: &Broker, at: UnixMillis, state: StreamState) -> Result<Seq, Error> {
    if at == 0 {
        return Ok(state.last);
    }
    Ok(first_after(broker, at)
        .await?
        .map_or(state.last, |first| first - 1))
}

/// The first message with a later timestamp.
async fn first_after(broker: &Broker, at: UnixMillis) -> Result<Option<Seq>, Error> {
    let options = ReaderOptions {
        stream: subjects::ORDERS.to_owned(),
        filters: vec![">".to_owned()],
        from: From::Time(at + 1),
        name: "survivors".to_owned(),
    };
    let mut reader = Reader::open(broker, &options).await?;
    let first = match reader.pending_at_start() {
        0 => None,
        _ => {
            let first = tokio::time::timeout(Duration::from_secs(5), reader.next()).await;
            let first = first.map_err(|_| Error::plain("ORDERS delivers nothing"))?;
            Some(
                first
                    .map_err(|broken| Error::plain(broken.to_string()))?
                    .seq,
            )
        }
    };
    reader.close().await;
    Ok(first)
}
