//! Training from the first line of output to the last: one run, or the runs of a sweep, which are several engines on one
//! stream of batches.
//!
//! The store is read, decoded and shuffled once for all runs, and on a GPU each batch is uploaded once. A run's results do
//! not depend on the other runs: it has its own engine, schedule, folder and checkpoints, and sees the batches that it would
//! see alone. On the CPU the engines step one after another on the same batch, each with all threads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use activation_store::Store;
use anyhow::{Context, Result, ensure};
use terminal::{Interrupt, foreign_path};

use crate::command::arguments::{InputScaleChoice, RunArguments, TrainArguments};
use crate::command::settings::Settings;
use crate::engine::compute::Compute;
use crate::engine::{Engine, StepError};
use crate::evaluate::evaluate;
use crate::report::announce;
use crate::report::progress::Progress;
use crate::runs::checkpoint;
use crate::runs::input_scale::Scaler;
use crate::runs::plan::RunPlan;
use crate::runs::record::Summary;
use crate::runs::run::{Found, ReadyRun, Run};
use crate::runs::streams::Streams;
use crate::runs::team::Team;
use crate::sweep::SharedSweep;

/// Trains one run, and returns the process' exit code: 0, or 130 after Ctrl-C.
pub(crate) fn train(arguments: TrainArguments) -> Result<u8> {
    let RunArguments { rank_timeout, device, ref out, .. } = arguments.run;
    let team = Team::gather(Duration::from_secs(rank_timeout), device, out.as_deref())?;
    let result = train_with(&team, arguments);
    team.part(result)
}

fn train_with(team: &Team, arguments: TrainArguments) -> Result<u8> {
    let json = arguments.run.json;
    let TrainArguments { settings, run, .. } = arguments;
    let planned = || {
        let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
        activation_store::give_up_once(interrupt.shared_flag());
        let plan = RunPlan::new(&settings, &run, terminal::command_line(), team.count())?;
        Ok((interrupt, plan))
    };
    let (interrupt, plan) = team.agree(planned())?;
    let ready = Ready::new(vec![plan], run, interrupt, team, |plans, streams, compute| {
        announce::settings(&plans[0], streams, compute)
    })?;
    let (summaries, lost) = match ready.start(None)?.finish()? {
        End::Interrupted(code) => return Ok(code),
        End::Finished { summaries, lost } => (summaries, lost),
    };
    if let Some(error) = lost.into_iter().next() {
        return Err(error);
    }
    for summary in &summaries {
        if json {
            terminal::report!("{}", serde_json::to_string(summary)?);
        } else {
            terminal::report!("{}", announce::summary(summary).trim_end());
        }
    }
    Ok(0)
}

/// Everything that is prepared before a folder is touched: stream, engines, weights.
pub(crate) struct Ready {
    flags: RunArguments,
    interrupt: Interrupt,
    team: Team,
    streams: Streams,
    scaler: Scaler,
    runs: Vec<ReadyRun>,
    resumed: bool,
}

impl Ready {
    /// Opens the stream that all of `plans` train on (they agree on what it depends on), says with `announce` what is
    /// about to be done, and makes the engines. All ranks of `team` do so together.
    pub(crate) fn new(
        plans: Vec<RunPlan>,
        flags: RunArguments,
        interrupt: Interrupt,
        team: &Team,
        announce: impl FnOnce(&[RunPlan], &Streams, &Compute) -> Result<()>,
    ) -> Result<Ready> {
        let identities: Vec<String> = plans.iter().map(RunPlan::identity).collect();
        team.check_same("the run", &identities.join("; "))?;
        let resumed = plans.iter().any(|plan| plan.resumed);
        let prepared = Prepared::new(&plans, &flags, team, announce);
        let Prepared { compute, mut streams, mut scaler } = team.agree(prepared)?;
        let newest = |plan: &RunPlan| Found::newest(plan, &compute, team);
        let found: Vec<Option<Found>> = plans.iter().map(newest).collect::<Result<_>>()?;
        let ready = |(plan, found)| ReadyRun::new(plan, found, &compute, &mut streams.training, &mut scaler);
        let runs = team.agree(plans.into_iter().zip(found).map(ready).collect())?;
        Ok(Ready { flags, interrupt, team: team.clone(), streams, scaler, runs, resumed })
    }

