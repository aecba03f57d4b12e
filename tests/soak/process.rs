//! Runs a program under a time limit, and reports how it ended.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// No command here takes more than a second on an idle machine.
const LIMIT: Duration = Duration::from_secs(90);

/// How a program ended.
pub(crate) struct Ended {
    status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// What an end means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    Success,
    /// An error was told.
    Refused,
    /// By this signal, at once or gracefully.
    Stopped(i32),
}

/// Runs `command` to its end; `meddle` has the running process to itself until it returns. Output goes to files in
/// `log`. An error says that the program did not end.
pub(crate) fn run(
    mut command: Command,
    log: &Path,
    meddle: impl FnOnce(&mut Child),
) -> Result<Ended, String> {
    let (stdout, stderr) = (log.join("stdout"), log.join("stderr"));
    let file = |path| File::create(path).expect("a log can be written");
    command.stdin(Stdio::null()).stdout(file(&stdout)).stderr(file(&stderr));
    let mut child = command.spawn().expect("the program starts");
    meddle(&mut child);
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        if started.elapsed() > LIMIT {
            child.kill().expect("a child can be killed");
            child.wait().expect("a child can be waited for");
            return Err(format!("it did not end within {} s", LIMIT.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let text = |path| String::from_utf8_lossy(&fs::read(path).expect("a log can be read")).into_owned();
    Ok(Ended { status, stdout: text(&stdout), stderr: text(&stderr) })
}

/// Sends `signal` to a running process.
pub(crate) fn send(child: &Child, signal: i32) {
    // SAFETY: the call takes two integers; the child is not yet waited for, so the number is still its own.
    unsafe { libc::kill(child.id() as i32, signal) };
}

impl Ended {
    /// What the end means; an error if a program may not end like that.
    pub(crate) fn outcome(&self) -> Result<Outcome, String> {
        let told = self.stderr.trim_end();
        if self.stderr.contains("panicked") {
            return Err(format!("it panicked:\n{told}"));
        }
        match (self.status.code(), self.status.signal()) {
            (Some(0), _) => Ok(Outcome::Success),
            (Some(1 | 2), _) if self.stderr.contains("error: ") || self.stdout.contains("damaged") => {
                Ok(Outcome::Refused)
            }
            (Some(code @ (129 | 130 | 143)), _) => Ok(Outcome::Stopped(code - 128)),
            (_, Some(signal @ (libc::SIGHUP | libc::SIGINT | libc::SIGTERM | libc::SIGKILL))) => {
                Ok(Outcome::Stopped(signal))
            }
            _ => Err(format!("it ended with {}:\n{told}", self.status)),
        }
    }

    /// The last line of its messages that tells an error.
    pub(crate) fn error(&self) -> &str {
        self.stderr.lines().rfind(|line| line.starts_with("error: ")).unwrap_or(self.stderr.trim_end())
    }
}
