//! Stage two: trains sparse autoencoders from an activation store, any number of them from one store.
//!
//! ```text
//! STORE on disk ─ batches ─▶ engine: encode ─ sparsity ─ decode ─ loss ─ backward ─ Adam ─ norm
//!                                └▶ metrics.jsonl, checkpoints/, sae/
//! ```
//!
//! - [`engine`]: the arithmetic of a step, behind one trait.
//! - `arguments` → `settings` → `plan`: what was asked for, what that means once every default is filled in, and whether it
//!   can be done.
//! - `train`: the loop over batches, for one run or for those of a `sweep`; `run`: one run; `schedule`, `evaluation`,
//!   `decoder_bias`, `revive`: its parts.
//! - `run_folder`, `checkpoint`, `record`: what a run leaves on disk.
//! - `progress`, `compare`, `verify`, `bench`: what a person sees.

#![warn(clippy::print_stdout, clippy::print_stderr)] // `terminal` writes; see there why

use std::process::ExitCode;

mod announce;
mod arguments;
mod batches;
mod bench;
mod checkpoint;
mod compare;
mod compute;
mod decoder_bias;
mod default_store;
pub mod engine;
mod evaluation;
mod plan;
mod progress;
mod record;
mod revive;
mod run;
mod run_folder;
mod sae_config;
mod schedule;
mod settings;
mod sweep;
mod table;
mod train;
#[doc(hidden)]
pub mod untrusted;
mod verify;

/// The program: parses the command line, executes it, and prints an error as a sentence.
pub fn main() -> ExitCode {
    use clap::Parser;
    let line = arguments::CommandLine::parse();
    let result = match line.command {
        Some(arguments::Command::Sweep(sweep)) => sweep::sweep(sweep).map(ExitCode::from),
        Some(arguments::Command::Compare(compare)) => compare::compare(&compare).map(|()| ExitCode::SUCCESS),
        Some(arguments::Command::Verify(verify)) => verify::verify(&verify).map(ExitCode::from),
        Some(arguments::Command::Bench(bench)) => bench::bench(&bench).map(|()| ExitCode::SUCCESS),
        None => train::train(line.train).map(ExitCode::from),
    };
    let code = result.unwrap_or_else(|error| {
        terminal::say!("error: {error:#}");
        ExitCode::FAILURE
    });
    terminal::exit_code(code)
}
