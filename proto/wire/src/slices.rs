//! Who may use which slice of a limit that merchants share: the KV bucket SCOPES.
//!
//! The key is `group.<name>` or `credential.<name>`; the KV revision is the value to compare and
//! swap.

use bytes::Bytes;
use expediter_types::{LimitScope, MerchantId, NodeName, Slice, SliceEntry, SliceTable};
use serde::{Deserialize, Serialize};

use crate::WireError;
use crate::json::{self, V1, as_text};

const WHAT: &str = "slices";

#[derive(Serialize, Deserialize)]
struct TableJson {
    v: V1,
    turn: u64,
    #[serde(default, skip_serializing_if = "is_open")]
    closed_until: u64,
    nodes: Vec<EntryJson>,
}

#[derive(Serialize, Deserialize)]
struct EntryJson {
    #[serde(with = "as_text")]
    node: NodeName,
    share: u32,
    slots: u32,
    wants_share: u32,
    wants_slots: u32,
    renewed: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_open(closed_until: &u64) -> bool {
    *closed_until == 0
}

/// `group.pizza`
#[must_use]
pub fn slices_key(kind: LimitScope, id: &str) -> String {
    format!("{}.{id}", kind.as_str())
}

/// Reads what [`slices_key`] writes.
#[must_use]
pub fn parse_slices_key(key: &str) -> Option<(LimitScope, &str)> {
    let (kind, id) = key.split_once('.')?;
    let kinds = [LimitScope::Group, LimitScope::Credential];
    let kind = kinds.into_iter().find(|known| known.as_str() == kind)?;
    MerchantId::new(id).ok()?;
    Some((kind, id))
}

/// Writes a table.
#[must_use]
pub fn encode_slices(table: &SliceTable) -> Bytes {
    let entry = |entry: &SliceEntry| EntryJson {
        node: entry.node.clone(),
        share: entry.slice.share,
        slots: entry.slice.slots,
        wants_share: entry.wants.share,
        wants_slots: entry.wants.slots,
        renewed: entry.renewed,
    };
    json::encode_bytes(&TableJson {
        v: V1,
        turn: table.turn,
        closed_until: table.closed_until,
        nodes: table.entries.iter().map(entry).collect(),
    })
}

/// Reads what [`encode_slices`] writes.
pub fn decode_slices(bytes: &[u8]) -> Result<SliceTable, WireError> {
    let table: TableJson = json::decode(WHAT, bytes)?;
    let entries = table.nodes.into_iter().map(|entry| SliceEntry {
        node: entry.node,
        slice: Slice {
            share: entry.share.min(Slice::WHOLE),
            slots: entry.slots,
        },
        wants: Slice {
            share: entry.wants_share.min(Slice::WHOLE),
            slots: entry.wants_slots,
        },
        renewed: entry.renewed,
    });
    let mut entries: Vec<SliceEntry> = entries.collect();
    entries.sort_by(|a, b| a.node.cmp(&b.node));
    entries.dedup_by(|a, b| a.node == b.node);
    Ok(SliceTable {
        turn: table.turn,
        closed_until: table.closed_until,
        entries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_back() {
        let mut table = SliceTable {
            turn: 3,
            closed_until: 0,
            entries: vec![SliceEntry {
                node: NodeName::new("kitchen-1").unwrap(),
                slice: Slice {
                    share: 400,
                    slots: 2,
                },
                wants: Slice {
                    share: 1_000,
                    slots: 3,
                },
                renewed: 77,
            }],
        };
        let bytes = encode_slices(&table);
        assert_eq!(decode_slices(&bytes).unwrap(), table);
        let golden = r#"{"v":1,"turn":3,"nodes":[{"node":"kitchen-1","share":400,"slots":2,"wants_share":1000,"wants_slots":3,"renewed":77}]}"#;
        assert_eq!(bytes, golden);
        table.closed_until = 1_763_690_000_000;
        let bytes = encode_slices(&table);
        assert_eq!(decode_slices(&bytes).unwrap(), table);
        let golden = golden.replace("3,\"nodes", "3,\"closed_until\":1763690000000,\"nodes");
        assert_eq!(bytes, golden);
        assert!(decode_slices(b"{\"v\":2}").is_err());
    }

    #[test]
    fn keys_are_read_back() {
        for kind in [LimitScope::Group, LimitScope::Credential] {
            assert_eq!(
                parse_slices_key(&slices_key(kind, "a-b")),
                Some((kind, "a-b"))
            );
        }
        for other in ["group", "merchant.a", "group.", "group.a.b"] {
            assert_eq!(parse_slices_key(other), None, "{other}");
        }
    }
}
