//! The bytes of the format, frozen: what is in `golden/` is written as it stands there, and is read
//! by every later version. A later format adds a file; it does not change this one.

mod samples;

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use expediter_core::store::{StoreBatch, StoreOp};
use expediter_ports::MerchantStore;
use expediter_types::Partition;
use samples::{batch, full, merchant, meta, opened, order, puts, raw, repeats};

const GOLDEN: &str = include_str!("golden/format-1.hex");

fn content() -> [StoreBatch; 2] {
    let mut large = order("luigis_2", 5_000_000_000);
    Arc::make_mut(&mut large.order).payload = Bytes::from(vec![b'.'; 4_000]);
    let mut ops = puts([order("a", 1), full("a", 2), large]);
    ops.push(StoreOp::Meta(meta(5_000_000_000)));
    ops.push(StoreOp::Repeats {
        chunk: 6,
        entries: repeats(1, 3),
    });
    [batch(258, ops), batch(0, vec![StoreOp::Meta(meta(0))])]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |digit: u8| char::from(digit).to_digit(16).unwrap() as u8;
    text.as_bytes()
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

#[test]
fn the_format_is_written_as_it_stands() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    opened(&dir).commit(&content()).unwrap();
    let mut text = String::new();
    for entry in raw(&dir).iter() {
        let (key, value) = entry.unwrap();
        writeln!(text, "{} {}", hex(&key), hex(&value)).unwrap();
    }
    assert!(
        text == GOLDEN,
        "other bytes than in golden/format-1.hex:\n{text}"
    );
}

#[test]
fn the_format_is_read_as_it_stands() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    let db = raw(&dir);
    for line in GOLDEN.lines() {
        let (key, value) = line.split_once(' ').unwrap();
        db.insert(unhex(key), unhex(value)).unwrap();
    }
    db.flush().unwrap();
    drop(db);

    let store = opened(&dir);
    let [batch, other] = content();
    let (mut orders, mut of_a) = (0, Vec::new());
    for op in &batch.ops {
        if let StoreOp::Put(stored) = op {
            let (id, seq) = (&stored.order.envelope.merchant, stored.order.seq);
            assert_eq!(
                store.get(batch.partition, id, seq).unwrap().as_ref(),
                Some(stored)
            );
            orders += 1;
            if *id == merchant("a") {
                of_a.push(seq);
            }
        }
    }
    assert_eq!(orders, 3);
    let found = store.partition(batch.partition).unwrap();
    assert_eq!(found.meta, Some(meta(5_000_000_000)));
    assert_eq!(found.repeats, [(6, repeats(1, 3))]);
    assert_eq!(found.merchants[0].orders.iter().collect::<Vec<_>>(), of_a);
    assert_eq!(store.partition(Partition(0)).unwrap().meta, Some(meta(0)));
    assert_eq!(other.partition, Partition(0));
}
