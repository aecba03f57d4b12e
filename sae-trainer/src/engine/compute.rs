//! Turns `--device` and `--precision` into engines.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use human_units::format_bytes;
use kernels::cuda::cuda_device::{CudaDevice, CudaOptions, Nccl};
use kernels::cuda::device::Device;
use kernels::panels::Share;
use ranks::Exchange;
use sae::Weights;

use crate::command::arguments::DeviceChoice;
use crate::command::settings::Settings;
use crate::engine::device::OTHER_TARGETS;
use crate::engine::host_memory;
use crate::engine::{
    CpuEngine, CpuOptions, CpuThreads, CudaEngine, DeviceOptions, Engine, PanelStates, SharedDevice,
    StepSpec, device_memory_of_rank,
};

/// What computes the steps of a run, or of all runs of a sweep.
pub(crate) enum Compute {
    /// CPU threads, of this rank.
    Cpu { threads: CpuThreads, count: usize, exchange: Arc<dyn Exchange> },
    /// A GPU, of this rank.
    Cuda { device: SharedDevice<CudaDevice>, exchange: Arc<dyn Exchange> },
}

impl Compute {
    /// The GPU or the CPU. With `auto`, an unusable GPU is not an error; one line gives the reason. Several ranks train on GPUs
    /// only if they are asked to, with those that `devices` connects.
    pub(crate) fn choose(
        device: DeviceChoice,
        threads: usize,
        exchange: Arc<dyn Exchange>,
        devices: Option<Arc<Nccl>>,
    ) -> Result<Compute> {
        let alone = exchange.ranks() == 1;
        let found = match device {
            DeviceChoice::Cpu => None,
            DeviceChoice::Auto if !alone => None,
            DeviceChoice::Cuda => {
                let what = "--device cuda cannot be used; without it, or with --device cpu, the CPU trains";
                ensure!(alone || devices.is_some(), "{what}: the ranks' devices are not connected");
                Some(
                    CudaDevice::new(&CudaOptions { ranks: devices, ..CudaOptions::default() })
                        .context(what)?,
                )
            }
            DeviceChoice::Auto => match CudaDevice::new(&CudaOptions::default()) {
                Ok(device) => Some(device),
                Err(reason) if reason.is_a_wrong_setting() => return Err(reason.into()),
                Err(reason) => {
                    terminal::say!("training on the CPU: {reason}");
                    None
                }
            },
        };
        Ok(match found {
            Some(device) => Compute::Cuda { device: SharedDevice::new(device), exchange },
            None => Compute::Cpu { threads: CpuThreads::new(threads)?, count: threads, exchange },
        })
    }

    /// For the head of runs: what computes, and the memory that they take together beside the `host` bytes for the rows
    /// read ahead.
    pub(crate) fn describe(&self, runs: &[&Settings], host: u64) -> Result<String> {
        match self {
            Compute::Cpu { count, exchange, .. } => {
                let ranks = match exchange.ranks() {
                    1 => String::new(),
                    ranks => format!("{ranks} ranks of "),
                };
                let bf16 = runs.iter().filter(|run| cpu_options(run).bf16).count();
                Ok(format!(
                    "cpu, {ranks}{count} threads{}, about {} of memory",
                    if bf16 == runs.len() { ", bf16" } else { "" },
                    format_bytes(cpu_memory(runs, exchange.ranks()) + host)
                ))
            }
            Compute::Cuda { device, exchange } => {
                let name = device.with(|device| device.properties().name.clone());
                let ranks = match exchange.ranks() {
                    1 => String::new(),
                    ranks => format!("{ranks} ranks of "),
                };
                let bytes = device_memory_of_rank(&device_steps(runs), &**exchange)?;
                let mut precisions: Vec<String> = runs
                    .iter()
                    .map(|run| format!("{:?}", device_options(run).precision).to_lowercase())
                    .collect();
                precisions.dedup();
                Ok(format!(
                    "cuda, {ranks}{name}, {}; about {} of its memory, {} here",
                    precisions.join("/"),
                    format_bytes(bytes as u64),
                    format_bytes(host)
                ))
            }
        }
    }

    /// Checks that this can train transcoders.
    pub(crate) fn check_targets(&self) -> Result<()> {
        match self {
            Compute::Cpu { .. } => Ok(()),
            Compute::Cuda { .. } => Err(OTHER_TARGETS.into()),
        }
    }

