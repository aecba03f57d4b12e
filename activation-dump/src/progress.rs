//! Progress for a waiting person: a bar on a terminal, an occasional line elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use activation_store::WriteProgress;
use human_units::{format_bytes, format_count, format_duration};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Progress of one dump, on standard error.
pub(crate) struct Progress {
    bar: ProgressBar,
    terminal: bool,
    started: Instant,
    last_line: Instant,
    /// Contexts that an earlier run had stored: they count as done, and not for the rate.
    before: u64,
    contexts: u64,
    length: usize,
    row_bytes: usize,
}

/// The state of all stores together: as far as the least advanced, as large as all.
fn together(stores: &[WriteProgress]) -> WriteProgress {
    let sum = |of: fn(&WriteProgress) -> u64| stores.iter().map(of).sum();
    WriteProgress {
        contexts: stores.iter().map(|store| store.contexts).min().unwrap_or(0),
        rows: sum(|store| store.rows),
        rows_stored: sum(|store| store.rows_stored),
        raw_bytes: sum(|store| store.raw_bytes),
        stored_bytes: sum(|store| store.stored_bytes),
    }
}

impl Progress {
    /// Starts the clock. `contexts` of `length` tokens are planned, `before` of them done; the rows of a
    /// token, of all stores, have `row_bytes` raw bytes.
    pub(crate) fn start(contexts: u64, before: u64, length: usize, row_bytes: usize) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            Some(contexts),
            if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() },
        );
        let style = ProgressStyle::with_template("  {bar:30} {percent:>3}%  {msg}")
            .expect("the template is constant");
        bar.set_style(style);
        let now = Instant::now();
        Progress { bar, terminal, started: now, last_line: now, before, contexts, length, row_bytes }
    }

    /// Shows the state after a batch.
    pub(crate) fn update(&mut self, stores: &[WriteProgress]) {
        let now = &together(stores);
        self.bar.set_position(now.contexts);
        if self.terminal {
            self.bar.set_message(self.describe(now));
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let percent = 100.0 * now.contexts as f64 / self.contexts.max(1) as f64;
            terminal::say!("  {percent:5.1}%  {}", self.describe(now));
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn describe(&self, now: &WriteProgress) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-3);
        let new = now.contexts.saturating_sub(self.before) as f64;
        let tokens_per_second = new * self.length as f64 / seconds;
        let bytes_per_second = tokens_per_second * self.row_bytes as f64;
        let ratio = if now.stored_bytes > 0 {
            format!("{:.2}x", now.raw_bytes as f64 / now.stored_bytes as f64)
        } else {
            "-".to_owned() // nothing is compressed before the first window is full
        };
        let eta = if new > 0.0 {
            format_duration(Duration::from_secs_f64(
                self.contexts.saturating_sub(now.contexts) as f64 * seconds / new,
            ))
        } else {
            "-".to_owned()
        };
        format!(
            "{} / {} tokens  {} tokens/s  {:.0} MB/s  {} on disk, {ratio} smaller  ETA {eta}",
            format_count((now.contexts * self.length as u64) as f64),
            format_count((self.contexts * self.length as u64) as f64),
            format_count(tokens_per_second.round()),
            bytes_per_second / 1e6,
            format_bytes(now.stored_bytes),
        )
    }
}
