//! Stage one: runs a language model over text into an activation store. Also imports activations, and reads finished stores.
//!
//! Standard output carries what was asked for (`info`, `--json`), standard error everything else.

#![warn(clippy::print_stdout, clippy::print_stderr)] // `terminal` writes; see there why

mod arguments;
mod cutting;
mod damage;
mod dataset;
mod documents;
mod dump;
mod import;
mod inspect;
mod model;
mod npy;
mod packing;
mod pipeline;
mod plan;
mod probe;
mod progress;
mod share;
mod stores;
mod summary;
mod text;
#[doc(hidden)]
pub mod untrusted;

use std::process::ExitCode;

use activation_store::StoreError;
use anyhow::Context;
use arguments::{Command, CommandLine};
use clap::Parser;

/// The program: parses the command line, executes it, and prints an error as a sentence.
pub fn main() -> ExitCode {
    let line = CommandLine::parse();
    let done = match &line.command {
        None => dump::dump(&line.dump),
        Some(Command::Info(arguments)) => inspect::info(arguments),
        Some(Command::Verify(arguments)) => inspect::verify(arguments),
        Some(Command::Export(arguments)) => inspect::export(arguments),
        Some(Command::Import(arguments)) => import::import(arguments),
        Some(Command::Completions(shell)) => {
            shell.print::<CommandLine>();
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::ManPages(pages)) => {
            pages.write::<CommandLine>().context("cannot write man pages").map(|()| ExitCode::SUCCESS)
        }
    };
    let code = done.unwrap_or_else(|error| {
        // Messages quote files, their names, and library errors.
        terminal::say!("error: {}", terminal::foreign(&format!("{error:#}")));
        let imports = matches!(line.command, Some(Command::Import(_)));
        if let Some(hint) = hint(&error, imports) {
            terminal::say!("hint: {hint}");
        }
        ExitCode::FAILURE
    });
    terminal::exit_code(code)
}

/// Flags that help with a library's error, whose text cannot know them.
fn hint(error: &anyhow::Error, imports: bool) -> Option<&'static str> {
    match error.downcast_ref::<StoreError>()? {
        StoreError::Overflow { .. } => {
            Some("--dtype f32 stores it as it is, --clip as float16's largest value")
        }
        StoreError::Mismatch { differences, .. } => {
            let differs = |what: &str| differences.iter().any(|difference| difference.contains(what));
            Some(if differs("products") {
                "--exact-products is for stores that were begun with it, or without matrix units; --out names another folder"
            } else if differs("model_batch") {
                "--batch sets the batch that the dump was begun with; --out names another folder"
            } else {
                "--out names another folder"
            })
        }
        StoreError::Memory(_) => Some("--shuffle-memory makes the window smaller"),
        StoreError::NoSpace { .. } if imports => Some("--mantissa-bits keeps fewer bits of each number"),
        StoreError::NoSpace { .. } => {
            Some("--tokens asks for fewer tokens, --mantissa-bits for smaller ones")
        }
        _ => None,
    }
}

/// The examples of the README, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
