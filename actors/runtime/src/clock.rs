use std::time::{SystemTime, UNIX_EPOCH};

use expediter_types::Now;
use rustix::time::{ClockId, clock_gettime};

/// The process's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock;

impl Clock {
    /// Reads both. The monotonic one counts while the machine sleeps.
    #[must_use]
    pub fn now() -> Now {
        let boot = clock_gettime(ClockId::Boottime);
        let mono = boot.tv_sec.unsigned_abs() * 1_000_000 + boot.tv_nsec.unsigned_abs() / 1_000;
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Now {
            mono,
            wall: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