    /// Opens the runs' folders. `sweep` is the folder of the sweep whose points they are.
    pub(crate) fn start(self, sweep: Option<SharedSweep>) -> Result<Training> {
        let Ready { flags, interrupt, team, streams, scaler, runs, resumed } = self;
        let runs: Vec<Run> = runs.into_iter().map(|run| run.start(&flags, &team)).collect::<Result<_>>()?;
        let training = Training { flags, interrupt, team, streams, scaler, runs, sweep, lost: Vec::new() };
        training.team.keep_notes(training.path(), training.step())?;
        if resumed {
            terminal::say!("continuing after step {}", training.step());
        }
        Ok(training)
    }
}

/// What a rank prepares by itself. Nothing is exchanged meanwhile: where one rank cannot, the others must not wait for it.
struct Prepared {
    compute: Compute,
    streams: Streams,
    scaler: Scaler,
}

impl Prepared {
    fn new(
        plans: &[RunPlan],
        flags: &RunArguments,
        team: &Team,
        announce: impl FnOnce(&[RunPlan], &Streams, &Compute) -> Result<()>,
    ) -> Result<Prepared> {
        let settings = plans[0].settings();
        let threads = threads(flags, team);
        let compute = Compute::choose(flags.device, threads, team.exchange(), team.devices())?;
        if !plans[0].targets.is_empty() {
            compute.check_targets()?;
        }
        let enough = |rows: u64| {
            let batch = settings.step.batch;
            ensure!(
                rows >= batch as u64,
                "the store has {rows} rows to train on, fewer than a batch of {batch}: lower --batch, or dump more text"
            );
            Ok(())
        };
        // Before anything of a batch's size is made.
        enough(plans[0].stores.iter().map(Store::rows).sum())?;
        let as_stored =
            matches!(compute, Compute::Cuda { .. }) && settings.input_scale == InputScaleChoice::None;
        let mut streams = Streams::open(&plans[0], threads, as_stored)?;
        enough(streams.training.rows_per_epoch())?;
        announce(plans, &streams, &compute)?;
        let all: Vec<&Settings> = plans.iter().map(RunPlan::settings).collect();
        compute.check_memory(&all)?;

        let known = plans.iter().find_map(|plan| {
            let folders: Vec<PathBuf> = plan.checkpoints.iter().map(|(_, folder)| folder.clone()).collect();
            checkpoint::input_factor(&folders)
        });
        let scaler = Scaler::new(settings.input_scale, known, &mut streams.training)?;
        Ok(Prepared { compute, streams, scaler })
    }
}

/// Runs under way.
pub(crate) struct Training {
    flags: RunArguments,
    interrupt: Interrupt,
    team: Team,
    streams: Streams,
    scaler: Scaler,
    /// Those that have not failed.
    runs: Vec<Run>,
    sweep: Option<SharedSweep>,
    /// Why the others ended.
    lost: Vec<anyhow::Error>,
}

/// How training ended.
pub(crate) enum End {
    /// All steps were done.
    Finished {
        /// Of the runs that got there.
        summaries: Vec<Summary>,
        /// Why the others did not.
        lost: Vec<anyhow::Error>,
    },
    /// It was asked to stop and can be resumed; with the exit code to return.
    Interrupted(u8),
}

impl Training {
    /// Trains to the end.
    pub(crate) fn finish(mut self) -> Result<End> {
        let (steps, batch) = match self.runs.first() {
            Some(run) => (run.settings().steps, run.settings().step.batch as u64),
            None => (0, 0),
        };
        let mut progress = Progress::new(self.step(), steps, batch);
        self.runs.iter_mut().for_each(Run::start_clock);
        let interrupted = self.steps(steps, &mut progress);
        progress.finish();
        let elapsed = progress.elapsed();
        match interrupted {
            Err(error) => return Err(self.keep(error)),
            Ok(_) if self.runs.is_empty() => {
                return Ok(End::Finished { summaries: Vec::new(), lost: self.lost });
            }
            Ok(Some(code)) => return self.stop(code),
            Ok(None) => {}
        }
        let mut unsaved = self.runs.iter_mut().filter(|run| run.is_unsaved());
        if let Err(error) = unsaved.try_for_each(|run| run.save_checkpoint().map(drop)) {
            return Err(self.keep(error));
        }
        self.conclude(elapsed)
    }

