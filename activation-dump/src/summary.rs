//! The end of a dump in numbers, for people and (`--json`) for scripts.

use std::time::Duration;

use activation_store::StoreSummary;
use human_units::{format_bytes, format_count, format_duration};
use serde::Serialize;

use crate::pipeline::{End, Outcome, Plan};

/// Everything `--json` prints; the field names carry the units.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    store: String,
    provider: String,
    contexts: u64,
    rows: u64,
    documents_read: u64,
    text_exhausted: bool,
    tokens_run: u64,
    seconds: f64,
    tokens_per_second: f64,
    /// Shares of the wall time in which each stage was at work.
    text_busy: f64,
    model_busy: f64,
    store_busy: f64,
    /// Time to compress and write what was left in the window after the last row.
    finish_seconds: f64,
    raw_bytes: u64,
    activation_bytes: u64,
    stored_bytes: u64,
    bytes_per_row: f64,
    compression_ratio: f64,
    clipped_values: u64,
    mean_norm: f64,
    peak_memory_bytes: Option<u64>,
}

impl Summary {
    /// Gathers the figures of a finished dump; `finishing` is the time that closing the store took.
    pub(crate) fn new(
        outcome: &Outcome,
        finishing: Duration,
        store: &StoreSummary,
        provider: &str,
        plan: &Plan,
    ) -> Summary {
        let seconds = (outcome.elapsed + finishing).as_secs_f64().max(1e-9);
        let tokens_run = outcome.contexts_run * plan.length as u64;
        let share = |busy: Duration| busy.as_secs_f64() / seconds;
        Summary {
            store: store.path.display().to_string(),
            provider: provider.to_owned(),
            contexts: store.contexts,
            rows: store.rows,
            documents_read: outcome.documents,
            text_exhausted: outcome.end == End::TextExhausted,
            tokens_run,
            seconds,
            tokens_per_second: tokens_run as f64 / seconds,
            text_busy: share(outcome.busy.text),
            model_busy: share(outcome.busy.model),
            store_busy: share(outcome.busy.store + finishing),
            finish_seconds: finishing.as_secs_f64(),
            raw_bytes: store.raw_bytes,
            activation_bytes: store.activation_bytes,
            stored_bytes: store.stored_bytes,
            bytes_per_row: store.activation_bytes as f64 / store.rows.max(1) as f64,
            compression_ratio: store.raw_bytes as f64 / store.activation_bytes.max(1) as f64,
            clipped_values: store.clipped,
            mean_norm: store.stats.mean_norm,
            peak_memory_bytes: peak_memory(),
        }
    }

    /// The lines that end a dump on standard error.
    pub(crate) fn lines(&self) -> Vec<String> {
        let percent = |share: f64| format!("{:.0}%", 100.0 * share);
        let mut lines = vec![
            format!(
                "{} rows of {} contexts in {} ({} tokens/s on {})",
                format_count(self.rows as f64),
                format_count(self.contexts as f64),
                format_duration(Duration::from_secs_f64(self.seconds)),
                format_count(self.tokens_per_second.round()),
                self.provider,
            ),
            format!(
                "{}: {:.0} bytes a row, {:.3}x smaller than raw ({} with origins, tokens and statistics)",
                format_bytes(self.activation_bytes),
                self.bytes_per_row,
                self.compression_ratio,
                format_bytes(self.stored_bytes),
            ),
            format!(
                "at work: language model {}, store {}, text {} of the time",
                percent(self.model_busy),
                percent(self.store_busy),
                percent(self.text_busy),
            ),
        ];
        if let Some(bytes) = self.peak_memory_bytes {
            lines.push(format!("peak memory {}", format_bytes(bytes)));
        }
        if self.clipped_values > 0 {
            lines.push(format!("{} values were beyond float16 and clipped", self.clipped_values));
        }
        lines
    }
}

/// The most memory this process ever had resident, where the system tells (Linux).
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
