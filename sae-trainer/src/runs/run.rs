//! One run in progress: an engine, the run's folder, and the current step.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kernels::stats::log10_frequency;
use sae::{Config, InputScale, Sae};
use terminal::foreign_path;

use crate::command::arguments::RunArguments;
use crate::command::settings::{Revive, Settings};
use crate::engine::compute::Compute;
use crate::engine::{Engine, Evaluation, PanelStates, State, StepError, StepReport, StoredBatch, layout};
use crate::runs::batches::Batches;
use crate::runs::checkpoint;
use crate::runs::folder::{checkpoints, program};
use crate::runs::initial::Initial;
use crate::runs::input_scale::Scaler;
use crate::runs::panel_checkpoint;
use crate::runs::plan::RunPlan;
use crate::runs::record::{EvaluatedRows, EvaluationRecord, Session, StepRecord, Summary, Timing};
use crate::runs::revive;
use crate::runs::sae_config;
use crate::runs::schedule;
use crate::runs::shared_folder::SharedFolder;
use crate::runs::sliced_sae::SlicedSae;
use crate::runs::team::Team;

/// A run whose engine is ready, and whose folder is not yet touched.
pub(crate) struct ReadyRun {
    plan: RunPlan,
    engine: Box<dyn Engine>,
    scale: InputScale,
    step: u64,
    /// Checkpoints of later steps that cannot be read.
    unreadable: Vec<PathBuf>,
}

/// A run under way.
pub(crate) struct Run {
    pub(crate) plan: RunPlan,
    pub(crate) engine: Box<dyn Engine>,
    /// What rows were multiplied by before the engine got them.
    scale: InputScale,
    folder: SharedFolder,
    /// Steps that the engine has reported as done.
    pub(crate) step: u64,
    /// Steps that the engine has begun.
    pub(crate) begun: u64,
    /// Steps that were done before this process.
    first_step: u64,
    clock: Clock,
    log_every: u64,
    keep_checkpoints: usize,
    /// What the newest step reported.
    pub(crate) latest: Option<Latest>,
}

/// The newest step of a run, for the eye.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Latest {
    pub(crate) step: u64,
    pub(crate) l0: f64,
    pub(crate) mse: f64,
    pub(crate) explained_variance: f64,
    /// As of the last logged step.
    pub(crate) dead: usize,
    /// The step is one of those in `metrics.jsonl`.
    pub(crate) logged: bool,
}

/// When the steps of the log were done.
struct Clock {
    started: Instant,
    last: Instant,
    last_step: u64,
}

impl Clock {
    fn start(step: u64) -> Clock {
        let now = Instant::now();
        Clock { started: now, last: now, last_step: step }
    }

    /// The time since the start, and the speed since the last lap.
    fn lap(&mut self, step: u64, batch: u64) -> Timing {
        let now = Instant::now();
        let rows = (step - self.last_step) * batch;
        let timing = Timing {
            seconds: now.duration_since(self.started).as_secs_f64(),
            tokens_per_second: rows as f64 / now.duration_since(self.last).as_secs_f64(),
        };
        (self.last, self.last_step) = (now, step);
        timing
    }
}

impl ReadyRun {
    /// The engine with the weights that the run starts with or, if it goes on, those that were `found`. Batches taken from `batches`
    /// for the former are those of its beginning, where it is then.
    pub(crate) fn new(
        mut plan: RunPlan,
        found: Option<Found>,
        compute: &Compute,
        batches: &mut Batches,
        scaler: &mut Scaler,
    ) -> Result<ReadyRun> {
        let sae = plan.initial.take();
        let settings = plan.settings();
        let (features, divided) = (settings.step.features, settings.step.panels > 1);
        let (step, unreadable, state) = match found {
            Some(Found { state, unreadable }) => (state.step(), unreadable, Some(state)),
            None => (0, Vec::new(), None),
        };
        let engine = match state {
            Some(Continued::Whole(state)) => {
                let mut engine = compute.engine(settings, &layout::weights(&state.weights))?;
                engine.restore(*state)?;
                engine
            }
            Some(Continued::Panels(states)) => compute.engine_of_panels(settings, states)?,
            None => {
                let initial = Initial::new(settings, sae, batches, scaler)?;
                match divided {
                    true => {
                        let states = initial.panels(settings, compute.own_panels(settings)?);
                        compute.engine_of_panels(settings, states)?
                    }
                    false => compute.engine(settings, &initial.weights(settings, 0..features))?,
                }
            }
        };
        Ok(ReadyRun { plan, engine, scale: scaler.scale(), step, unreadable })
    }

