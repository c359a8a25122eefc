use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{
    Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use std::{fmt, path};

use expediter_core::Stored;
use expediter_core::store::{Due, Gate, Ready, StoreBatch, StoredPartition};
use expediter_ports::{MerchantStore, StoreError, StoreUsage};
use expediter_types::{MerchantId, Partition, Seq, UnixMillis};
use sled::{Batch, Db};

use crate::fault::Fault;
use crate::lock::DirLock;
use crate::write::Writer;
use crate::{check, keys, read};

/// Partitions share this many locks.
const STRIPES: usize = 64;
/// Keys removed per batch when a partition is forgotten.
const DROPPED_AT_ONCE: usize = 4096;

/// A [`MerchantStore`] on sled; [`open`](crate::open()) makes one.
///
/// Reads and commits may be called from any thread. A read sees commits whole, and it may see one
/// that is not yet durable: what it shows is a working copy, never the reason to finish an order.
pub struct SledStore {
    engine: Engine,
    /// One lock per partition (or few): the engine's reads of several keys are no snapshot. Always
    /// taken before `writer`, and several in ascending order.
    stripes: [RwLock<()>; STRIPES],
    writer: Mutex<()>,
    /// What opening the store has read of partitions that nobody asked for or changed since.
    found: Mutex<Found>,
    /// The first error; it stays.
    failed: OnceLock<String>,
    _lock: DirLock,
}

pub(crate) type Found = HashMap<Partition, StoredPartition>;

/// The open files.
pub(crate) struct Engine {
    pub(crate) dir: PathBuf,
    pub(crate) db: Db,
    /// Our own handle of the engine's file: its flush does not sync it.
    pub(crate) file: File,
}

impl Engine {
    /// Makes a batch durable.
    ///
    /// One sync per batch: with several batches to a sync, power cuts have left stores that do not
    /// open. The engine's `flush_async` is never used; it deadlocks.
    pub(crate) fn apply(&self, batch: Batch) -> Result<(), Fault> {
        self.db.apply_batch(batch)?;
        self.sync()
    }

    pub(crate) fn sync(&self) -> Result<(), Fault> {
        self.db.flush()?;
        self.file.sync_data().map_err(Fault::Sync)
    }

    /// Forgets a partition, however large, in batches that `apply` makes durable. A crash in
    /// between leaves a mark, and the rest is done when the store is opened.
    pub(crate) fn drop_partition(
        &self,
        partition: Partition,
        mut apply: impl FnMut(Batch) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mark = keys::dropping(partition);
        let mut marked = self.db.contains_key(&mark[..])?;
        for table in keys::OF_PARTITION {
            loop {
                let found = read::all_of(&self.db, table, partition)
                    .keys()
                    .take(DROPPED_AT_ONCE);
                let found = found.collect::<Result<Vec<_>, _>>()?;
                if found.is_empty() {
                    break;
                }
                let mut batch = Batch::default();
                if !marked {
                    batch.insert(&mark[..], &[]);
                    marked = true;
                }
                found.into_iter().for_each(|key| batch.remove(key));
                apply(batch)?;
            }
        }
        if marked {
            let mut batch = Batch::default();
            batch.remove(&mark[..]);
            apply(batch)?;
        }
        Ok(())
    }
}

impl SledStore {
    pub(crate) fn new(engine: Engine, lock: DirLock, found: Found) -> Self {
        Self {
            engine,
            stripes: [const { RwLock::new(()) }; STRIPES],
            writer: Mutex::new(()),
            found: Mutex::new(found),
            failed: OnceLock::new(),
            _lock: lock,
        }
    }

    /// Where it lies.
    #[must_use]
    pub fn dir(&self) -> &path::Path {
        &self.engine.dir
    }

    /// Runs one call. The engine panics on what it finds broken; after that, or after any error,
    /// nothing it says is to be believed.
    fn guarded<T>(
        &self,
        what: &'static str,
        call: impl FnOnce() -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        let before = || self.failed.get().map(|first| Fault::Before(first.clone()));
        let result = match before() {
            Some(fault) => Err(fault),
            None => match catch_unwind(AssertUnwindSafe(call)) {
                // Something may have failed under a read that went on.
                Ok(Ok(value)) => before().map_or(Ok(value), Err),
                Ok(Err(fault)) => Err(fault),
                Err(payload) => Err(Fault::panicked(&*payload)),
            },
        };
        result.map_err(|fault| {
            self.failed.get_or_init(|| fault.chain());
            let what = format!("cannot {what} the store in {}", self.engine.dir.display());
            StoreError {
                what,
                source: Some(Box::new(fault)),
            }
        })
    }

    fn read<T>(
        &self,
        partition: Partition,
        read: impl FnOnce(&Db) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        self.guarded("read", || {
            let _shared = self.shared(partition);
            read(&self.engine.db)
        })
    }

    fn take_found(&self, partition: Partition) -> Option<StoredPartition> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.remove(&partition)
    }

    // The other locks guard no value, so a panic under one leaves nothing behind that `failed` does not
    // cover.

    fn shared(&self, partition: Partition) -> RwLockReadGuard<'_, ()> {
        let stripe = &self.stripes[usize::from(partition.0) % STRIPES];
        stripe.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(
        &self,
        partitions: impl Iterator<Item = Partition>,
    ) -> Vec<RwLockWriteGuard<'_, ()>> {
        let mut stripes: Vec<_> = partitions.map(|p| usize::from(p.0) % STRIPES).collect();
        stripes.sort_unstable();
        stripes.dedup();
        let lock = |stripe: usize| {
            self.stripes[stripe]
                .write()
                .unwrap_or_else(PoisonError::into_inner)
        };
        stripes.into_iter().map(lock).collect()
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SledStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledStore")
            .field("dir", &self.engine.dir)
            .finish_non_exhaustive()
    }
}

