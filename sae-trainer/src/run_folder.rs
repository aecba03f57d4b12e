//! The folder of a run.
//!
//! ```text
//! RUN/
//!     config.json       everything needed to repeat the run
//!     metrics.jsonl     a line for every logged step, and one for the evaluation at the end
//!     checkpoints/      the newest checkpoints, see the module `checkpoint`
//!     sae/              the autoencoder in SAELens' format, once the run is finished or interrupted
//!     summary.json      once the run is finished
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use activation_store::{Store, StoreSpec};
use anyhow::{Context, Result, bail, ensure};
use sae::Sae;
use serde::{Deserialize, Serialize};

use crate::arguments::SettingArguments;
use crate::checkpoint;
use crate::engine::EngineState;
use crate::record::Summary;
use crate::settings::Settings;

const FORMAT: u32 = 1;
const CONFIG: &str = "config.json";
const METRICS: &str = "metrics.jsonl";
const CHECKPOINTS: &str = "checkpoints";
const SUMMARY: &str = "summary.json";
const LOCK: &str = ".lock";

/// `config.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunConfig {
    /// Of this file.
    format: u32,
    pub(crate) program: String,
    pub(crate) command_line: String,
    /// The flags that were given.
    pub(crate) arguments: SettingArguments,
    /// What they mean.
    pub(crate) settings: Settings,
    /// What was trained on.
    pub(crate) stores: Vec<StoreIdentity>,
}

/// One of the stores of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StoreIdentity {
    pub(crate) path: PathBuf,
    pub(crate) rows: u64,
    pub(crate) spec: StoreSpec,
}

impl RunConfig {
    pub(crate) fn new(
        command_line: String,
        arguments: SettingArguments,
        settings: Settings,
        stores: &[Store],
    ) -> RunConfig {
        RunConfig {
            format: FORMAT,
            program: program(),
            command_line,
            arguments,
            settings,
            stores: stores.iter().map(StoreIdentity::of).collect(),
        }
    }

    /// The configuration of the run in `folder`, if it holds one.
    pub(crate) fn read(folder: &Path) -> Result<Option<RunConfig>> {
        let path = folder.join(CONFIG);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: RunConfig = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not the configuration of a run", path.display()))?;
        ensure!(
            config.format == FORMAT,
            "{} has format {}; this program reads format {FORMAT}",
            path.display(),
            config.format
        );
        Ok(Some(config))
    }

    /// Where `other` is another run, one sentence for each value.
    pub(crate) fn differences(&self, other: &RunConfig) -> Vec<String> {
        let mut found = self.settings.differences(&other.settings);
        let same = self.stores.len() == other.stores.len()
            && self.stores.iter().zip(&other.stores).all(|(here, there)| here.same_rows(there));
        if !same {
            let names = |config: &RunConfig| {
                let paths = config.stores.iter().map(|s| format!("{} ({} rows)", s.path.display(), s.rows));
                paths.collect::<Vec<_>>().join(", ")
            };
            found.push(format!("the stores are {} there and {} here", names(self), names(other)));
        }
        found
    }
}

impl StoreIdentity {
    fn of(store: &Store) -> StoreIdentity {
        let path = fs::canonicalize(store.path()).unwrap_or_else(|_| store.path().to_path_buf());
        StoreIdentity { path, rows: store.rows(), spec: store.spec().clone() }
    }

    /// A store may move, and may have been dumped by another command.
    fn same_rows(&self, other: &StoreIdentity) -> bool {
        let without_command = |identity: &StoreIdentity| {
            let mut spec = identity.spec.clone();
            spec.provenance.command_line.clear();
            (identity.rows, spec)
        };
        without_command(self) == without_command(other)
    }
}

/// "sae-trainer 0.1.0"
pub(crate) fn program() -> String {
    concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// A run's folder, held against a second process.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    metrics: File,
    _lock: File,
}

impl RunFolder {
    /// That a new run may be put into `path`: it is not there, or an empty folder.
    pub(crate) fn check_free(path: &Path, config: &RunConfig) -> Result<()> {
        if !path.exists() || is_empty(path)? {
            return Ok(());
        }
        let here = path.display();
        let Some(there) = RunConfig::read(path)? else {
            bail!("{here} is not empty and not a run; choose another --out");
        };
        let differences = there.differences(config);
        if differences.is_empty() {
            bail!("{here} holds this run already; add --resume to continue it, or choose another --out");
        }
        bail!("{here} holds another run ({}); choose another --out", differences.join("; "));
    }

    /// That the run in `path`, of configuration `there`, can go on as `config`.
    pub(crate) fn check_same(path: &Path, there: &RunConfig, config: &RunConfig) -> Result<()> {
        let differences = there.differences(config);
        ensure!(
            differences.is_empty(),
            "cannot resume {}: {}. Leave those flags out to continue the run, or choose another --out to \
             start a new one",
            path.display(),
            differences.join("; ")
        );
        Ok(())
    }

