//! Turning changes into one batch of the engine. An order's index keys follow from the order, so
//! whatever replaces or forgets one first looks at what is there: in the engine, or, when an earlier
//! change of the same commit touched it, in what that left.

use std::collections::{BTreeMap, HashMap};

use expediter_core::store::{StoreBatch, StoreOp};
use expediter_core::{OrderState, Stored};
use expediter_types::{MerchantId, Partition, Seq, UnixMillis};
use sled::{Batch, Db};

use crate::codec::{self, OrderInfo, RECORD};
use crate::fault::Fault;
use crate::frame::{self, Framer};
use crate::{keys, read};

type Address = (Partition, MerchantId, Seq);

/// An order, as far as its keys go.
#[derive(Debug, Clone, Copy)]
struct Slot {
    order: OrderInfo,
    parts: u16,
    state: Option<StateSlot>,
}

#[derive(Debug, Clone, Copy)]
struct StateSlot {
    due: Option<UnixMillis>,
    parts: u16,
}

/// The batch of one commit.
pub(crate) struct Writer<'a> {
    db: &'a Db,
    batch: Batch,
    framer: Framer,
    record: Vec<u8>,
    /// What orders look like after the changes so far; `None`: not there.
    slots: HashMap<Address, Option<Slot>>,
    /// Likewise the chunks of repeats: their number of further parts.
    chunks: BTreeMap<(Partition, u64), Option<u16>>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(db: &'a Db) -> Self {
        Self {
            db,
            batch: Batch::default(),
            framer: Framer::default(),
            record: Vec::new(),
            slots: HashMap::new(),
            chunks: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, batch: &StoreBatch) -> Result<(), Fault> {
        let partition = batch.partition;
        for op in &batch.ops {
            match op {
                StoreOp::Put(stored) => self.put(partition, stored)?,
                StoreOp::SetState {
                    merchant,
                    seq,
                    state,
                } => {
                    self.set_state(partition, merchant, *seq, state)?;
                }
                StoreOp::Remove { merchant, seq } => self.remove(partition, merchant, *seq)?,
                StoreOp::Meta(meta) => {
                    self.record.clear();
                    codec::put_meta(&mut self.record, meta);
                    let key = keys::meta(partition);
                    self.framer
                        .put(&mut self.batch, &key, RECORD, &self.record, 0)?;
                }
                StoreOp::Repeats { chunk, entries } => {
                    self.record.clear();
                    codec::put_repeats(&mut self.record, entries);
                    let key = keys::repeats(partition, *chunk);
                    let old = self.chunk(partition, *chunk)?.unwrap_or(0);
                    let parts =
                        self.framer
                            .put(&mut self.batch, &key, RECORD, &self.record, old)?;
                    self.chunks.insert((partition, *chunk), Some(parts));
                }
                StoreOp::ForgetRepeats { below } => self.forget_repeats(partition, *below)?,
            }
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Batch {
        self.batch
    }

    /// Takes what is known of an order; the caller says what it looks like afterwards.
    fn take(&mut self, address: &Address) -> Result<Option<Slot>, Fault> {
        match self.slots.get_mut(address) {
            Some(slot) => Ok(slot.take()),
            None => lookup(self.db, address),
        }
    }

    fn put(&mut self, partition: Partition, stored: &Stored) -> Result<(), Fault> {
        let merchant = &stored.order.envelope.merchant;
        let address = (partition, merchant.clone(), stored.order.seq);
        let old = self.take(&address)?;
        if let Some(old) = old {
            self.remove_indexes(&address, &old);
        }
        self.record.clear();
        let order = codec::put_order(&mut self.record, stored);
        let key = keys::order(partition, merchant, stored.order.seq);
        let old_parts = old.map_or(0, |old| old.parts);
        let parts = self
            .framer
            .put(&mut self.batch, &key, RECORD, &self.record, old_parts)?;
        let deadline = keys::deadline(partition, order.deadline, stored.order.seq, merchant);
        self.batch.insert(&deadline[..], &[]);
        if let Some(hash) = order.key {
            let index = keys::key(partition, merchant, hash, stored.order.seq);
            self.batch.insert(&index[..], &[]);
        }
        let state = self.put_state(&address, &stored.state, old.and_then(|old| old.state))?;
        self.slots.insert(
            address,
            Some(Slot {
                order,
                parts,
                state,
            }),
        );
        Ok(())
    }

    fn set_state(
        &mut self,
        partition: Partition,
        merchant: &MerchantId,
        seq: Seq,
        state: &OrderState,
    ) -> Result<(), Fault> {
        let address = (partition, merchant.clone(), seq);
        let mut slot = self.take(&address)?;
        if let Some(slot) = &mut slot {
            if let Some(due) = slot.state.and_then(|state| state.due) {
                self.batch
                    .remove(&keys::due(partition, merchant, due, seq)[..]);
            }
            slot.state = self.put_state(&address, state, slot.state)?;
        }
        self.slots.insert(address, slot);
        Ok(())
    }

    fn remove(
        &mut self,
        partition: Partition,
        merchant: &MerchantId,
        seq: Seq,
    ) -> Result<(), Fault> {
        let address = (partition, merchant.clone(), seq);
        if let Some(slot) = self.take(&address)? {
            self.remove_indexes(&address, &slot);
            frame::remove(
                &mut self.batch,
                &keys::order(partition, merchant, seq),
                slot.parts,
            );
            if let Some(state) = slot.state {
                frame::remove(
                    &mut self.batch,
                    &keys::state(partition, merchant, seq),
                    state.parts,
                );
            }
        }
        self.slots.insert(address, None);
        Ok(())
    }

    fn remove_indexes(&mut self, (partition, merchant, seq): &Address, slot: &Slot) {
        let deadline = keys::deadline(*partition, slot.order.deadline, *seq, merchant);
        self.batch.remove(&deadline[..]);
        if let Some(hash) = slot.order.key {
            self.batch
                .remove(&keys::key(*partition, merchant, hash, *seq)[..]);
        }
        if let Some(due) = slot.state.and_then(|state| state.due) {
            self.batch
                .remove(&keys::due(*partition, merchant, due, *seq)[..]);
        }
    }

    /// Writes a state and its index key in place of the old state, whose index key is gone.
    fn put_state(
        &mut self,
        (partition, merchant, seq): &Address,
        state: &OrderState,
        old: Option<StateSlot>,
    ) -> Result<Option<StateSlot>, Fault> {
        let key = keys::state(*partition, merchant, *seq);
        if *state == OrderState::default() {
            if let Some(old) = old {
                frame::remove(&mut self.batch, &key, old.parts);
            }
            return Ok(None);
        }
        self.record.clear();
        codec::put_state(&mut self.record, state);
        let old_parts = old.map_or(0, |old| old.parts);
        let parts = self
            .framer
            .put(&mut self.batch, &key, RECORD, &self.record, old_parts)?;
        if let Some(due) = state.due {
            self.batch
                .insert(&keys::due(*partition, merchant, due, *seq)[..], &[]);
        }
        Ok(Some(StateSlot {
            due: state.due,
            parts,
        }))
    }

    /// Further parts of a chunk of repeats, if it is there.
    fn chunk(&self, partition: Partition, chunk: u64) -> Result<Option<u16>, Fault> {
        if let Some(known) = self.chunks.get(&(partition, chunk)) {
            return Ok(*known);
        }
        let key = keys::repeats(partition, chunk);
        let value = self.db.get(&key[..])?;
        value
            .map(|value| Ok(frame::head(&key, &value)?.parts()))
            .transpose()
    }

    fn forget_repeats(&mut self, partition: Partition, below: u64) -> Result<(), Fault> {
        let Some(last) = below.checked_sub(1) else {
            return Ok(());
        };
        let (from, to) = (keys::repeats(partition, 0), keys::repeats(partition, last));
        for entry in read::between(self.db, &from, &to) {
            let (key, value) = entry?;
            let chunk = (partition, keys::split_repeats(&key)?);
            if let std::collections::btree_map::Entry::Vacant(unknown) = self.chunks.entry(chunk) {
                unknown.insert(Some(frame::head(&key, &value)?.parts()));
            }
        }
        for ((_, chunk), parts) in self.chunks.range_mut((partition, 0)..=(partition, last)) {
            if let Some(parts) = parts.take() {
                frame::remove(&mut self.batch, &keys::repeats(partition, *chunk), parts);
            }
        }
        Ok(())
    }
}

fn lookup(db: &Db, (partition, merchant, seq): &Address) -> Result<Option<Slot>, Fault> {
    let key = keys::order(*partition, merchant, *seq);
    let Some(value) = db.get(&key[..])? else {
        return Ok(None);
    };
    let head = frame::head(&key, &value)?;
    let order = codec::order_info(&key, &head)?;
    let state_key = keys::state(*partition, merchant, *seq);
    let state = match db.get(&state_key[..])? {
        Some(value) => {
            let head = frame::head(&state_key, &value)?;
            Some(StateSlot {
                due: codec::state_due(&state_key, &head)?,
                parts: head.parts(),
            })
        }
        None => None,
    };
    Ok(Some(Slot {
        order,
        parts: head.parts(),
        state,
    }))
}
