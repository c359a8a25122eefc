//! What names one start of the process: `<place>-<pid>-<random>`.
//!
//! The place is a machine since its boot and a namespace of process ids there: a process of the same
//! place can see that another one is dead, and need not wait for the end of its lease.

use crate::clock::unique;

/// A new one for this process.
pub(crate) fn new() -> String {
    format!(
        "{}-{}-{}",
        place().unwrap_or_else(unique),
        std::process::id(),
        unique()
    )
}

/// Certainly dead; false where that cannot be told.
pub(crate) fn is_dead(instance: &str) -> bool {
    let mut parts = instance.split('-');
    let (Some(there), Some(pid)) = (parts.next(), parts.next()) else {
        return false;
    };
    let Some(pid) = pid
        .parse::<u32>()
        .ok()
        .filter(|pid| *pid != std::process::id())
    else {
        return false;
    };
    place().is_some_and(|here| here == there) && ended(pid)
}

fn ended(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        // A zombie runs no more; the state follows the name in brackets.
        Ok(stat) => stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with(['Z', 'X'])),
    }
}

fn place() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let space = std::fs::read_link("/proc/self/ns/pid").ok()?;
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in boot.trim().bytes().chain(space.to_string_lossy().bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    Some(format!("{hash:016x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_neighbour_that_is_gone_is_dead() {
        let own = new();
        assert_ne!(own, new());
        assert!(!is_dead(&own), "this process lives");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let place = place().unwrap();
        assert!(is_dead(&format!("{place}-{pid}-x")));
        assert!(
            !is_dead(&format!("0000000000000000-{pid}-x")),
            "of another machine"
        );
        for nonsense in ["", "-", "a-b-c", "x"] {
            assert!(!is_dead(nonsense));
        }
    }
}
