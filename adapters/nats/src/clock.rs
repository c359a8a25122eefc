//! Time as ownership needs it.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use expediter_types::UnixMillis;
use rustix::time::{ClockId, clock_gettime};

/// Since boot, counting while the machine sleeps: a lease judged by it cannot be overslept.
pub(crate) fn boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let secs = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(secs, u32::try_from(now.tv_nsec).unwrap_or(0))
}

pub(crate) fn wall() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A broker's timestamp.
pub(crate) fn millis(at: async_nats::datetime::DateTime) -> UnixMillis {
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

/// 16 hexadecimal digits that differ from process to process and call to call.
pub(crate) fn unique() -> String {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u128(boot().as_nanos());
    hasher.write_u32(std::process::id());
    format!("{:016x}", hasher.finish())
}
