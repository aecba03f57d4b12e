//! Progress of an import, in rows: a bar on a terminal, an occasional line elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use activation_store::WriteProgress;
use human_units::{format_bytes, format_count, format_duration};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Progress on standard error.
pub(super) struct Progress {
    bar: ProgressBar,
    terminal: bool,
    started: Instant,
    last_line: Instant,
    /// Rows that the store had before: they count as done, and not for the rate.
    before: u64,
    /// Rows of the source.
    total: u64,
    row_bytes: u64,
}

impl Progress {
    /// Starts the clock.
    pub(super) fn start(total: u64, before: u64, row_bytes: u64) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let style = ProgressStyle::with_template("  {bar:30} {percent:>3}%  {msg}");
        bar.set_style(style.expect("the template is constant"));
        let now = Instant::now();
        Progress { bar, terminal, started: now, last_line: now, before, total, row_bytes }
    }

    /// Shows that `done` rows of the source are taken in.
    pub(super) fn update(&mut self, done: u64, store: &WriteProgress) {
        self.bar.set_position(done);
        if self.terminal {
            self.bar.set_message(self.describe(done, store));
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let percent = 100.0 * done as f64 / self.total.max(1) as f64;
            terminal::say!("  {percent:5.1}%  {}", self.describe(done, store));
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn describe(&self, done: u64, store: &WriteProgress) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-3);
        let rate = done.saturating_sub(self.before) as f64 / seconds;
        let eta = match rate > 0.0 {
            true => format_duration(Duration::from_secs_f64(self.total.saturating_sub(done) as f64 / rate)),
            false => "-".to_owned(),
        };
        format!(
            "{} / {} rows  {} rows/s  {:.0} MB/s  {} on disk  ETA {eta}",
            format_count(done as f64),
            format_count(self.total as f64),
            format_count(rate.round()),
            rate * self.row_bytes as f64 / 1e6,
            format_bytes(store.stored_bytes),
        )
    }
}
