//! The folder of a run.
//!
//! ```text
//! RUN/
//!     config.json       everything needed to repeat the run
//!     metrics.jsonl     one line per logged step, and one for the evaluation at the end
//!     checkpoints/      the newest checkpoints, see the module `checkpoint`
//!     tensorboard/      with `--tensorboard`, the numbers of metrics.jsonl as an event file
//!     sae/              the autoencoder in SAELens' format, once the run is finished or interrupted
//!     summary.json      once the run is finished
//! ```
//!
//! The JSON objects are sealed (see [`durable_files::check_seal`]), and the folders of autoencoders carry checksums.

use std::fmt::{self, Display};
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use activation_store::{Store, StoreSpec};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use terminal::foreign_path;

use crate::command::arguments::SettingArguments;
use crate::command::settings::Settings;
use crate::runs::checkpoint;
use crate::runs::event_file::{self, EventFile};
use crate::runs::record::{Summary, number};

const FORMAT: u32 = 1;
pub(crate) const CONFIG: &str = "config.json";
/// What makes a folder a sweep: its points are runs in folders below.
pub(crate) const SWEEP: &str = "sweep.json";
pub(crate) const METRICS: &str = "metrics.jsonl";
const CHECKPOINTS: &str = "checkpoints";
pub(crate) const SUMMARY: &str = "summary.json";
pub(crate) const SAE: &str = "sae";
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
    /// What a transcoder reconstructs: a store aligned with each of `stores`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) targets: Vec<StoreIdentity>,
    /// What was evaluated on, if other stores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) eval_stores: Vec<StoreIdentity>,
    /// What the run's other files carry, so that those of another run are told apart. Kept when the run is resumed, also
    /// by a version whose settings would give another one; older versions had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run_id: Option<String>,
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
        [stores, targets, eval_stores]: [&[Store]; 3],
    ) -> RunConfig {
        RunConfig {
            format: FORMAT,
            program: program(),
            command_line,
            arguments,
            run_id: Some(settings.run_id()),
            settings,
            stores: stores.iter().map(StoreIdentity::of).collect(),
            targets: targets.iter().map(StoreIdentity::of).collect(),
            eval_stores: eval_stores.iter().map(StoreIdentity::of).collect(),
        }
    }

    /// The configuration of the run in `folder`, if it holds one.
    pub(crate) fn read(folder: &Path) -> Result<Option<RunConfig>> {
        read_json(&folder.join(CONFIG), Some(FORMAT), "the configuration of a run")
    }

    /// How `other` differs from this run, one sentence for each value.
    pub(crate) fn differences(&self, other: &RunConfig) -> Vec<String> {
        let mut found = self.settings.differences(&other.settings);
        for (what, here, there) in
            [("stores", &self.stores, &other.stores), ("targets", &self.targets, &other.targets)]
        {
            let same = here.len() == there.len() && here.iter().zip(there).all(|(a, b)| a.same_rows(b));
            if !same {
                found.push(format!("the {what} are {} there and {} here", names(here), names(there)));
            }
        }
        found
    }
}

/// `stores/a (300 rows), stores/b (200 rows)`
fn names(stores: &[StoreIdentity]) -> String {
    if stores.is_empty() {
        return "none".to_owned();
    }
    let name = |store: &StoreIdentity| format!("{} ({} rows)", foreign_path(&store.path), store.rows);
    stores.iter().map(name).collect::<Vec<_>>().join(", ")
}

impl StoreIdentity {
    fn of(store: &Store) -> StoreIdentity {
        StoreIdentity { path: store.canonical_path(), rows: store.rows(), spec: store.spec().clone() }
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

/// A line of `metrics.jsonl`.
#[derive(Serialize)]
struct OfRun<'a, R> {
    #[serde(flatten)]
    record: &'a R,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<&'a str>,
}

/// An error if a file says that it is of the run `found`, and the run is `own`. Older versions say neither.
fn check_run(found: Option<&str>, own: Option<&str>) -> std::result::Result<(), String> {
    match (found, own) {
        (Some(found), Some(own)) if found != own => Err("it is of a run with other settings".to_owned()),
        _ => Ok(()),
    }
}

/// A run's folder, locked against a second process.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    metrics: File,
    /// Lines of `metrics.jsonl` that have not been written yet.
    unwritten: String,
    /// The times, in steps, of the lines of `metrics.jsonl`, unwritten ones included, damaged ones not.
    logged: Vec<Moment>,
    damaged_lines: u64,
    /// TensorBoard's copy of the log, if there is one.
    events: Option<EventFile>,
    run_id: Option<String>,
    lock: File,
}

