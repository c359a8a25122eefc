use std::borrow::Cow;

use bytes::Bytes;
use expediter_types::{Claim, ClaimState, Crash, Crashes, NodeName};
use serde::{Deserialize, Serialize};

use crate::json::{self, IncarnationJson, V1};
use crate::{Rfc3339, WireError};

const WHAT: &str = "claim";

#[derive(Serialize, Deserialize)]
struct ClaimJson<'a> {
    v: V1,
    #[serde(borrow)]
    node: Cow<'a, str>,
    #[serde(borrow)]
    instance: Cow<'a, str>,
    #[serde(borrow)]
    state: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    running: Option<Cow<'a, [u64]>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    busy_until: Option<Rfc3339>,
    replaces: u64,
    incarnation: IncarnationJson,
    cut: u64,
    at: Rfc3339,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    crashes: Vec<Rfc3339>,
    /// The processes, one for each of `crashes`.
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    crashed: Vec<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "json::is_false")]
    paused: bool,
}

/// The processes may be unknown: an older version wrote the times alone.
fn crashes(at: Vec<Rfc3339>, of: Vec<Cow<'_, str>>) -> Vec<Crash> {
    let unknown = std::iter::repeat(Cow::Borrowed(""));
    let of = of.into_iter().chain(unknown);
    let crash = |(at, instance): (Rfc3339, Cow<'_, str>)| Crash {
        at: at.0,
        instance: instance.into_owned(),
    };
    at.into_iter().zip(of).map(crash).collect()
}

/// `claim.<p>`: held, or released. Its own sequence is the token of what follows.
#[must_use]
pub fn encode_claim(claim: &Claim) -> Bytes {
    let mut record = ClaimJson {
        v: V1,
        node: claim.node.as_str().into(),
        instance: claim.instance.as_str().into(),
        state: "held".into(),
        epoch: None,
        running: None,
        busy_until: None,
        replaces: claim.replaces,
        incarnation: claim.incarnation.into(),
        cut: claim.cut,
        at: Rfc3339(claim.at),
        crashes: claim.crashes.of.iter().map(|c| Rfc3339(c.at)).collect(),
        crashed: claim
            .crashes
            .of
            .iter()
            .map(|c| Cow::from(&c.instance))
            .collect(),
        paused: claim.crashes.paused,
    };
    if let ClaimState::Released {
        epoch,
        running,
        busy_until,
    } = &claim.state
    {
        record.state = "released".into();
        record.epoch = Some(*epoch);
        record.running = Some(running.into());
        record.busy_until = Some(Rfc3339(*busy_until));
    }
    json::encode_bytes(&record)
}

/// Reads what [`encode_claim`] writes.
pub fn decode_claim(bytes: &[u8]) -> Result<Claim, WireError> {
    let record: ClaimJson<'_> = json::decode(WHAT, bytes)?;
    let state = match (&*record.state, record.epoch) {
        ("held", _) => ClaimState::Held,
        ("released", Some(epoch)) => ClaimState::Released {
            epoch,
            running: record.running.unwrap_or_default().into_owned(),
            busy_until: record.busy_until.map_or(0, |time| time.0),
        },
        ("released", None) => return Err(WireError::invalid(WHAT, "released without an epoch")),
        (other, _) => return Err(WireError::invalid(WHAT, format_args!("state {other:?}"))),
    };
    Ok(Claim {
        node: NodeName::new(&record.node).map_err(|e| WireError::invalid(WHAT, e))?,
        instance: record.instance.into_owned(),
        state,
        replaces: record.replaces,
        incarnation: record.incarnation.into(),
        cut: record.cut,
        at: record.at.0,
        crashes: Crashes {
            of: crashes(record.crashes, record.crashed),
            paused: record.paused,
        },
    })
}
