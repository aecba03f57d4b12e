//! A run's state on disk: a folder that is an autoencoder in SAELens' format, usable as such, plus the rest of the training
//! state.
//!
//! ```text
//! checkpoints/step-00005000/
//!     cfg.json  sae_weights.safetensors  sparsity.safetensors     the autoencoder
//!     training.safetensors    first.* and second.*: Adam's moments, matrices as [F, d]
//!                             window [batches, F] uint32, steps_since_fired [F] uint64
//!     training.json           the step, how many lines the log had by then, and on a GPU what decides whether
//!                             steps are dense or sparse
//!     SHA256SUMS              checksums of these files
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use durable_files::CheckedFolder;
use ndarray::Array2;
use sae::{Config, InputScale, Sae};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use terminal::foreign_path;

use crate::engine::{Parameters, PathChoice, State, StepSpec, layout};

const TENSORS_FILE: &str = "training.safetensors";
const STEP_FILE: &str = "training.json";

#[derive(Debug, Serialize, Deserialize)]
struct Training {
    step: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    logged_lines: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_choice: Option<PathChoice>,
    /// BatchTopK's, of which the autoencoder's own are rounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    threshold: Option<f64>,
}

/// Writes the checkpoint `folder`, whole or not at all. `sae` holds the weights of `state`; the log beside it, if there is
/// one, has `logged_lines` lines.
pub(crate) fn save(folder: &Path, sae: &Sae, state: &State, logged_lines: Option<u64>) -> Result<()> {
    let written: Result<(), sae::Error> = durable_files::replace_folder(folder, |new| {
        sae.write_into(new)?;
        write_tensors(&new.join(TENSORS_FILE), state)?;
        let path_choice = state.path_choice.clone();
        let (step, threshold) = (state.step, state.threshold);
        let training = Training { step, logged_lines, path_choice, threshold };
        let training = serde_json::to_vec(&training).expect("numbers are plain data");
        let path = new.join(STEP_FILE);
        fs::write(&path, training).map_err(sae::Error::io("write", path))?;
        Ok(durable_files::write_sums(new)?)
    });
    written.with_context(|| format!("cannot write the checkpoint {}", foreign_path(folder)))
}

/// The newest of `folders` (the oldest first) that can be read, with its place among them. For each newer one, says
/// why it cannot be read: only the time since the older one is lost.
///
/// # Errors
/// Where none can be read.
pub(crate) fn load_newest(folders: &[PathBuf], spec: &StepSpec) -> Result<(usize, State)> {
    let mut reasons = Vec::new();
    for (at, folder) in folders.iter().enumerate().rev() {
        match load(folder, spec) {
            Ok(state) => {
                for reason in reasons {
                    terminal::say!("{reason}; continuing from the one before it");
                }
                return Ok((at, state));
            }
            Err(error) => {
                let folder = foreign_path(folder);
                reasons.push(format!("cannot continue from the checkpoint {folder}: {error:#}"));
            }
        }
    }
    bail!("{}. There is no checkpoint to continue from: start a new run in another --out", reasons.join("; "))
}

/// How many lines the log had at the step of the checkpoint `folder`, and that step; `None` if an
/// older version did not note it.
///
/// # Errors
/// Where the checkpoint is damaged.
pub(crate) fn logged_lines(folder: &Path) -> Result<Option<(u64, u64)>> {
    let text = CheckedFolder::open(folder)?.read(STEP_FILE)?;
    let training: Training = serde_json::from_slice(&text)
        .with_context(|| format!("{} is damaged", foreign_path(&folder.join(STEP_FILE))))?;
    Ok(training.logged_lines.map(|lines| (training.step, lines)))
}

/// The factor by which rows were scaled when the newest of `folders` that tells was written.
pub(crate) fn input_factor(folders: &[PathBuf]) -> Option<f64> {
    let factor = |folder: &PathBuf| {
        let text = CheckedFolder::open(folder).ok()?.read(sae::CONFIG_FILE).ok()?;
        match serde_json::from_slice::<Config>(&text).ok()?.input_scale() {
            Some(InputScale::Factor(factor)) => Some(factor),
            _ => None,
        }
    };
    folders.iter().rev().find_map(factor)
}

