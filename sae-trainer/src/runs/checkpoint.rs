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
use ndarray::{Array1, Array2, ArrayViewD};
use sae::{Config, InputScale, Sae};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use terminal::foreign_path;

use crate::engine::{Parameters, PathChoice, State, StepSpec, layout};
use crate::runs::team::Team;

const TENSORS_FILE: &str = "training.safetensors";
const STEP_FILE: &str = "training.json";

/// `training.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Training {
    pub(super) step: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) logged_lines: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) path_choice: Option<PathChoice>,
    /// BatchTopK's, of which the autoencoder's own are rounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) threshold: Option<f64>,
    /// Of a checkpoint by panels: for each batch of the window, in how many rows features were active, summed over all features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) window_totals: Option<Vec<u64>>,
}

impl Training {
    /// Reads that of the checkpoint `files`, which is in `folder`.
    pub(super) fn read(folder: &Path, files: &CheckedFolder) -> Result<Training> {
        let text = files.read(STEP_FILE)?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged", foreign_path(&folder.join(STEP_FILE))))
    }

    /// Writes it into the folder `new`.
    pub(super) fn write(&self, new: &Path) -> Result<(), sae::Error> {
        let path = new.join(STEP_FILE);
        let text = serde_json::to_vec(self).expect("numbers are plain data");
        fs::write(&path, text).map_err(sae::Error::io("write", path))
    }
}

/// Writes the checkpoint `folder`, whole or not at all. `sae` holds the weights of `state`; the log beside it, if there is
/// one, has `logged_lines` lines.
pub(crate) fn save(folder: &Path, sae: &Sae, state: &State, logged_lines: Option<u64>) -> Result<()> {
    let written: Result<(), sae::Error> = durable_files::replace_folder(folder, |new| {
        sae.write_into(new)?;
        write_tensors(&new.join(TENSORS_FILE), state)?;
        let path_choice = state.path_choice.clone();
        let (step, threshold) = (state.step, state.threshold);
        Training { step, logged_lines, path_choice, threshold, window_totals: None }.write(new)?;
        Ok(durable_files::write_sums(new)?)
    });
    written.with_context(|| format!("cannot write the checkpoint {}", foreign_path(folder)))
}

