//! A training run from its first line of output to its last.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use activation_store::BatchStream;
use anyhow::{Context, Result, bail, ensure};
use sae::{Sae, Weights};

use crate::announce;
use crate::arguments::{DecoderBias, RunArguments, TrainArguments};
use crate::checkpoint;
use crate::compute::Compute;
use crate::decoder_bias;
use crate::engine::{Engine, EngineError, EngineState, StepStats};
use crate::evaluation::{evaluate, stream_options};
use crate::interrupt::Interrupt;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::record::{EvaluationRecord, Session, StepRecord, Summary, Timing, log10_frequency};
use crate::run_folder::{RunFolder, checkpoints, program};
use crate::sae_config;
use crate::schedule;
use crate::settings::Settings;

/// Trains, and returns the process' exit code: 0, or 130 after Ctrl-C.
pub(crate) fn train(arguments: TrainArguments) -> Result<u8> {
    let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
    let plan = Plan::new(&arguments)?;
    Run::start(plan, arguments.run, interrupt)?.finish()
}

/// A run under way.
struct Run {
    plan: Plan,
    flags: RunArguments,
    interrupt: Interrupt,
    stream: BatchStream,
    engine: Box<dyn Engine>,
    folder: RunFolder,
    /// Steps done.
    step: u64,
    /// Steps that were done before this process.
    first_step: u64,
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

/// Why the loop over steps ended.
enum End {
    Finished,
    Interrupted(u8),
}

impl Run {
    fn start(plan: Plan, flags: RunArguments, interrupt: Interrupt) -> Result<Run> {
        let settings = plan.settings();
        let threads = threads(&flags);
        let stream_error = "cannot read the store in batches";
        let mut stream =
            BatchStream::new(plan.stores.clone(), stream_options(settings, threads)).context(stream_error)?;
        ensure!(
            stream.rows_per_epoch() >= settings.step.batch as u64,
            "the store has {} rows, fewer than a batch of {}: lower --batch, or dump more text",
            stream.rows_per_epoch(),
            settings.step.batch
        );
        let compute = Compute::choose(flags.device, settings.precision, threads)?;
        announce::settings(&plan, &stream, &compute)?;

        let state = match &plan.checkpoint {
            Some((_, folder)) => Some(checkpoint::load(folder, &settings.step)?),
            None => None,
        };
        let weights = match (&state, &plan.initial) {
            (Some(_), _) => Weights::init(settings.step.width, settings.step.features, 0),
            (None, Some(sae)) => sae.weights.clone(),
            (None, None) => initial_weights(settings, &mut stream)?,
        };
        let mut engine = compute.engine(settings.step, &weights)?;
        drop(weights);
        let step = state.as_ref().map_or(0, |state| state.step);
        if let Some(state) = state {
            engine.restore(state)?;
        }
        stream.seek(step)?;

        let mut folder = RunFolder::open(&plan.out, &plan.config)?;
        if plan.resumed {
            folder.forget_after(step)?;
            eprintln!("continuing after step {step}");
        }
        Ok(Run { plan, flags, interrupt, stream, engine, folder, step, first_step: step })
    }

    fn settings(&self) -> &Settings {
        self.plan.settings()
    }

