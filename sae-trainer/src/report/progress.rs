//! What a person sees while runs are in progress: a bar on a terminal, an occasional line elsewhere. All of it goes to
//! standard error; standard output is for the summary.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use human_units::{format_count, format_duration};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use terminal::Interrupt;

use crate::report::table::{grouped, number, share};
use crate::runs::run::{Latest, Run};

/// The least time between two lines without a terminal, however often steps are logged…
const SHORTEST: Duration = Duration::from_secs(1);
/// … and not more, however seldom.
const LONGEST: Duration = Duration::from_secs(30);

/// The progress of one process' part of a run, or of the runs of a sweep.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    steps: u64,
    batch: u64,
    started: Instant,
    first_step: u64,
    /// The last step that was shown.
    step: u64,
    last_step: Instant,
    /// Seconds a step, smoothed over about the last 20: early steps are slower than later ones.
    step_seconds: f64,
    last_line: Option<Instant>,
}

impl Progress {
    /// The progress of runs of `steps` steps that are at `step`.
    pub(crate) fn new(step: u64, steps: u64, batch: u64) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(steps), target());
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
            step,
            last_step: now,
            step_seconds: 0.0,
            last_line: None,
        }
    }

    /// Shows how far all of `runs` are, if that is further than before.
    pub(crate) fn update(&mut self, runs: &[Run]) {
        let Some(step) = runs.iter().map(|run| run.step).min() else { return };
        // A run that waits for others has reported nothing yet.
        let latest: Vec<Latest> = runs.iter().filter_map(|run| run.latest).collect();
        if step <= self.step || latest.is_empty() {
            return;
        }
        self.step = step;
        let now = Instant::now();
        let seconds = now.duration_since(self.last_step).as_secs_f64();
        self.last_step = now;
        let done = step - self.first_step;
        let weight = (1.0 / done as f64).max(0.05);
        self.step_seconds += weight * (seconds - self.step_seconds);
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.set_message(self.line(&latest));
            return;
        }
        let logged = latest.iter().any(|latest| latest.step == step && latest.logged);
        let silence = self.last_line.map_or(LONGEST, |last| now.duration_since(last));
        if silence >= LONGEST || (logged && silence >= SHORTEST) || step == self.steps {
            terminal::say!("{}", self.line(&latest));
            self.last_line = Some(now);
        }
    }

    fn line(&self, latest: &[Latest]) -> String {
        let left = (self.steps - self.step) as f64 * self.step_seconds;
        let left = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
        let over =
            |value: fn(&Latest) -> f64, text: &dyn Fn(f64) -> String| range(latest.iter().map(value), text);
        format!(
            "step {}/{}  {} tokens/s  {}L0 {}  MSE {}  EV {}  dead {}  ETA {}",
            grouped(self.step),
            grouped(self.steps),
            format_count((self.batch as f64 / self.step_seconds.max(1e-9)).round()),
            if latest.len() > 1 { format!("{} runs: ", latest.len()) } else { String::new() },
            over(|latest| latest.l0, &number),
            over(|latest| latest.mse, &number),
            over(|latest| latest.explained_variance, &share),
            over(|latest| latest.dead as f64, &|count| grouped(count as u64)),
            format_duration(left)
        )
    }

    /// Prints a line beside the bar.
    pub(crate) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| terminal::say!("{line}")),
            None => terminal::say!("{line}"),
        }
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

/// The range of `values`, or the one that all have.
fn range(values: impl Iterator<Item = f64>, text: &dyn Fn(f64) -> String) -> String {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    match (sorted.first().map(|least| text(*least)), sorted.last().map(|most| text(*most))) {
        (Some(least), Some(most)) if least != most => format!("{least} to {most}"),
        (least, _) => least.unwrap_or_default(),
    }
}

/// An error once the program was asked to stop, for what leaves nothing then.
pub(crate) fn proceed(interrupt: &Interrupt) -> Result<()> {
    match interrupt.flag().load(Ordering::Relaxed) {
        true => bail!("interrupted; nothing was kept"),
        false => Ok(()),
    }
}

/// A bar over `rows` rows with which something is done; without a terminal, one line.
pub(crate) fn rows(doing: &str, rows: u64) -> ProgressBar {
    counted(doing, rows, "rows")
}

/// A bar over `features` features whose activations are put in order; without a terminal, one line.
pub(crate) fn features(features: u64) -> ProgressBar {
    counted("sorting", features, "features")
}

/// Where bars are drawn.
fn target() -> ProgressDrawTarget {
    if terminal::is_silent() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() }
}

/// A bar over `count` of what is counted; without a terminal, one line.
pub(crate) fn counted(doing: &str, count: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(count), target());
    let template = format!("{{bar:24}} {{prefix}}: {{human_pos}} of {{human_len}} {what}  ETA {{eta}}");
    bar.set_style(ProgressStyle::with_template(&template).expect("the template is valid"));
    bar.set_prefix(doing.to_owned());
    if bar.is_hidden() {
        terminal::say!("{doing}: {} {what}", grouped(count));
    }
    bar
}
