//! Entry points that read untrusted files, for tests that feed them files of all kinds.

use std::path::Path;

use anyhow::{Context, Result};

use crate::runs::checkpoint;
use crate::runs::folder::{RunConfig, checkpoints, logged_steps, summary};
use crate::runs::panel_checkpoint;
use crate::sweep::SweepRecord;

/// Reads everything of the run in `folder` that resuming and comparing it would read, but its stores; returns the number of
/// logged steps.
///
/// # Errors
/// What they would tell.
pub fn run(folder: &Path) -> Result<usize> {
    let config = RunConfig::read(folder)?.context("there is no run")?;
    for (_, checkpoint) in checkpoints(folder)? {
        match config.settings.step {
            step if step.panels > 1 => drop(panel_checkpoint::load(&checkpoint, &step, 0..step.panels)?),
            step => drop(checkpoint::load(&checkpoint, &step)?),
        }
    }
    summary(folder)?;
    Ok(logged_steps(folder)?.len())
}

/// Reads the sweep in `folder`; returns whether there is one.
///
/// # Errors
/// What resuming it would tell.
pub fn sweep(folder: &Path) -> Result<bool> {
    Ok(SweepRecord::read(folder)?.is_some())
}
