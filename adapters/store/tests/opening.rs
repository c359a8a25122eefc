//! What a store does when it is opened: keeps what was there, moves what is broken aside, refuses
//! what is not its own, gives back disk space.

mod samples;

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use expediter_core::store::{StoreOp, StoredPartition};
use expediter_ports::MerchantStore;
use expediter_store::{OpenError, Options, open};
use expediter_types::Partition;
use samples::{batch, full, merchant, meta, opened, order, puts, raw, repeats, with_payload};

struct Home {
    _home: tempfile::TempDir,
    dir: PathBuf,
}

fn home() -> Home {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    Home { _home: home, dir }
}

impl Home {
    fn beside(&self, suffix: &str) -> PathBuf {
        self.dir.with_file_name(format!("store{suffix}"))
    }

    /// Changes the engine's content behind the store's back.
    fn tamper(&self, change: impl FnOnce(&sled::Db)) {
        let db = raw(&self.dir);
        change(&db);
        db.flush().unwrap();
    }

    /// Opening finds the store broken: `because` says so, and a new one works in its place.
    fn moved_aside(&self, because: &str) {
        let opened = open(&Options::new(&self.dir)).unwrap();
        let aside = opened.aside.expect("a broken store");
        assert!(aside.because.contains(because), "{}", aside.because);
        assert!(
            aside
                .path
                .to_string_lossy()
                .starts_with(&*self.beside(".bad-").to_string_lossy())
        );
        assert!(aside.path.join("db").exists());
        let content = opened.store.partition(Partition(0)).unwrap();
        assert_eq!(content, StoredPartition::default());
        opened
            .store
            .commit(&[batch(0, puts([order("a", 1)]))])
            .unwrap();
        drop(opened.store);
        assert!(
            samples::opened(&self.dir)
                .first(Partition(0), &merchant("a"))
                .unwrap()
                .is_some()
        );
    }
}

fn patterned(seq: u64, len: usize) -> Bytes {
    (0..len as u64)
        .map(|at| (at.wrapping_mul(seq + 7) >> 3) as u8)
        .collect()
}

fn has_blobs(dir: &Path) -> bool {
    fs::read_dir(dir.join("blobs")).unwrap().next().is_some()
}

#[test]
fn everything_is_there_after_a_restart() {
    let home = home();
    let store = opened(&home.dir);
    let repeats = StoreOp::Repeats {
        chunk: 4,
        entries: repeats(1, 1_000),
    };
    let mut ops = puts([full("a", 1), order("a", 2), full("b", 3)]);
    ops.extend([StoreOp::Meta(meta(3)), repeats]);
    store.commit(&[batch(7, ops)]).unwrap();
    let before = store.partition(Partition(7)).unwrap();
    assert_eq!(before.meta, Some(meta(3)));
    assert_eq!(before.repeats[0].1.len(), 1_000);
    drop(store);
    let store = opened(&home.dir);
    assert_eq!(store.partition(Partition(7)).unwrap(), before);
    assert_eq!(
        store.get(Partition(7), &merchant("a"), 1).unwrap(),
        Some(full("a", 1))
    );
    assert!(store.usage().disk_bytes > 0);
}

#[test]
fn large_payloads_come_back_and_make_no_files() {
    let home = home();
    let store = opened(&home.dir);
    let large = |seq| with_payload("a", seq, patterned(seq, 1 << 20));
    let middle = |seq| with_payload("b", seq, patterned(seq, 3_900));
    for seq in 0..8 {
        let orders = [large(seq)]
            .into_iter()
            .chain((0..40).map(|n| middle(seq * 40 + n)));
        store.commit(&[batch(0, puts(orders))]).unwrap();
    }
    drop(store);
    let store = opened(&home.dir);
    for seq in 0..8 {
        assert_eq!(
            store.get(Partition(0), &merchant("a"), seq).unwrap(),
            Some(large(seq))
        );
    }
    assert_eq!(
        store.get(Partition(0), &merchant("b"), 319).unwrap(),
        Some(middle(319))
    );
    // Leaves that shrink are merged with their neighbours: they must not become files either.
    for seq in 0..320 {
        let gone = |id: &str| StoreOp::Remove {
            merchant: merchant(id),
            seq: seq * 7 % 320,
        };
        store
            .commit(&[batch(0, vec![gone("a"), gone("b")])])
            .unwrap();
    }
    assert_eq!(
        store.partition(Partition(0)).unwrap(),
        StoredPartition::default()
    );
    drop(store);
    assert!(!has_blobs(&home.dir));
}