    /// The folder of the run or of the sweep.
    fn path(&self) -> &Path {
        self.sweep.as_ref().map_or_else(|| self.runs[0].path(), SharedSweep::path)
    }

    /// The steps that all runs have done.
    fn step(&self) -> u64 {
        self.runs.iter().map(|run| run.step).min().unwrap_or(0)
    }

    /// Trains all runs up to step `last`, or returns the exit code with which to stop earlier. After a crash between the
    /// checkpoints of two runs, one is ahead of the other and waits for it.
    fn steps(&mut self, last: u64, progress: &mut Progress) -> Result<Option<u8>> {
        let mut step = self.step();
        self.streams.training.seek(step)?;
        while step < last && !self.runs.is_empty() {
            self.team.done(step);
            if let Some(code) = self.team.asked(self.interrupt.requested())? {
                self.settle(progress)?;
                return Ok(Some(code));
            }
            // An engine on a shared device can look at a batch by itself only while no step is in flight.
            if self.runs.iter().any(|run| run.is_revival(step)) {
                self.settle(progress)?;
            }
            let batch = match self.team.agree(self.streams.training.next()) {
                Ok(batch) => batch,
                // Who is to stop does not wait for a bucket.
                Err(error) => match self.team.asked(self.interrupt.requested()).unwrap_or(None) {
                    Some(code) => {
                        self.settle(progress)?;
                        return Ok(Some(code));
                    }
                    None => return Err(error),
                },
            };
            let batch = self.scaler.apply(batch);
            let mut failed = Vec::new();
            attempt(&mut self.runs, step, &mut failed, |run| run.revive_if_due(batch))?;
            attempt(&mut self.runs, step, &mut failed, |run| run.submit(batch))?;
            self.lose(failed, progress)?;
            step += 1;
            progress.update(&self.runs);
            let checkpoint = step.is_multiple_of(self.flags.checkpoint_every) && step < last;
            // The log reads the frequencies of this very step.
            if checkpoint || self.runs.iter().any(|run| run.is_logged(step)) {
                self.settle(progress)?;
            }
            if checkpoint {
                for run in self.runs.iter_mut().filter(|run| run.step == step) {
                    run.save_checkpoint()?;
                }
            }
        }
        Ok(None)
    }

    /// Waits for the steps that have begun.
    fn settle(&mut self, progress: &mut Progress) -> Result<()> {
        let mut failed = Vec::new();
        for (at, run) in self.runs.iter_mut().enumerate() {
            if let Err(error) = run.settle()? {
                failed.push((at, error));
            }
        }
        self.lose(failed, progress)?;
        progress.update(&self.runs);
        Ok(())
    }

    /// Ends the runs that failed on their own; a failure of the data or of the device ends all.
    fn lose(&mut self, failed: Vec<(usize, StepError)>, progress: &Progress) -> Result<()> {
        for (before, (at, error)) in failed.into_iter().enumerate() {
            // Those that failed before this one are gone already.
            let at = at - before;
            let own = is_the_runs_own(&error);
            let error = self.runs[at].step_error(error);
            if !own {
                return Err(error);
            }
            let run = self.runs.remove(at);
            if let Some(sweep) = &mut self.sweep {
                sweep.diverged(run.path(), &error)?;
                progress.say(&format!("{}: {error:#}", foreign_path(run.path())));
            }
            self.lost.push(error);
        }
        Ok(())
    }

