//! Keys of the one tree. Integers are big-endian, so that keys sort as their values do; a merchant
//! id ends with a zero byte, which its alphabet does not have, so that no id is a prefix of another.
//!
//! | table | key | value |
//! |---|---|---|
//! | due | `d` partition merchant `0` due seq | empty |
//! | key | `k` partition merchant `0` hash seq | empty |
//! | meta | `m` partition | [`PartitionMeta`](expediter_core::store::PartitionMeta) |
//! | order | `o` partition merchant `0` seq | order |
//! | part | `p` partition (table and rest of another key) number | what did not fit the other value |
//! | state | `s` partition merchant `0` seq | state, when it is not the default one |
//! | repeats | `u` partition chunk | entries |
//! | version | `v` | version of the format |
//! | deadline | `x` partition deadline seq merchant | empty |
//! | dropping | `z` partition | empty: the partition is being forgotten |

use expediter_types::{MerchantId, Partition, Seq, UnixMillis};

use crate::fault::Fault;

pub(crate) const DUE: u8 = b'd';
pub(crate) const KEY: u8 = b'k';
pub(crate) const META: u8 = b'm';
pub(crate) const ORDER: u8 = b'o';
pub(crate) const PART: u8 = b'p';
pub(crate) const STATE: u8 = b's';
pub(crate) const REPEATS: u8 = b'u';
pub(crate) const VERSION: u8 = b'v';
pub(crate) const DEADLINE: u8 = b'x';
pub(crate) const DROPPING: u8 = b'z';

/// Tables whose keys go on with a partition, ascending, but for [`DROPPING`].
pub(crate) const OF_PARTITION: [u8; 8] = [DUE, KEY, META, ORDER, PART, STATE, REPEATS, DEADLINE];

/// Longest key: of the due and key tables, with a merchant id of 64 bytes.
const LONGEST: usize = 1 + 2 + 64 + 1 + 8 + 8;

/// A key on the stack.
#[derive(Clone, Copy)]
pub(crate) struct Key {
    bytes: [u8; LONGEST],
    len: u8,
}

impl Key {
    pub(crate) fn new(table: u8) -> Self {
        let mut key = Self {
            bytes: [0; LONGEST],
            len: 0,
        };
        key.push(&[table]);
        key
    }

    fn of(table: u8, partition: Partition) -> Self {
        let mut key = Self::new(table);
        key.push(&partition.0.to_be_bytes());
        key
    }

    fn of_merchant(table: u8, partition: Partition, merchant: &MerchantId) -> Self {
        let mut key = Self::of(table, partition);
        key.push(merchant.as_str().as_bytes());
        key.push(&[0]);
        key
    }

    fn push(&mut self, bytes: &[u8]) {
        let len = usize::from(self.len);
        self.bytes[len..len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
    }

    fn then(mut self, value: u64) -> Self {
        self.push(&value.to_be_bytes());
        self
    }
}

impl std::ops::Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

pub(crate) fn order(partition: Partition, merchant: &MerchantId, seq: Seq) -> Key {
    Key::of_merchant(ORDER, partition, merchant).then(seq)
}

pub(crate) fn state(partition: Partition, merchant: &MerchantId, seq: Seq) -> Key {
    Key::of_merchant(STATE, partition, merchant).then(seq)
}

pub(crate) fn due(partition: Partition, merchant: &MerchantId, due: UnixMillis, seq: Seq) -> Key {
    Key::of_merchant(DUE, partition, merchant)
        .then(due)
        .then(seq)
}

pub(crate) fn key(partition: Partition, merchant: &MerchantId, hash: u64, seq: Seq) -> Key {
    Key::of_merchant(KEY, partition, merchant)
        .then(hash)
        .then(seq)
}

pub(crate) fn deadline(
    partition: Partition,
    deadline: UnixMillis,
    seq: Seq,
    merchant: &MerchantId,
) -> Key {
    let mut key = Key::of(DEADLINE, partition).then(deadline).then(seq);
    key.push(merchant.as_str().as_bytes());
    key
}

pub(crate) fn meta(partition: Partition) -> Key {
    Key::of(META, partition)
}

pub(crate) fn repeats(partition: Partition, chunk: u64) -> Key {
    Key::of(REPEATS, partition).then(chunk)
}

pub(crate) fn dropping(partition: Partition) -> Key {
    Key::of(DROPPING, partition)
}

/// A further part of the value at `head`; the first one is number 1.
pub(crate) fn part(head: &[u8], number: u16) -> Key {
    let mut key = Key::new(PART);
    let (table, rest) = (&head[..1], &head[1..]);
    let (partition, rest) = rest.split_at(2);
    key.push(partition);
    key.push(table);
    key.push(rest);
    key.push(&number.to_be_bytes());
    key
}

/// All keys of a partition in a table, as a half-open range.
pub(crate) fn all_of(table: u8, partition: Partition) -> (Key, Key) {
    let end = match partition.0.checked_add(1) {
        Some(next) => Key::of(table, Partition(next)),
        None => Key::new(table + 1),
    };
    (Key::of(table, partition), end)
}

/// Table and partition of a key.
pub(crate) fn split_partition(key: &[u8]) -> Result<Partition, Fault> {
    match key.get(1..3) {
        Some(partition) => Ok(Partition(u16::from_be_bytes([partition[0], partition[1]]))),
        None => Err(Fault::broken("a key without a partition", key)),
    }
}

/// Merchant and sequence of a key of the order and state tables.
pub(crate) fn split_order(key: &[u8]) -> Result<(&[u8], Seq), Fault> {
    let broken = || Fault::broken("a key without merchant and sequence", key);
    let (rest, seq) = key.split_last_chunk::<8>().ok_or_else(broken)?;
    match rest {
        [_, _, _, merchant @ .., 0] => Ok((merchant, u64::from_be_bytes(*seq))),
        _ => Err(broken()),
    }
}

/// The two numbers at the end of a key of the due and key tables.
pub(crate) fn split_pair(key: &[u8]) -> Result<(u64, Seq), Fault> {
    let broken = || Fault::broken("a key without two numbers", key);
    let (rest, seq) = key.split_last_chunk::<8>().ok_or_else(broken)?;
    let (_, first) = rest.split_last_chunk::<8>().ok_or_else(broken)?;
    Ok((u64::from_be_bytes(*first), u64::from_be_bytes(*seq)))
}

/// Deadline, sequence and merchant of a key of the deadline table.
pub(crate) fn split_deadline(key: &[u8]) -> Result<(UnixMillis, Seq, MerchantId), Fault> {
    let broken = || Fault::broken("a key without deadline, sequence and merchant", key);
    let rest = key.get(3..).ok_or_else(broken)?;
    let (deadline, rest) = rest.split_first_chunk::<8>().ok_or_else(broken)?;
    let (seq, id) = rest.split_first_chunk::<8>().ok_or_else(broken)?;
    let merchant = merchant(id).ok_or_else(broken)?;
    Ok((
        u64::from_be_bytes(*deadline),
        u64::from_be_bytes(*seq),
        merchant,
    ))
}

/// Chunk number of a key of the repeats table.
pub(crate) fn split_repeats(key: &[u8]) -> Result<u64, Fault> {
    match key.get(3..).map(<[u8; 8]>::try_from) {
        Some(Ok(chunk)) => Ok(u64::from_be_bytes(chunk)),
        _ => Err(Fault::broken("a key without a chunk number", key)),
    }
}

/// A merchant id out of a key.
pub(crate) fn merchant(bytes: &[u8]) -> Option<MerchantId> {
    std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| MerchantId::new(text).ok())
}
