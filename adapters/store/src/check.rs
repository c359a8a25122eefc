//! Reading a partition as a whole: every value against its checksum, every index key against the
//! order it stands for. A power cut can leave a store that opens and is still not whole.

use expediter_core::store::{StoredMerchant, StoredPartition};
use expediter_types::Partition;
use roaring::RoaringTreemap;
use sled::{Db, IVec};
use xxhash_rust::xxh3::xxh3_64;

use crate::fault::Fault;
use crate::frame::{self, Head};
use crate::{codec, keys, read};

/// A partition that was found whole.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    pub(crate) found: StoredPartition,
    /// Bytes of its keys and values.
    pub(crate) live: u64,
}

/// Order-independent sums of the index keys that should be there and of those that are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    count: u64,
    hash: u64,
}

impl Sum {
    fn add(&mut self, key: &[u8]) {
        self.count += 1;
        self.hash = self.hash.wrapping_add(xxh3_64(key));
    }

    fn add_parts(&mut self, key: &[u8], head: &Head<'_>) {
        for number in 1..=head.parts() {
            self.add(&keys::part(key, number));
        }
    }
}

struct Check<'a> {
    db: &'a Db,
    partition: Partition,
    expected: Sum,
    out: Checked,
}

/// Reads a partition.
pub(crate) fn partition(db: &Db, partition: Partition) -> Result<Checked, Fault> {
    let mut check = Check {
        db,
        partition,
        expected: Sum::default(),
        out: Checked::default(),
    };
    check.orders()?;
    check.meta_and_repeats()?;
    check.indexes()?;
    Ok(check.out)
}

impl Check<'_> {
    fn count(&mut self, key: &[u8], value: &[u8]) {
        self.out.live += (key.len() + value.len()) as u64;
    }

    fn orders(&mut self) -> Result<(), Fault> {
        let mut states = read::all_of(self.db, keys::STATE, self.partition);
        let mut state = states.next().transpose()?;
        for entry in read::all_of(self.db, keys::ORDER, self.partition) {
            let (key, value) = entry?;
            self.order(&key, &value)?;
            if let Some((state_key, value)) = state.take_if(|(state, _)| state[1..] == key[1..]) {
                self.state(&state_key, &value)?;
                state = states.next().transpose()?;
            }
        }
        match state {
            Some((key, _)) => Err(Fault::broken("a state without its order", &key)),
            None => Ok(()),
        }
    }

    fn order(&mut self, key: &IVec, value: &IVec) -> Result<(), Fault> {
        self.count(key, value);
        let (id, seq) = keys::split_order(key)?;
        let merchants = &mut self.out.found.merchants;
        if merchants
            .last()
            .is_none_or(|last| last.merchant.as_str().as_bytes() != id)
        {
            let merchant =
                keys::merchant(id).ok_or_else(|| Fault::broken("a key without a merchant", key))?;
            let orders = RoaringTreemap::new();
            merchants.push(StoredMerchant {
                merchant,
                orders,
                lanes: Default::default(),
                next_due: None,
            });
        }
        let head = frame::head(key, value)?;
        let info = codec::order_info(key, &head)?;
        self.expected.add_parts(key, &head);
        if let Some(StoredMerchant {
            merchant,
            orders,
            lanes,
            ..
        }) = merchants.last_mut()
        {
            orders.insert(seq);
            if let Some(lane) = StoredMerchant::lane(info.priority) {
                lanes[lane].insert(seq);
            }
            self.expected.add(&keys::deadline(
                self.partition,
                info.deadline,
                seq,
                merchant,
            ));
            if let Some(hash) = info.key {
                self.expected
                    .add(&keys::key(self.partition, merchant, hash, seq));
            }
        }
        Ok(())
    }

    /// The state of the order that was read last.
    fn state(&mut self, key: &IVec, value: &IVec) -> Result<(), Fault> {
        self.count(key, value);
        let head = frame::head(key, value)?;
        self.expected.add_parts(key, &head);
        let due = codec::state_due(key, &head)?;
        let (_, seq) = keys::split_order(key)?;
        if let (Some(due), Some(last)) = (due, self.out.found.merchants.last_mut()) {
            last.next_due = Some(last.next_due.map_or(due, |next| next.min(due)));
            for lane in &mut last.lanes {
                lane.remove(seq);
            }
            self.expected
                .add(&keys::due(self.partition, &last.merchant, due, seq));
        }
        Ok(())
    }

    fn meta_and_repeats(&mut self) -> Result<(), Fault> {
        for entry in read::all_of(self.db, keys::META, self.partition) {
            let (key, value) = entry?;
            self.count(&key, &value);
            let head = frame::head(&key, &value)?;
            let record = read::record(self.db, &key, &head)?;
            self.out.found.meta = Some(codec::meta(&key, head.version, &record)?);
        }
        for entry in read::all_of(self.db, keys::REPEATS, self.partition) {
            let (key, value) = entry?;
            self.count(&key, &value);
            let head = frame::head(&key, &value)?;
            self.expected.add_parts(&key, &head);
            let record = read::record(self.db, &key, &head)?;
            let entries = codec::repeats(&key, head.version, &record)?;
            self.out
                .found
                .repeats
                .push((keys::split_repeats(&key)?, entries));
        }
        Ok(())
    }

    fn indexes(&mut self) -> Result<(), Fault> {
        let mut there = Sum::default();
        for table in [keys::DUE, keys::KEY, keys::PART, keys::DEADLINE] {
            for entry in read::all_of(self.db, table, self.partition) {
                let (key, value) = entry?;
                self.count(&key, &value);
                there.add(&key);
                if table == keys::PART {
                    frame::part(&key, &value)?;
                }
            }
        }
        if there == self.expected {
            return Ok(());
        }
        let partition = self.partition;
        Err(Fault::Broken(format!(
            "the indexes of partition {partition} do not fit its orders"
        )))
    }
}

/// All partitions that have keys, ascending; other tables than ours are refused.
pub(crate) fn partitions(db: &Db) -> Result<Vec<Partition>, Fault> {
    let mut found = std::collections::BTreeSet::new();
    let mut next = Vec::new();
    loop {
        let from: &[u8] = &next;
        let Some((key, _)) = db.range::<&[u8], _>(from..).next().transpose()? else {
            return Ok(found.into_iter().map(Partition).collect());
        };
        let table = key[..].first().copied();
        next = match table {
            Some(table) if keys::OF_PARTITION.contains(&table) || table == keys::DROPPING => {
                let partition = keys::split_partition(&key)?;
                found.insert(partition.0);
                keys::all_of(table, partition).1.to_vec()
            }
            Some(keys::VERSION) if key.len() == 1 => vec![keys::VERSION, 0],
            _ => return Err(Fault::broken("a key of an unknown table", &key)),
        };
    }
}