    /// Evaluates the runs, all on the same rows, and writes what they leave.
    fn conclude(mut self, elapsed: Duration) -> Result<End> {
        let waiting = self.streams.training.waited();
        // Frees the blocks that were read ahead: evaluation has its own.
        self.streams.training.seek(0)?;
        let rows = self.streams.evaluated_rows();
        let settings = self.runs[0].settings().clone();
        let mut engines: Vec<&mut dyn Engine> =
            self.runs.iter_mut().map(|run| &mut *run.engine as _).collect();
        let (batches, scaler) = (&mut self.streams.evaluation, &mut self.scaler);
        let evaluated = evaluate(&mut engines, batches, &settings, scaler, &self.team, &self.interrupt);
        let evaluated = match evaluated {
            Ok(evaluated) => evaluated,
            Err(error) => {
                return match self.team.asked(self.interrupt.requested()).unwrap_or(None) {
                    Some(code) => self.stop(code),
                    None => Err(self.keep(error)),
                };
            }
        };
        let Some(sums) = evaluated else {
            let code = self.team.asked(self.interrupt.requested())?.unwrap_or(130);
            return self.stop(code);
        };
        let (mut summaries, mut failed) = (Vec::new(), None);
        for (run, sums) in self.runs.iter_mut().zip(&sums) {
            let session = run.session(elapsed, waiting);
            match run.conclude(sums, rows, session) {
                Ok(summary) => summaries.push(summary),
                // The others must not suffer from it.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(sweep) = &mut self.sweep {
            sweep.finished(&summaries)?;
        }
        match failed {
            Some(error) => Err(self.keep(error)),
            None => Ok(End::Finished { summaries, lost: self.lost }),
        }
    }

    /// Saves all runs after a Ctrl-C, and says how to continue.
    fn stop(mut self, code: u8) -> Result<End> {
        let (saved, failed) = self.save();
        self.say_stopped(&saved, "continue with");
        match failed {
            Some(error) => Err(error),
            None => Ok(End::Interrupted(code)),
        }
    }

    /// Saves all runs when something ends them that is not their own fault: a store that cannot be read, a disk
    /// that is full. Returns `error`, the one to report; if saving fails too, it has the same cause.
    fn keep(&mut self, error: anyhow::Error) -> anyhow::Error {
        let (saved, _) = self.save();
        self.say_stopped(&saved, "once the cause below is fixed, continue with");
        for run in &self.runs {
            if let Some(folder) = run.rescue() {
                let (step, folder) = (run.step, foreign_path(&folder));
                terminal::say!("saved the state after step {step} in {folder}; --init-from starts from it");
            }
        }
        error
    }

    /// Saves a checkpoint and the autoencoder of every run that has done a step, as far as that can be; also returns the
    /// first failure.
    fn save(&mut self) -> (Vec<(PathBuf, PathBuf)>, Option<anyhow::Error>) {
        let (mut saved, mut failed) = (Vec::new(), None);
        for run in self.runs.iter_mut().filter(|run| run.begun > 0) {
            match run.save() {
                Ok(paths) => saved.push(paths),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        (saved, failed)
    }

    fn say_stopped(&self, saved: &[(PathBuf, PathBuf)], how_to_go_on: &str) {
        let Some((checkpoint, sae)) = saved.first() else { return };
        let (step, steps) = (self.step(), self.runs[0].settings().steps);
        let (what, command, folder) = match &self.sweep {
            None => (
                format!("{} and {}", foreign_path(checkpoint), foreign_path(sae)),
                "sae-trainer",
                self.runs[0].path(),
            ),
            Some(sweep) => (
                format!("a checkpoint and sae/ of {} runs in {}", saved.len(), foreign_path(sweep.path())),
                "sae-trainer sweep",
                sweep.path(),
            ),
        };
        let folder = foreign_path(folder);
        terminal::say!(
            "stopped after step {step} of {steps}; saved {what}\n{how_to_go_on}: {command} --resume --out {folder}"
        );
    }
}

/// Does `work` with each run whose next step is `step`, those that have failed in it apart, and adds the ones that fail now.
fn attempt(
    runs: &mut [Run],
    step: u64,
    failed: &mut Vec<(usize, StepError)>,
    mut work: impl FnMut(&mut Run) -> Result<Result<(), StepError>>,
) -> Result<()> {
    for (at, run) in runs.iter_mut().enumerate().filter(|(_, run)| run.begun == step) {
        if failed.iter().all(|(earlier, _)| *earlier != at)
            && let Err(error) = work(run)?
        {
            failed.push((at, error));
        }
    }
    failed.sort_by_key(|(at, _)| *at);
    Ok(())
}

/// Whether the cause lies in what this run computes, so that others on the same batch can continue.
fn is_the_runs_own(error: &StepError) -> bool {
    matches!(error, StepError::NonFiniteLoss { .. } | StepError::Diverged { .. } | StepError::ZeroNorm { .. })
}

/// The number of threads: `--threads`, or one per core of which each rank on this machine has its share.
fn threads(flags: &RunArguments, team: &Team) -> usize {
    let cores = || team.threads(std::thread::available_parallelism().map_or(1, usize::from));
    flags.threads.map_or_else(cores, usize::from)
}