    /// Takes the folder, and begins.
    pub(crate) fn start(self, flags: &RunArguments, team: &Team) -> Result<Run> {
        let ReadyRun { plan, engine, scale, step, unreadable } = self;
        let folder = SharedFolder::open(&plan.out, &plan.config, team, |folder| {
            folder.set_aside(&unreadable)?;
            if plan.resumed {
                folder.forget_after(step)?;
            }
            folder.keep_events(flags.tensorboard)
        })?;
        Ok(Run {
            plan,
            engine,
            scale,
            folder,
            step,
            begun: step,
            first_step: step,
            clock: Clock::start(step),
            log_every: flags.log_every,
            keep_checkpoints: usize::from(flags.keep_checkpoints),
            latest: None,
        })
    }
}

impl Run {
    pub(crate) fn settings(&self) -> &Settings {
        self.plan.settings()
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Sets the clock of the log to zero: training begins now.
    pub(crate) fn start_clock(&mut self) {
        self.clock = Clock::start(self.step);
    }

    /// Begins the run's next step on `batch`, and records the step that was finished in the meantime. The inner error is the
    /// engine's, after which the run cannot continue.
    pub(crate) fn submit(&mut self, batch: StoredBatch<'_>) -> Result<Result<(), StepError>> {
        let schedule = schedule::at(self.plan.settings(), self.begun);
        let report = match self.engine.submit_shared(self.begun, batch, &schedule) {
            Ok(report) => report,
            Err(error) => return Ok(Err(error)),
        };
        self.begun += 1;
        if let Some(report) = report {
            self.done(&report)?;
        }
        Ok(Ok(()))
    }

    /// Waits for the steps that have begun, and records them.
    pub(crate) fn settle(&mut self) -> Result<Result<(), StepError>> {
        loop {
            match self.engine.finish() {
                Ok(Some(report)) => self.done(&report)?,
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Whether dead features are revived after `steps` steps: before the next one, so that a run that ends there is not
    /// left with untrained features, and a run that resumes there does what it would have done.
    pub(crate) fn is_revival(&self, steps: u64) -> bool {
        match self.settings().revive {
            Revive::None => false,
            Revive::Resample { every } => steps > 0 && steps.is_multiple_of(every),
        }
    }

    /// If a revival is due, gives dead features new weights from the rows of `batch`, which is the next to be trained
    /// on. No step is under way.
    pub(crate) fn revive_if_due(&mut self, batch: StoredBatch<'_>) -> Result<Result<(), StepError>> {
        if !self.is_revival(self.begun) {
            return Ok(Ok(()));
        }
        let batch = batch.to_f32();
        let errors = match self.engine.squared_errors(batch.view()) {
            Ok(errors) => errors,
            Err(error) => return Ok(Err(error)),
        };
        let (decoder_bias, skip) = self.engine.shared_weights()?;
        let features = revive::Features {
            step: self.begun,
            steps_since_fired: self.engine.steps_since_fired()?,
            encoder_norms: self.engine.encoder_norms()?,
            decoder_bias,
            skip,
        };
        let (record, new) = features.resample(self.plan.settings(), batch.view(), errors.view());
        // First, as it may fail: the checkpoint that is then saved must not contain the revival.
        self.folder.record(&record)?;
        self.engine.replace(&new)?;
        Ok(Ok(()))
    }

    /// Notes a step that was done.
    fn done(&mut self, report: &StepReport) -> Result<()> {
        self.step = report.step;
        let logged = self.is_logged(report.step);
        let mut dead = self.latest.map_or(0, |latest| latest.dead);
        if logged {
            let settings = self.plan.settings();
            let timing = self.clock.lap(report.step, settings.step.batch as u64);
            let schedule = schedule::at(settings, report.step - 1);
            let record = StepRecord::new(settings, &schedule, report, &*self.engine, timing)?;
            self.folder.record(&record)?;
            dead = record.dead_features();
        }
        self.latest = Some(Latest {
            step: report.step,
            l0: report.sums.l0(),
            mse: report.terms.mse,
            explained_variance: report.sums.explained_variance(),
            dead,
            logged,
        });
        Ok(())
    }

    /// The first step, every `--log-every`, and the last.
    pub(crate) fn is_logged(&self, step: u64) -> bool {
        step == 1 || step.is_multiple_of(self.log_every) || step == self.settings().steps
    }

    /// Whether the last step has no checkpoint yet.
    pub(crate) fn is_unsaved(&self) -> bool {
        self.step > self.first_step || self.plan.checkpoints.is_empty()
    }

    pub(crate) fn save_checkpoint(&mut self) -> Result<PathBuf> {
        let saved = if self.settings().step.panels > 1 {
            let states = self.engine.panel_states()?;
            self.folder.checkpoint_panels(&self.config(), &states, self.keep_checkpoints)
        } else {
            let sae = self.current_sae()?;
            self.folder.checkpoint(&sae, &self.engine.state()?, self.keep_checkpoints)
        };
        saved.with_context(|| {
            let path = self.folder.path();
            match checkpoints(path).ok().and_then(|mut all| all.pop()) {
                Some((step, _)) => {
                    format!("the checkpoint of step {step} is the last one in {}", foreign_path(path))
                }
                None => format!("there is no checkpoint in {}", foreign_path(path)),
            }
        })
    }

    /// Waits for the steps that have begun, and saves an unfinished run: a checkpoint and the
    /// autoencoder. Returns their folders.
    pub(crate) fn save(&mut self) -> Result<(PathBuf, PathBuf)> {
        self.settle()??;
        let checkpoint = self.save_checkpoint()?;
        let sparsity = self.log_sparsity()?;
        Ok((checkpoint, self.save_sae(sparsity, |_| {})?))
    }

    /// If the run's folder is gone, writes a checkpoint next to where it was. Returns the checkpoint's folder.
    pub(crate) fn rescue(&self) -> Option<PathBuf> {
        // Ranks would have to agree that it is gone.
        if self.begun == 0 || self.folder.is_shared() || self.folder.is_there() {
            return None;
        }
        let mut name = self.folder.path().file_name()?.to_owned();
        name.push(format!(".rescued-step-{:08}", self.step));
        let beside = self.folder.path().with_file_name(name);
        let save = || checkpoint::save(&beside, &self.current_sae()?, &self.engine.state()?, None);
        (!beside.exists() && save().is_ok()).then_some(beside)
    }

    /// The autoencoder as it is now, for rows as the engine gets them, with the running frequencies.
    fn current_sae(&self) -> Result<Sae> {
        let log_sparsity = Some(self.log_sparsity()?);
        Ok(Sae { weights: self.engine.weights()?, config: self.config(), log_sparsity })
    }

    /// Of the running frequencies.
    fn log_sparsity(&self) -> Result<Vec<f32>> {
        let frequencies = self.engine.frequencies()?;
        Ok(frequencies.iter().map(|&s| log10_frequency(f64::from(s)) as f32).collect())
    }

    /// Writes `sae/`: the autoencoder as it is now, for rows as they are in the store. `note` adds to what it says of itself.
    fn save_sae(&mut self, log_sparsity: Vec<f32>, note: impl FnOnce(&mut Config)) -> Result<PathBuf> {
        let config = self.config();
        if self.settings().step.panels > 1 {
            let mut written = config.clone().folded();
            note(&mut written);
            let sae = SlicedSae { engine: &*self.engine, config, written, log_sparsity };
            return self.folder.save_sliced_sae(&sae);
        }
        let weights = self.engine.weights()?;
        let mut sae = Sae { weights, config, log_sparsity: Some(log_sparsity) }.folded();
        note(&mut sae.config);
        self.folder.save_sae(&sae)
    }

    fn config(&self) -> Config {
        let tokens = self.step * self.settings().step.batch as u64;
        let target = self.plan.targets.first();
        sae_config::config(self.settings(), &self.plan.stores, target, self.scale, tokens)
    }

    /// Writes what the finished run leaves: evaluation, autoencoder, summary.
    pub(crate) fn conclude(
        &mut self,
        evaluation: &Evaluation,
        rows: EvaluatedRows,
        session: Session,
    ) -> Result<Summary> {
        let norms = self.engine.decoder_norms()?;
        let norm_mean = norms.iter().sum::<f64>() / norms.len() as f64;
        let record = EvaluationRecord::new(self.step, evaluation, rows, norm_mean);
        self.folder.record(&record)?;
        let sparsity =
            evaluation.feature_densities().into_iter().map(|s| log10_frequency(s) as f32).collect();
        self.save_sae(sparsity, |config| {
            let further = &mut config.metadata.further;
            further.insert("l0".to_owned(), evaluation.sums.l0().into());
            further.insert("num_dead_features".to_owned(), evaluation.dead_features().into());
        })?;
        let summary = self.summary(session, record);
        self.folder.save_summary(&summary)?;
        Ok(summary)
    }

    /// An error of the engine with the step, the store and what is left to continue from.
    pub(crate) fn step_error(&self, error: StepError) -> anyhow::Error {
        let stores = self.plan.stores.iter().map(|store| foreign_path(store.path()).to_string());
        let stores = stores.collect::<Vec<_>>().join(", ");
        let kept = match checkpoints(self.folder.path()).ok().and_then(|mut all| all.pop()) {
            Some((_, folder)) if panel_checkpoint::is_one(&folder) => {
                format!("The last good checkpoint is {}", foreign_path(&folder))
            }
            Some((_, folder)) => format!(
                "The last good checkpoint is {}; a new run can start from it with --init-from",
                foreign_path(&folder)
            ),
            None => "There is no checkpoint yet".to_owned(),
        };
        let step = self.step + 1;
        anyhow::anyhow!("training stopped at step {step}, on rows of {stores}: {error}. {kept}")
    }

    /// The part of the run that this process did, in `elapsed`, `waiting` of it for rows of the store.
    pub(crate) fn session(&self, elapsed: Duration, waiting: Duration) -> Session {
        let steps = self.step - self.first_step;
        let rows = steps * self.settings().step.batch as u64;
        let seconds = elapsed.as_secs_f64();
        Session {
            steps,
            seconds,
            tokens_per_second: if steps == 0 { 0.0 } else { rows as f64 / seconds },
            waiting_seconds: waiting.as_secs_f64(),
        }
    }

    fn summary(&self, session: Session, evaluation: EvaluationRecord) -> Summary {
        let settings = self.settings();
        Summary {
            run: self.folder.path().to_path_buf(),
            program: program(),
            loss: settings.loss_name(),
            coefficient: settings.step.loss.coefficient,
            width: settings.step.width,
            features: settings.step.features,
            batch: settings.step.batch,
            steps: self.step,
            tokens: self.step * settings.step.batch as u64,
            logged_lines: Some(self.folder.logged_lines()),
            run_id: self.plan.config.run_id.clone(),
            session,
            evaluation,
        }
    }
}

/// What a run goes on from.
pub(crate) struct Found {
    state: Continued,
    /// Checkpoints of later steps that cannot be read.
    unreadable: Vec<PathBuf>,
}

enum Continued {
    Whole(Box<State>),
    /// The panels of this rank.
    Panels(PanelStates),
}

impl Continued {
    fn step(&self) -> u64 {
        match self {
            Continued::Whole(state) => state.step,
            Continued::Panels(states) => states.panels[0].1.step,
        }
    }
}

impl Found {
    /// The newest checkpoint of the run that every rank can read, if it has one.
    pub(crate) fn newest(plan: &RunPlan, compute: &Compute, team: &Team) -> Result<Option<Found>> {
        let mut folders: Vec<PathBuf> = plan.checkpoints.iter().map(|(_, folder)| folder.clone()).collect();
        if folders.is_empty() {
            return Ok(None);
        }
        let spec = &plan.settings().step;
        let (at, state) = if spec.panels == 1 {
            let load = |folder: &Path| Ok(Continued::Whole(Box::new(checkpoint::load(folder, spec)?)));
            checkpoint::load_newest(&folders, team, load)?
        } else {
            let own = compute.own_panels(plan.settings())?;
            let load =
                |folder: &Path| Ok(Continued::Panels(panel_checkpoint::load(folder, spec, own.clone())?));
            checkpoint::load_newest(&folders, team, load)?
        };
        folders.drain(..=at);
        Ok(Some(Found { state, unreadable: folders }))
    }
}