    fn finish(mut self) -> Result<u8> {
        let mut progress = Progress::new(self.step, self.settings().steps, self.settings().step.batch as u64);
        let end = self.steps(&mut progress);
        progress.finish();
        let elapsed = progress.elapsed();
        if let End::Interrupted(code) = end? {
            return self.stop(code);
        }
        if self.step > self.first_step || self.plan.checkpoint.is_none() {
            self.save_checkpoint()?;
        }
        let session = self.session(elapsed);
        // Lets go of the blocks that were read ahead: evaluation has its own.
        self.stream.seek(0)?;
        let threads = threads(&self.flags);
        let evaluated =
            evaluate(&mut *self.engine, &self.plan.stores, self.plan.settings(), threads, &self.interrupt)?;
        let Some((sums, rows_of_the_store)) = evaluated else {
            return self.stop(self.interrupt.requested().unwrap_or(130));
        };
        let weights = self.engine.weights()?;
        let evaluation =
            EvaluationRecord::new(self.step, &sums, rows_of_the_store, weights.decoder_norm_mean());
        let sparsity = sums.feature_densities().into_iter().map(|s| log10_frequency(s) as f32).collect();
        let sae = self.sae(weights, sparsity);
        self.folder.record(&evaluation)?;
        self.folder.save_sae(&sae)?;
        let summary = self.summary(session, evaluation);
        self.folder.save_summary(&summary)?;
        if self.flags.json {
            println!("{}", serde_json::to_string(&summary)?);
        } else {
            print!("{}", announce::summary(&summary));
        }
        Ok(0)
    }

    fn steps(&mut self, progress: &mut Progress) -> Result<End> {
        let mut clock = Clock::start(self.step);
        let steps = self.settings().steps;
        let mut submitted = self.step;
        while submitted < steps {
            if let Some(code) = self.interrupt.requested() {
                self.settle(progress, &mut clock)?;
                return Ok(End::Interrupted(code));
            }
            let schedule = schedule::at(self.plan.settings(), submitted);
            let batch = self.stream.next_batch()?;
            let stats = self.engine.submit(batch, &schedule).map_err(|error| self.step_error(error))?;
            submitted += 1;
            if let Some(stats) = stats {
                self.done(&stats, progress, &mut clock)?;
            }
            let checkpoint = submitted.is_multiple_of(self.flags.checkpoint_every) && submitted < steps;
            // The log reads frequencies of the very step.
            if self.is_logged(submitted) || checkpoint {
                self.settle(progress, &mut clock)?;
            }
            if checkpoint {
                self.save_checkpoint()?;
            }
        }
        Ok(End::Finished)
    }

    /// Waits for the steps that have begun.
    fn settle(&mut self, progress: &mut Progress, clock: &mut Clock) -> Result<()> {
        while let Some(stats) = self.engine.finish().map_err(|error| self.step_error(error))? {
            self.done(&stats, progress, clock)?;
        }
        Ok(())
    }

    /// Notes a step that was done.
    fn done(&mut self, stats: &StepStats, progress: &mut Progress, clock: &mut Clock) -> Result<()> {
        self.step = stats.step;
        let mut dead = None;
        if self.is_logged(stats.step) {
            let settings = self.plan.settings();
            let timing = clock.lap(stats.step, settings.step.batch as u64);
            let schedule = schedule::at(settings, stats.step - 1);
            let record = StepRecord::new(settings, &schedule, stats, &*self.engine, timing)?;
            self.folder.record(&record)?;
            dead = Some(record.dead_features());
        }
        progress.step(stats, dead);
        Ok(())
    }

    /// The first step, every `--log-every`, and the last.
    fn is_logged(&self, step: u64) -> bool {
        step == 1 || step.is_multiple_of(self.flags.log_every) || step == self.settings().steps
    }

    /// Keeps what there is after a Ctrl-C, and says how to go on.
    fn stop(&mut self, code: u8) -> Result<u8> {
        let checkpoint = self.save_checkpoint()?;
        let sae = self.folder.save_sae(&self.current_sae()?)?;
        eprintln!(
            "stopped after step {} of {}; saved {} and {}\ncontinue with: sae-trainer --resume --out {}",
            self.step,
            self.settings().steps,
            checkpoint.display(),
            sae.display(),
            self.folder.path().display()
        );
        Ok(code)
    }

