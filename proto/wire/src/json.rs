//! What all JSON formats share: the version, bounds, and types that JSON does not have.

use std::fmt;

use bytes::Bytes;
use expediter_types::{Incarnation, Stamp};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::WireError;

/// The largest message that is looked at, in bytes: NATS carries no larger one.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;

/// Reads one versioned JSON value.
pub(crate) fn decode<'de, T: Deserialize<'de>>(
    what: &'static str,
    bytes: &'de [u8],
) -> Result<T, WireError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(WireError::TooLarge {
            what,
            len: bytes.len(),
            max: MAX_MESSAGE,
        });
    }
    serde_json::from_slice(bytes).map_err(|source| {
        // A newer format may differ in any field: its version says more than the first difference.
        match serde_json::from_slice::<AnyVersion>(bytes) {
            Ok(AnyVersion { v }) if v > 1 => WireError::Newer { what, v },
            _ => WireError::Json { what, source },
        }
    })
}

/// Writes one JSON value.
pub(crate) fn encode<T: Serialize>(value: &T, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(capacity);
    serde_json::to_writer(&mut out, value)
        .expect("writing to memory cannot fail, and no value here has keys that are not strings");
    out
}

pub(crate) fn encode_bytes<T: Serialize>(value: &T) -> Bytes {
    encode(value, 256).into()
}

#[derive(serde::Deserialize)]
struct AnyVersion {
    v: u64,
}

/// `"v":1`; any other number is not read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct V1;

impl Serialize for V1 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(1)
    }
}

impl<'de> Deserialize<'de> for V1 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            1 => Ok(Self),
            other => Err(de::Error::custom(format_args!("v is {other}, not 1"))),
        }
    }
}

/// 64 bits as 16 hexadecimal digits: JSON numbers lose bits in many readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hex64(pub(crate) u64);

impl Serialize for Hex64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 16];
        for (place, byte) in self.0.to_be_bytes().into_iter().enumerate() {
            text[2 * place] = DIGITS[usize::from(byte >> 4)];
            text[2 * place + 1] = DIGITS[usize::from(byte & 15)];
        }
        serializer.serialize_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl<'de> Deserialize<'de> for Hex64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Hex64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("16 hexadecimal digits")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Hex64, E> {
                let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
                let number = u64::from_str_radix(text, 16).ok().filter(|_| digits);
                number
                    .map(Hex64)
                    .ok_or_else(|| E::custom("not 16 hexadecimal digits"))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// `{"created":…,"counter":…}`; an identity rather than a time, so its milliseconds stay a number.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub(crate) struct IncarnationJson {
    created: u64,
    counter: u32,
}

impl From<Incarnation> for IncarnationJson {
    fn from(from: Incarnation) -> Self {
        Self {
            created: from.created,
            counter: from.counter,
        }
    }
}

impl From<IncarnationJson> for Incarnation {
    fn from(from: IncarnationJson) -> Self {
        Self {
            created: from.created,
            counter: from.counter,
        }
    }
}

/// The first fields of a record, read on their own.
pub(crate) fn stamp(token: u64, incarnation: IncarnationJson) -> Stamp {
    Stamp {
        token,
        incarnation: incarnation.into(),
    }
}

/// For `skip_serializing_if`.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
pub(crate) fn is_false(flag: &bool) -> bool {
    !flag
}

/// Ids and other values that are written as they are shown.
pub(crate) mod as_text {
    use std::borrow::Cow;
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub(crate) fn serialize<T: Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        Cow::<'_, str>::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}
