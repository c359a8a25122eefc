use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{io, thread};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Waits before the next try to get something that a closing store still holds.
#[expect(
    clippy::disallowed_methods,
    reason = "opening a store blocks by contract"
)]
pub(crate) fn pause() {
    thread::sleep(Duration::from_millis(20));
}

/// The right to use a store, held as long as the value lives. The engine locks its own file, but the
/// directory around that is renamed when a store is moved aside or rewritten.
#[derive(Debug)]
pub(crate) struct DirLock(#[expect(dead_code, reason = "closing it releases the lock")] File);

impl DirLock {
    /// Tries for as long as a stopping process may need to let go; `None`: it is still taken.
    pub(crate) fn take(path: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let file = File::options().create(true).append(true).open(path)?;
        let deadline = Instant::now() + patience;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Self(file))),
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => pause(),
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