    /// Checks that all of these runs fit into the memory at the same time: the device's, or for certain not into the machine's.
    pub(crate) fn check_memory(&self, runs: &[&Settings]) -> Result<()> {
        match self {
            // What a run holds all the time is certain; the rest comes and goes.
            Compute::Cpu { exchange, .. } => {
                let ranks = exchange.ranks();
                let lasting = runs.iter().map(|run| 3 * weight_bytes(run) / ranks as u64).sum();
                host_memory::check(lasting, ranks, host_memory::host_memory())
            }
            Compute::Cuda { device, exchange } => {
                Ok(device.check_memory_of_rank(&device_steps(runs), &**exchange)?)
            }
        }
    }

    /// The panels of a run that this rank owns.
    pub(crate) fn own_panels(&self, run: &Settings) -> Result<Range<usize>> {
        let (Compute::Cpu { exchange, .. } | Compute::Cuda { exchange, .. }) = self;
        Ok(Share::new(&run.step, &**exchange)?.own())
    }

    /// As [`Compute::engine`], of a run whose features are divided: from this rank's panels alone.
    pub(crate) fn engine_of_panels(&self, run: &Settings, states: PanelStates) -> Result<Box<dyn Engine>> {
        Ok(match self {
            Compute::Cpu { threads, exchange, .. } => {
                let exchange = Arc::clone(exchange);
                Box::new(CpuEngine::of_panels(threads, run.step, states, cpu_options(run), exchange)?)
            }
            Compute::Cuda { device, exchange } => {
                let (options, exchange) = (device_options(run), Arc::clone(exchange));
                Box::new(CudaEngine::of_panels(device, run.step, &states, options, exchange)?)
            }
        })
    }

    /// An engine for a run. Engines on the CPU step one after another, each with all threads.
    pub(crate) fn engine(&self, run: &Settings, weights: &Weights) -> Result<Box<dyn Engine>> {
        Ok(match self {
            Compute::Cpu { threads, exchange, .. } => {
                let exchange = Arc::clone(exchange);
                Box::new(CpuEngine::shared(threads, run.step, weights, cpu_options(run), exchange)?)
            }
            Compute::Cuda { device, exchange } => {
                let (options, exchange) = (device_options(run), Arc::clone(exchange));
                Box::new(CudaEngine::of_rank(device, run.step, weights, options, exchange)?)
            }
        })
    }
}

/// Bytes of a run's weights.
fn weight_bytes(run: &Settings) -> u64 {
    let (d, f) = (run.step.width as u64, run.step.features as u64);
    4 * (2 * d * f + d + f)
}

fn cpu_options(run: &Settings) -> CpuOptions {
    CpuOptions::for_precision(run.precision.into())
}

fn device_options(run: &Settings) -> DeviceOptions {
    DeviceOptions::for_precision(run.precision.into())
}

fn device_steps(runs: &[&Settings]) -> Vec<(StepSpec, DeviceOptions)> {
    runs.iter().map(|run| (run.step, device_options(run))).collect()
}

/// Bytes of memory that the steps need at the peak. For each run: weights and moments, the frequency window, and two
/// dense [B, F] arrays at the start, when most features are active, or later all weights and rows as integers of up to
/// 2 bytes, for screening; of one run at a time a second copy of weights,
/// moments and window while a checkpoint is written. Of several ranks each has its share.
fn cpu_memory(runs: &[&Settings], ranks: usize) -> u64 {
    let (mut lasting, mut passing) = (0, 0);
    for run in runs {
        let step = &run.step;
        let (d, f, batch) = (step.width as u64, step.features as u64, step.batch as u64);
        let weights = weight_bytes(run);
        let window = 4 * step.sparsity_window as u64 * f;
        let activations = (8 * batch * f).max(2 * d * (batch + f));
        let panels = if step.panels > 1 { 8 * batch * d } else { 0 };
        lasting += (3 * weights + window + activations) / ranks as u64 + 12 * batch * d + panels;
        let copy = if step.panels > 1 { (3 * weights + window) / ranks as u64 } else { 4 * weights + window };
        passing = passing.max(copy);
    }
    lasting + passing
}
