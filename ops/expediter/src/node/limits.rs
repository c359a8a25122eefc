//! Open files: each attempt in flight needs one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for everything that is no attempt: NATS, the store, probes, logs, idle connections.
const RESERVE: u64 = 256;

/// Raises the limit of open files to `wanted` (0: as far as the system allows) and refuses a
/// capacity that does not fit under it.
pub(crate) fn raise_open_files(wanted: u64, in_flight: usize) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let target = if wanted == 0 { most } else { wanted.min(most) };
    let now = limit.current.unwrap_or(u64::MAX);
    if target > now {
        let raised = Rlimit {
            current: Some(target),
            maximum: limit.maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, target, "the limit of open files could not be raised");
        }
    }
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    // A lower wish does not lower the limit, and is kept to all the same.
    let allowed = allowed.min(target);
    let needed = in_flight as u64 + RESERVE;
    anyhow::ensure!(
        needed <= allowed,
        "node.in_flight = {in_flight} needs {needed} open files, but the limit is {allowed}: \
         lower node.in_flight to {} or raise the limit (ulimit -n, LimitNOFILE=)",
        allowed.saturating_sub(RESERVE)
    );
    Ok(())
}
