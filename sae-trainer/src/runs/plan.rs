//! Turns the command line into a run that can start: the stores, the settings and the folder, checked against each other.
//! Nothing is written here.

use std::path::{Path, PathBuf};

use activation_store::Store;
use anyhow::{Context, Result, bail, ensure};
use human_units::format_bytes;
use sae::{Config, InputScale, Sae};
use serde_json::{Map, Value};
use terminal::foreign_path;

use crate::command::arguments::{InputScaleChoice, RunArguments, SettingArguments};
use crate::command::default_store::default_store;
use crate::command::settings::{Initial, Settings};
use crate::engine::Activation;
use crate::runs::checkpoint;
use crate::runs::folder::{RunConfig, RunFolder, checkpoints};

/// A run that can start.
#[derive(Debug)]
pub(crate) struct RunPlan {
    pub(crate) config: RunConfig,
    pub(crate) stores: Vec<Store>,
    pub(crate) out: PathBuf,
    /// The autoencoder of `--init-from`, where the run starts from it.
    pub(crate) initial: Option<Sae>,
    /// The checkpoints to continue from, the newest that can be read: steps and folders, the oldest first.
    pub(crate) checkpoints: Vec<(u64, PathBuf)>,
    /// The folder already holds this run, or a part of it.
    pub(crate) resumed: bool,
}

impl RunPlan {
    pub(crate) fn settings(&self) -> &Settings {
        &self.config.settings
    }

    /// Checks everything that can be checked before the first step.
    /// `command_line` is the one that `config.json` records for the run.
    pub(crate) fn new(given: &SettingArguments, run: &RunArguments, command_line: String) -> Result<RunPlan> {
        let stored = match &run.out {
            Some(out) if run.resume => RunConfig::read(out)?,
            _ => None,
        };
        let mut merged = match &stored {
            Some(stored) => merge(&stored.arguments, given),
            None => given.clone(),
        };
        if stored.is_none() && merged.data.store.is_empty() {
            match &run.out {
                Some(out) if run.resume => {
                    bail!("there is no run in {}; start one without --resume", foreign_path(out))
                }
                _ => merged.data.store.push(default_store()?),
            }
        }
        let paths = match &stored {
            Some(stored) if given.data.store.is_empty() => {
                stored.stores.iter().map(|store| store.path.clone()).collect()
            }
            _ => merged.data.store.clone(),
        };
        let stores = open_stores(&paths)?;
        let width = stores[0].width();

        // A resumed run has its weights in a checkpoint; the initial ones may be gone by now.
        let initial = match (&merged.model.init_from, &stored) {
            (Some(path), None) => Some(load_initial(path, &stores[0])?),
            _ => None,
        };
        let decided = match (&merged.model.init_from, &stored, &initial) {
            (Some(_), Some(stored), _) => Some(Initial {
                activation: stored.settings.step.activation,
                features: stored.settings.step.features,
                pre_bias: stored.settings.step.pre_bias,
                row_norm: stored.settings.input_scale == InputScaleChoice::RowNorm,
            }),
            (_, _, Some(sae)) => {
                let activation = sae.config.largest().map_or(Activation::Relu, |k| Activation::TopK { k });
                let Config { d_sae: features, apply_b_dec_to_input: pre_bias, .. } = sae.config;
                let row_norm = sae.config.input_scale() == Some(InputScale::RowNorm);
                Some(Initial { activation, features, pre_bias, row_norm })
            }
            _ => None,
        };
        let settings = Settings::resolve(&merged, width, decided)?;
        let out = run.out.clone().unwrap_or_else(|| default_folder(&stores[0], &settings));
        let mut config = RunConfig::new(command_line, merged, settings, &stores);
        check_paths(&out, &config)?;

        let stored = match stored {
            None if run.resume => RunConfig::read(&out)?,
            stored => stored,
        };
        let mut found = Vec::new();
        if let Some(stored) = &stored {
            RunFolder::check_same(&out, stored, &config)?;
            if stored.run_id.is_some() {
                config.run_id.clone_from(&stored.run_id);
            }
            found = checkpoints(&out)?;
        } else {
            RunFolder::check_free(&out, &config)?;
        }
        if let Some((step, _)) = found.last() {
            ensure!(
                *step <= config.settings.steps,
                "{} has already been trained for {step} steps; ask for more than that with --steps",
                foreign_path(&out)
            );
        }
        // Stopped before its first checkpoint, a run starts again from where it started.
        let initial = match (&config.settings.init_from, initial, &found[..]) {
            (Some(path), None, []) => Some(load_initial(path, &stores[0])?),
            (_, initial, _) => initial,
        };
        let resumed = stored.is_some();
        let plan = RunPlan { config, stores, out, initial, checkpoints: found, resumed };
        check_space(&plan.out, plan.needed_space(u64::from(run.keep_checkpoints)))?;
        Ok(plan)
    }