    fn save_checkpoint(&mut self) -> Result<PathBuf> {
        let sae = self.current_sae()?;
        let state: EngineState = self.engine.state()?;
        self.folder.checkpoint(&sae, &state, usize::from(self.flags.keep_checkpoints)).with_context(|| {
            let path = self.folder.path();
            match checkpoints(path).ok().and_then(|mut all| all.pop()) {
                Some((step, _)) => {
                    format!("the checkpoint of step {step} is the last one in {}", path.display())
                }
                None => format!("there is no checkpoint in {}", path.display()),
            }
        })
    }

    /// The autoencoder as it is now, with the running frequencies.
    fn current_sae(&self) -> Result<Sae> {
        let frequencies = self.engine.frequencies()?;
        let sparsity = frequencies.iter().map(|&s| log10_frequency(f64::from(s)) as f32).collect();
        Ok(self.sae(self.engine.weights()?, sparsity))
    }

    fn sae(&self, weights: Weights, log_sparsity: Vec<f32>) -> Sae {
        let tokens = self.step * self.settings().step.batch as u64;
        let config = sae_config::config(self.settings(), &self.plan.stores, tokens);
        Sae { weights, config, log_sparsity: Some(log_sparsity) }
    }

    /// An error of the engine with the step, the store and what is left to go on from.
    fn step_error(&self, error: EngineError) -> anyhow::Error {
        let stores = self.plan.stores.iter().map(|store| store.path().display().to_string());
        let stores = stores.collect::<Vec<_>>().join(", ");
        let kept = match checkpoints(self.folder.path()).ok().and_then(|mut all| all.pop()) {
            Some((_, folder)) => format!(
                "The last good checkpoint is {}; a new run can start from it with --init-from",
                folder.display()
            ),
            None => "There is no checkpoint yet".to_owned(),
        };
        let step = self.step + 1;
        anyhow::anyhow!("training stopped at step {step}, on rows of {stores}: {error}. {kept}")
    }

    fn session(&self, elapsed: Duration) -> Session {
        let steps = self.step - self.first_step;
        let rows = steps * self.settings().step.batch as u64;
        let seconds = elapsed.as_secs_f64();
        Session {
            steps,
            seconds,
            tokens_per_second: if steps == 0 { 0.0 } else { rows as f64 / seconds },
            waiting_seconds: self.stream.waited().as_secs_f64(),
        }
    }

    fn summary(&self, session: Session, evaluation: EvaluationRecord) -> Summary {
        let settings = self.settings();
        Summary {
            run: self.folder.path().to_path_buf(),
            program: program(),
            loss: settings.penalty_name().to_owned(),
            coefficient: settings.step.loss.coefficient,
            width: settings.step.width,
            features: settings.step.features,
            batch: settings.step.batch,
            steps: self.step,
            tokens: self.step * settings.step.batch as u64,
            session,
            evaluation,
        }
    }
}

/// Random weights, the decoder bias as `--b-dec-init` says.
fn initial_weights(settings: &Settings, stream: &mut BatchStream) -> Result<Weights> {
    let (d, f) = (settings.step.width, settings.step.features);
    let mut weights = Weights::init(d, f, settings.seed);
    let from_rows = match settings.b_dec_init {
        DecoderBias::Zeros => return Ok(weights),
        DecoderBias::Mean => decoder_bias::mean,
        DecoderBias::GeometricMedian => decoder_bias::geometric_median,
    };
    let rows = decoder_bias::SAMPLE_ROWS.min(usize::try_from(stream.rows_per_epoch())?);
    let batches = (rows / settings.step.batch).max(1);
    let mut sample = Vec::with_capacity(batches * settings.step.batch * d);
    for _ in 0..batches {
        sample.extend_from_slice(stream.next_batch()?);
    }
    if let Some(at) = sample.iter().position(|x| !x.is_finite()) {
        bail!("a row of the store holds {}; no decoder bias can be made of it", sample[at]);
    }
    weights.b_dec = from_rows(&sample, d);
    Ok(weights)
}

/// The number of threads: `--threads`, or one a core.
fn threads(flags: &RunArguments) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    flags.threads.map_or_else(cores, usize::from)
}
