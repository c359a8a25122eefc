//! Children that die with this process.
//!
//! The kernel sends the parent-death signal when the *thread* that forked ends, not the process: a
//! child forked by a runtime's worker or a test's thread would be killed as soon as that thread is done.
//! So one thread, which lives as long as the process, forks all children.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};

use rustix::process::{Pid, Signal};

type Job = (Command, mpsc::SyncSender<io::Result<Child>>);

static FORKER: Mutex<Option<mpsc::Sender<Job>>> = Mutex::new(None);

/// Starts `binary -c config` with its output going to `log`. Blocks for the fork, a few milliseconds.
pub(crate) fn start(binary: &Path, config: &Path, log: File) -> io::Result<Child> {
    let mut command = Command::new(binary);
    command.arg("-c").arg(config);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    spawn_bound(command)
}

/// Starts a process that gets SIGKILL when this process ends, however it ends, and that is in a
/// process group of its own, so that a terminal's Ctrl-C does not reach it. Blocks for the fork, a
/// few milliseconds.
///
/// # Errors
/// The program cannot be started.
pub fn spawn_bound(mut command: Command) -> io::Result<Child> {
    command.process_group(0);
    die_with_this_process(&mut command);
    let (answer, child) = mpsc::sync_channel(1);
    let gone = |_| io::Error::other("the forking thread is gone");
    forker()?
        .send((command, answer))
        .map_err(|_| gone(mpsc::RecvError))?;
    child.recv().map_err(gone)?
}

fn forker() -> io::Result<mpsc::Sender<Job>> {
    let mut forker = FORKER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sender) = &*forker {
        return Ok(sender.clone());
    }
    let (sender, jobs) = mpsc::channel::<Job>();
    std::thread::Builder::new()
        .name("forker".into())
        .spawn(move || {
            for (mut command, answer) in jobs {
                let _ = answer.send(command.spawn());
            }
        })?;
    *forker = Some(sender.clone());
    Ok(sender)
}

#[expect(
    unsafe_code,
    reason = "only code between fork and exec can ask for the death signal"
)]
fn die_with_this_process(command: &mut Command) {
    let parent = rustix::process::getpid();
    let ask = move || {
        // KILL, because a paused server would not notice TERM; the store stands it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the kernel was asked.
        if rustix::process::getppid() != Some(parent) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe work is allowed: this makes two system
    // calls and neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(ask);
    }
}

/// Sends `signal` to a child that has not been waited for yet, so that its pid is still its own.
pub(crate) fn signal(child: &Child, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("not a process id"))?;
    Ok(rustix::process::kill_process(pid, signal)?)
}

/// Kills and reaps. An error means that there was nothing left to kill.
pub(crate) fn kill(mut child: Child) -> io::Result<()> {
    child.kill()?;
    child.wait().map(drop)
}
