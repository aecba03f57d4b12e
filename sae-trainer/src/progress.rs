//! What a person sees while a run goes: a bar on a terminal, a steady line now and then elsewhere. All of
//! it goes to standard error; standard output is for the summary.

use std::time::{Duration, Instant};

use human_units::{format_count, format_duration};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::engine::StepStats;
use crate::table::{grouped, number};

/// Between two lines where there is no terminal: not less, however often steps are logged…
const SHORTEST: Duration = Duration::from_secs(1);
/// … and not more, however seldom.
const LONGEST: Duration = Duration::from_secs(30);

/// The progress of one process' part of a run.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    steps: u64,
    batch: u64,
    started: Instant,
    first_step: u64,
    last_step: Instant,
    /// Seconds a step, smoothed over about the last 20: early steps are slower than later ones.
    step_seconds: f64,
    last_line: Option<Instant>,
    /// As of the last logged step.
    dead: usize,
}

impl Progress {
    /// Of a run of `steps` steps that is at `step`.
    pub(crate) fn new(step: u64, steps: u64, batch: u64) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{bar:24} {msg}").expect("the template is valid");
        bar.set_style(style);
        bar.set_position(step);
        let now = Instant::now();
        Progress {
            bar: (!bar.is_hidden()).then_some(bar),
            steps,
            batch,
            started: now,
            first_step: step,
            last_step: now,
            step_seconds: 0.0,
            last_line: None,
            dead: 0,
        }
    }

    /// After a step; if it is one of those in `metrics.jsonl`, with the dead features counted for it.
    pub(crate) fn step(&mut self, stats: &StepStats, dead: Option<usize>) {
        let logged = dead.is_some();
        self.dead = dead.unwrap_or(self.dead);
        let now = Instant::now();
        let seconds = now.duration_since(self.last_step).as_secs_f64();
        self.last_step = now;
        let done = stats.step - self.first_step;
        let weight = (1.0 / done as f64).max(0.05);
        self.step_seconds += weight * (seconds - self.step_seconds);
        if let Some(bar) = &self.bar {
            bar.set_position(stats.step);
            bar.set_message(self.line(stats));
            return;
        }
        let silence = self.last_line.map_or(LONGEST, |last| now.duration_since(last));
        if silence >= LONGEST || (logged && silence >= SHORTEST) || stats.step == self.steps {
            eprintln!("{}", self.line(stats));
            self.last_line = Some(now);
        }
    }

    fn line(&self, stats: &StepStats) -> String {
        let left = Duration::from_secs_f64((self.steps - stats.step) as f64 * self.step_seconds);
        format!(
            "step {}/{}  {} tokens/s  L0 {}  MSE {}  EV {:.4}  dead {}  ETA {}",
            grouped(stats.step),
            grouped(self.steps),
            format_count((self.batch as f64 / self.step_seconds.max(1e-9)).round()),
            number(stats.l0),
            number(stats.mse),
            stats.explained_variance,
            grouped(self.dead as u64),
            format_duration(left)
        )
    }

    /// Since the first step.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A bar over the rows of the evaluation; where there is no terminal, one line.
pub(crate) fn evaluation(rows: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(rows), ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template("{bar:24} evaluating: {human_pos} of {human_len} rows  ETA {eta}");
    bar.set_style(style.expect("the template is valid"));
    if bar.is_hidden() {
        eprintln!("evaluating on {} rows of the store", grouped(rows));
    }
    bar
}
