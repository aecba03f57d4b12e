//! Where a run is computed: `--device` and `--precision` become an engine.

use anyhow::{Context, Result};
use human_units::format_bytes;
use kernels::cuda::cuda_device::{CudaDevice, CudaOptions};
use kernels::cuda::device::Device;
use sae::Weights;

use crate::arguments::{DeviceChoice, PrecisionChoice};
use crate::engine::{
    CpuEngine, CpuOptions, CudaEngine, DeviceOptions, Engine, Precision, Search, StepSpec, device_memory,
};

/// What computes a run's steps.
pub(crate) enum Compute {
    /// CPU threads.
    Cpu { options: CpuOptions },
    /// A GPU.
    Cuda { device: Box<CudaDevice>, options: DeviceOptions },
}

impl Compute {
    /// The GPU or the CPU. With `auto` a GPU that cannot be used is no error; the reason is said in one line.
    pub(crate) fn choose(
        device: DeviceChoice,
        precision: PrecisionChoice,
        threads: usize,
    ) -> Result<Compute> {
        let found = match device {
            DeviceChoice::Cpu => None,
            DeviceChoice::Cuda => {
                let what = "--device cuda cannot be used; without it, or with --device cpu, the CPU trains";
                Some(CudaDevice::new(&CudaOptions::default()).context(what)?)
            }
            DeviceChoice::Auto => match CudaDevice::new(&CudaOptions::default()) {
                Ok(device) => Some(device),
                Err(reason) => {
                    eprintln!("training on the CPU: {reason}");
                    None
                }
            },
        };
        match found {
            Some(device) => {
                let precision = match precision {
                    PrecisionChoice::Exact => Precision::Exact,
                    PrecisionChoice::Bf16 => Precision::Bf16,
                    PrecisionChoice::Fp32 => Precision::Fp32,
                };
                let options = DeviceOptions { precision, ..DeviceOptions::default() };
                Ok(Compute::Cuda { device: Box::new(device), options })
            }
            None => {
                let (search, bf16) = match precision {
                    PrecisionChoice::Exact => (Search::Screened, false),
                    PrecisionChoice::Bf16 => (Search::Screened, true),
                    PrecisionChoice::Fp32 => (Search::Plain, false),
                };
                Ok(Compute::Cpu { options: CpuOptions { threads, search, bf16, ..CpuOptions::default() } })
            }
        }
    }

    /// For the head of a run: what computes, and the memory it takes beside the `host` bytes for the rows read ahead.
    pub(crate) fn describe(&self, step: &StepSpec, host: u64) -> Result<String> {
        match self {
            Compute::Cpu { options } => Ok(format!(
                "cpu, {} threads{}, about {} of memory",
                options.threads,
                if options.bf16 { ", bf16" } else { "" },
                format_bytes(cpu_memory(step) + host)
            )),
            Compute::Cuda { device, options } => Ok(format!(
                "cuda, {}, {}; about {} of its memory, {} here",
                device.properties().name,
                format!("{:?}", options.precision).to_lowercase(),
                format_bytes(device_memory(step, options, device.properties())? as u64),
                format_bytes(host)
            )),
        }
    }

    /// The engine.
    pub(crate) fn engine(self, step: StepSpec, weights: &Weights) -> Result<Box<dyn Engine>> {
        Ok(match self {
            Compute::Cpu { options } => Box::new(CpuEngine::new(step, weights, options)?),
            Compute::Cuda { device, options } => Box::new(CudaEngine::new(*device, step, weights, options)?),
        })
    }
}

/// Bytes of memory that the steps need at the peak: weights and moments, a second copy of them while a
/// checkpoint is written, the frequency window, and two dense [B, F] arrays at the start, when most features
/// are active.
fn cpu_memory(step: &StepSpec) -> u64 {
    let (d, f, batch) = (step.width as u64, step.features as u64, step.batch as u64);
    let weights = 4 * (2 * d * f + d + f);
    let window = 4 * step.sparsity_window as u64 * f;
    7 * weights + 2 * window + 8 * batch * f + 12 * batch * d
}