impl RunFolder {
    /// Checks that a new run may be put into `path`: it does not exist, or is an empty folder.
    pub(crate) fn check_free(path: &Path, config: &RunConfig) -> Result<()> {
        if !path.exists() || is_empty(path)? {
            return Ok(());
        }
        let here = foreign_path(path);
        let Some(there) = RunConfig::read(path)? else {
            bail!("{here} is not empty and not a run; choose another --out");
        };
        let differences = there.differences(config);
        if differences.is_empty() {
            bail!("{here} holds this run already; add --resume to continue it, or choose another --out");
        }
        bail!("{here} holds another run ({}); choose another --out", differences.join("; "));
    }

    /// Checks that the run in `path`, of configuration `there`, can continue as `config`.
    pub(crate) fn check_same(path: &Path, there: &RunConfig, config: &RunConfig) -> Result<()> {
        let differences = there.differences(config);
        ensure!(
            differences.is_empty(),
            "cannot resume {}: {}. Leave those flags out to continue the run, or choose another --out to \
             start a new one",
            foreign_path(path),
            differences.join("; ")
        );
        Ok(())
    }

    /// Creates the folder or opens the run in it, and writes `config`.
    pub(crate) fn open(path: &Path, config: &RunConfig) -> Result<RunFolder> {
        let lock = lock(path)?;
        // A summary is that of the configuration beside it; what was finished is not any more.
        let summary = path.join(SUMMARY);
        if summary.exists() {
            fs::remove_file(&summary).with_context(|| format!("cannot remove {}", foreign_path(&summary)))?;
        }
        for folder in [path.to_path_buf(), path.join(CHECKPOINTS)] {
            if folder.exists() {
                durable_files::tidy(&folder)?;
            }
        }
        let text = durable_files::sealed_document(config);
        durable_files::replace_file(&path.join(CONFIG), text.as_bytes())?;
        let metrics = path.join(METRICS);
        let metrics = File::options()
            .append(true)
            .create(true)
            .open(&metrics)
            .with_context(|| format!("cannot write {}", foreign_path(&metrics)))?;
        let run_id = config.run_id.clone();
        let (path, unwritten, logged) = (path.to_path_buf(), String::new(), Vec::new());
        Ok(RunFolder { path, metrics, unwritten, logged, damaged_lines: 0, events: None, run_id, lock })
    }

    /// Whether the folder is still the one that this process locked.
    pub(crate) fn is_there(&self) -> bool {
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let there = fs::metadata(self.path.join(LOCK)).map(identity);
        matches!((there, self.lock.metadata().map(identity)), (Ok(there), Ok(held)) if there == held)
    }

    /// An error unless the folder still exists: another folder of its name is no part of this run.
    fn check_there(&self) -> Result<()> {
        let folder = foreign_path(&self.path);
        ensure!(self.is_there(), "{folder} was removed or replaced while the run was under way");
        Ok(())
    }

    /// Adds a line to `metrics.jsonl`.
    pub(crate) fn record(&mut self, record: &impl Serialize) -> Result<()> {
        self.check_there()?;
        let line = durable_files::sealed_line(&OfRun { record, run_id: self.run_id.as_deref() }) + "\n";
        self.unwritten.push_str(&line);
        self.logged.push(serde_json::from_str(&line).expect("every record has a kind and a step"));
        self.write_lines()?;
        match &mut self.events {
            Some(events) => events.add(&serde_json::from_str(&line).expect("a record is JSON")),
            None => Ok(()),
        }
    }

    /// Keeps an event file for TensorBoard beside the log from now on, with an event for every line that the log has, if
    /// that is `wanted` or there is one already.
    pub(crate) fn keep_events(&mut self, wanted: bool) -> Result<()> {
        if wanted || event_file::path(&self.path).exists() {
            let lines = logged_lines(&self.path)?;
            let lines: Vec<Value> =
                lines.iter().flatten().filter_map(|line| serde_json::from_slice(&line.text).ok()).collect();
            self.events = Some(EventFile::open(&self.path, lines.iter())?);
        }
        Ok(())
    }

    /// Lines of `metrics.jsonl`.
    pub(crate) fn logged_lines(&self) -> u64 {
        self.logged.len() as u64 + self.damaged_lines
    }

