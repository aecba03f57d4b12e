//! Lines on standard error and standard output that never end the work they report on.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::foreign::harmless;
use crate::shade::{Piece, shaded};

/// The first failure to write a result.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// Whether this process leaves the talking to another one.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Drops everything that is written from now on, or writes again: of several processes that do one work, one speaks.
pub fn set_silent(silent: bool) {
    SILENT.store(silent, Ordering::Relaxed);
}

/// Whether everything is dropped.
pub fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// Writes `text` and a newline to standard error. A failure is ignored: there is nobody left to tell.
pub fn write_message(text: &str) {
    let _ = write_line(&mut io::stderr().lock(), &harmless(text));
}

/// Writes `text` and a newline to standard output. The first failure is kept for [`exit_code`]; after one,
/// nothing more is written, so that no result appears with a hole in it.
pub fn write_result(text: &str) {
    write_kept(&harmless(text));
}

/// Writes a line of pieces to standard output, as [`write_result`] does. On a terminal, unless `NO_COLOR` is set, a colour says how
/// strongly each stands out; elsewhere what is marked stands between « and ».
pub fn write_shaded(pieces: &[Piece]) {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let colours = set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb");
    write_kept(&shaded(pieces, colours && io::stdout().is_terminal()));
}

fn write_kept(text: &str) {
    let mut lost = LOST.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if lost.is_none() {
        *lost = write_line(&mut io::stdout().lock(), text).err();
    }
}

/// The exit code of a program whose work ended with `code`: that, unless a result could not be written, which is said
/// and makes a failure of a success. A reader that wanted no more is no failure.
pub fn exit_code(code: ExitCode) -> ExitCode {
    let mut lost = LOST.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if lost.is_none() {
        *lost = io::stdout().lock().flush().err();
    }
    match &*lost {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            write_message(&format!("error: cannot write the result to standard output: {error}"));
            if code == ExitCode::SUCCESS { ExitCode::FAILURE } else { code }
        }
        _ => code,
    }
}

/// Writes a text in which nothing is left that a terminal should not obey.
fn write_line(out: &mut impl Write, text: &str) -> io::Result<()> {
    if is_silent() {
        return Ok(());
    }
    let line = format!("{text}\n");
    out.write_all(line.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_whole_and_harmless() {
        let mut out = Vec::new();
        write_line(&mut out, &harmless("two\nlines \u{1b}[0m")).unwrap();
        assert_eq!(out, b"two\nlines \\u001b[0m\n");
    }
}