/// The newest of `folders` (the oldest first) of which every rank of `team` can `load` what it needs, with its place among them. For
/// each newer one, says why it cannot be read: only the time since the older one is lost.
///
/// # Errors
/// Where none can be read; ranks that are lost.
pub(crate) fn load_newest<S>(
    folders: &[PathBuf],
    team: &Team,
    load: impl Fn(&Path) -> Result<S>,
) -> Result<(usize, S)> {
    let mut reasons = Vec::new();
    for (at, folder) in folders.iter().enumerate().rev() {
        let loaded = load(folder);
        let failures = team.failures(&loaded)?;
        match loaded {
            Ok(state) if failures.is_empty() => {
                for reason in reasons {
                    terminal::say!("{reason}; continuing from the one before it");
                }
                return Ok((at, state));
            }
            _ => {
                let (folder, failures) = (foreign_path(folder), failures.join("; "));
                reasons.push(format!("cannot continue from the checkpoint {folder}: {failures}"));
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
    let training = Training::read(folder, &CheckedFolder::open(folder)?)?;
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
pub(crate) fn load(folder: &Path, spec: &StepSpec) -> Result<State> {
    let files = CheckedFolder::open(folder)?;
    let Training { step, path_choice, threshold, .. } = Training::read(folder, &files)?;

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
        let (window, steps_since_fired) = read_firings(&file, f)?;
        let moments =
            |order| Parameters::from_numbers(spec, |name, shape| read_finite(&file, order, name, shape));
        Ok(State {
            step,
            weights,
            first_moments: moments("first")?,
            second_moments: moments("second")?,
            window,
            steps_since_fired,
            threshold,
            path_choice,
        })
    };
    state().with_context(|| format!("{} is damaged", foreign_path(&path)))
}

/// The window and the steps since each of F = `features` was last active.
pub(super) fn read_firings(file: &SafeTensors<'_>, features: usize) -> Result<(Array2<u32>, Array1<u64>)> {
    let window = &file.tensor("window")?;
    ensure!(window.shape().len() == 2, "tensor `window` has shape {:?}", window.shape());
    let batches = window.shape()[0];
    let counts = data(file, "window", Dtype::U32, &[batches, features])?;
    let window = Array2::from_shape_vec((batches, features), bytemuck::pod_collect_to_vec(counts))?;
    let since = data(file, "steps_since_fired", Dtype::U64, &[features])?;
    Ok((window, bytemuck::pod_collect_to_vec::<u8, u64>(since).into()))
}

/// The numbers of the tensor `order.name`, all of which have to be finite.
pub(super) fn read_finite(
    file: &SafeTensors<'_>,
    order: &str,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>> {
    let name = format!("{order}.{name}");
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(data(file, &name, Dtype::F32, shape)?);
    if let Some(index) = values.iter().position(|v| !v.is_finite()) {
        bail!("tensor `{name}` holds {} at index {index}", values[index]);
    }
    Ok(values)
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
    let mut file = TensorFile::new(path);
    for (order, moments) in [("first", &state.first_moments), ("second", &state.second_moments)] {
        for (name, tensor) in moments.tensors() {
            file.add_tensor(order, name, tensor)?;
        }
    }
    file.add_firings(state)?;
    file.write()
}

/// A file of tensors that is to be written.
pub(super) struct TensorFile<'a> {
    path: &'a Path,
    tensors: Vec<(String, TensorView<'a>)>,
}

impl<'a> TensorFile<'a> {
    pub(super) fn new(path: &'a Path) -> TensorFile<'a> {
        TensorFile { path, tensors: Vec::new() }
    }

    fn error(&self, source: SafeTensorError) -> sae::Error {
        match source {
            SafeTensorError::IoError(source) => sae::Error::io("write", self.path)(source),
            source => sae::Error::Safetensors { path: self.path.into(), source },
        }
    }

    fn add(
        &mut self,
        name: String,
        dtype: Dtype,
        shape: &[usize],
        bytes: &'a [u8],
    ) -> Result<(), sae::Error> {
        let view = TensorView::new(dtype, shape.to_vec(), bytes).map_err(|error| self.error(error))?;
        self.tensors.push((name, view));
        Ok(())
    }

    /// Adds the tensor `order.name`.
    pub(super) fn add_tensor(
        &mut self,
        order: &str,
        name: &str,
        tensor: ArrayViewD<'a, f32>,
    ) -> Result<(), sae::Error> {
        let shape = tensor.shape().to_vec();
        let numbers = tensor.to_slice().expect("tensors are row-major");
        self.add(format!("{order}.{name}"), Dtype::F32, &shape, bytemuck::cast_slice(numbers))
    }

    /// Adds what [`read_firings`] reads.
    pub(super) fn add_firings(&mut self, state: &'a State) -> Result<(), sae::Error> {
        let window = state.window.as_slice().expect("the window is row-major");
        self.add("window".into(), Dtype::U32, state.window.shape(), bytemuck::cast_slice(window))?;
        let since = state.steps_since_fired.as_slice().expect("a vector's numbers lie one after another");
        self.add("steps_since_fired".into(), Dtype::U64, &[since.len()], bytemuck::cast_slice(since))
    }

    pub(super) fn write(mut self) -> Result<(), sae::Error> {
        let tensors = std::mem::take(&mut self.tensors);
        safetensors::serialize_to_file(tensors, None, self.path).map_err(|error| self.error(error))
    }
}

/// Bytes of a checkpoint once the frequency window is full: weights and moments, and the window.
pub(crate) fn bytes(spec: &StepSpec) -> u64 {
    let (d, f) = (spec.width as u64, spec.features as u64);
    let skip = if spec.skip { d * d } else { 0 };
    let weights = 4 * (2 * d * f + d + f + skip);
    3 * weights + f * (4 * spec.sparsity_window as u64 + 12)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ranks::Threads;

    use super::*;

    #[test]
    fn ranks_take_the_newest_checkpoint_that_all_can_read() {
        let folders: Vec<PathBuf> = ["a", "b", "c", "d"].map(PathBuf::from).to_vec();
        // Each rank misses another one.
        let readable = |rank: usize, folder: &Path| match (rank, folder.to_str().unwrap()) {
            (1, "d") | (0 | 3, "c") => bail!("{} is damaged", folder.display()),
            (_, name) => Ok((rank, name.to_owned())),
        };
        let threads = Threads::new(4, Duration::from_secs(60));
        let found: Vec<_> = std::thread::scope(|scope| {
            let load = |rank: Threads| {
                let (number, folders) = (ranks::Exchange::rank(&rank), &folders);
                scope.spawn(move || {
                    let team = Team::of_threads(rank);
                    let newest = load_newest(folders, &team, |folder| readable(number, folder)).unwrap();
                    let none = load_newest(&folders[2..], &team, |folder| readable(number, folder));
                    (newest, none.unwrap_err().to_string())
                })
            };
            let ranks: Vec<_> = threads.into_iter().map(load).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        for (rank, (newest, none)) in found.into_iter().enumerate() {
            assert_eq!(newest, (1, (rank, "b".to_owned())));
            assert!(none.contains("checkpoint d: rank 1: d is damaged"), "{none}");
            assert!(none.contains("checkpoint c: rank 0: c is damaged."), "{none}");
        }
    }

    #[test]
    fn what_all_ranks_find_damaged_is_said_of_none() {
        let team = Team::alone();
        let newest = load_newest(&["a".into(), "b".into()], &team, |folder| match folder.to_str() {
            Some("a") => Ok(7),
            _ => bail!("it is damaged"),
        });
        assert_eq!(newest.unwrap(), (0, 7));
        assert_eq!(team.failures::<()>(&Err(anyhow::anyhow!("why"))).unwrap(), ["why"]);
        assert!(team.failures(&Ok(1)).unwrap().is_empty());
    }
}
