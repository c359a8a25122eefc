//! Reading orders. Every function here sees one state of the partition: the caller holds its lock.

use std::borrow::Cow;
use std::ops::Bound;
use std::sync::Arc;

use expediter_core::store::{Due, Gate, Ready};
use expediter_core::{OrderState, Stored};
use expediter_ports::looked_at;
use expediter_types::{MerchantId, Partition, Seq, UnixMillis};
use sled::{Db, IVec};

use crate::codec::{self, OrderInfo};
use crate::fault::Fault;
use crate::frame::{self, Head};
use crate::keys::{self, Key};

type Entry = (IVec, IVec);

/// Entries with `from <= key <= to`.
pub(crate) fn between(db: &Db, from: &[u8], to: &[u8]) -> sled::Iter {
    db.range::<&[u8], _>((Bound::Included(from), Bound::Included(to)))
}

/// All entries of a partition in a table.
pub(crate) fn all_of(db: &Db, table: u8, partition: Partition) -> sled::Iter {
    let (from, end) = keys::all_of(table, partition);
    db.range::<&[u8], _>((Bound::Included(&from[..]), Bound::Excluded(&end[..])))
}

/// A record that may be in several values.
pub(crate) fn record<'a>(db: &Db, key: &[u8], head: &Head<'a>) -> Result<Cow<'a, [u8]>, Fault> {
    if head.parts() == 0 {
        return Ok(Cow::Borrowed(head.first));
    }
    frame::whole(db, key, head).map(Cow::Owned)
}

/// Orders of a merchant in sequence, each with the value of its state, if it has one. Two iterators
/// side by side: a look-up of each state would cost a descent of the tree.
struct Walk {
    orders: sled::Iter,
    states: sled::Iter,
    state: Option<Entry>,
}

impl Walk {
    fn new(
        db: &Db,
        partition: Partition,
        merchant: &MerchantId,
        from: Seq,
        up_to: Seq,
    ) -> Result<Self, Fault> {
        let bounds = |key: fn(Partition, &MerchantId, Seq) -> Key| {
            (
                key(partition, merchant, from),
                key(partition, merchant, up_to),
            )
        };
        let (first, last) = bounds(keys::order);
        let orders = between(db, &first, &last);
        let (first, last) = bounds(keys::state);
        let mut states = between(db, &first, &last);
        let state = states.next().transpose()?;
        Ok(Self {
            orders,
            states,
            state,
        })
    }

    fn next(&mut self) -> Result<Option<(Entry, Option<Entry>)>, Fault> {
        let Some(order) = self.orders.next().transpose()? else {
            return Ok(None);
        };
        // After the table byte both keys are the same.
        while self
            .state
            .as_ref()
            .is_some_and(|(key, _)| key[1..] < order.0[1..])
        {
            self.state = self.states.next().transpose()?;
        }
        let state = match &self.state {
            Some((key, _)) if key[1..] == order.0[1..] => {
                let next = self.states.next().transpose()?;
                std::mem::replace(&mut self.state, next)
            }
            _ => None,
        };
        Ok(Some((order, state)))
    }
}

fn stored(
    db: &Db,
    merchant: &MerchantId,
    seq: Seq,
    order: &Entry,
    state: Option<&Entry>,
) -> Result<Stored, Fault> {
    let (key, value) = order;
    let head = frame::head(key, value)?;
    let bytes = record(db, key, &head)?;
    let (order, deadline) = codec::order(key, head.version, &bytes, merchant.clone(), seq)?;
    let state = match state {
        Some((key, value)) => {
            let head = frame::head(key, value)?;
            codec::state(key, head.version, &record(db, key, &head)?)?
        }
        None => OrderState::default(),
    };
    Ok(Stored {
        order: Arc::new(order),
        state,
        deadline,
    })
}

pub(crate) fn get(
    db: &Db,
    partition: Partition,
    merchant: &MerchantId,
    seq: Seq,
) -> Result<Option<Stored>, Fault> {
    let key = keys::order(partition, merchant, seq);
    let Some(value) = db.get(&key[..])? else {
        return Ok(None);
    };
    let state_key = keys::state(partition, merchant, seq);
    let state = db
        .get(&state_key[..])?
        .map(|value| (IVec::from(&state_key[..]), value));
    stored(
        db,
        merchant,
        seq,
        &(IVec::from(&key[..]), value),
        state.as_ref(),
    )
    .map(Some)
}

/// An order that an index names.
fn indexed(
    db: &Db,
    partition: Partition,
    merchant: &MerchantId,
    seq: Seq,
    index: &[u8],
) -> Result<Stored, Fault> {
    get(db, partition, merchant, seq)?
        .ok_or_else(|| Fault::broken("an index names an order that is not there", index))
}

