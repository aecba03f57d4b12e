//! Stage two: trains sparse autoencoders from an activation store, any number of them from one store.
//!
//! ```text
//! STORE on disk ─ batches ─▶ engine: encode ─ sparsity ─ decode ─ loss ─ backward ─ Adam ─ norm
//!                                └▶ metrics.jsonl, checkpoints/, sae/
//! ```
//!
//! - `command`: what was asked for, and what that means with every default filled in.
//! - [`engine`]: the arithmetic of a step, behind one trait.
//! - `runs`: one run, from its plan to what it leaves on disk; `evaluate`: the autoencoder on held-out rows.
//! - `train`: the loop over batches, for one run or for those of a `sweep`.
//! - `compare`, `verify`, `import`, `export`, `push`, `bench`: what is done with finished runs; `autoencoder`: one by its path, whichever program
//!   wrote it; `laboratory`: what autoencoders have learned;
//!   `pages`: all of that for a browser; `report`: what a person sees in a terminal.

#![warn(clippy::print_stdout, clippy::print_stderr)] // `terminal` writes; see there why

use std::process::ExitCode;

use anyhow::{Context, Result};

use command::layers;
use command::line::{Command, CommandLine};

mod autoencoder;
mod bench;
mod command;
mod compare;
pub mod engine;
mod evaluate;
mod export;
mod import;
mod laboratory;
mod pages;
mod push;
mod report;
mod runs;
mod sweep;
mod train;
#[doc(hidden)]
pub mod untrusted;
mod verify;

/// The program: parses the command line, executes it, and prints an error as a sentence.
pub fn main() -> ExitCode {
    let result = match layers::read(std::env::args_os().collect()) {
        Ok(Some(line)) => execute(line),
        Ok(None) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
    };
    let code = result.unwrap_or_else(|error| {
        terminal::say!("error: {error:#}");
        ExitCode::FAILURE
    });
    terminal::exit_code(code)
}

fn execute(line: CommandLine) -> Result<ExitCode> {
    match line.command {
        Some(Command::Sweep(sweep)) => sweep::sweep(sweep).map(ExitCode::from),
        Some(Command::Compare(compare)) => compare::compare(&compare).map(|()| ExitCode::SUCCESS),
        Some(Command::Eval(eval)) => laboratory::eval(&eval).map(|()| ExitCode::SUCCESS),
        Some(Command::Features(features)) => laboratory::features::features(&features).map(ExitCode::from),
        Some(Command::Report(report)) => pages::report(&report).map(ExitCode::from),
        Some(Command::Verify(verify)) => verify::verify(&verify).map(ExitCode::from),
        Some(Command::Import(import)) => import::import(&import).map(|()| ExitCode::SUCCESS),
        Some(Command::Export(export)) => export::export(&export).map(ExitCode::from),
        Some(Command::Push(push)) => push::push(&push),
        Some(Command::Completions(shell)) => {
            shell.print::<CommandLine>();
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::ManPages(pages)) => {
            pages.write::<CommandLine>().context("cannot write man pages").map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Bench(bench)) => bench::bench(&bench).map(|()| ExitCode::SUCCESS),
        None => train::train(line.train).map(ExitCode::from),
    }
}

/// The example of the README, run as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
