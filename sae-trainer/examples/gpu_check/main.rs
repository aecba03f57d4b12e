//! Checks and measures the CUDA engine on this machine's GPU, one part at a time. `scripts/gpu-check` runs each part as a
//! process of its own, because after an error in one kernel everything else fails too. `USAGE` lists the parts.
//!
//! A part prints its measurements in words, and as figures for the script (see [`figure`]).

mod bench;
mod ceilings;
mod correctness;
mod crossover;
mod curves;
mod figure;
mod planted;
mod screens;

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use kernels::cuda::cuda_device::{CudaDevice, CudaOptions};
use sae_trainer::engine::Precision;

const USAGE: &str = "usage: gpu_check PART
    ceilings BYTES N             a copy of BYTES bytes, and a bfloat16 product of N × N matrices
    screens B,d,F...             compares the selected screen with the plain one, at each size
    time-screen B,d,F            times the selected screen
    correctness PRECISION SIZES  steps of every configuration against the CPU engine; SIZES tiny, small or all
    bench PATH PRECISION B,d,F STEPS   a step sparse or dense: its time, and every kernel's
    crossover PRECISION B,d,F STEPS L0...   steps at each L0, sparse and dense
    profile B,d,F                a few sparse steps, for a profiler
    curves STEPS                 a training run on both engines
    planted FOLDER CONTEXTS d,F  a store of rows that are sums of a few directions, and the autoencoder that knows them
PRECISION is exact, fp32 or bf16. SAE_TRAINER_CUDA_SCREEN selects the screen.";

/// If this variable is set, nothing happens, for ever: for tests of the script.
const HANG: &str = "GPU_CHECK_HANG";

/// B, d and F.
#[derive(Debug, Clone, Copy)]
struct Size {
    rows: usize,
    width: usize,
    features: usize,
}

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Size> {
        match numbers_of(text)?[..] {
            [rows, width, features] => Ok(Size { rows, width, features }),
            _ => bail!("{text}: a size is B,d,F, as in 4096,768,24576"),
        }
    }
}

/// The GPU, its new memory full of NaN if `poison`.
fn device(poison: bool) -> Result<CudaDevice> {
    Ok(CudaDevice::new(&CudaOptions { poison, ..CudaOptions::default() })?)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn numbers_of(text: &str) -> Result<Vec<usize>> {
    let number = |word: &str| word.parse().with_context(|| format!("{text}: {word:?} is not a number"));
    text.split(',').map(number).collect()
}

fn sizes(words: &[&str]) -> Result<Vec<Size>> {
    words.iter().map(|word| word.parse()).collect()
}

fn precision(word: &str) -> Result<Precision> {
    Ok(match word {
        "exact" => Precision::Exact,
        "fp32" => Precision::Fp32,
        "bf16" => Precision::Bf16,
        _ => bail!("{word}: a precision is exact, fp32 or bf16"),
    })
}

/// Runs a part; the number of failures.
fn run(words: &[&str]) -> Result<usize> {
    match words {
        ["ceilings", bytes, size] => ceilings::measure(bytes.parse()?, size.parse()?),
        ["screens", some @ ..] if !some.is_empty() => screens::check(&sizes(some)?),
        ["time-screen", size] => screens::time(size.parse()?),
        ["correctness", kind, sizes] => correctness::check(precision(kind)?, sizes.parse()?),
        ["bench", path, kind, size, steps] => {
            bench::bench(path.parse()?, precision(kind)?, size.parse()?, steps.parse()?)
        }
        ["crossover", kind, size, steps, densities @ ..] if !densities.is_empty() => {
            let densities: Result<Vec<f64>, _> = densities.iter().map(|word| word.parse()).collect();
            crossover::find(precision(kind)?, size.parse()?, steps.parse()?, &densities?)
        }
        ["profile", size] => bench::profile(size.parse()?),
        ["curves", steps] => curves::check(steps.parse()?),
        ["planted", folder, contexts, size] => match numbers_of(size)?[..] {
            [width, features] => planted::write(folder.as_ref(), contexts.parse()?, width, features),
            _ => bail!("{size}: the size of planted rows is d,F"),
        },
        _ => bail!("{USAGE}"),
    }
}

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    while std::env::var_os(HANG).is_some() {
        std::thread::park();
    }
    let failures = run(&words)?;
    println!("{}: {failures} failures", words.join(" "));
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
