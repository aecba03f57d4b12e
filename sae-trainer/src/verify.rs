//! `sae-trainer verify`: checks whether the files of runs, sweeps and autoencoders are as they were written.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use durable_files::{Condition, check_folder, check_seal};
use serde_json::{Value, json};
use terminal::foreign_path;

use crate::command::arguments::VerifyArguments;
use crate::runs::checkpoint;
use crate::runs::event_file;
use crate::runs::folder::{
    CONFIG, DamagedLine, LoggedLine, METRICS, RunConfig, SAE, SUMMARY, SWEEP, checkpoint_folders,
    checkpoints, gap, is_empty, logged_lines, summary,
};
use crate::sweep::SweepRecord;

/// A file and what became of it.
type Checked = (PathBuf, Condition);

/// Reports the condition of every file, and returns the process' exit code: 0, or 1 if any is damaged.
pub(crate) fn verify(arguments: &VerifyArguments) -> Result<u8> {
    let mut files = Vec::new();
    for folder in &arguments.folders {
        let found = check(folder)?;
        if found.is_empty() {
            bail!("there is no run, no sweep and no autoencoder in {}", foreign_path(folder));
        }
        files.extend(found);
    }
    let count = |wanted: &str| files.iter().filter(|(_, condition)| word(condition) == wanted).count();
    let [sound, damaged, unchecked] = ["sound", "damaged", "unchecked"].map(count);
    if arguments.json {
        let list: Vec<Value> = files.iter().map(as_json).collect();
        let value = json!({ "files": list, "sound": sound, "damaged": damaged, "unchecked": unchecked });
        terminal::report!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        for (path, condition) in &files {
            let line = format!("{:<9}  {}", word(condition), foreign_path(path));
            match condition {
                Condition::Damaged(reason) => terminal::report!("{line}: {reason}"),
                Condition::Sound | Condition::Unchecked => terminal::report!("{line}"),
            }
        }
        let of_older = if unchecked > 0 { " (written without checksums)" } else { "" };
        let files = files.len();
        terminal::report!("{files} files: {sound} sound, {damaged} damaged, {unchecked} unchecked{of_older}");
    }
    Ok(u8::from(damaged > 0))
}

fn word(condition: &Condition) -> &'static str {
    match condition {
        Condition::Sound => "sound",
        Condition::Damaged(_) => "damaged",
        Condition::Unchecked => "unchecked",
    }
}

fn as_json((path, condition): &Checked) -> Value {
    let mut value = json!({ "file": path.to_string_lossy(), "state": word(condition) });
    if let Condition::Damaged(reason) = condition {
        value["what"] = reason.as_str().into();
    }
    value
}

/// The files of whatever is in `folder`; none if it is not one of our folders.
fn check(folder: &Path) -> Result<Vec<Checked>> {
    if folder.join(SWEEP).exists() {
        return sweep(folder);
    }
    if folder.join(CONFIG).exists() {
        return run(folder);
    }
    if folder.join(sae::CONFIG_FILE).exists() || folder.join(durable_files::SUMS_FILE).exists() {
        return Ok(check_folder(folder)?);
    }
    Ok(Vec::new())
}

/// Points are found by their folders, as `sweep.json` may be what is damaged, and by that.
fn sweep(folder: &Path) -> Result<Vec<Checked>> {
    let record = SweepRecord::read(folder).ok().flatten();
    let known = |path: &Path| {
        let points = record.as_ref().map_or(&[][..], |record| &record.points);
        points.iter().find(|point| folder.join(&point.name) == path)
    };
    let mut files = vec![sealed(folder.join(SWEEP))];
    let error = || format!("cannot read {}", foreign_path(folder));
    let mut points = Vec::new();
    for entry in fs::read_dir(folder).with_context(error)? {
        let path = entry.with_context(error)?.path();
        if path.join(CONFIG).exists() || (known(&path).is_some() && !is_empty(&path)?) {
            points.push(path);
        }
    }
    points.sort();
    for point in points {
        let own = match (known(&point), RunConfig::read(&point)) {
            (Some(record), Ok(Some(config))) => record.check_own(&point, &config),
            _ => Ok(()),
        };
        let mut of_run = run(&point)?;
        if let Err(error) = own {
            // The configuration is the first of a run's files.
            of_run[0].1 = Condition::Damaged(format!("{error:#}"));
        }
        files.extend(of_run);
    }
    Ok(files)
}

