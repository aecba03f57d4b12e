//! One run in progress: an engine, the run's folder, and the current step.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kernels::stats::log10_frequency;
use ndarray::{Array1, Array2, ArrayView2};
use sae::{Config, InputScale, Sae, Weights};
use terminal::foreign_path;

use crate::command::arguments::{DecoderBias, RunArguments};
use crate::command::settings::{Revive, Settings};
use crate::engine::compute::Compute;
use crate::engine::{Engine, Evaluation, PanelStates, State, StepError, StepReport, StoredBatch};
use crate::runs::batches::Batches;
use crate::runs::checkpoint;
use crate::runs::decoder_bias;
use crate::runs::encoder_bias;
use crate::runs::folder::{checkpoints, program};
use crate::runs::input_scale::Scaler;
use crate::runs::panel_checkpoint;
use crate::runs::plan::RunPlan;
use crate::runs::record::{EvaluatedRows, EvaluationRecord, Session, StepRecord, Summary, Timing};
use crate::runs::revive;
use crate::runs::sae_config;
use crate::runs::schedule;
use crate::runs::shared_folder::SharedFolder;
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
    /// What all ranks have to agree on: which run it is, and from where it goes on.
    pub(crate) fn identity(&self) -> String {
        let run = self.plan.config.run_id.as_deref().unwrap_or_default();
        let rows: u64 = self.plan.stores.iter().map(|store| store.rows()).sum();
        format!("{}, run {run}, {rows} rows, step {}", program(), self.step)
    }

    /// The engine with the weights that the run starts or continues from. Batches taken from `batches` to find them are
    /// those of its beginning, where it is.
    pub(crate) fn new(
        plan: RunPlan,
        compute: &Compute,
        batches: &mut Batches,
        scaler: &mut Scaler,
    ) -> Result<ReadyRun> {
        let settings = plan.settings();
        let mut folders: Vec<PathBuf> = plan.checkpoints.iter().map(|(_, folder)| folder.clone()).collect();
        let mut state = None;
        if !folders.is_empty() {
            let (at, newest) = load_newest(&folders, settings, compute)?;
            folders.drain(..=at);
            state = Some(newest);
        }
        let mut weights = match (&state, &plan.initial) {
            (Some(_), _) => Weights::init(settings.step.width, settings.step.features, 0),
            (None, Some(sae)) => scaler.weights(&sae.weights),
            (None, None) => initial_weights(settings, batches, scaler)?,
        };
        weights.threshold = settings.step.activation.has_thresholds().then(|| {
            let initial = Array1::from_elem(settings.step.features, settings.threshold_init as f32);
            weights.threshold.unwrap_or(initial)
        });
        weights.skip = settings.step.skip.then(|| {
            let width = settings.step.width;
            weights.skip.unwrap_or_else(|| Array2::zeros((width, width)))
        });
        let mut engine = compute.engine(settings, &weights)?;
        drop(weights);
        let step = state.as_ref().map_or(0, Continued::step);
        match state {
            None => {}
            Some(Continued::Whole(state)) => engine.restore(state)?,
            Some(Continued::Panels(states)) => engine.restore_panels(states)?,
        }
        Ok(ReadyRun { plan, engine, scale: scaler.scale(), step, unreadable: folders })
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
        team.keep_notes(folder.path(), step)?;
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
        let mut state = self.engine.state()?;
        let record = revive::resample(&mut state, self.plan.settings(), batch.view(), errors.view());
        // First, as it may fail: the checkpoint that is then saved must not contain the revival.
        self.folder.record(&record)?;
        if record.resampled_features > 0 {
            self.engine.restore(state)?;
        }
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
        Ok((self.save_checkpoint()?, self.folder.save_sae(&self.current_sae()?.folded())?))
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
        let frequencies = self.engine.frequencies()?;
        let sparsity = frequencies.iter().map(|&s| log10_frequency(f64::from(s)) as f32).collect();
        Ok(self.sae(self.engine.weights()?, sparsity))
    }

    fn sae(&self, weights: Weights, log_sparsity: Vec<f32>) -> Sae {
        Sae { weights, config: self.config(), log_sparsity: Some(log_sparsity) }
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
        let weights = self.engine.weights()?;
        let record = EvaluationRecord::new(self.step, evaluation, rows, weights.decoder_norm_mean());
        let sparsity =
            evaluation.feature_densities().into_iter().map(|s| log10_frequency(s) as f32).collect();
        let mut sae = self.sae(weights, sparsity).folded();
        let further = &mut sae.config.metadata.further;
        further.insert("l0".to_owned(), evaluation.sums.l0().into());
        further.insert("num_dead_features".to_owned(), evaluation.dead_features().into());
        self.folder.record(&record)?;
        self.folder.save_sae(&sae)?;
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
enum Continued {
    Whole(State),
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

/// The newest checkpoint of `folders` that can be read, with its place among them.
fn load_newest(folders: &[PathBuf], settings: &Settings, compute: &Compute) -> Result<(usize, Continued)> {
    let spec = &settings.step;
    if spec.panels == 1 {
        let (at, state) = checkpoint::load_newest(folders, |folder| checkpoint::load(folder, spec))?;
        return Ok((at, Continued::Whole(state)));
    }
    let own = compute.own_panels(settings)?;
    let load = |folder: &Path| panel_checkpoint::load(folder, spec, own.clone());
    if own.len() < spec.panels {
        // All ranks would have to take an older one.
        let (at, newest) = (folders.len() - 1, &folders[folders.len() - 1]);
        let states = load(newest).with_context(|| {
            let newest = foreign_path(newest);
            format!(
                "cannot continue from the checkpoint {newest}; rename it to continue from the one before it"
            )
        })?;
        return Ok((at, Continued::Panels(states)));
    }
    let (at, states) = checkpoint::load_newest(folders, load)?;
    Ok((at, Continued::Panels(states)))
}

/// Random weights as `--encoder-init` and `--decoder-init-norm` say, the biases as `--b-dec-init` and `--b-enc-init` say.
fn initial_weights(settings: &Settings, batches: &mut Batches, scaler: &mut Scaler) -> Result<Weights> {
    let (d, f) = (settings.step.width, settings.step.features);
    let mut weights = Weights::init_with(d, f, settings.seed, &settings.init);
    let from_rows = match settings.b_dec_init {
        DecoderBias::Zeros => None,
        DecoderBias::Mean => Some(decoder_bias::mean as fn(ArrayView2<'_, f32>) -> Array1<f32>),
        DecoderBias::GeometricMedian => Some(decoder_bias::geometric_median as _),
    };
    if let Some(from_rows) = from_rows {
        let mut sample = batches.sample()?;
        scaler.scale_in_place(&mut sample);
        weights.b_dec = from_rows(sample.view());
    }
    if let Some(share) = settings.b_enc_init.share(f) {
        let mut sample = batches.input_sample()?;
        scaler.scale_in_place(&mut sample);
        if settings.step.pre_bias {
            sample -= &weights.b_dec;
        }
        let bias = encoder_bias::for_share(weights.w_enc.view(), sample.view(), share);
        weights.b_enc = bias + settings.threshold_init as f32;
    }
    Ok(weights)
}
