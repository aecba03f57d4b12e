//! Turns the command line into a run that can start: the stores, the settings and the folder, checked against each other.
//! Nothing is written here.

use std::path::{Path, PathBuf};

use activation_store::{Store, held_out_contexts, median_norm};
use anyhow::{Context, Result, bail, ensure};
use human_units::format_bytes;
use sae::{Config, InputScale, Sae};
use serde_json::{Map, Value};
use terminal::foreign_path;

use crate::autoencoder::load_and_tell;
use crate::command::arguments::{InputScaleChoice, RunArguments, SettingArguments};
use crate::command::default_store::default_store;
use crate::command::selection::DEFAULT_BANDWIDTH;
use crate::command::settings::{Initial, Settings};
use crate::engine::Activation;
use crate::runs::checkpoint;
use crate::runs::folder::{RunConfig, RunFolder, StoreIdentity, checkpoints, program};
use crate::runs::record::EvaluatedOn;

/// A run that can start.
#[derive(Debug)]
pub(crate) struct RunPlan {
    pub(crate) config: RunConfig,
    pub(crate) stores: Vec<Store>,
    /// Those of `--target`: none, or one aligned with each of `stores`.
    pub(crate) targets: Vec<Store>,
    /// Those of `--eval-store`.
    pub(crate) eval_stores: Vec<Store>,
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
    /// `command_line` is the one that `config.json` records for the run, which `ranks` processes are to do together.
    pub(crate) fn new(
        given: &SettingArguments,
        run: &RunArguments,
        command_line: String,
        ranks: usize,
    ) -> Result<RunPlan> {
        let stored = match &run.out {
            Some(out) if run.resume => RunConfig::read(out)?,
            _ => None,
        };
        let mut merged = match &stored {
            Some(stored) => merge(&stored.arguments, given),
            None => given.clone(),
        };
        if stored.is_none() && ranks > 1 {
            // Written down, so that the run means the same with other ranks.
            merged.length.panels.get_or_insert(ranks as u64);
        }
        if stored.is_none() && merged.data.store.is_empty() {
            match &run.out {
                Some(out) if run.resume => {
                    bail!("there is no run in {}; start one without --resume", foreign_path(out))
                }
                _ => merged.data.store.push(default_store()?),
            }
        }
        let paths = |given: &[PathBuf], stored: Option<&[StoreIdentity]>, merged: &[PathBuf]| match stored {
            Some(stored) if given.is_empty() => stored.iter().map(|store| store.path.clone()).collect(),
            _ => merged.to_vec(),
        };
        let of_run = stored.as_ref();
        let open = |path: &PathBuf| run.cache.open(path);
        let stores = open_stores(
            &paths(&given.data.store, of_run.map(|run| &run.stores[..]), &merged.data.store),
            open,
        )?;
        let targets = open_targets(
            &paths(&given.rows.target, of_run.map(|run| &run.targets[..]), &merged.rows.target),
            &stores,
            open,
        )?;
        let eval_stores = open_eval_stores(
            &paths(&given.rows.eval_store, of_run.map(|run| &run.eval_stores[..]), &merged.rows.eval_store),
            &stores,
            open,
        )?;
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
                skip: stored.settings.step.skip,
                row_norm: stored.settings.input_scale == InputScaleChoice::RowNorm,
            }),
            (_, _, Some(sae)) => {
                let activation = match sae.config.largest() {
                    Some(k) => Activation::TopK { k },
                    None if sae.config.has_thresholds() => {
                        Activation::JumpRelu { bandwidth: DEFAULT_BANDWIDTH, to_input: false }
                    }
                    None => Activation::Relu,
                };
                let Config { d_sae: features, apply_b_dec_to_input: pre_bias, .. } = sae.config;
                let row_norm = sae.config.input_scale() == Some(InputScale::RowNorm);
                Some(Initial { activation, features, pre_bias, skip: sae.config.has_skip(), row_norm })
            }
            _ => None,
        };
        let mut settings = Settings::resolve(&merged, width, decided)?;
        let panels = settings.step.panels;
        ensure!(
            panels.is_multiple_of(ranks) && ranks.is_power_of_two(),
            "{ranks} ranks cannot share {panels} panels of features: start a power of two of ranks that divides {panels}{}",
            if stored.is_none() { ", or ask for other --panels" } else { ", with which the run was started" }
        );
        let out = run.out.clone().unwrap_or_else(|| default_folder(&stores[0], targets.first(), &settings));
        let stored = match stored {
            None if run.resume => RunConfig::read(&out)?,
            stored => stored,
        };
        let of_run = stored.as_ref().map(|stored| &stored.settings.rows);
        if let (Some(of_run), None) = (of_run, merged.rows.held_out) {
            // The default has changed; older runs held nothing out.
            settings.rows.held_out = of_run.held_out;
        }
        settings.rows.largest_norm = match (of_run, settings.rows.max_norm) {
            (Some(of_run), Some(times)) if of_run.max_norm == Some(times) => of_run.largest_norm,
            (_, Some(times)) => Some(times * median_norm(&stores)?),
            (_, None) => None,
        };
        settings.rows.check()?;
        let mut config = RunConfig::new(command_line, merged, settings, [&stores, &targets, &eval_stores]);
        check_paths(&out, &config)?;

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
        let plan =
            RunPlan { config, stores, targets, eval_stores, out, initial, checkpoints: found, resumed };
        check_space(&plan.out, plan.needed_space(run))?;
        Ok(plan)
    }

    /// What all ranks have to agree on: which run it is, and from where it can go on.
    pub(crate) fn identity(&self) -> String {
        let run = self.config.run_id.as_deref().unwrap_or_default();
        let rows: u64 = self.stores.iter().map(Store::rows).sum();
        let steps: Vec<String> = self.checkpoints.iter().map(|(step, _)| step.to_string()).collect();
        let checkpoints = match &steps[..] {
            [] => "no checkpoint".to_owned(),
            steps => format!("checkpoints of step {}", steps.join(", ")),
        };
        format!("{}, run {run}, {rows} rows, {checkpoints}", program())
    }

    /// Which rows the finished autoencoder is evaluated on.
    pub(crate) fn evaluated_on(&self) -> EvaluatedOn {
        let held_out = self.settings().rows.held_out;
        let some = |store: &Store| held_out_contexts(store.contexts(), held_out) > 0;
        match self.stores.iter().any(some) {
            _ if !self.eval_stores.is_empty() => EvaluatedOn::OtherStores,
            true => EvaluatedOn::HeldOutRows,
            false => EvaluatedOn::TrainingRows,
        }
    }

    /// Bytes on disk for the checkpoints that the run will come to keep, one more beside them, and `sae/`.
    pub(crate) fn needed_space(&self, run: &RunArguments) -> u64 {
        let done = self.checkpoints.last().map_or(0, |(step, _)| *step);
        let planned = (self.config.settings.steps - done) / run.checkpoint_every;
        let kept = planned.min(u64::from(run.keep_checkpoints));
        (kept + 2).saturating_mul(checkpoint::bytes(&self.config.settings.step))
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

fn open_stores(paths: &[PathBuf], open: impl Fn(&PathBuf) -> Result<Store>) -> Result<Vec<Store>> {
    let stores: Vec<Store> = paths.iter().map(open).collect::<Result<_>>()?;
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

/// The stores of `--target`, each aligned with the one of `stores` in the same place.
fn open_targets(
    paths: &[PathBuf],
    stores: &[Store],
    open: impl Fn(&PathBuf) -> Result<Store>,
) -> Result<Vec<Store>> {
    ensure!(
        paths.is_empty() || paths.len() == stores.len(),
        "--target names {} stores and --store {}: name a target for each store, in the same order",
        paths.len(),
        stores.len()
    );
    let targets: Vec<Store> = paths.iter().map(open).collect::<Result<_>>()?;
    for (store, target) in stores.iter().zip(&targets) {
        ensure!(
            store.width() == target.width(),
            "rows of {} are {} wide, those of its target {} {}: a transcoder needs two hooks of one width",
            foreign_path(store.path()),
            store.width(),
            foreign_path(target.path()),
            target.width()
        );
        store.check_aligned(target)?;
    }
    Ok(targets)
}

/// The stores of `--eval-store`, whose rows must be ones that the autoencoder reads and has not seen.
fn open_eval_stores(
    paths: &[PathBuf],
    stores: &[Store],
    open: impl Fn(&PathBuf) -> Result<Store>,
) -> Result<Vec<Store>> {
    let found: Vec<Store> = paths.iter().map(open).collect::<Result<_>>()?;
    for store in &found {
        ensure!(
            store.width() == stores[0].width(),
            "rows of {} are {} wide, those of {} {}: --eval-store needs a store of the same hook",
            foreign_path(stores[0].path()),
            stores[0].width(),
            foreign_path(store.path()),
            store.width()
        );
        ensure!(
            stores.iter().all(|trained| trained.canonical_path() != store.canonical_path()),
            "{} is given as --store and as --eval-store: name another store, or leave --eval-store out to evaluate on \
             held-out rows",
            foreign_path(store.path())
        );
    }
    Ok(found)
}

fn load_initial(path: &Path, store: &Store) -> Result<Sae> {
    let sae = load_and_tell(path).with_context(|| format!("cannot start from {}", foreign_path(path)))?;
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
    let stores = config.stores.iter().chain(&config.targets).chain(&config.eval_stores);
    let stores = stores.map(|store| &*store.path);
    let initial = config.settings.init_from.as_deref();
    let rows = &config.arguments.rows;
    let given =
        config.arguments.data.store.iter().chain(&rows.target).chain(&rows.eval_store).map(|path| &**path);
    for path in [out].into_iter().chain(stores).chain(initial).chain(given) {
        ensure!(
            path.to_str().is_some(),
            "{} is not UTF-8, and the files of a run cannot name it: rename it",
            foreign_path(path)
        );
    }
    Ok(())
}

/// `runs/gpt2-approx-l0-7e-5`, `runs/gpt2.in-to-gpt2.out-approx-l0-7e-5`
fn default_folder(store: &Store, target: Option<&Store>, settings: &Settings) -> PathBuf {
    let name = |store: &Store| {
        let path = store.canonical_path();
        path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    };
    let store = match target {
        Some(target) => format!("{}-to-{}", name(store), name(target)),
        None => name(store),
    };
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
