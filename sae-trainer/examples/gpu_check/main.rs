//! Checks and measures the CUDA engine on the GPU of this machine. `scripts/gpu-check` runs it.
//!
//!     gpu_check correctness     kernels and steps against their definitions and the CPU engine
//!     gpu_check small           the smallest of those, for compute-sanitizer
//!     gpu_check curves STEPS    a training run on both engines
//!     gpu_check bench [B d F]   kernels, steps and tokens per second
//!     gpu_check store FOLDER CONTEXTS d    a store of made-up rows

mod bench;
mod correctness;
mod curves;
mod screens;
mod store;

use std::process::ExitCode;

use anyhow::{Result, bail};
use kernels::cuda::cuda_device::{CudaDevice, CudaOptions};
use kernels::cuda::device::Device;

/// The GPU, its new memory full of NaN if `poison`.
fn device(poison: bool) -> Result<CudaDevice> {
    Ok(CudaDevice::new(&CudaOptions { poison, ..CudaOptions::default() })?)
}

/// Numbers in (−1, 1), the same for the same seed.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let failures = match words[..] {
        ["correctness"] => {
            let properties = device(false)?.properties().clone();
            println!("{properties:?}");
            screens::check(&[
                (1, 1, 1),
                (130, 133, 70),
                (257, 31, 200),
                (1000, 700, 768),
                (24_576, 4096, 768),
            ])? + correctness::check(false)?
        }
        ["small"] => screens::check(&[(130, 133, 70), (257, 300, 140)])? + correctness::check(true)?,
        ["curves", steps] => curves::check(steps.parse()?)?,
        ["bench"] => bench::bench(4096, 768, 24_576)?,
        ["bench", rows, width, features] => bench::bench(rows.parse()?, width.parse()?, features.parse()?)?,
        ["store", folder, contexts, width] => {
            store::write(folder.as_ref(), contexts.parse()?, width.parse()?)?
        }
        _ => bail!(
            "usage: gpu_check correctness | small | curves STEPS | bench [B d F] | store FOLDER CONTEXTS d"
        ),
    };
    println!("{}: {failures} failures", words.join(" "));
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