impl MerchantStore for SledStore {
    fn commit(&self, batches: &[StoreBatch]) -> Result<(), StoreError> {
        self.guarded("write to", || {
            let exclusive = self.exclusive(batches.iter().map(|batch| batch.partition));
            for batch in batches {
                self.take_found(batch.partition);
            }
            let _writer = self.writer();
            let mut writer = Writer::new(&self.engine.db);
            for batch in batches {
                writer.add(batch)?;
            }
            self.engine.db.apply_batch(writer.finish())?;
            drop(exclusive);
            self.engine.sync()
        })
    }

    fn partition(&self, partition: Partition) -> Result<StoredPartition, StoreError> {
        self.read(partition, |db| match self.take_found(partition) {
            Some(found) => Ok(found),
            None => check::partition(db, partition).map(|checked| checked.found),
        })
    }

    fn drop_partition(&self, partition: Partition) -> Result<(), StoreError> {
        self.guarded("drop a partition of", || {
            let _exclusive = self.exclusive(std::iter::once(partition));
            self.take_found(partition);
            // Others may commit between the batches.
            self.engine.drop_partition(partition, |batch| {
                let _writer = self.writer();
                self.engine.apply(batch)
            })
        })
    }

    fn ready(
        &self,
        partition: Partition,
        merchant: &MerchantId,
        from: Seq,
        up_to: Seq,
        limit: usize,
        gate: Gate,
    ) -> Result<Ready, StoreError> {
        self.read(partition, |db| {
            read::ready(db, partition, merchant, (from, up_to), limit, gate)
        })
    }

    fn due(
        &self,
        partition: Partition,
        merchant: &MerchantId,
        until: UnixMillis,
        limit: usize,
        gate: Gate,
    ) -> Result<Due, StoreError> {
        self.read(partition, |db| {
            read::due(db, partition, merchant, until, limit, gate)
        })
    }

    fn key_head(
        &self,
        partition: Partition,
        merchant: &MerchantId,
        key: u64,
    ) -> Result<Option<Stored>, StoreError> {
        self.read(partition, |db| {
            match read::key_head(db, partition, merchant, key)? {
                Some(seq) => read::get(db, partition, merchant, seq),
                None => Ok(None),
            }
        })
    }

    fn expired(
        &self,
        partition: Partition,
        until: UnixMillis,
        limit: usize,
    ) -> Result<Vec<Stored>, StoreError> {
        self.read(partition, |db| read::expired(db, partition, until, limit))
    }

    fn get(
        &self,
        partition: Partition,
        merchant: &MerchantId,
        seq: Seq,
    ) -> Result<Option<Stored>, StoreError> {
        self.read(partition, |db| read::get(db, partition, merchant, seq))
    }

    fn first(
        &self,
        partition: Partition,
        merchant: &MerchantId,
    ) -> Result<Option<Seq>, StoreError> {
        self.read(partition, |db| read::first(db, partition, merchant))
    }

    fn below(
        &self,
        partition: Partition,
        merchant: &MerchantId,
        seq: Seq,
        most: usize,
    ) -> Result<usize, StoreError> {
        self.read(partition, |db| {
            read::below(db, partition, merchant, seq, most)
        })
    }

    fn usage(&self) -> StoreUsage {
        StoreUsage {
            disk_bytes: self.engine.file.metadata().map_or(0, |file| file.len()),
        }
    }
}