    /// Writes the pending lines, all of them again if the disk took only a part. A checkpoint is only
    /// made after them; otherwise its run would continue with a gap in its log.
    fn write_lines(&mut self) -> Result<()> {
        let write = |file: &mut File, lines: &str| -> std::io::Result<()> {
            let before = file.metadata()?.len();
            let written = file.write_all(lines.as_bytes());
            if written.is_err() {
                let _ = file.set_len(before); // the first error is the one to tell
            }
            written
        };
        write(&mut self.metrics, &self.unwritten)
            .with_context(|| format!("cannot write {}", foreign_path(&self.path.join(METRICS))))?;
        self.unwritten.clear();
        Ok(())
    }

    /// Removes what `metrics.jsonl` says about anything after `step`: lines that a killed process
    /// wrote after its last checkpoint, and the evaluation of a run that is being lengthened.
    pub(crate) fn forget_after(&mut self, step: u64) -> Result<()> {
        let path = self.path.join(METRICS);
        let lines = logged_lines(&self.path)?;
        for checkpoint in checkpoints(&self.path)?.into_iter().filter(|(of, _)| *of == step) {
            let known = checkpoint::logged_lines(&checkpoint.1)?;
            if let Some(gap) = known.and_then(|(step, expected)| gap(&lines, step, expected)) {
                terminal::say!("{}: {gap}; the run goes on without them", foreign_path(&path));
            }
        }
        let mut kept = Vec::new();
        (self.logged, self.damaged_lines) = (Vec::new(), 0);
        for (at, line) in lines.into_iter().enumerate() {
            let text = match line {
                Ok(line) => {
                    let moment = line.moment().with_context(|| not_a_log(&path, at))?;
                    if !moment.is_before(step) {
                        break;
                    }
                    self.logged.push(moment);
                    line.text
                }
                // Its step is unknown; keeping the line is better than losing it.
                Err(line) => {
                    terminal::say!("{}; the line is kept as it is", damaged_line(&path, at, &line));
                    self.damaged_lines += 1;
                    line.text
                }
            };
            kept.extend_from_slice(&text);
            kept.push(b'\n');
        }
        durable_files::replace_file(&path, &kept)?;
        self.metrics = File::options()
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", foreign_path(&path)))?;
        Ok(())
    }

    /// Renames checkpoints that cannot be continued from, so that they do not count as checkpoints.
    pub(crate) fn set_aside(&self, checkpoints: &[PathBuf]) -> Result<()> {
        for checkpoint in checkpoints {
            let mut aside = checkpoint.clone().into_os_string();
            aside.push(".damaged");
            let aside = PathBuf::from(aside);
            if aside.exists() {
                durable_files::remove_folder(&aside)?;
            }
            fs::rename(checkpoint, &aside)
                .with_context(|| format!("cannot rename {}", foreign_path(checkpoint)))?;
            terminal::say!("it is kept as {}; nothing needs it any more", foreign_path(&aside));
        }
        Ok(())
    }

    /// Lets `save` write the checkpoint of `step` into the folder that it is told, with how many lines the log had by then, and then
    /// removes older ones beyond `keep`. Returns its folder.
    pub(crate) fn checkpoint(
        &mut self,
        step: u64,
        keep: usize,
        save: impl FnOnce(&Path, u64) -> Result<()>,
    ) -> Result<PathBuf> {
        self.check_there()?;
        self.write_lines()?;
        // What was logged before the checkpoint has to survive as long as the checkpoint.
        let metrics = self.path.join(METRICS);
        self.metrics.sync_data().with_context(|| format!("cannot write {}", foreign_path(&metrics)))?;
        let folder = self.path.join(CHECKPOINTS).join(format!("step-{step:08}"));
        // Where a later line could not be written, the state is that of before.
        let before = self.logged.iter().filter(|moment| moment.is_before(step)).count() as u64;
        save(&folder, before + self.damaged_lines)?;
        let mut checkpoints = checkpoints(&self.path)?;
        checkpoints.truncate(checkpoints.len().saturating_sub(keep));
        for (_, old) in checkpoints {
            durable_files::remove_folder(&old)?;
        }
        Ok(folder)
    }

