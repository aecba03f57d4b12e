//! `sae-trainer sweep`: several runs at once, on one stream of batches.

mod folder;
mod grid;
mod shared;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use terminal::{Interrupt, foreign_path};

pub(crate) use folder::{PointState, SweepRecord, points};
use grid::Grid;
pub(crate) use grid::SweepArguments;
pub(crate) use shared::SharedSweep;

use crate::command::arguments::{RunArguments, SettingArguments};
use crate::command::default_store::default_store;
use crate::compare;
use crate::report::announce;
use crate::runs::folder::RunConfig;
use crate::runs::plan::{RunPlan, check_space, merge};
use crate::runs::record::Summary;
use crate::runs::team::Team;
use crate::train::{End, Ready};

/// Trains the points of a sweep, and returns the process' exit code: 0, 1 if a point diverged, or 130 after Ctrl-C.
pub(crate) fn sweep(arguments: SweepArguments) -> Result<u8> {
    let RunArguments { rank_timeout, device, ref out, .. } = arguments.run;
    let team = Team::gather(Duration::from_secs(rank_timeout), device, out.as_deref())?;
    let result = sweep_with(&team, arguments);
    team.part(result)
}

fn sweep_with(team: &Team, arguments: SweepArguments) -> Result<u8> {
    let SweepArguments { grid, run, recipe: _ } = arguments;
    let planned = || {
        let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
        activation_store::give_up_once(interrupt.shared_flag());
        Ok((interrupt, plan(grid, &run, team.count())?))
    };
    let (interrupt, (out, record, plans)) = team.agree(planned())?;
    let json = run.json;
    let ready = Ready::new(plans, run, interrupt, team, |plans, streams, compute| {
        announce::sweep(&out, plans, streams, compute)
    })?;
    let folder = SharedSweep::open(&out, record, team)?;
    let summaries = match ready.start(Some(folder))?.finish()? {
        End::Interrupted(code) => return Ok(code),
        End::Finished { summaries, .. } => summaries,
    };
    let record = || SweepRecord::read(&out)?.context("the sweep's sweep.json is gone");
    let record = team.agree(team.leads().then(record).transpose())?;
    let code = record.map_or(0, |record| report(&record, &summaries, json));
    Ok(team.asked(Some(code))?.unwrap_or(0))
}

/// Prints what the sweep found; returns the exit code, which is 1 if a point diverged.
fn report(record: &SweepRecord, summaries: &[Summary], json: bool) -> u8 {
    if json {
        terminal::report!("{}", serde_json::to_string(record).expect("a record is plain data"));
    } else if !summaries.is_empty() {
        terminal::report!("{}", compare::table(summaries).trim_end());
    }
    let diverged = record.names(PointState::Diverged);
    if diverged.is_empty() {
        return 0;
    }
    terminal::say!(
        "error: {} of {} points diverged: {}",
        diverged.len(),
        record.points.len(),
        diverged.join(", ")
    );
    1
}

