//! A merchant in the KV bucket MERCHANTS: its manifest, and who put it there.
//!
//! The key is the merchant's id, the KV revision the value to compare and swap.

use bytes::Bytes;
use expediter_types::{Merchant, UnixMillis};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::json::{self, V1};
use crate::{Rfc3339, WireError, manifest};

const WHAT: &str = "registry entry";

/// One revision of a merchant.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    pub merchant: Merchant,
    /// Who asked for it: a user, a host, a program.
    pub actor: String,
    pub at: UnixMillis,
    /// The revision that a rollback replaced.
    pub rolled_back_from: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct RegistrationJson<'a> {
    v: V1,
    #[serde(borrow)]
    merchant: &'a RawValue,
    actor: String,
    at: Rfc3339,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rolled_back_from: Option<u64>,
}

/// Writes a registry value.
#[must_use]
pub fn encode_registration(registration: &Registration) -> Bytes {
    let text = manifest::to_json(&registration.merchant);
    let merchant = RawValue::from_string(text).expect("what was just written is JSON");
    json::encode_bytes(&RegistrationJson {
        v: V1,
        merchant: &merchant,
        actor: registration.actor.clone(),
        at: Rfc3339(registration.at),
        rolled_back_from: registration.rolled_back_from,
    })
}

/// Reads what [`encode_registration`] writes. Keys of the manifest that a newer version added are
/// ignored, its values are checked as a file's are.
pub fn decode_registration(bytes: &[u8]) -> Result<Registration, WireError> {
    let value: RegistrationJson<'_> = json::decode(WHAT, bytes)?;
    let merchant = manifest::read_stored(value.merchant.get());
    Ok(Registration {
        merchant: merchant.map_err(|e| WireError::invalid(WHAT, e))?,
        actor: value.actor,
        at: value.at.0,
        rolled_back_from: value.rolled_back_from,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expediter_types::MerchantId;

    #[test]
    fn registrations_are_read_back() {
        let registration = Registration {
            merchant: Merchant::to(MerchantId::new("luigis").unwrap(), "https://a.example/"),
            actor: "ann \"the\" cook".into(),
            at: 1_770_000_000_000,
            rolled_back_from: Some(7),
        };
        let bytes = encode_registration(&registration);
        assert_eq!(decode_registration(&bytes).unwrap(), registration);

        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let newer = text.replace("\"burst\":1", "\"burst\":1,\"surge\":{\"a\":[1]}");
        assert_ne!(newer, text);
        assert_eq!(decode_registration(newer.as_bytes()).unwrap(), registration);

        let wrong = text.replace("\"burst\":1", "\"burst\":0");
        let error = decode_registration(wrong.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("merchant.limits.burst: 0 is not from 1 to 10000"),
            "{error}"
        );

        let newer = text.replace("\"v\":1", "\"v\":3");
        let error = decode_registration(newer.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains("newer version"), "{error}");
    }
}
