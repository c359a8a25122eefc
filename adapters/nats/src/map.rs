//! Which node works on which partition: rendezvous hashing, so that a node that comes or goes moves
//! only the partitions it takes or leaves. Every node computes the same.

use expediter_types::{NodeName, Partition};

/// The node of a partition among the live ones; `None` without any.
pub(crate) fn owner<'a>(
    partition: Partition,
    nodes: impl IntoIterator<Item = &'a NodeName>,
) -> Option<&'a NodeName> {
    nodes
        .into_iter()
        .max_by_key(|node| (weight(partition, node), *node))
}

/// FNV-1a over name and partition, mixed: part of what all versions must agree on.
fn weight(partition: Partition, node: &NodeName) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let bytes = node
        .as_str()
        .bytes()
        .chain([0])
        .chain(partition.0.to_be_bytes());
    for byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<NodeName> {
        (0..count)
            .map(|n| NodeName::new(&format!("node-{n}")).unwrap())
            .collect()
    }

    #[test]
    fn a_change_moves_only_what_it_must() {
        let (three, four) = (names(3), names(4));
        let mut moved = 0;
        for p in (0..1_024).map(Partition) {
            let (before, after) = (owner(p, &three).unwrap(), owner(p, &four).unwrap());
            if before != after {
                assert_eq!(after, &four[3], "a partition moves to the new node only");
                moved += 1;
            }
        }
        assert!((200..320).contains(&moved), "{moved}");
        assert_eq!(owner(Partition(0), &[]), None);
    }

    #[test]
    fn the_map_is_part_of_the_format() {
        let nodes = names(2);
        let map: Vec<_> = (0..16)
            .map(|p| owner(Partition(p), &nodes).unwrap().as_str().ends_with('1'))
            .map(usize::from)
            .collect();
        assert_eq!(map, [1, 0, 1, 0, 1, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 1]);
    }
}
