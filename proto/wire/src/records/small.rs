//! Attempt marks and shift records.

use std::borrow::Cow;

use bytes::Bytes;
use expediter_types::{AttemptMark, MerchantId, OrderId, ShiftRecord, Stamp};
use serde::{Deserialize, Serialize};

use crate::WireError;
use crate::json::{self, IncarnationJson, V1};

const ATTEMPTS: &str = "attempt mark";
const SHIFT: &str = "shift record";

#[derive(Serialize, Deserialize)]
struct AttemptsJson<'a> {
    v: V1,
    token: u64,
    incarnation: IncarnationJson,
    #[serde(borrow)]
    merchant: Cow<'a, str>,
    counter: u64,
    #[serde(borrow)]
    in_flight: Vec<InFlightJson<'a>>,
}

#[derive(Serialize, Deserialize)]
struct InFlightJson<'a> {
    seq: u64,
    #[serde(borrow)]
    id: Cow<'a, str>,
}

/// `attempt.<p>.<merchant>`: all unrepeatable attempts of a merchant that are in flight.
#[must_use]
pub fn encode_attempts(stamp: Stamp, mark: &AttemptMark) -> Bytes {
    let in_flight = mark.in_flight.iter().map(|(seq, id)| InFlightJson {
        seq: *seq,
        id: id.as_str().into(),
    });
    json::encode_bytes(&AttemptsJson {
        v: V1,
        token: stamp.token,
        incarnation: stamp.incarnation.into(),
        merchant: mark.merchant.as_str().into(),
        counter: mark.counter,
        in_flight: in_flight.collect(),
    })
}

/// Reads what [`encode_attempts`] writes.
pub fn decode_attempts(bytes: &[u8]) -> Result<(Stamp, AttemptMark), WireError> {
    let record: AttemptsJson<'_> = json::decode(ATTEMPTS, bytes)?;
    let invalid = |e| WireError::invalid(ATTEMPTS, e);
    let in_flight: Result<Vec<_>, _> = record
        .in_flight
        .iter()
        .map(|entry| Ok((entry.seq, OrderId::new(&entry.id)?)))
        .collect();
    let mark = AttemptMark {
        merchant: MerchantId::new(&record.merchant).map_err(invalid)?,
        counter: record.counter,
        in_flight: in_flight.map_err(invalid)?,
    };
    Ok((json::stamp(record.token, record.incarnation), mark))
}

#[derive(Serialize, Deserialize)]
struct ShiftJson {
    v: V1,
    token: u64,
    incarnation: IncarnationJson,
    revision: u64,
    from: u64,
}

/// `shift.<p>`: from which sequence a plan revision holds.
#[must_use]
pub fn encode_shift(stamp: Stamp, shift: &ShiftRecord) -> Bytes {
    json::encode_bytes(&ShiftJson {
        v: V1,
        token: stamp.token,
        incarnation: stamp.incarnation.into(),
        revision: shift.revision,
        from: shift.from,
    })
}

/// Reads what [`encode_shift`] writes.
pub fn decode_shift(bytes: &[u8]) -> Result<(Stamp, ShiftRecord), WireError> {
    let record: ShiftJson = json::decode(SHIFT, bytes)?;
    let stamp = json::stamp(record.token, record.incarnation);
    Ok((
        stamp,
        ShiftRecord {
            revision: record.revision,
            from: record.from,
        },
    ))
}
