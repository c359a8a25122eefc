use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, path};

use sled::Batch;

use crate::fault::Fault;
use crate::lock::DirLock;
use crate::store::{Engine, Found, SledStore};
use crate::{check, files, keys, lock};

/// Version of the whole format: tables, keys, records. Raised when an older build could not read
/// what this one writes.
const FORMAT: u32 = 1;

/// How long a stopping process may hold the store.
const PATIENCE: Duration = Duration::from_secs(5);

/// The engine never gives disk space back: a file above this many bytes, of which less than one in
/// [`WASTE`] is live, is rewritten when the store is opened.
const WORTH_REWRITING: u64 = 64 << 20;
const WASTE: u64 = 4;
/// Bytes copied per batch when a store is rewritten, and the engine's cache for the copy.
const COPIED_AT_ONCE: usize = 4 << 20;
const COPY_CACHE: u64 = 32 << 20;

/// What a store is opened with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The store's own directory, made if missing. Neighbours with its name and a suffix (`.lock`,
    /// `.compact`, `.old`, `.bad-<unix seconds>`) are the store's too, so it must not be a mount
    /// point and its parent must be writable.
    pub dir: PathBuf,
    /// Bounds the engine's memory, in bytes; 128 MiB by default.
    pub cache_bytes: u64,
}

impl Options {
    /// The defaults, for a directory.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            cache_bytes: 128 << 20,
        }
    }
}

/// An open store.
#[derive(Debug)]
pub struct Opened {
    pub store: SledStore,
    /// Set when there was a broken store, and an empty one took its place: worth an alarm.
    pub aside: Option<Aside>,
}

/// A broken store that was moved away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Where it is now.
    pub path: PathBuf,
    /// What was wrong with it.
    pub because: String,
}

impl fmt::Display for Aside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a broken store was moved to {}: {}",
            self.path.display(),
            self.because
        )
    }
}

