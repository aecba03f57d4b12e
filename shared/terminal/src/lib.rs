//! How both programs talk to a terminal, or to the pipe or file in its place.
//!
//! - **Writing never ends work.** [`say!`] writes messages to standard error and [`report!`] writes results to standard
//!   output. Neither panics or fails: a reader that has gone away (`… 2>&1 | head -n 1`) or a full disk costs the text, not
//!   the hours of work behind it. [`exit_code`] says once, at the end, whether a result was lost.
//! - **Foreign text is shown, never obeyed.** Names and messages from files may hold escape sequences, newlines and marks
//!   that reverse the direction of writing. [`foreign`] shows such a text within one line. Text written without it still
//!   passes a filter that lets through no control character except newline and tab.
//! - **Interrupts are heard.** [`Interrupt`] listens for Ctrl-C, SIGTERM and a closed terminal.

mod foreign;
mod interrupt;
mod shade;
mod write;

pub use foreign::{Foreign, foreign, foreign_path};
pub use interrupt::Interrupt;
pub use shade::Piece;
pub use write::{exit_code, is_silent, set_silent, write_message, write_result, write_shaded};

/// Writes a line to standard error, like `eprintln!`; a failure to write is ignored.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::write_message(&format!($($text)*)) };
}

/// Writes a line to standard output, like `println!`; a failure to write is remembered for [`exit_code`].
#[macro_export]
macro_rules! report {
    ($($text:tt)*) => { $crate::write_result(&format!($($text)*)) };
}

/// The command line of this process, arguments separated by blanks; what is not UTF-8 becomes U+FFFD.
pub fn command_line() -> String {
    let arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    arguments.collect::<Vec<_>>().join(" ")
}

/// The examples of the README, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