#[test]
fn a_flipped_byte_is_noticed() {
    let home = home();
    let store = opened(&home.dir);
    let orders = (0..300).map(|seq| with_payload("a", seq, patterned(seq, 2_000)));
    store.commit(&[batch(0, puts(orders))]).unwrap();
    drop(store);
    // From now on the engine knows its pages without reading them.
    drop(opened(&home.dir));
    let path = home.dir.join("db");
    let mut bytes = fs::read(&path).unwrap();
    let needle = patterned(150, 64);
    let places: Vec<_> = (0..bytes.len() - 64)
        .filter(|at| bytes[*at..*at + 64] == needle[..])
        .collect();
    assert!(!places.is_empty());
    for place in places {
        bytes[place] ^= 1;
    }
    fs::write(&path, bytes).unwrap();
    home.moved_aside("");
}

#[test]
fn a_value_that_is_not_what_was_written_is_noticed() {
    let home = home();
    opened(&home.dir)
        .commit(&[batch(0, puts([full("a", 1)]))])
        .unwrap();
    home.tamper(|db| {
        let (key, mut value) = db.scan_prefix(b"o").next().unwrap().unwrap();
        value[20] ^= 1;
        db.insert(key, value).unwrap();
    });
    home.moved_aside("checksum");
}

#[test]
fn a_missing_or_surplus_index_key_is_noticed() {
    for table in [b"x", b"k", b"d", b"p"] {
        let home = home();
        let mut large = full("a", 1);
        let order = std::sync::Arc::make_mut(&mut large.order);
        order.payload = patterned(1, 20_000);
        opened(&home.dir)
            .commit(&[batch(0, puts([large]))])
            .unwrap();
        home.tamper(|db| {
            let (key, _) = db.scan_prefix(table).next().unwrap().unwrap();
            db.remove(key).unwrap();
        });
        home.moved_aside("do not fit");
    }
    let home = home();
    opened(&home.dir)
        .commit(&[batch(0, puts([full("a", 1)]))])
        .unwrap();
    home.tamper(|db| {
        let (mut key, value) = db.scan_prefix(b"x").next().unwrap().unwrap();
        key[4] ^= 1;
        db.insert(key, value).unwrap();
    });
    home.moved_aside("do not fit");
}

#[test]
fn a_state_without_its_order_and_an_unknown_table_are_noticed() {
    let home = home();
    opened(&home.dir)
        .commit(&[batch(0, puts([full("a", 1)]))])
        .unwrap();
    home.tamper(|db| {
        for table in [b"o", b"x", b"k"] {
            let (key, _) = db.scan_prefix(table).next().unwrap().unwrap();
            db.remove(key).unwrap();
        }
    });
    home.moved_aside("a state without its order");
    home.tamper(|db| {
        db.insert(b"~surplus", b"").unwrap();
    });
    home.moved_aside("unknown table");
}