    /// Bytes on disk for `keep` checkpoints, the one being written, and `sae/`.
    pub(crate) fn needed_space(&self, keep: u64) -> u64 {
        (keep + 2).saturating_mul(checkpoint::bytes(&self.config.settings.step))
    }
}

/// The flags of a resumed run: those it was started with, overridden by those given now.
pub(crate) fn merge(stored: &SettingArguments, given: &SettingArguments) -> SettingArguments {
    let object = |arguments: &SettingArguments| -> Map<String, Value> {
        match serde_json::to_value(arguments).expect("flags are plain data") {
            Value::Object(object) => object,
            _ => unreachable!("flags are an object"),
        }
    };
    let (mut merged, given) = (object(stored), object(given));
    for (one, other) in [("steps", "tokens"), ("features", "expansion")] {
        if given.contains_key(one) || given.contains_key(other) {
            merged.remove(one);
            merged.remove(other);
        }
    }
    merged.extend(given);
    serde_json::from_value(Value::Object(merged)).expect("flags over flags are flags")
}

fn open_stores(paths: &[PathBuf]) -> Result<Vec<Store>> {
    let stores: Vec<Store> = paths.iter().map(|path| Ok(Store::open(path)?)).collect::<Result<_>>()?;
    for store in &stores {
        ensure!(
            store.width() == stores[0].width(),
            "rows of {} are {} wide, those of {} {}: stores that are read as one need one width",
            foreign_path(stores[0].path()),
            stores[0].width(),
            foreign_path(store.path()),
            store.width()
        );
    }
    Ok(stores)
}

fn load_initial(path: &Path, store: &Store) -> Result<Sae> {
    let sae = Sae::load(path).with_context(|| format!("cannot start from {}", foreign_path(path)))?;
    ensure!(
        sae.config.d_in == store.width(),
        "the autoencoder in {} reads rows of width {}, but the rows of {} are {} wide",
        foreign_path(path),
        sae.config.d_in,
        foreign_path(store.path()),
        store.width()
    );
    // Where it was trained on rows times a factor, this run may have another.
    Ok(sae.folded())
}

/// An error if a path is not UTF-8, since the JSON files of a run cannot hold it.
fn check_paths(out: &Path, config: &RunConfig) -> Result<()> {
    let stores = config.stores.iter().map(|store| &*store.path);
    let initial = config.settings.init_from.as_deref();
    for path in
        [out].into_iter().chain(stores).chain(initial).chain(config.arguments.data.store.iter().map(|p| &**p))
    {
        ensure!(
            path.to_str().is_some(),
            "{} is not UTF-8, and the files of a run cannot name it: rename it",
            foreign_path(path)
        );
    }
    Ok(())
}

/// `runs/gpt2-approx-l0-7e-5`
fn default_folder(store: &Store, settings: &Settings) -> PathBuf {
    let path = std::fs::canonicalize(store.path()).unwrap_or_else(|_| store.path().to_path_buf());
    let store = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let loss = settings.loss_name();
    let name = match settings.step.loss.coefficient {
        0.0 => format!("{store}-{loss}"),
        coefficient => format!("{store}-{loss}-{coefficient:e}"),
    };
    Path::new("runs").join(name)
}

/// Checks that the file system of `out`, which may not exist yet, has space for `needed` bytes.
pub(crate) fn check_space(out: &Path, needed: u64) -> Result<()> {
    let free = durable_files::available_space(out)?;
    ensure!(
        free >= needed,
        "the file system of {} has {} free, and the run's checkpoints need {}: choose another --out, fewer features or a lower \
         --keep-checkpoints",
        foreign_path(out),
        format_bytes(free),
        format_bytes(needed)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::line::CommandLine;

    fn arguments(words: &[&str]) -> SettingArguments {
        CommandLine::try_parse_from(["sae-trainer"].iter().chain(words)).unwrap().train.settings
    }

    #[test]
    fn flags_given_now_go_over_those_of_the_run() {
        let stored = arguments(&["--store", "a", "--tokens", "1M", "--lr", "1e-3", "--epsilon", "0.2,0.1"]);
        let given = arguments(&["--steps", "500", "--batch", "64"]);
        let expected = arguments(&[
            "--store",
            "a",
            "--steps",
            "500",
            "--lr",
            "1e-3",
            "--epsilon",
            "0.2,0.1",
            "--batch",
            "64",
        ]);
        assert_eq!(merge(&stored, &given), expected);
        assert_eq!(merge(&stored, &SettingArguments::default()), stored);
    }

    #[test]
    fn a_file_system_without_room_is_refused_with_the_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("not/yet/there");
        check_space(&out, 1).unwrap();
        let message = check_space(&out, 1 << 60).unwrap_err().to_string();
        assert!(message.contains("1048576 TiB") && message.contains("free"), "{message}");
        assert!(!out.exists());
    }
}