/// Why a store cannot be opened. It was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} cannot be a store's directory", dir.display())]
    NoDirectory { dir: PathBuf },
    #[error("the store in {} is in use by another process", dir.display())]
    Locked { dir: PathBuf },
    #[error(
        "the store in {} was written by a newer version (format {found}, this one knows {known})",
        dir.display()
    )]
    Newer {
        dir: PathBuf,
        found: u32,
        known: u32,
    },
    #[error("the store in {} was written by another version of the engine: {what}", dir.display())]
    Foreign { dir: PathBuf, what: String },
    #[error("cannot {what} the store in {}", dir.display())]
    Io {
        what: &'static str,
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Opens a store or makes one, and reads all of it: about 2 s per million orders.
///
/// A broken store is moved aside and an empty one made, because what it held can be rebuilt. One
/// that is held by another process, was written by a newer version, or cannot be read for lack of
/// rights or space is an error, and stays where it is.
pub fn open(options: &Options) -> Result<Opened, OpenError> {
    let no_directory = || OpenError::NoDirectory {
        dir: options.dir.clone(),
    };
    let dir = path::absolute(&options.dir).map_err(|_| no_directory())?;
    let (Some(parent), Some(_)) = (dir.parent(), dir.file_name()) else {
        return Err(no_directory());
    };
    let io = |what| {
        let dir = dir.clone();
        move |source| OpenError::Io { what, dir, source }
    };
    fs::create_dir_all(parent).map_err(io("make the directory of"))?;
    let lock = DirLock::take(&files::beside(&dir, ".lock"), PATIENCE)
        .map_err(io("lock"))?
        .ok_or_else(|| OpenError::Locked { dir: dir.clone() })?;
    files::finish_replacing(&dir).map_err(io("finish the rewriting of"))?;

    let mut aside = None;
    let mut found = Found::new();
    let engine = if files::is_complete(&dir).map_err(io("look at"))? {
        match existing(&dir, options.cache_bytes) {
            Ok((engine, whole)) => {
                found = whole.found;
                shrunk(engine, whole.live, options.cache_bytes)
                    .map_err(|fault| refusal(&dir, "rewrite", fault))?
            }
            Err(fault) => {
                let because = fault.chain();
                if let Some(error) = judge(&dir, "open", fault) {
                    return Err(error);
                }
                let path = files::move_aside(&dir).map_err(io("move aside"))?;
                aside = Some(Aside { path, because });
                made(&dir, options.cache_bytes)?
            }
        }
    } else {
        made(&dir, options.cache_bytes)?
    };
    Ok(Opened {
        store: SledStore::new(engine, lock, found),
        aside,
    })
}

/// The error that leaves the store where it is; `None`: it is broken.
fn judge(dir: &Path, what: &'static str, fault: Fault) -> Option<OpenError> {
    let dir = dir.to_owned();
    match fault {
        Fault::Newer { found, known } => Some(OpenError::Newer { dir, found, known }),
        Fault::Sync(source) => Some(OpenError::Io { what, dir, source }),
        Fault::Engine(sled::Error::Io(source)) if is_lock(&source) => {
            Some(OpenError::Locked { dir })
        }
        Fault::Engine(sled::Error::Io(source)) if is_of_system(&source) => {
            Some(OpenError::Io { what, dir, source })
        }
        Fault::Engine(sled::Error::Unsupported(what)) if files::settings_are_whole(&dir) => {
            Some(OpenError::Foreign { dir, what })
        }
        Fault::Engine(_)
        | Fault::Broken(_)
        | Fault::Panicked(_)
        | Fault::TooLarge(_)
        | Fault::Before(_) => None,
    }
}

/// Likewise where being broken is no answer.
fn refusal(dir: &Path, what: &'static str, fault: Fault) -> OpenError {
    let text = fault.chain();
    judge(dir, what, fault).unwrap_or_else(|| OpenError::Io {
        what,
        dir: dir.to_owned(),
        source: io::Error::other(text),
    })
}

fn is_lock(error: &io::Error) -> bool {
    error.to_string().starts_with("could not acquire lock")
}

/// The system refuses something, which says nothing about the content. The engine hands some errors
/// on without their number, but with their kind.
fn is_of_system(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::PermissionDenied
        | Kind::StorageFull
        | Kind::ReadOnlyFilesystem
        | Kind::QuotaExceeded
        | Kind::OutOfMemory
        | Kind::ResourceBusy => true,
        Kind::NotFound | Kind::UnexpectedEof | Kind::InvalidData => false,
        _ => error.raw_os_error().is_some(),
    }
}

fn unwinding<T>(call: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| Err(Fault::panicked(&*payload)))
}

/// Opens the engine's files. An engine that was closed lets go of them a little later.
fn engine(dir: &Path, cache_bytes: u64) -> Result<Engine, Fault> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(cache_bytes)
        // Every commit flushes and syncs. A periodic flusher would hide its errors, and hang the
        // closing of a store on which it panicked.
        .flush_every_ms(None);
    let deadline = Instant::now() + PATIENCE;
    let db = loop {
        match unwinding(|| Ok(config.open()?)) {
            Err(Fault::Engine(sled::Error::Io(error)))
                if is_lock(&error) && Instant::now() < deadline =>
            {
                lock::pause();
            }
            opened => break opened?,
        }
    };
    let file = File::open(files::data(dir)).map_err(sled::Error::Io)?;
    Ok(Engine {
        dir: dir.to_owned(),
        db,
        file,
    })
}

/// What was read of a whole store.
#[derive(Default)]
struct Whole {
    /// Bytes of its keys and values.
    live: u64,
    found: Found,
}

/// Opens and checks what is there.
fn existing(dir: &Path, cache_bytes: u64) -> Result<(Engine, Whole), Fault> {
    let engine = engine(dir, cache_bytes)?;
    match unwinding(|| whole(&engine)) {
        Ok(whole) => Ok((engine, whole)),
        Err(fault) => {
            let _ = unwinding(|| {
                drop(engine);
                Ok(())
            });
            Err(fault)
        }
    }
}