#[test]
fn a_store_that_lost_everything_without_an_error_is_noticed() {
    let home = home();
    opened(&home.dir)
        .commit(&[batch(0, puts([order("a", 1)]))])
        .unwrap();
    home.tamper(|db| db.clear().unwrap());
    home.moved_aside("no format version");
    fs::write(home.dir.join("db"), []).unwrap();
    home.moved_aside("");
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let home = home();
    opened(&home.dir)
        .commit(&[batch(0, puts([order("a", 1)]))])
        .unwrap();
    let newer = 2_u32.to_be_bytes();
    home.tamper(|db| {
        let crc = crc32fast::hash(&[&b"v"[..], &newer].concat()).to_be_bytes();
        db.insert(b"v", [newer, crc].concat()).unwrap();
        db.insert(b"A table of the future", b"").unwrap();
    });
    let before = fs::read(home.dir.join("db")).unwrap();
    let error = open(&Options::new(&home.dir)).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Newer {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("newer version"));
    assert_eq!(fs::read(home.dir.join("db")).unwrap(), before);
}

#[test]
fn another_engine_version_is_refused_and_left_alone() {
    let home = home();
    drop(opened(&home.dir));
    let conf = home.dir.join("conf");
    let whole = fs::read(&conf).unwrap();
    let settings = String::from_utf8(whole[..whole.len() - 4].to_vec()).unwrap();
    let settings = settings
        .replace("version: 0.34", "version: 0.35")
        .into_bytes();
    let crc = crc32fast::hash(&settings).to_le_bytes();
    fs::write(&conf, [&settings[..], &crc].concat()).unwrap();
    let error = open(&Options::new(&home.dir)).unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error:?}");
    // With a checksum that does not fit, it is damage.
    fs::write(&conf, [&settings[..], &[0; 4]].concat()).unwrap();
    home.moved_aside("");
}

#[test]
fn a_second_opener_waits_and_is_refused() {
    let home = home();
    let store = opened(&home.dir);
    let error = open(&Options::new(&home.dir)).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert!(error.to_string().contains(&*home.dir.to_string_lossy()));
    let opener = std::thread::spawn({
        let dir = home.dir.clone();
        move || open(&Options::new(dir)).map(|opened| opened.aside)
    });
    drop(store);
    assert_eq!(opener.join().unwrap().unwrap(), None);
}

#[test]
fn what_is_no_directory_is_an_error() {
    let home = home();
    fs::write(&home.dir, b"a file").unwrap();
    let error = open(&Options::new(&home.dir)).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
    assert_eq!(fs::read(&home.dir).unwrap(), b"a file");
    assert!(matches!(
        open(&Options::new("/")),
        Err(OpenError::NoDirectory { .. })
    ));
}

#[test]
fn a_store_that_was_not_made_to_the_end_is_made_anew() {
    let home = home();
    opened(&home.dir)
        .commit(&[batch(0, puts([order("a", 1)]))])
        .unwrap();
    fs::write(home.dir.join("unfinished"), []).unwrap();
    let store = opened(&home.dir);
    assert_eq!(
        store.partition(Partition(0)).unwrap(),
        StoredPartition::default()
    );
    assert!(!home.dir.join("unfinished").exists());
}

#[test]
fn a_partition_whose_dropping_was_interrupted_is_dropped_at_the_start() {
    let home = home();
    let store = opened(&home.dir);
    store
        .commit(&[
            batch(0, puts([full("a", 1)])),
            batch(1, puts([full("a", 2)])),
        ])
        .unwrap();
    let other = store.partition(Partition(1)).unwrap();
    drop(store);
    home.tamper(|db| {
        db.insert([b'z', 0, 0], b"").unwrap();
        db.remove(db.scan_prefix([b'd', 0, 0]).next().unwrap().unwrap().0)
            .unwrap();
    });
    let store = opened(&home.dir);
    assert_eq!(
        store.partition(Partition(0)).unwrap(),
        StoredPartition::default()
    );
    assert_eq!(store.partition(Partition(1)).unwrap(), other);
    drop(store);
    home.tamper(|db| assert!(db.scan_prefix(b"z").next().is_none()));
}