fn run(folder: &Path) -> Result<Vec<Checked>> {
    let mut files = vec![sealed(folder.join(CONFIG))];
    let log = folder.join(METRICS);
    if log.exists() {
        files.push((log, metrics(folder)));
    } else if !checkpoints(folder)?.is_empty() || folder.join(SUMMARY).exists() {
        files.push((log, Condition::Damaged("it is missing, though the run has logged".into())));
    }
    let events = event_file::path(folder);
    if events.exists() {
        let condition = event_file::check(&events);
        files.push((events, condition));
    }
    for checkpoint in checkpoint_folders(folder)? {
        files.extend(check_folder(&checkpoint)?);
    }
    let (summary, sae) = (folder.join(SUMMARY), folder.join(SAE));
    if sae.exists() {
        files.extend(check_folder(&sae)?);
    } else if summary.exists() {
        files.push((sae, Condition::Damaged("it is missing, though the run is finished".into())));
    }
    if summary.exists() {
        files.push(of_own_run(summary, folder));
    }
    Ok(files)
}

/// `summary.json` of the run in `folder`.
fn of_own_run(path: PathBuf, folder: &Path) -> Checked {
    match (sealed(path), summary(folder)) {
        ((path, Condition::Sound), Err(error)) if RunConfig::read(folder).is_ok() => {
            (path, Condition::Damaged(format!("{error:#}")))
        }
        (sealed, _) => sealed,
    }
}

/// A JSON file with a checksum in it.
fn sealed(path: PathBuf) -> Checked {
    let condition = match fs::read(&path) {
        Err(error) => Condition::Damaged(error.to_string()),
        Ok(text) => match (check_seal(&text), serde_json::from_slice::<Value>(&text)) {
            (Err(broken), _) => Condition::Damaged(broken.to_string()),
            (_, Err(error)) => Condition::Damaged(error.to_string()),
            (Ok(true), _) => Condition::Sound,
            (Ok(false), _) => Condition::Unchecked,
        },
    };
    (path, condition)
}

/// Where the log has other lines than the newest checkpoint and the summary know of. (Where these are damaged, that is told
/// of them.)
fn gaps(folder: &Path, lines: &[Result<LoggedLine, DamagedLine>]) -> Vec<String> {
    let newest = checkpoints(folder).ok().and_then(|mut all| all.pop());
    let at_checkpoint = newest.and_then(|(_, path)| checkpoint::logged_lines(&path).ok().flatten());
    let at_end = summary(folder).ok().flatten().and_then(|summary| summary.logged_lines);
    // A log that has grown since is not damaged: its summary is gone then.
    let in_all = at_end.filter(|expected| *expected != lines.len() as u64);
    let gap = at_checkpoint.and_then(|(step, expected)| gap(lines, step, expected));
    gap.into_iter().chain(in_all.map(|expected| format!("{} lines of {expected}", lines.len()))).collect()
}

/// `metrics.jsonl`, whose lines have a checksum each.
fn metrics(folder: &Path) -> Condition {
    let lines = match logged_lines(folder) {
        Err(error) => return Condition::Damaged(format!("{error:#}")),
        Ok(lines) => lines,
    };
    let damaged: Vec<String> = lines
        .iter()
        .enumerate()
        .filter_map(|(at, line)| Some(format!("line {}: {}", at + 1, line.as_ref().err()?)))
        .collect();
    let gaps = gaps(folder, &lines);
    match damaged.is_empty() && gaps.is_empty() {
        false => Condition::Damaged([damaged, gaps].concat().join("; ")),
        true if lines.iter().flatten().all(|line| line.is_sealed) => Condition::Sound,
        true => Condition::Unchecked,
    }
}