    /// Lets `save` write `sae/`. Returns its path.
    pub(crate) fn save_sae(&self, save: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        self.check_there()?;
        let folder = self.path.join(SAE);
        save(&folder).with_context(|| format!("cannot write {}", foreign_path(&folder)))?;
        Ok(folder)
    }

    pub(crate) fn save_summary(&self, summary: &Summary) -> Result<()> {
        self.check_there()?;
        let text = durable_files::sealed_document(summary);
        Ok(durable_files::replace_file(&self.path.join(SUMMARY), text.as_bytes())?)
    }
}

/// The checkpoints of the run in `folder`: step and path, the oldest first.
pub(crate) fn checkpoints(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok();
    let folders = checkpoint_folders(folder)?.into_iter();
    let mut found: Vec<_> = folders.filter_map(|path| Some((step(&path)?, path))).collect();
    found.sort();
    Ok(found)
}

/// The folders of checkpoints of the run in `folder`, those that were set aside too, sorted.
pub(crate) fn checkpoint_folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let path = folder.join(CHECKPOINTS);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let error = || format!("cannot read {}", foreign_path(&path));
    let mut found = Vec::new();
    for entry in fs::read_dir(&path).with_context(error)? {
        let entry = entry.with_context(error)?;
        let is_checkpoint = entry.file_name().to_str().is_some_and(|name| name.starts_with("step-"));
        if is_checkpoint && entry.path().is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The summary of the run in `folder`, if it is finished.
pub(crate) fn summary(folder: &Path) -> Result<Option<Summary>> {
    let path = folder.join(SUMMARY);
    let summary: Option<Summary> = read_json(&path, None, "the summary of a run")?;
    let Some(summary) = summary else { return Ok(None) };
    let own = RunConfig::read(folder)?.and_then(|config| config.run_id);
    check_run(summary.run_id.as_deref(), own.as_deref())
        .map_err(|reason| anyhow!("{} is damaged: {reason}", foreign_path(&path)))?;
    Ok(Some(summary))
}

/// A sealed JSON file of a run or a sweep, if it exists: `what` it is, and which format it must have.
pub(crate) fn read_json<T: DeserializeOwned>(
    path: &Path,
    format: Option<u32>,
    what: &str,
) -> Result<Option<T>> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let shown = foreign_path(path);
    let text = match fs::read(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        text => text.with_context(|| format!("cannot read {shown}"))?,
    };
    durable_files::check_seal(&text).with_context(|| format!("{shown} is damaged"))?;
    // In another format, the rest cannot be interpreted.
    if let (Some(format), Ok(found)) = (format, serde_json::from_slice::<Format>(&text)) {
        let found = found.format;
        ensure!(found == format, "{shown} has format {found}; this program reads format {format}");
    }
    Ok(Some(serde_json::from_slice(&text).with_context(|| format!("{shown} is not {what}"))?))
}

/// What figures need from a line of `metrics.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub(crate) struct LoggedStep {
    pub(crate) step: u64,
    pub(crate) tokens: u64,
    #[serde(deserialize_with = "number")]
    pub(crate) l0: f64,
    #[serde(deserialize_with = "number")]
    pub(crate) l1: f64,
    /// NaN where it is undefined, as are the others.
    #[serde(deserialize_with = "number")]
    pub(crate) mse_centered: f64,
    #[serde(deserialize_with = "number")]
    pub(crate) explained_variance: f64,
    pub(crate) dead_features: u64,
}

/// The steps that the run in `folder` has logged, in order.
pub(crate) fn logged_steps(folder: &Path) -> Result<Vec<LoggedStep>> {
    #[derive(Deserialize)]
    struct Line {
        kind: String,
    }
    let path = folder.join(METRICS);
    let mut steps = Vec::new();
    let lines = logged_lines(folder)?;
    let expected = summary(folder)?.and_then(|summary| summary.logged_lines);
    if let Some(expected) = expected.filter(|expected| *expected != lines.len() as u64) {
        terminal::say!("{}: {} lines, where {expected} were written", foreign_path(&path), lines.len());
    }
    for (at, line) in lines.into_iter().enumerate() {
        let text = match line {
            Ok(line) => line.text,
            Err(line) => {
                terminal::say!("{}; it is left out", damaged_line(&path, at, &line));
                continue;
            }
        };
        let Line { kind } = serde_json::from_slice(&text).with_context(|| not_a_log(&path, at))?;
        if kind == "step" {
            steps.push(serde_json::from_slice(&text).with_context(|| not_a_log(&path, at))?);
        }
    }
    Ok(steps)
}