#[test]
fn a_drained_store_is_rewritten() {
    let home = home();
    let store = opened(&home.dir);
    for seq in 0..90 {
        let large = with_payload("a", seq, patterned(seq, 1 << 20));
        store
            .commit(&[batch(0, puts([large, full("b", seq)]))])
            .unwrap();
    }
    for seq in 1..90 {
        let gone = StoreOp::Remove {
            merchant: merchant("a"),
            seq,
        };
        store.commit(&[batch(0, vec![gone])]).unwrap();
    }
    let (before, content) = (store.usage(), store.partition(Partition(0)).unwrap());
    assert!(before.disk_bytes > 64 << 20, "{before:?}");
    drop(store);
    let store = opened(&home.dir);
    assert!(
        store.usage().disk_bytes < before.disk_bytes / 8,
        "{:?}",
        store.usage()
    );
    assert_eq!(store.partition(Partition(0)).unwrap(), content);
    store.commit(&[batch(0, puts([order("c", 1)]))]).unwrap();
    assert!(!home.beside(".compact").exists() && !home.beside(".old").exists());
    drop(store);
    opened(&home.dir).partition(Partition(0)).unwrap();
}

#[test]
fn broken_stores_do_not_fill_the_disk() {
    let home = home();
    for seconds in [1_000_000_001, 1_000_000_002, 1_000_000_003, 1_000_000_004] {
        fs::create_dir(home.beside(&format!(".bad-{seconds}"))).unwrap();
    }
    drop(opened(&home.dir));
    home.tamper(|db| db.clear().unwrap());
    home.moved_aside("no format version");
    let exists = |seconds| home.beside(&format!(".bad-{seconds}")).exists();
    assert!(!exists(1_000_000_001) && !exists(1_000_000_002));
    assert!(exists(1_000_000_003) && exists(1_000_000_004));
}

/// All that a crash can leave while a copy takes the store's place.
#[test]
fn an_interrupted_rewrite_loses_nothing() {
    let here = |home: &Home| {
        opened(&home.dir)
            .first(Partition(0), &merchant("a"))
            .unwrap()
    };
    let store_with = |dir: &Path, seq| {
        opened(dir)
            .commit(&[batch(0, puts([order("a", seq)]))])
            .unwrap();
        let lock = dir.with_file_name(format!("{}.lock", dir.file_name().unwrap().display()));
        fs::remove_file(lock).unwrap();
    };

    let before_the_renames = home();
    store_with(&before_the_renames.dir, 1);
    store_with(&before_the_renames.beside(".compact"), 2);
    assert_eq!(here(&before_the_renames), Some(1));
    assert!(!before_the_renames.beside(".compact").exists());

    let between_the_renames = home();
    store_with(&between_the_renames.beside(".old"), 1);
    store_with(&between_the_renames.beside(".compact"), 2);
    assert_eq!(here(&between_the_renames), Some(2));
    assert!(!between_the_renames.beside(".old").exists());

    let with_half_a_copy = home();
    store_with(&with_half_a_copy.beside(".old"), 1);
    store_with(&with_half_a_copy.beside(".compact"), 2);
    fs::write(with_half_a_copy.beside(".compact").join("unfinished"), []).unwrap();
    assert_eq!(here(&with_half_a_copy), Some(1));

    let after_the_renames = home();
    store_with(&after_the_renames.dir, 2);
    store_with(&after_the_renames.beside(".old"), 1);
    assert_eq!(here(&after_the_renames), Some(2));
    assert!(!after_the_renames.beside(".old").exists());
}

#[test]
fn after_an_error_no_call_is_answered() {
    let home = home();
    opened(&home.dir)
        .commit(&[batch(0, puts([full("a", 1)]))])
        .unwrap();
    let store = opened(&home.dir);
    // Larger than any message of the broker.
    let huge = with_payload("a", 2, Bytes::from(vec![0; 72 << 20]));
    let error = store.commit(&[batch(0, puts([huge]))]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot write to the store in "),
        "{error}"
    );
    let error = store.get(Partition(0), &merchant("a"), 1).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        cause.contains("failed before") && cause.contains("too large"),
        "{cause}"
    );
    assert!(store.commit(&[]).is_err());
}
