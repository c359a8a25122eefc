//! The records of OUTCOMES: JSON that any NATS client can read, versioned from the first day.
//!
//! Each but the claim carries the stamp of its writer: `token` (the claim's sequence) and
//! `incarnation`. A dead letter is one line of JSON, a line feed, and the payload as it came; a part
//! of a mark likewise.

mod claim;
mod dead;
mod entry;
mod mark;
mod outcome;
mod small;

use bytes::Bytes;
use expediter_types::{Partition, Record, Stamp};

use crate::{WireError, subjects};

pub use claim::{decode_claim, encode_claim};
pub use dead::{MAX_LINE, decode_dead, encode_dead};
pub use entry::{WireEntry, WireFinished, decode_entry};
#[cfg(test)]
pub(crate) use mark::encode_within;
pub use mark::{
    MAX_PARTS, MarkCommit, MarkPart, MarkParts, MarkReader, PART_BYTES, decode_mark, encode_mark,
};
pub(crate) use outcome::AttemptJson;
pub use outcome::{MAX_GROUP, decode_outcomes, encode_outcomes};
pub use small::{decode_attempts, decode_shift, encode_attempts, encode_shift};

/// A message to OUTCOMES, without the headers that fence it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub subject: String,
    /// The `n` of `mark.<p>.<n>`; `None` for everything else.
    pub part: Option<u32>,
    pub payload: Bytes,
}

/// The messages of a record, to be published in this order. Only a mark that was split has more
/// than one; its last message makes it hold. The same record gives the same bytes.
///
/// # Errors
/// [`WireError::TooLarge`] for a group or a mark that no message can carry.
pub fn encode_record(
    partition: Partition,
    stamp: Stamp,
    record: &Record,
) -> Result<Vec<Message>, WireError> {
    let one = |subject, payload| {
        Ok(vec![Message {
            subject,
            part: None,
            payload,
        }])
    };
    match record {
        Record::Outcomes(group) => one(
            subjects::outcomes(partition),
            encode_outcomes(stamp, group)?,
        ),
        Record::Dead(letter) => {
            let merchant = &letter.outcome.envelope.merchant;
            one(
                subjects::dead(partition, merchant),
                encode_dead(stamp, letter),
            )
        }
        Record::Attempts(mark) => one(
            subjects::attempt(partition, &mark.merchant),
            encode_attempts(stamp, mark),
        ),
        Record::Mark(mark) => {
            let MarkParts { parts, commit } = encode_mark(stamp, mark)?;
            let parts = (1..).zip(parts).map(|(number, payload)| Message {
                subject: subjects::mark_part(partition, number),
                part: Some(number),
                payload,
            });
            let commit = Message {
                subject: subjects::mark(partition),
                part: None,
                payload: commit,
            };
            Ok(parts.chain([commit]).collect())
        }
    }
}

#[cfg(test)]
mod tests;