fn damaged_line(path: &Path, at: usize, line: &DamagedLine) -> String {
    format!("{}: line {} is damaged: {line}", foreign_path(path), at + 1)
}

fn not_a_log(path: &Path, at: usize) -> String {
    format!("{}: line {} is not of the log of a run", foreign_path(path), at + 1)
}

/// A line of `metrics.jsonl` that is not known to be damaged.
#[derive(Debug)]
pub(crate) struct LoggedLine {
    text: Vec<u8>,
    /// It carries a checksum.
    pub(crate) is_sealed: bool,
}

/// Of when a line is.
#[derive(Debug, Deserialize)]
pub(crate) struct Moment {
    kind: String,
    step: u64,
}

impl Moment {
    /// Whether the line was written before the checkpoint of `step`.
    fn is_before(&self, step: u64) -> bool {
        self.step < step || (self.step == step && self.kind == "step")
    }
}

impl LoggedLine {
    fn moment(&self) -> serde_json::Result<Moment> {
        serde_json::from_slice(&self.text)
    }
}

/// What is missing from a log's `lines` if it had `expected` of them at the checkpoint of `step`. The steps of damaged
/// lines are unknown, so damaged lines may be the missing ones.
pub(crate) fn gap(lines: &[Result<LoggedLine, DamagedLine>], step: u64, expected: u64) -> Option<String> {
    let is_before = |line: &LoggedLine| line.moment().is_ok_and(|moment| moment.is_before(step));
    let sound = lines.iter().flatten().filter(|line| is_before(line)).count() as u64;
    let damaged = lines.iter().filter(|line| line.is_err()).count() as u64;
    (sound > expected || sound + damaged < expected).then(|| {
        format!(
            "{sound} lines up to step {step}, where {expected} were written: some are missing or there twice"
        )
    })
}

/// A damaged line of `metrics.jsonl`.
#[derive(Debug)]
pub(crate) struct DamagedLine {
    text: Vec<u8>,
    reason: String,
}

impl Display for DamagedLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// The lines of `metrics.jsonl` of the run in `folder`. An incomplete last line, of a killed process, does not count.
pub(crate) fn logged_lines(folder: &Path) -> Result<Vec<Result<LoggedLine, DamagedLine>>> {
    let path = folder.join(METRICS);
    let text = fs::read(&path).with_context(|| format!("cannot read {}", foreign_path(&path)))?;
    // Where the configuration is what is damaged, that is told of it.
    let own = RunConfig::read(folder).ok().flatten().and_then(|config| config.run_id);
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    // After the last newline: nothing, or a torn line.
    lines.pop();
    let check = |line: &[u8]| {
        let is_sealed = durable_files::check_seal(line).map_err(|broken| broken.to_string())?;
        let value: Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        check_run(value["run_id"].as_str(), own.as_deref())?;
        Ok(is_sealed)
    };
    let logged = lines.into_iter().map(|line| match check(line) {
        Ok(is_sealed) => Ok(LoggedLine { text: line.to_vec(), is_sealed }),
        Err(reason) => Err(DamagedLine { text: line.to_vec(), reason }),
    });
    Ok(logged.collect())
}

/// Creates a folder and locks it against a second process as long as the returned file is open.
pub(crate) fn lock(path: &Path) -> Result<File> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", foreign_path(path)))?;
    let lock =
        File::create(path.join(LOCK)).with_context(|| format!("cannot write to {}", foreign_path(path)))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            bail!("another process is training in {}; wait for it or stop it", foreign_path(path))
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", foreign_path(path)))
        }
    }
}

/// Whether a folder holds only what a process leaves that was stopped before it had written anything: its lock, and
/// the beginning of a first file, under the names that this and older versions use.
pub(crate) fn is_empty(folder: &Path) -> Result<bool> {
    let error = || format!("cannot read {}", foreign_path(folder));
    let is_remains = |name: &str| {
        let first = durable_files::finished_name(name)
            .or_else(|| name.strip_prefix('.').and_then(|name| name.strip_suffix(".new")));
        name == LOCK || first.is_some_and(|first| [CONFIG, SWEEP].contains(&first))
    };
    for entry in fs::read_dir(folder).with_context(error)? {
        if !entry.with_context(error)?.file_name().to_str().is_some_and(is_remains) {
            return Ok(false);
        }
    }
    Ok(true)
}
