//! How a record lies in values: a version, a checksum over key and content, and parts so small that
//! the engine never puts a page into a file of its own (which it would not sync).
//!
//! First value: version `u8`, crc32 `u32`, length of the record `u32`, the record's first bytes.
//! Further ones, under keys of the part table: version `u8`, crc32 `u32`, the bytes that follow.

use crate::fault::Fault;
use crate::keys;

/// Bytes of a record in one value. A leaf of the engine's tree splits above 16 entries, and a page
/// above 128 KiB becomes a file: this leaves room for a leaf that took in a few of its neighbours'.
pub(crate) const PART: usize = 4000;

/// Bytes of the longest record: the largest message that the broker can carry, 64 MiB, with its
/// headers.
const LONGEST: usize = 72 << 20;

const CHECKED: usize = 1 + 4;
const HEAD: usize = CHECKED + 4;

/// The first value of a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) version: u8,
    /// Bytes of the whole record.
    pub(crate) len: usize,
    /// The first of them, at most [`PART`].
    pub(crate) first: &'a [u8],
}

impl Head<'_> {
    /// How many further values there are.
    pub(crate) fn parts(&self) -> u16 {
        // Checked when it was read.
        further(self.len).unwrap_or(u16::MAX)
    }
}

fn further(len: usize) -> Option<u16> {
    if len > LONGEST {
        return None;
    }
    u16::try_from(len.div_ceil(PART).max(1) - 1).ok()
}

fn checksum(key: &[u8], version: u8, rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&[version]);
    hasher.update(rest);
    hasher.finalize()
}

/// Checks a value; gives its version and what follows the checksum.
fn checked<'a>(key: &[u8], value: &'a [u8]) -> Result<(u8, &'a [u8]), Fault> {
    let Some((fixed, rest)) = value.split_first_chunk::<CHECKED>() else {
        return Err(Fault::broken("a value is too short", key));
    };
    let [version, crc @ ..] = *fixed;
    if u32::from_be_bytes(crc) != checksum(key, version, rest) {
        return Err(Fault::broken("a value does not match its checksum", key));
    }
    Ok((version, rest))
}

/// Checks a first value.
pub(crate) fn head<'a>(key: &[u8], value: &'a [u8]) -> Result<Head<'a>, Fault> {
    let (version, rest) = checked(key, value)?;
    let broken = || Fault::broken("a value has another length than it says", key);
    let (len, first) = rest.split_first_chunk::<4>().ok_or_else(broken)?;
    let len = u32::from_be_bytes(*len) as usize;
    if first.len() != len.min(PART) || further(len).is_none() {
        return Err(broken());
    }
    Ok(Head {
        version,
        len,
        first,
    })
}

/// Checks a value of the part table.
pub(crate) fn part<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], Fault> {
    checked(key, value).map(|(_, rest)| rest)
}

/// A record that is in several values, put together.
pub(crate) fn whole(db: &sled::Db, key: &[u8], head: &Head<'_>) -> Result<Vec<u8>, Fault> {
    let mut record = Vec::with_capacity(head.len);
    record.extend_from_slice(head.first);
    let (from, to) = (keys::part(key, 1), keys::part(key, head.parts()));
    for (number, entry) in (1..).zip(db.range::<&[u8], _>(&from[..]..=&to[..])) {
        let (part_key, value) = entry?;
        if part_key[..] != keys::part(key, number)[..] {
            break;
        }
        record.extend_from_slice(part(&part_key, &value)?);
    }
    if record.len() != head.len {
        return Err(Fault::broken("a value has a part missing", key));
    }
    Ok(record)
}

/// Puts records into a batch; keeps its buffer.
#[derive(Debug, Default)]
pub(crate) struct Framer {
    value: Vec<u8>,
}

impl Framer {
    /// Writes a record in place of one that had `old` further parts; gives the new number of them.
    pub(crate) fn put(
        &mut self,
        batch: &mut sled::Batch,
        key: &[u8],
        version: u8,
        record: &[u8],
        old: u16,
    ) -> Result<u16, Fault> {
        let too_large = || Fault::TooLarge(record.len());
        let len = u32::try_from(record.len()).map_err(|_| too_large())?;
        let parts = further(record.len()).ok_or_else(too_large)?;
        let (first, rest) = record.split_at(record.len().min(PART));
        batch.insert(key, self.sealed(key, version, Some(len), first));
        for (number, bytes) in (1..).zip(rest.chunks(PART)) {
            let part_key = keys::part(key, number);
            batch.insert(&part_key[..], self.sealed(&part_key, version, None, bytes));
        }
        for number in parts + 1..=old {
            batch.remove(&keys::part(key, number)[..]);
        }
        Ok(parts)
    }

    fn sealed(&mut self, key: &[u8], version: u8, len: Option<u32>, bytes: &[u8]) -> &[u8] {
        let value = &mut self.value;
        value.clear();
        value.reserve(HEAD + bytes.len());
        value.extend_from_slice(&[version, 0, 0, 0, 0]);
        if let Some(len) = len {
            value.extend_from_slice(&len.to_be_bytes());
        }
        value.extend_from_slice(bytes);
        let crc = checksum(key, version, &value[CHECKED..]);
        value[1..CHECKED].copy_from_slice(&crc.to_be_bytes());
        value
    }
}

/// Removes a record with its further parts.
pub(crate) fn remove(batch: &mut sled::Batch, key: &[u8], parts: u16) {
    batch.remove(key);
    for number in 1..=parts {
        batch.remove(&keys::part(key, number)[..]);
    }
}
