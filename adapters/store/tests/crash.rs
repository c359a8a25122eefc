//! A writer that is killed at any moment leaves exactly the batches up to some point, and among
//! them all that were acknowledged.

mod samples;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use expediter_core::store::StoreOp;
use expediter_ports::MerchantStore;
use expediter_types::Partition;
use samples::{batch, full, merchant, meta, opened, repeats};

const DIR: &str = "EXPEDITER_TEST_STORE_OF_A_CHILD";
const KEPT: u64 = 40;
const PER_BATCH: u64 = 20;

/// Batch `n`: its orders, the removal of an older batch's, the position, a chunk of repeats.
fn ops(n: u64) -> Vec<StoreOp> {
    let of = |n: u64| n * PER_BATCH..(n + 1) * PER_BATCH;
    let mut ops: Vec<_> = of(n).map(|seq| StoreOp::Put(full("a", seq))).collect();
    if let Some(old) = n.checked_sub(KEPT) {
        let gone = |seq| StoreOp::Remove {
            merchant: merchant("a"),
            seq,
        };
        ops.extend(of(old).map(gone));
    }
    ops.push(StoreOp::Meta(meta(n)));
    ops.push(StoreOp::Repeats {
        chunk: n % 8,
        entries: repeats(n, 500),
    });
    ops
}

/// Not a test of its own: the process that gets killed.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let store = opened(Path::new(&dir));
    let next = store
        .partition(Partition(0))
        .unwrap()
        .meta
        .map_or(0, |meta| meta.position + 1);
    for n in next.. {
        store.commit(&[batch(0, ops(n))]).unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "acknowledged {n}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn a_killed_writer_leaves_whole_batches() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    let mut batches = 0;
    for round in 0..10_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(DIR, &dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let killer = std::thread::spawn({
            let until = Instant::now() + Duration::from_millis(60 + round * 37);
            move || {
                std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
                child.kill().unwrap();
                child.wait().unwrap();
            }
        });
        let mut acknowledged = None;
        for line in lines.map_while(Result::ok) {
            let number = line
                .rsplit_once("acknowledged ")
                .and_then(|(_, n)| n.parse().ok());
            acknowledged = number.or(acknowledged);
        }
        killer.join().unwrap();

        let store = opened(&dir);
        let found = store.partition(Partition(0)).unwrap();
        let position = found.meta.map(|meta| meta.position);
        assert!(position >= acknowledged, "{position:?} {acknowledged:?}");
        let Some(n) = position else { continue };
        batches = n;
        let first = (n + 1).saturating_sub(KEPT) * PER_BATCH;
        let expected: Vec<_> = (first..(n + 1) * PER_BATCH).collect();
        assert_eq!(
            found.merchants[0].orders.iter().collect::<Vec<_>>(),
            expected
        );
        for seq in [first, (n + 1) * PER_BATCH - 1] {
            let stored = store.get(Partition(0), &merchant("a"), seq).unwrap();
            assert_eq!(stored, Some(full("a", seq)));
        }
    }
    assert!(batches > 20, "only {batches} batches were written");
}
