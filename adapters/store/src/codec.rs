//! Records as bytes, integers big-endian, texts with their length before them. What exists here is
//! frozen (tests/golden): a change is a new version, and older ones stay readable.

use std::sync::Arc;

use bytes::Bytes;
use expediter_core::store::{PartitionMeta, Repeat};
use expediter_core::{Order, OrderState, Stored, key_hash};
use expediter_types::{
    AttemptClass, AttemptRecord, Envelope, Incarnation, MerchantId, OrderId, Origin, Priority, Seq,
    UnixMillis,
};

use crate::fault::Fault;
use crate::frame::Head;

/// Version of the records of this build, in every value.
pub(crate) const RECORD: u8 = 1;

mod has {
    pub(super) const KEY: u16 = 1;
    pub(super) const DEADLINE: u16 = 1 << 1;
    pub(super) const NOT_BEFORE: u16 = 1 << 2;
    pub(super) const EVENT_TYPE: u16 = 1 << 3;
    pub(super) const SOURCE: u16 = 1 << 4;
    pub(super) const TIME: u16 = 1 << 5;
    pub(super) const CONTENT_TYPE: u16 = 1 << 6;
    pub(super) const TRACEPARENT: u16 = 1 << 7;
    pub(super) const TEST: u16 = 1 << 8;
    pub(super) const ORIGIN: u16 = 1 << 9;
    pub(super) const HIGH: u16 = 1 << 10;
    pub(super) const LOW: u16 = 1 << 11;
    pub(super) const ALL: u16 = (1 << 12) - 1;

    pub(super) const FIRST_ATTEMPT: u8 = 1;
    pub(super) const DUE: u8 = 1 << 1;
    pub(super) const AMBIGUOUS: u8 = 1 << 2;
    pub(super) const ALL_STATE: u8 = (1 << 3) - 1;
}

/// What the indexes say about an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OrderInfo {
    pub(crate) deadline: UnixMillis,
    pub(crate) key: Option<u64>,
}

/// Appends an order: flags, deadline, payload hash, key hash, length of the envelope, envelope,
/// payload. Merchant and sequence are in its key.
pub(crate) fn put_order(out: &mut Vec<u8>, stored: &Stored) -> OrderInfo {
    let (order, envelope) = (&*stored.order, &stored.order.envelope);
    let key = envelope.key.as_deref().map(key_hash);
    let texts = texts(envelope);
    let mut flags = 0;
    for (flag, text) in texts {
        flags |= if text.is_some() { flag } else { 0 };
    }
    flags |= if envelope.deadline.is_some() {
        has::DEADLINE
    } else {
        0
    };
    flags |= if envelope.not_before.is_some() {
        has::NOT_BEFORE
    } else {
        0
    };
    flags |= if envelope.test { has::TEST } else { 0 };
    flags |= match envelope.priority {
        Priority::High => has::HIGH,
        Priority::Normal => 0,
        Priority::Low => has::LOW,
    };
    flags |= if envelope.origin.is_some() {
        has::ORIGIN
    } else {
        0
    };

    out.extend_from_slice(&flags.to_be_bytes());
    put_u64(out, stored.deadline);
    put_u64(out, order.payload_hash);
    put_u64(out, key.unwrap_or(0));
    let len_at = out.len();
    put_u32(out, 0);
    put_text(out, envelope.id.as_str());
    put_u32(out, envelope.generation);
    put_u64(out, envelope.created);
    for time in [envelope.deadline, envelope.not_before]
        .into_iter()
        .flatten()
    {
        put_u64(out, time);
    }
    for text in texts.into_iter().filter_map(|(_, text)| text) {
        put_text(out, text);
    }
    if let Some(origin) = envelope.origin {
        put_u64(out, origin.incarnation.created);
        put_u32(out, origin.incarnation.counter);
        put_u64(out, origin.seq);
    }
    // Texts come out of message headers: far below 4 GiB.
    let len = (out.len() - len_at - 4) as u32;
    out[len_at..len_at + 4].copy_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&order.payload);
    OrderInfo {
        deadline: stored.deadline,
        key,
    }
}

fn texts(envelope: &Envelope) -> [(u16, Option<&str>); 6] {
    [
        (has::KEY, envelope.key.as_deref()),
        (has::EVENT_TYPE, envelope.event_type.as_deref()),
        (has::SOURCE, envelope.source.as_deref()),
        (has::TIME, envelope.time.as_deref()),
        (has::CONTENT_TYPE, envelope.content_type.as_deref()),
        (has::TRACEPARENT, envelope.traceparent.as_deref()),
    ]
}