    /// Creates the folder or takes up the run in it, and writes `config`.
    pub(crate) fn open(path: &Path, config: &RunConfig) -> Result<RunFolder> {
        let lock = lock(path)?;
        let text = serde_json::to_vec_pretty(config).expect("a configuration is plain data");
        durable_files::replace_file(&path.join(CONFIG), &text)?;
        let metrics = path.join(METRICS);
        let metrics = File::options()
            .append(true)
            .create(true)
            .open(&metrics)
            .with_context(|| format!("cannot write {}", metrics.display()))?;
        Ok(RunFolder { path: path.to_path_buf(), metrics, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line to `metrics.jsonl`.
    pub(crate) fn record(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(record).expect("a record is plain data");
        line.push(b'\n');
        self.metrics
            .write_all(&line)
            .with_context(|| format!("cannot write {}", self.path.join(METRICS).display()))
    }

    /// Takes back what `metrics.jsonl` says about anything after `step`: lines that a killed process
    /// wrote after its last checkpoint, and the evaluation of a run that is being lengthened.
    pub(crate) fn forget_after(&mut self, step: u64) -> Result<()> {
        #[derive(Deserialize)]
        struct Line {
            kind: String,
            step: u64,
        }
        let path = self.path.join(METRICS);
        let read = || -> std::io::Result<Vec<u8>> {
            let mut kept = Vec::new();
            for line in BufReader::new(File::open(&path)?).split(b'\n') {
                let line = line?;
                // A torn last line is none.
                let Ok(Line { kind, step: of }) = serde_json::from_slice(&line) else { continue };
                if of < step || (of == step && kind == "step") {
                    kept.extend_from_slice(&line);
                    kept.push(b'\n');
                }
            }
            Ok(kept)
        };
        let kept = read().with_context(|| format!("cannot read {}", path.display()))?;
        durable_files::replace_file(&path, &kept)?;
        self.metrics = File::options()
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let summary = self.path.join(SUMMARY);
        if summary.exists() {
            fs::remove_file(&summary).with_context(|| format!("cannot remove {}", summary.display()))?;
        }
        Ok(())
    }

    /// Writes the checkpoint of `state`, then removes older ones beyond `keep`. Returns its folder.
    pub(crate) fn checkpoint(&mut self, sae: &Sae, state: &EngineState, keep: usize) -> Result<PathBuf> {
        // What was logged before the checkpoint has to survive as long as the checkpoint.
        let metrics = self.path.join(METRICS);
        self.metrics.sync_data().with_context(|| format!("cannot write {}", metrics.display()))?;
        let folder = self.path.join(CHECKPOINTS).join(format!("step-{:08}", state.step));
        checkpoint::save(&folder, sae, state)?;
        let mut checkpoints = checkpoints(&self.path)?;
        checkpoints.truncate(checkpoints.len().saturating_sub(keep));
        for (_, old) in checkpoints {
            fs::remove_dir_all(&old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
        Ok(folder)
    }

    /// Writes `sae/`. Returns its path.
    pub(crate) fn save_sae(&self, sae: &Sae) -> Result<PathBuf> {
        let folder = self.path.join("sae");
        sae.save(&folder).with_context(|| format!("cannot write {}", folder.display()))?;
        Ok(folder)
    }

    pub(crate) fn save_summary(&self, summary: &Summary) -> Result<()> {
        let text = serde_json::to_vec_pretty(summary).expect("a summary is plain data");
        Ok(durable_files::replace_file(&self.path.join(SUMMARY), &text)?)
    }
}

/// The checkpoints of the run in `folder`: step and path, the oldest first.
pub(crate) fn checkpoints(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let path = folder.join(CHECKPOINTS);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let error = || format!("cannot read {}", path.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(&path).with_context(error)? {
        let entry = entry.with_context(error)?;
        let step = entry.file_name().to_str().and_then(|name| name.strip_prefix("step-")?.parse().ok());
        if let Some(step) = step {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// The summary of the run in `folder`, if it is finished.
pub(crate) fn summary(folder: &Path) -> Result<Option<Summary>> {
    let path = folder.join(SUMMARY);
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let summary = serde_json::from_slice(&text);
    Ok(Some(summary.with_context(|| format!("{} is not the summary of a run", path.display()))?))
}

/// What a plot wants of a line of `metrics.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub(crate) struct LoggedStep {
    pub(crate) tokens: u64,
    pub(crate) l0: f64,
    pub(crate) mse_centered: f64,
}

/// The steps that the run in `folder` has logged, in order.
pub(crate) fn logged_steps(folder: &Path) -> Result<Vec<LoggedStep>> {
    #[derive(Deserialize)]
    struct Line {
        kind: String,
    }
    let path = folder.join(METRICS);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut steps = Vec::new();
    for line in text.lines() {
        // A torn last line is none.
        let Ok(Line { kind }) = serde_json::from_str(line) else { continue };
        if kind == "step" {
            let step = serde_json::from_str(line);
            steps.push(step.with_context(|| format!("{} is not the log of a run", path.display()))?);
        }
    }
    Ok(steps)
}

/// Creates a folder and holds it against a second process as long as the returned file is open.
pub(crate) fn lock(path: &Path) -> Result<File> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    let lock =
        File::create(path.join(LOCK)).with_context(|| format!("cannot write to {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            bail!("another process is training in {}; wait for it or stop it", path.display())
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Whether nothing is in a folder. A process that was stopped before it wrote anything leaves its lock.
pub(crate) fn is_empty(folder: &Path) -> Result<bool> {
    let error = || format!("cannot read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(error)? {
        if entry.with_context(error)?.file_name() != LOCK {
            return Ok(false);
        }
    }
    Ok(true)
}
