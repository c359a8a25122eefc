//! What is registered, in the KV bucket MERCHANTS: merchants and the limits that they share, with
//! who put them there.
//!
//! The key is the merchant's id, `group/<name>` or `credential/<name>`; the KV revision is the value
//! to compare and swap. Keys with `/` are no merchant ids: readers that know only merchants pass
//! them over.

use bytes::Bytes;
use expediter_types::{LimitScope, Merchant, MerchantId, Scope, UnixMillis};
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

/// One revision of a group's or credential's limits.
#[derive(Debug, Clone, PartialEq)]
pub struct ScopeRegistration {
    pub scope: Scope,
    /// Who asked for it: a user, a host, a program.
    pub actor: String,
    pub at: UnixMillis,
}

#[derive(Serialize, Deserialize)]
struct ScopeJson<'a> {
    v: V1,
    #[serde(borrow)]
    scope: &'a RawValue,
    actor: String,
    at: Rfc3339,
}

/// The key of a group's or credential's limits: `group/pizza`.
#[must_use]
pub fn scope_key(kind: LimitScope, id: &str) -> String {
    format!("{}/{id}", kind.as_str())
}

/// Reads what [`scope_key`] writes.
#[must_use]
pub fn parse_scope_key(key: &str) -> Option<(LimitScope, &str)> {
    let (kind, id) = key.split_once('/')?;
    let kinds = [LimitScope::Group, LimitScope::Credential];
    let kind = kinds.into_iter().find(|known| known.as_str() == kind)?;
    MerchantId::new(id).ok()?;
    Some((kind, id))
}

/// Writes the value of [`scope_key`].
#[must_use]
pub fn encode_scope(registration: &ScopeRegistration) -> Bytes {
    let text = manifest::scope_to_json(&registration.scope);
    let scope = RawValue::from_string(text).expect("what was just written is JSON");
    json::encode_bytes(&ScopeJson {
        v: V1,
        scope: &scope,
        actor: registration.actor.clone(),
        at: Rfc3339(registration.at),
    })
}

/// Reads what [`encode_scope`] writes; its kind is in the key. Unknown keys are ignored, as in
/// [`decode_registration`].
pub fn decode_scope(kind: LimitScope, bytes: &[u8]) -> Result<ScopeRegistration, WireError> {
    let value: ScopeJson<'_> = json::decode(WHAT, bytes)?;
    let scope = manifest::read_stored_scope(value.scope.get(), kind);
    Ok(ScopeRegistration {
        scope: scope.map_err(|e| WireError::invalid(WHAT, e))?,
        actor: value.actor,
        at: value.at.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_scopes_are_no_merchants() {
        for kind in [LimitScope::Group, LimitScope::Credential] {
            let key = scope_key(kind, "pizza");
            assert_eq!(parse_scope_key(&key), Some((kind, "pizza")));
            assert!(MerchantId::new(&key).is_err(), "{key}");
        }
        for other in [
            "pizza",
            "merchant/pizza",
            "group/",
            "group/a.b",
            "group/a/b",
        ] {
            assert_eq!(parse_scope_key(other), None, "{other}");
        }
    }

    #[test]
    fn scopes_are_read_back() {
        let registration = ScopeRegistration {
            scope: Scope {
                kind: LimitScope::Credential,
                id: "shared-account".into(),
                rates: vec!["20/s".parse().unwrap(), "10000/15min".parse().unwrap()],
                burst: 5,
                concurrency: Some(40),
            },
            actor: "ann".into(),
            at: 1_770_000_000_000,
        };
        let bytes = encode_scope(&registration);
        assert_eq!(
            decode_scope(LimitScope::Credential, &bytes).unwrap(),
            registration
        );
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let newer = text.replace("\"burst\":5", "\"burst\":5,\"surge\":{\"a\":[1]}");
        assert_ne!(newer, text);
        let read = decode_scope(LimitScope::Credential, newer.as_bytes()).unwrap();
        assert_eq!(read, registration);
        let wrong = text.replace("\"burst\":5", "\"burst\":0");
        let error = decode_scope(LimitScope::Group, wrong.as_bytes()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("group.burst: 0 is not from 1 to 10000"),
            "{error}"
        );
    }

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