/// Reads the checkpoint `folder` of a run whose steps are those of `spec`.
fn load(folder: &Path, spec: &StepSpec) -> Result<State> {
    let files = CheckedFolder::open(folder)?;
    let path = folder.join(STEP_FILE);
    let text = files.read(STEP_FILE)?;
    let Training { step, path_choice, threshold, .. } =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", foreign_path(&path)))?;

    let Sae { weights, .. } = Sae::load(folder)?;
    let (d, f) = (spec.width, spec.features);
    ensure!(
        (weights.d_in(), weights.d_sae()) == (d, f),
        "it has width {} and {} features, but the run has width {d} and {f} features",
        weights.d_in(),
        weights.d_sae()
    );
    let mut weights = layout::parameters(&weights);
    weights.threshold = weights.threshold.filter(|_| spec.activation.has_thresholds());

    let path = folder.join(TENSORS_FILE);
    let bytes = files.read(TENSORS_FILE)?;
    let state = || -> Result<State> {
        let file = SafeTensors::deserialize(&bytes)?;
        let window = &file.tensor("window")?;
        ensure!(window.shape().len() == 2, "tensor `window` has shape {:?}", window.shape());
        let batches = window.shape()[0];
        Ok(State {
            step,
            weights,
            first_moments: read_moments(&file, "first", spec)?,
            second_moments: read_moments(&file, "second", spec)?,
            window: Array2::from_shape_vec(
                (batches, f),
                bytemuck::pod_collect_to_vec(data(&file, "window", Dtype::U32, &[batches, f])?),
            )?,
            steps_since_fired: bytemuck::pod_collect_to_vec::<u8, u64>(data(
                &file,
                "steps_since_fired",
                Dtype::U64,
                &[f],
            )?)
            .into(),
            threshold,
            path_choice,
        })
    };
    state().with_context(|| format!("{} is damaged", foreign_path(&path)))
}

fn read_moments(file: &SafeTensors<'_>, order: &str, spec: &StepSpec) -> Result<Parameters> {
    Parameters::from_numbers(spec, |name, shape| {
        let name = format!("{order}.{name}");
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(data(file, &name, Dtype::F32, shape)?);
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            bail!("tensor `{name}` holds {} at index {index}", values[index]);
        }
        Ok(values)
    })
}

fn data<'a>(file: &SafeTensors<'a>, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&'a [u8]> {
    let view = file.tensor(name)?;
    ensure!(
        view.dtype() == dtype && view.shape() == shape,
        "tensor `{name}` is {:?} {:?}, expected {dtype:?} {shape:?}",
        view.dtype(),
        view.shape()
    );
    Ok(view.data())
}

fn write_tensors(path: &Path, state: &State) -> Result<(), sae::Error> {
    let error = |source| match source {
        SafeTensorError::IoError(source) => sae::Error::io("write", path)(source),
        source => sae::Error::Safetensors { path: path.into(), source },
    };
    let mut tensors = Vec::new();
    let mut add = |name: String, dtype, shape, bytes| {
        TensorView::new(dtype, shape, bytes).map(|view| tensors.push((name, view))).map_err(error)
    };
    for (order, moments) in [("first", &state.first_moments), ("second", &state.second_moments)] {
        for (name, tensor) in moments.tensors() {
            let (shape, numbers) =
                (tensor.shape().to_vec(), tensor.to_slice().expect("tensors are row-major"));
            add(format!("{order}.{name}"), Dtype::F32, shape, bytemuck::cast_slice(numbers))?;
        }
    }
    let window = state.window.as_slice().expect("the window is row-major");
    add("window".into(), Dtype::U32, state.window.shape().to_vec(), bytemuck::cast_slice(window))?;
    let since = state.steps_since_fired.as_slice().expect("a vector's numbers lie one after another");
    add("steps_since_fired".into(), Dtype::U64, vec![since.len()], bytemuck::cast_slice(since))?;
    safetensors::serialize_to_file(tensors, None, path).map_err(error)
}

/// Bytes of a checkpoint once the frequency window is full: weights and moments, and the window.
pub(crate) fn bytes(spec: &StepSpec) -> u64 {
    let (d, f) = (spec.width as u64, spec.features as u64);
    let skip = if spec.skip { d * d } else { 0 };
    let weights = 4 * (2 * d * f + d + f + skip);
    3 * weights + f * (4 * spec.sparsity_window as u64 + 12)
}