pub(crate) fn key_head(
    db: &Db,
    partition: Partition,
    merchant: &MerchantId,
    hash: u64,
) -> Result<Option<Seq>, Fault> {
    let (from, to) = (
        keys::key(partition, merchant, hash, 0),
        keys::key(partition, merchant, hash, Seq::MAX),
    );
    match between(db, &from, &to).next().transpose()? {
        Some((key, _)) => keys::split_pair(&key).map(|(_, seq)| Some(seq)),
        None => Ok(None),
    }
}

fn is_head(
    db: &Db,
    partition: Partition,
    merchant: &MerchantId,
    seq: Seq,
    order: OrderInfo,
) -> Result<bool, Fault> {
    match order.key {
        Some(hash) => Ok(key_head(db, partition, merchant, hash)? == Some(seq)),
        None => Ok(true),
    }
}

pub(crate) fn ready(
    db: &Db,
    partition: Partition,
    merchant: &MerchantId,
    (from, up_to): (Seq, Seq),
    limit: usize,
    gate: Gate,
) -> Result<Ready, Fault> {
    let mut orders = Vec::new();
    if from <= up_to {
        let mut walk = Walk::new(db, partition, merchant, from, up_to)?;
        let mut looked = 0;
        while let Some((order, state)) = walk.next()? {
            let (_, seq) = keys::split_order(&order.0)?;
            if orders.len() == limit || looked == looked_at(limit) {
                return Ok(Ready {
                    orders,
                    next: seq,
                    exhausted: false,
                });
            }
            looked += 1;
            let waits = || match &state {
                Some((key, value)) => {
                    codec::state_due(key, &frame::head(key, value)?).map(|due| due.is_some())
                }
                None => Ok(false),
            };
            let passes = match gate {
                Gate::Fifo => true,
                Gate::Ready => !waits()?,
                Gate::HeadOfKey => {
                    let info = codec::order_info(&order.0, &frame::head(&order.0, &order.1)?)?;
                    !waits()? && is_head(db, partition, merchant, seq, info)?
                }
            };
            if passes {
                orders.push(stored(db, merchant, seq, &order, state.as_ref())?);
            }
        }
    }
    Ok(Ready {
        orders,
        next: from.max(up_to.saturating_add(1)),
        exhausted: true,
    })
}

pub(crate) fn due(
    db: &Db,
    partition: Partition,
    merchant: &MerchantId,
    until: UnixMillis,
    limit: usize,
    gate: Gate,
) -> Result<Due, Fault> {
    let mut found = Due::default();
    let (from, to) = (
        keys::due(partition, merchant, 0, 0),
        keys::due(partition, merchant, UnixMillis::MAX, Seq::MAX),
    );
    for entry in between(db, &from, &to) {
        let (index, _) = entry?;
        let (due, seq) = keys::split_pair(&index)?;
        if due > until {
            found.next = Some(due);
            break;
        }
        if gate == Gate::HeadOfKey {
            let key = keys::order(partition, merchant, seq);
            let Some(value) = db.get(&key[..])? else {
                return Err(Fault::broken(
                    "an index names an order that is not there",
                    &index,
                ));
            };
            let info = codec::order_info(&key, &frame::head(&key, &value)?)?;
            if !is_head(db, partition, merchant, seq, info)? {
                continue;
            }
        }
        if found.orders.len() == limit {
            found.next = Some(due);
            break;
        }
        found
            .orders
            .push(indexed(db, partition, merchant, seq, &index)?);
    }
    Ok(found)
}

pub(crate) fn expired(
    db: &Db,
    partition: Partition,
    until: UnixMillis,
    limit: usize,
) -> Result<Vec<Stored>, Fault> {
    let mut orders = Vec::new();
    for entry in all_of(db, keys::DEADLINE, partition).take(limit) {
        let (index, _) = entry?;
        let (deadline, seq, merchant) = keys::split_deadline(&index)?;
        if deadline > until {
            break;
        }
        orders.push(indexed(db, partition, &merchant, seq, &index)?);
    }
    Ok(orders)
}

pub(crate) fn below(
    db: &Db,
    partition: Partition,
    merchant: &MerchantId,
    seq: Seq,
    most: usize,
) -> Result<usize, Fault> {
    let Some(last) = seq.checked_sub(1) else {
        return Ok(0);
    };
    let (from, to) = (
        keys::order(partition, merchant, 0),
        keys::order(partition, merchant, last),
    );
    let mut count = 0;
    for entry in between(db, &from, &to).take(most) {
        entry?;
        count += 1;
    }
    Ok(count)
}

pub(crate) fn first(
    db: &Db,
    partition: Partition,
    merchant: &MerchantId,
) -> Result<Option<Seq>, Fault> {
    let (from, to) = (
        keys::order(partition, merchant, 0),
        keys::order(partition, merchant, Seq::MAX),
    );
    match between(db, &from, &to).next().transpose()? {
        Some((key, _)) => keys::split_order(&key).map(|(_, seq)| Some(seq)),
        None => Ok(None),
    }
}
