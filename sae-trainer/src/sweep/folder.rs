//! The folder of a sweep.
//!
//! ```text
//! SWEEP/
//!     sweep.json     the points: what varies, their progress, and the summaries of finished ones
//!     NAME/          the run folder of each point, as if it had been trained alone
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use terminal::foreign_path;

use super::grid::Point;
use crate::command::arguments::SettingArguments;
use crate::runs::folder::{CONFIG, RunConfig, SWEEP, is_empty, lock, program, read_json};
use crate::runs::record::Summary;

const FORMAT: u32 = 1;

/// `sweep.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SweepRecord {
    /// Of this file.
    format: u32,
    program: String,
    command_line: String,
    pub(crate) points: Vec<PointRecord>,
}

/// One point of the sweep.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PointRecord {
    /// Its folder in the sweep's.
    pub(crate) name: String,
    /// The values that tell it from the other points, by flag.
    pub(crate) varied: BTreeMap<String, String>,
    /// The flags of the run alone.
    pub(crate) arguments: SettingArguments,
    pub(crate) state: PointState,
    /// Why it diverged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// What `summary.json` of the run has, once it is finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) summary: Option<Summary>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PointState {
    /// Being trained, or interrupted.
    Training,
    Finished,
    /// Ended by a loss or weights that are not finite; the other points continued.
    Diverged,
}

impl PointRecord {
    /// An error if `config`, which lies in `folder`, is that of another point: files are swapped more easily than they
    /// change.
    pub(crate) fn check_own(&self, folder: &Path, config: &RunConfig) -> Result<()> {
        let values = |arguments: &SettingArguments| serde_json::to_value(arguments).unwrap_or_default();
        let (own, found) = (values(&self.arguments), values(&config.arguments));
        for flag in self.varied.keys() {
            let field = flag.replace('-', "_");
            let (own, found) = (&own[&field], &found[&field]);
            ensure!(
                own == found,
                "{} is damaged: it is the configuration of another point, with {flag} {found}, not {own}",
                foreign_path(&folder.join(CONFIG))
            );
        }
        Ok(())
    }
}

impl SweepRecord {
    pub(crate) fn new(points: &[Point]) -> SweepRecord {
        let points = points.iter().map(|point| {
            let mut arguments = point.arguments.clone();
            // The sweep may be continued from another folder.
            for store in &mut arguments.data.store {
                *store = fs::canonicalize(&store).unwrap_or_else(|_| store.clone());
            }
            PointRecord {
                name: point.name.clone(),
                varied: point.varied.iter().cloned().collect(),
                arguments,
                state: PointState::Training,
                error: None,
                summary: None,
            }
        });
        SweepRecord {
            format: FORMAT,
            program: program(),
            command_line: terminal::command_line(),
            points: points.collect(),
        }
    }

    /// The sweep in `folder`, if it holds one.
    pub(crate) fn read(folder: &Path) -> Result<Option<SweepRecord>> {
        let path = folder.join(SWEEP);
        let record: Option<SweepRecord> = read_json(&path, Some(FORMAT), "the record of a sweep")?;
        for point in record.iter().flat_map(|record| &record.points) {
            ensure!(
                is_folder_name(&point.name),
                "{} names a point {:?}, which is no name of a folder in it",
                foreign_path(&path),
                point.name
            );
        }
        Ok(record)
    }

    /// The names of points in `state`.
    pub(crate) fn names(&self, state: PointState) -> Vec<&str> {
        self.points.iter().filter(|point| point.state == state).map(|point| &*point.name).collect()
    }

    /// An error unless these are the points' names, in any order.
    pub(crate) fn check_same(&self, folder: &Path, points: &[Point]) -> Result<()> {
        let mut there: Vec<&str> = self.points.iter().map(|point| &*point.name).collect();
        let mut here: Vec<&str> = points.iter().map(|point| &*point.name).collect();
        there.sort_unstable();
        here.sort_unstable();
        ensure!(
            there == here,
            "{} holds a sweep over other points ({} there, {} here). Leave the lists out to continue it, or choose \
             another --out to start a new one",
            foreign_path(folder),
            there.join(", "),
            here.join(", ")
        );
        Ok(())
    }
}

/// Whether a point can have this `name`: a folder in the sweep's own, not hidden.
fn is_folder_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let alone = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
    alone && !name.starts_with('.') && !name.contains(char::is_control)
}

/// Checks that a new sweep may be put into `path`: it does not exist, or is an empty folder.
pub(crate) fn check_free(path: &Path) -> Result<()> {
    if !path.exists() || is_empty(path)? {
        return Ok(());
    }
    let here = foreign_path(path);
    if SweepRecord::read(path)?.is_some() {
        bail!("{here} holds a sweep already; add --resume to continue it, or choose another --out");
    }
    if RunConfig::read(path)?.is_some() {
        bail!("{here} holds a run; choose another --out for the sweep");
    }
    bail!("{here} is not empty and not a sweep; choose another --out");
}

/// A sweep's folder, locked against a second process.
#[derive(Debug)]
pub(crate) struct SweepFolder {
    path: PathBuf,
    record: SweepRecord,
    _lock: File,
}

/// The folders of runs among `folders`, those of a sweep's points in its place.
pub(crate) fn points(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut runs = Vec::new();
    for folder in folders {
        match SweepRecord::read(folder)? {
            Some(sweep) => runs.extend(sweep.points.iter().map(|point| folder.join(&point.name))),
            // As `SWEEP/*` names it beside the points.
            None if folder.is_file() && folder.ends_with(SWEEP) => {}
            None => runs.push(folder.clone()),
        }
    }
    Ok(runs)
}

impl SweepFolder {
    /// Creates the folder or opens the sweep in it, and writes `record`.
    pub(crate) fn open(path: &Path, record: SweepRecord) -> Result<SweepFolder> {
        let folder = SweepFolder { path: path.to_path_buf(), record, _lock: lock(path)? };
        folder.write()?;
        Ok(folder)
    }

    /// Records that the run in `folder` ended for a reason of its own.
    pub(crate) fn diverged(&mut self, folder: &Path, error: &anyhow::Error) -> Result<()> {
        let point = self.point(folder);
        point.state = PointState::Diverged;
        point.error = Some(format!("{error:#}"));
        point.summary = None;
        self.write()
    }

    /// Notes that these runs are finished.
    pub(crate) fn finished(&mut self, summaries: &[Summary]) -> Result<()> {
        for summary in summaries {
            let point = self.point(&summary.run);
            point.state = PointState::Finished;
            point.summary = Some(summary.clone());
        }
        self.write()
    }

    fn point(&mut self, folder: &Path) -> &mut PointRecord {
        let name = folder.file_name().unwrap_or_default();
        self.record
            .points
            .iter_mut()
            .find(|point| *point.name == *name)
            .expect("runs are points of the sweep")
    }

    fn write(&self) -> Result<()> {
        let text = durable_files::sealed_document(&self.record);
        Ok(durable_files::replace_file(&self.path.join(SWEEP), text.as_bytes())?)
    }
}
