//! The checkpoint of a run whose features are divided into panels: each panel's file is written by the rank that owns it, and read
//! by the one that owns it when the run goes on. No rank needs the state of all features.
//!
//! ```text
//! checkpoints/step-00005000/
//!     cfg.json                what the autoencoder is, as SAELens has it
//!     panel-00.safetensors    weights.*, first.* and second.* of the panel's features, matrices as [features, d]
//!                             window [batches, features] uint32, steps_since_fired [features] uint64
//!     panel-01.safetensors    …
//!     whole.safetensors       the same of what belongs to no feature: decoder_bias, skip
//!     training.json           the step, how many lines the log had by then, BatchTopK's threshold, and the window's totals
//!     SHA256SUMS              checksums of these files
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use durable_files::CheckedFolder;
use sae::Config;
use safetensors::tensor::SafeTensors;
use terminal::foreign_path;

use crate::engine::{PanelStates, Parameters, State, StepSpec};
use crate::runs::checkpoint::{TensorFile, Training, read_finite, read_firings};
use crate::runs::together::Others;

const WHOLE_FILE: &str = "whole.safetensors";
/// Tensors that belong to no feature.
const OF_ALL: [&str; 2] = ["decoder_bias", "skip"];

fn panel_file(number: usize) -> String {
    format!("panel-{number:02}.safetensors")
}

/// Whether `folder` is such a checkpoint.
pub(crate) fn is_one(folder: &Path) -> bool {
    folder.join(panel_file(0)).exists() && folder.join(WHOLE_FILE).exists()
}

/// Writes the checkpoint `folder`, whole or not at all, together with the `others`, who [`write_panels`]. `own` are this rank's
/// panels, those of the first.
///
/// # Errors
/// Those of any rank.
pub(crate) fn save(
    folder: &Path,
    config: &Config,
    own: &PanelStates,
    logged_lines: u64,
    others: &Others<'_>,
) -> Result<()> {
    let written = durable_files::replace_folder(folder, |new| -> Result<()> {
        let sums = others.fill(new, |new| write_panels(new, own))?;
        let lines = sums.iter().flat_map(|lines| lines.lines()).filter_map(|line| line.split_once(' '));
        let sums: BTreeMap<String, String> =
            lines.map(|(name, sum)| (name.to_owned(), sum.to_owned())).collect();

        let path = new.join(sae::CONFIG_FILE);
        let text = serde_json::to_vec(config).expect("a configuration is plain data");
        fs::write(&path, text).with_context(|| format!("cannot write {}", foreign_path(&path)))?;
        let path = new.join(WHOLE_FILE);
        let state = &own.panels[0].1;
        write_tensors(&path, state, |name| OF_ALL.contains(&name), false)?;
        let State { step, threshold, .. } = *state;
        let (path_choice, window_totals) = (None, Some(own.window_totals.clone()));
        let logged_lines = Some(logged_lines);
        Training { step, logged_lines, path_choice, threshold, window_totals }.write(new)?;
        Ok(durable_files::write_sums_beside(new, sums)?)
    });
    written.with_context(|| format!("cannot write the checkpoint {}", foreign_path(folder)))
}

/// Writes a file for each panel into the folder `new`; returns lines with their names and checksums.
///
/// # Errors
/// Those of the disk.
pub(crate) fn write_panels(new: &Path, own: &PanelStates) -> Result<String> {
    let mut sums = String::new();
    for (number, state) in &own.panels {
        let name = panel_file(*number);
        let path = new.join(&name);
        write_tensors(&path, state, |name| !OF_ALL.contains(&name), true)?;
        // The first rank may be on another machine, and cannot know when this one's writes are on the disk.
        fs::File::open(&path)
            .and_then(|file| file.sync_all())
            .with_context(|| format!("cannot write {}", foreign_path(&path)))?;
        sums += &format!("{name} {}\n", durable_files::sum(&path)?);
    }
    Ok(sums)
}

fn write_tensors(path: &Path, state: &State, which: impl Fn(&str) -> bool, firings: bool) -> Result<()> {
    let mut file = TensorFile::new(path);
    for (order, parameters) in
        [("weights", &state.weights), ("first", &state.first_moments), ("second", &state.second_moments)]
    {
        for (name, tensor) in parameters.tensors().into_iter().filter(|(name, _)| which(name)) {
            file.add_tensor(order, name, tensor)?;
        }
    }
    if firings {
        file.add_firings(state)?;
    }
    Ok(file.write()?)
}

/// Reads the panels `own` of the checkpoint `folder` of a run whose steps are those of `spec`.
pub(crate) fn load(folder: &Path, spec: &StepSpec, own: Range<usize>) -> Result<PanelStates> {
    // It may come from an edited file.
    spec.validate()?;
    let files = CheckedFolder::open(folder)?;
    // What the rows are multiplied by stands there.
    files.read(sae::CONFIG_FILE)?;
    let Training { step, threshold, window_totals, .. } = Training::read(folder, &files)?;
    let window_totals = window_totals.context("it is not a checkpoint of panels")?;
    let whole = files.read(WHOLE_FILE)?;
    let damaged = |name: &str| format!("{} is damaged", foreign_path(&folder.join(name)));
    let whole = SafeTensors::deserialize(&whole).with_context(|| damaged(WHOLE_FILE))?;
    let mut panels = Vec::new();
    for number in own.clone() {
        let name = panel_file(number);
        let bytes = files.read(&name)?;
        let state = || -> Result<State> {
            let file = SafeTensors::deserialize(&bytes)?;
            let spec = spec.of_panel(number, number == own.start);
            let tensors = |order| {
                Parameters::from_numbers(&spec, |name, shape| {
                    let file = if OF_ALL.contains(&name) { &whole } else { &file };
                    read_finite(file, order, name, shape)
                })
            };
            let (window, steps_since_fired) = read_firings(&file, spec.features)?;
            ensure!(
                window.nrows() == window_totals.len(),
                "tensor `window` has {} batches, and training.json {}",
                window.nrows(),
                window_totals.len()
            );
            Ok(State {
                step,
                weights: tensors("weights")?,
                first_moments: tensors("first")?,
                second_moments: tensors("second")?,
                window,
                steps_since_fired,
                threshold,
                path_choice: None,
            })
        };
        panels.push((number, state().with_context(|| damaged(&name))?));
    }
    Ok(PanelStates { panels, window_totals })
}
