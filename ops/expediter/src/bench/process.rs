//! The processes that are measured, and what the kernel says of them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use expediter_fleet::spawn_bound;
use serde_json::Value;

/// A child of ours; killed at the end of its life, and by the kernel when we are.
#[derive(Debug)]
pub(super) struct Process {
    what: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Its output goes to `log`.
    pub(super) fn start(
        what: &'static str,
        mut command: Command,
        log: PathBuf,
    ) -> anyhow::Result<Self> {
        let file = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = spawn_bound(command).with_context(|| format!("starting the {what}"))?;
        Ok(Self { what, child, log })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// # Errors
    /// It ended; with the last lines of its log.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!(
                "the {} ended ({status}); its log ends with:\n{}",
                self.what,
                tail(&self.log, 20)
            ),
        }
    }

    /// Waits until a line of its log is a JSON object with the field, and gives the field's text.
    pub(super) async fn says(&mut self, field: &str, deadline: Duration) -> anyhow::Result<String> {
        let end = Instant::now() + deadline;
        loop {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let mut said = log.lines().filter_map(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                Some(line.get(field)?.as_str()?.to_owned())
            });
            if let Some(text) = said.next() {
                return Ok(text);
            }
            self.check()?;
            anyhow::ensure!(
                Instant::now() < end,
                "the {} did not start in time; its log ends with:\n{}",
                self.what,
                tail(&self.log, 20)
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Lines of its log of the levels WARN and ERROR, and the first of them.
    pub(super) fn complaints(&self) -> (usize, Option<String>) {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let mut complaints = log.lines().filter(|line| {
            ["\"level\":\"WARN\"", "\"level\":\"ERROR\""]
                .iter()
                .any(|level| line.contains(level))
        });
        let first = complaints.next().map(str::to_owned);
        (usize::from(first.is_some()) + complaints.count(), first)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it had ended already.
        let _ended = self.child.kill().is_err();
        let _reaped = self.child.wait().is_ok();
    }
}

fn tail(log: &Path, lines: usize) -> String {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let all: Vec<&str> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// CPU time of a process, user and system, of all its threads, to 10 ms.
pub(super) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    cpu_in(&stat).with_context(|| format!("{path} is not as expected: {stat}"))
}

/// Linux counts in hundredths of a second for user space, whatever the kernel's own tick is.
const TICK_MS: u64 = 10;

/// CPU time of the whole machine since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MachineTime {
    pub(super) busy: Duration,
    /// Of all cores, idle or not.
    pub(super) all: Duration,
}

/// What all processes of the machine, and the kernel by itself, have used; steal counts as used.
pub(super) fn machine_time() -> anyhow::Result<MachineTime> {
    let stat = std::fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    machine_in(&stat).context("/proc/stat is not as expected")
}

fn machine_in(stat: &str) -> Option<MachineTime> {
    let cpu = stat.lines().next()?.strip_prefix("cpu ")?;
    // user, nice, system, idle, iowait, irq, softirq, steal; what follows is contained in user.
    let ticks: Vec<u64> = cpu
        .split_whitespace()
        .take(8)
        .map_while(|n| n.parse().ok())
        .collect();
    let idle = ticks.get(3)? + ticks.get(4)?;
    let all: u64 = ticks.iter().sum();
    Some(MachineTime {
        busy: Duration::from_millis((all - idle) * TICK_MS),
        all: Duration::from_millis(all * TICK_MS),
    })
}

fn cpu_in(stat: &str) -> Option<Duration> {
    // The name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * TICK_MS))
}

/// The most memory that a process had resident, in MiB.
pub(super) fn peak_rss_mib(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    Ok(kib.with_context(|| format!("{path} has no VmHWM"))? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_processes_do_not_confuse() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 99 0 0 0 150 25 9 9 20 0 8 0 12 9 9";
        assert_eq!(cpu_in(stat), Some(Duration::from_millis(1_750)));
        assert_eq!(cpu_in("7 (x) S 1 2"), None);
    }

    #[test]
    fn the_machine_is_busy_unless_it_is_idle_or_waits() {
        let time = machine_in("cpu  10 1 20 400 30 2 3 4 0 0\ncpu0 1 1 1 1").unwrap();
        assert_eq!(time.busy, Duration::from_millis(400));
        assert_eq!(time.all, Duration::from_millis(4_700));
        assert_eq!(machine_in("cpu  1 2"), None);
    }

    #[test]
    fn the_kernel_tells_of_this_process() {
        assert!(cpu(std::process::id()).is_ok());
        assert!(machine_time().is_ok());
        assert!(peak_rss_mib(std::process::id()).unwrap() > 0.5);
    }
}