fn whole(engine: &Engine) -> Result<Whole, Fault> {
    version(engine)?;
    let mut whole = Whole::default();
    for partition in check::partitions(&engine.db)? {
        if engine.db.contains_key(&keys::dropping(partition)[..])? {
            engine.drop_partition(partition, |batch| engine.apply(batch))?;
        }
        let checked = check::partition(&engine.db, partition)?;
        whole.live += checked.live;
        whole.found.insert(partition, checked.found);
    }
    Ok(whole)
}

/// The format's version under its key: `u32`, crc32 of key and version. This stays as it is in all
/// versions.
fn version_value() -> [u8; 8] {
    let mut value = [0; 8];
    value[..4].copy_from_slice(&FORMAT.to_be_bytes());
    let crc = version_checksum(&value[..4]);
    value[4..].copy_from_slice(&crc.to_be_bytes());
    value
}

fn version_checksum(version: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[keys::VERSION]);
    hasher.update(version);
    hasher.finalize()
}

fn version(engine: &Engine) -> Result<(), Fault> {
    let key = [keys::VERSION];
    // A store that a power cut left empty opens without an error.
    let value = engine
        .db
        .get(key)?
        .ok_or_else(|| Fault::broken("no format version", &key))?;
    let broken = || Fault::broken("the format version cannot be read", &key);
    let value = <[u8; 8]>::try_from(&value[..]).map_err(|_| broken())?;
    let (version, crc) = value.split_at(4);
    if crc != version_checksum(version).to_be_bytes() {
        return Err(broken());
    }
    match version.try_into().map(u32::from_be_bytes) {
        Ok(FORMAT) => Ok(()),
        Ok(found) if found > FORMAT => Err(Fault::Newer {
            found,
            known: FORMAT,
        }),
        _ => Err(broken()),
    }
}

/// A new store that does not count yet.
fn begun(dir: &Path, cache_bytes: u64) -> Result<Engine, Fault> {
    files::begin(dir).map_err(sled::Error::Io)?;
    let engine = engine(dir, cache_bytes)?;
    let mut batch = Batch::default();
    batch.insert(&[keys::VERSION], &version_value());
    engine.apply(batch)?;
    Ok(engine)
}

fn made(dir: &Path, cache_bytes: u64) -> Result<Engine, OpenError> {
    begun(dir, cache_bytes)
        .and_then(|engine| {
            files::complete(dir).map_err(sled::Error::Io)?;
            Ok(engine)
        })
        .map_err(|fault| refusal(dir, "make", fault))
}

/// Rewrites a store that is mostly free space. When there is no room for a copy, it stays as it is.
fn shrunk(engine: Engine, live: u64, cache_bytes: u64) -> Result<Engine, Fault> {
    let size = engine.file.metadata().map_or(0, |file| file.len());
    if size <= WORTH_REWRITING || size / WASTE <= live {
        return Ok(engine);
    }
    let dir = engine.dir.clone();
    let copy = files::copy_of(&dir);
    if let Err(fault) = unwinding(|| copied(&engine, &copy)) {
        tracing::warn!(
            store = %dir.display(),
            error = fault.chain(),
            "the store could not be rewritten to give disk space back"
        );
        // What is left of the copy is dropped when the store is opened the next time.
        let _ = fs::remove_dir_all(&copy);
        return Ok(engine);
    }
    drop(engine);
    files::replace(&dir).map_err(sled::Error::Io)?;
    let engine = self::engine(&dir, cache_bytes)?;
    let now = engine.file.metadata().map_or(0, |file| file.len());
    tracing::info!(
        store = %dir.display(),
        bytes_before = size,
        bytes_after = now,
        "the store was rewritten to give disk space back"
    );
    Ok(engine)
}

fn copied(from: &Engine, dir: &Path) -> Result<(), Fault> {
    let to = begun(dir, COPY_CACHE)?;
    let (mut batch, mut size) = (Batch::default(), 0);
    for entry in from.db.iter() {
        let (key, value) = entry?;
        size += key.len() + value.len();
        batch.insert(key, value);
        if size >= COPIED_AT_ONCE {
            to.db.apply_batch(std::mem::take(&mut batch))?;
            size = 0;
        }
    }
    to.db.apply_batch(batch)?;
    to.sync()?;
    files::complete(dir).map_err(sled::Error::Io)?;
    Ok(())
}
