/// Milliseconds since 1970-01-01 UTC by the wall clock.
pub type UnixMillis = u64;

/// One reading of both clocks. The pure core never reads a clock: it is given this.
///
/// Deadlines, schedules and everything stored count by `wall`; rates and back-off by `mono`,
/// so that a corrected wall clock can neither burst a merchant nor stall it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Microseconds of a clock that never goes back and counts while the machine sleeps.
    pub mono: u64,
    /// Wall clock; may jump either way.
    pub wall: UnixMillis,
}

/// Identity of the ORDERS log: a broker that comes back shorter or empty is another incarnation.
/// Ordered by `counter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Incarnation {
    /// When the stream was created, as the broker says.
    pub created: UnixMillis,
    /// Raised each time an owner notices that acknowledged orders were lost by the broker.
    pub counter: u32,
}
