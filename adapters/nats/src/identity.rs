//! Whether the log is still the one that was read: a broker that comes back shorter or empty gives
//! the same sequences to other messages.

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

/// Looks for the witness in the log.
pub(crate) async fn check(broker: &Broker, witness: &Witness) -> Result<Identity, Error> {
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
        // A missing one was purged with its merchant's finished orders: a sequence that was given
        // again would be there.
        let same = found.is_none_or(|found| witness.at == 0 || millis(found.time) == witness.at);
        if same {
            return Ok(Identity::Same);
        }
    }
    let cut = surviving(broker, witness, state).await?;
    Ok(Identity::Lost { cut, state })
}

/// The last message that is older than the loss: what was stored afterwards is younger than the
/// witness.
async fn surviving(broker: &Broker, witness: &Witness, state: StreamState) -> Result<Seq, Error> {
    if witness.at == 0 {
        return Ok(state.last.min(witness.seq));
    }
    let options = ReaderOptions {
        stream: subjects::ORDERS.to_owned(),
        filters: vec![">".to_owned()],
        from: From::Time(witness.at + 1),
        name: "survivors".to_owned(),
    };
    let mut reader = Reader::open(broker, &options).await?;
    if reader.pending_at_start() == 0 {
        reader.close().await;
        return Ok(state.last);
    }
    let first = reader
        .next()
        .await
        .map_err(|broken| Error::plain(broken.to_string()))?;
    reader.close().await;
    Ok(first.seq - 1)
}