/// The beginning of an order's record: all that is needed to forget it.
pub(crate) fn order_info(key: &[u8], head: &Head<'_>) -> Result<OrderInfo, Fault> {
    let mut reader = Reader::of(key, head.version, head.first)?;
    let fixed = reader.fixed().ok_or_else(|| unreadable(key))?;
    Ok(OrderInfo {
        deadline: fixed.deadline,
        key: fixed.key,
    })
}

/// Reads an order's whole record.
pub(crate) fn order(
    key: &[u8],
    version: u8,
    record: &[u8],
    merchant: MerchantId,
    seq: Seq,
) -> Result<(Order, UnixMillis), Fault> {
    let mut reader = Reader::of(key, version, record)?;
    reader.order(merchant, seq).ok_or_else(|| unreadable(key))
}

/// Appends a state: flags, due, attempts, first attempt, number of attempts kept, those.
pub(crate) fn put_state(out: &mut Vec<u8>, state: &OrderState) {
    let mut flags = if state.first_attempt.is_some() {
        has::FIRST_ATTEMPT
    } else {
        0
    };
    flags |= if state.due.is_some() { has::DUE } else { 0 };
    flags |= if state.ambiguous { has::AMBIGUOUS } else { 0 };
    out.push(flags);
    put_u64(out, state.due.unwrap_or(0));
    put_u32(out, state.attempts);
    put_u64(out, state.first_attempt.unwrap_or(0));
    put_u32(out, state.history.len() as u32);
    for attempt in &state.history {
        put_u32(out, attempt.number);
        put_u64(out, attempt.at);
        out.push(class_code(attempt.class));
        out.push(u8::from(attempt.status.is_some()));
        out.extend_from_slice(&attempt.status.unwrap_or(0).to_be_bytes());
        put_u32(out, attempt.took_ms);
        put_text(out, &attempt.detail);
    }
}

/// The due time at the beginning of a state's record.
pub(crate) fn state_due(key: &[u8], head: &Head<'_>) -> Result<Option<UnixMillis>, Fault> {
    let mut reader = Reader::of(key, head.version, head.first)?;
    reader
        .due()
        .map(|(_, due)| due)
        .ok_or_else(|| unreadable(key))
}

/// Reads a state's whole record.
pub(crate) fn state(key: &[u8], version: u8, record: &[u8]) -> Result<OrderState, Fault> {
    Reader::of(key, version, record)?
        .state()
        .ok_or_else(|| unreadable(key))
}

/// Appends a partition's meta record.
pub(crate) fn put_meta(out: &mut Vec<u8>, meta: &PartitionMeta) {
    put_u64(out, meta.epoch);
    put_u64(out, meta.incarnation.created);
    put_u32(out, meta.incarnation.counter);
    put_u64(out, meta.position);
    put_u64(out, meta.last_taken);
    put_u64(out, meta.last_taken_at);
}

/// Reads a partition's meta record.
pub(crate) fn meta(key: &[u8], version: u8, record: &[u8]) -> Result<PartitionMeta, Fault> {
    Reader::of(key, version, record)?
        .meta()
        .ok_or_else(|| unreadable(key))
}

/// Appends a chunk of repeats.
pub(crate) fn put_repeats(out: &mut Vec<u8>, entries: &[Repeat]) {
    for entry in entries {
        put_u64(out, entry.id);
        put_u32(out, entry.payload);
        put_u64(out, entry.seq);
    }
}

/// Reads a chunk of repeats.
pub(crate) fn repeats(key: &[u8], version: u8, record: &[u8]) -> Result<Vec<Repeat>, Fault> {
    let mut reader = Reader::of(key, version, record)?;
    let mut entries = Vec::with_capacity(record.len() / 20);
    while !reader.rest.is_empty() {
        entries.push(reader.repeat().ok_or_else(|| unreadable(key))?);
    }
    Ok(entries)
}

fn class_code(class: AttemptClass) -> u8 {
    match class {
        AttemptClass::Delivered => 1,
        AttemptClass::AlreadyDone => 2,
        AttemptClass::Retry => 3,
        AttemptClass::Ambiguous => 4,
        AttemptClass::RateLimited => 5,
        AttemptClass::Rejected => 6,
        AttemptClass::Invalid => 7,
        AttemptClass::Suspended => 8,
        AttemptClass::Misconfigured => 9,
        AttemptClass::Local => 10,
    }
}

fn unreadable(key: &[u8]) -> Fault {
    Fault::broken("a record cannot be read", key)
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u32(out, text.len() as u32);
    out.extend_from_slice(text.as_bytes());
}

struct Fixed {
    flags: u16,
    deadline: UnixMillis,
    payload_hash: u64,
    key: Option<u64>,
    envelope_len: usize,
}