/// The sweep's folder, what its `sweep.json` is to be, and the plans of the points that are still to be trained.
fn plan(mut grid: Grid, run: &RunArguments, ranks: usize) -> Result<(PathBuf, SweepRecord, Vec<RunPlan>)> {
    let there = match &run.out {
        Some(out) if run.resume => SweepRecord::read(out)?,
        None if run.resume => bail!("--resume needs --out, the folder of the sweep to continue"),
        _ => None,
    };
    if there.is_none() {
        if let (Some(out), true, false) = (&run.out, run.resume, grid.varies()) {
            bail!(
                "there is no sweep in {}; start one with lists of values, or continue a run without `sweep`",
                foreign_path(out)
            );
        }
        if grid.common()?.data.store.is_empty() {
            grid.set_store(&default_store()?);
        }
    }
    let out = match &run.out {
        Some(out) => out.clone(),
        None => default_folder(&grid.common()?),
    };
    let mut points = Vec::new();
    if grid.varies() || there.is_none() {
        points = grid.points()?;
    }
    let mut record = match there {
        Some(record) => {
            if grid.varies() {
                record.check_same(&out, &points)?;
            }
            record
        }
        None => {
            folder::check_free(&out)?;
            SweepRecord::new(&points)
        }
    };
    let mut plans = Vec::new();
    for point in &mut record.points {
        if point.state == PointState::Diverged {
            terminal::say!("{} diverged before and is left out", foreign_path(&out.join(&point.name)));
            continue;
        }
        let folder = out.join(&point.name);
        let there = RunConfig::read(&folder)?;
        if let Some(config) = &there {
            point.check_own(&folder, config)?;
        }
        let (settings, words) = match points.iter().find(|given| given.name == point.name) {
            Some(given) => (given.arguments.clone(), given.words.clone()),
            // The run's own folder knows the rest, or if it was never made, the sweep's.
            None if there.is_some() => (grid.common()?, Vec::new()),
            None => (merge(&point.arguments, &grid.common()?), Vec::new()),
        };
        let plan = point_plan(settings, &words, &folder, run, ranks);
        let plan = plan.with_context(|| format!("the point {}", point.name))?;
        point.arguments = plan.config.arguments.clone();
        point.state = PointState::Training;
        point.summary = None;
        plans.push(plan);
    }
    ensure!(
        !plans.is_empty(),
        "every point of the sweep in {} diverged; start another one with lower learning rates",
        foreign_path(&out)
    );
    check_common(&plans)?;
    check_space(&out, plans.iter().map(|plan| plan.needed_space(run)).fold(0, u64::saturating_add))?;
    Ok((out, record, plans))
}

/// The plan of a run that is a point.
fn point_plan(
    settings: SettingArguments,
    words: &[std::ffi::OsString],
    folder: &Path,
    run: &RunArguments,
    ranks: usize,
) -> Result<RunPlan> {
    let mut line = vec!["sae-trainer".to_owned()];
    match words {
        [] => line.push("--resume".to_owned()),
        words => line.extend(words.iter().map(|word| word.to_string_lossy().into_owned())),
    }
    line.extend(["--out".to_owned(), folder.to_string_lossy().into_owned()]);
    let run = RunArguments { out: Some(folder.to_path_buf()), ..run.clone() };
    RunPlan::new(&settings, &run, line.join(" "), ranks)
}

/// An error unless all points train on the same batches for the same time. The command line ensures that; a folder may
/// have been put together by hand.
fn check_common(plans: &[RunPlan]) -> Result<()> {
    let first = plans[0].settings();
    for plan in plans {
        let settings = plan.settings();
        ensure!(
            settings.rows == first.rows && plan.evaluated_on() == plans[0].evaluated_on(),
            "the points in {} and {} read different rows, but those of a sweep train and are evaluated on the same; \
             continue them one by one with sae-trainer --resume --out",
            foreign_path(&plan.out),
            foreign_path(&plans[0].out)
        );
        let values = [
            ("batch", settings.step.batch as u64, first.step.batch as u64),
            ("seed", settings.seed, first.seed),
            ("steps", settings.steps, first.steps),
            ("eval_rows", settings.eval_rows, first.eval_rows),
            ("drop_bos", u64::from(settings.drop_bos), u64::from(first.drop_bos)),
            ("input_scale", settings.input_scale as u64, first.input_scale as u64),
            ("mixing_chunks", chunks(settings.mixing_chunks), chunks(first.mixing_chunks)),
        ];
        for (name, value, of_the_first) in values {
            ensure!(
                value == of_the_first,
                "{name} is {value} in {} and {of_the_first} in {}, but the points of a sweep train on the same \
                 batches; continue them one by one with sae-trainer --resume --out",
                foreign_path(&plan.out),
                foreign_path(&plans[0].out)
            );
        }
    }
    Ok(())
}

/// 0 leaves it to the store.
fn chunks(mixing: Option<usize>) -> u64 {
    mixing.map_or(0, |chunks| chunks as u64)
}

/// `runs/gpt2-sweep`
fn default_folder(arguments: &SettingArguments) -> PathBuf {
    let store = arguments.data.store.first().expect("a sweep that starts has a store");
    let path = std::fs::canonicalize(store).unwrap_or_else(|_| store.clone());
    let store = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Path::new("runs").join(format!("{store}-sweep"))
}
