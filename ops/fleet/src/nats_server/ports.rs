use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

use crate::Error;

/// Below the ports that the kernel gives to outgoing connections (32768 and up by default): while a
/// server is down between a kill and its restart, no client's connection can take its port, nor can a
/// client that keeps trying the port connect to itself.
const RANGE: std::ops::Range<u16> = 20_000..32_000;
const TRIES: usize = 200;

/// Ports that are free now. A port is given out once by this process; another process may still take
/// it before the server does, so the caller has to be ready to try again.
pub(super) fn free(count: usize) -> Result<Vec<u16>, Error> {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let given = given.get_or_insert_default();
    // After thousands of servers in one process the early ones are long gone.
    if given.len() > RANGE.len() / 2 {
        given.clear();
    }
    let mut found = Vec::with_capacity(count);
    for attempt in 0..TRIES {
        if found.len() == count {
            return Ok(found);
        }
        let random = RandomState::new().hash_one(attempt) % RANGE.len() as u64;
        let port = RANGE.start + u16::try_from(random).unwrap_or(0);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && given.insert(port) {
            found.push(port);
        }
    }
    if found.len() == count {
        Ok(found)
    } else {
        Err(Error::NoFreePort(TRIES))
    }
}