/// Takes values off the front; `None` when the record is not what a writer made.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn of(key: &[u8], version: u8, rest: &'a [u8]) -> Result<Self, Fault> {
        match version {
            RECORD => Ok(Self { rest }),
            0 => Err(unreadable(key)),
            newer => Err(Fault::Newer {
                found: newer.into(),
                known: RECORD.into(),
            }),
        }
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        std::str::from_utf8(self.bytes(len)?).ok()
    }

    /// A value that is there only when its flag is set.
    fn given<T>(
        &mut self,
        given: bool,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<Option<T>> {
        if given {
            read(self).map(Some)
        } else {
            Some(None)
        }
    }

    fn fixed(&mut self) -> Option<Fixed> {
        let flags = self.u16().filter(|flags| flags & !has::ALL == 0)?;
        let (deadline, payload_hash, key) = (self.u64()?, self.u64()?, self.u64()?);
        let key = (flags & has::KEY != 0).then_some(key);
        Some(Fixed {
            flags,
            deadline,
            payload_hash,
            key,
            envelope_len: self.u32()? as usize,
        })
    }

    fn order(&mut self, merchant: MerchantId, seq: Seq) -> Option<(Order, UnixMillis)> {
        let fixed = self.fixed()?;
        let mut envelope = Reader {
            rest: self.bytes(fixed.envelope_len)?,
        };
        let order = Order {
            seq,
            envelope: envelope.envelope(fixed.flags, merchant)?,
            payload: Bytes::copy_from_slice(self.rest),
            payload_hash: fixed.payload_hash,
        };
        envelope.rest.is_empty().then_some((order, fixed.deadline))
    }

    fn envelope(&mut self, flags: u16, merchant: MerchantId) -> Option<Envelope> {
        let is = |flag| flags & flag != 0;
        let text = |reader: &mut Self| reader.text().map(Arc::<str>::from);
        // In the order in which they were written.
        Some(Envelope {
            merchant,
            id: OrderId::new(self.text()?).ok()?,
            generation: self.u32()?,
            created: self.u64()?,
            deadline: self.given(is(has::DEADLINE), Self::u64)?,
            not_before: self.given(is(has::NOT_BEFORE), Self::u64)?,
            key: self.given(is(has::KEY), text)?,
            priority: match (is(has::HIGH), is(has::LOW)) {
                (false, false) => Priority::Normal,
                (true, false) => Priority::High,
                (false, true) => Priority::Low,
                (true, true) => return None,
            },
            event_type: self.given(is(has::EVENT_TYPE), text)?,
            source: self.given(is(has::SOURCE), text)?,
            time: self.given(is(has::TIME), text)?,
            content_type: self.given(is(has::CONTENT_TYPE), text)?,
            traceparent: self.given(is(has::TRACEPARENT), text)?,
            test: is(has::TEST),
            origin: self.given(is(has::ORIGIN), |reader| {
                Some(Origin {
                    incarnation: reader.incarnation()?,
                    seq: reader.u64()?,
                })
            })?,
        })
    }

    fn incarnation(&mut self) -> Option<Incarnation> {
        Some(Incarnation {
            created: self.u64()?,
            counter: self.u32()?,
        })
    }

    fn due(&mut self) -> Option<(u8, Option<UnixMillis>)> {
        let flags = self.u8().filter(|flags| flags & !has::ALL_STATE == 0)?;
        let due = self.u64()?;
        Some((flags, (flags & has::DUE != 0).then_some(due)))
    }

    fn state(&mut self) -> Option<OrderState> {
        let (flags, due) = self.due()?;
        let (attempts, first_attempt, count) = (self.u32()?, self.u64()?, self.u32()?);
        let history = (0..count).map(|_| self.attempt()).collect::<Option<_>>()?;
        self.rest.is_empty().then_some(OrderState {
            attempts,
            first_attempt: (flags & has::FIRST_ATTEMPT != 0).then_some(first_attempt),
            due,
            ambiguous: flags & has::AMBIGUOUS != 0,
            history,
        })
    }

    fn attempt(&mut self) -> Option<AttemptRecord> {
        let (number, at, class) = (self.u32()?, self.u64()?, self.u8()?);
        let class = AttemptClass::ALL
            .into_iter()
            .find(|known| class_code(*known) == class)?;
        let given = self.u8()? != 0;
        let status = self.u16()?;
        Some(AttemptRecord {
            number,
            at,
            class,
            status: given.then_some(status),
            took_ms: self.u32()?,
            detail: self.text()?.to_owned(),
        })
    }

    fn meta(&mut self) -> Option<PartitionMeta> {
        let meta = PartitionMeta {
            epoch: self.u64()?,
            incarnation: self.incarnation()?,
            position: self.u64()?,
            last_taken: self.u64()?,
            last_taken_at: self.u64()?,
        };
        self.rest.is_empty().then_some(meta)
    }

    fn repeat(&mut self) -> Option<Repeat> {
        Some(Repeat {
            id: self.u64()?,
            payload: self.u32()?,
            seq: self.u64()?,
        })
    }
}
