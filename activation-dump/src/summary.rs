//! The summary at the end of a dump, for people and (with `--json`) for scripts.

use std::time::Duration;

use activation_store::StoreSummary;
use human_units::{format_bytes, format_count, format_duration};
use language_model::{PrefixModel, SelfCheck};
use serde::Serialize;

use crate::damage::Skipped;
use crate::pipeline::{Busy, End, Outcome};
use crate::plan::DumpPlan;

/// Everything `--json` prints; the field names carry the units.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    provider: String,
    /// How products with the model's weights were computed: "float32", or on matrix units "bfloat16x3".
    products: &'static str,
    /// How far the provider was from the CPU on the first batch, if that was checked.
    self_check: Option<SelfCheckFigures>,
    /// Contexts stored, by this run and by those that it resumed.
    contexts: u64,
    /// "2/4", or null for the whole text.
    part: Option<String>,
    text_exhausted: bool,
    /// Null for a dump that was complete before it began.
    text: Option<TextSummary>,
    tokens_run: u64,
    seconds: f64,
    tokens_per_second: f64,
    /// The fraction of wall time that each stage was working.
    busy: BusyShares,
    /// The stage that was at work most.
    bottleneck: Option<&'static str>,
    /// Time to compress and write what was left in the windows after the last row.
    finish_seconds: f64,
    stores: Vec<StoreFigures>,
    peak_memory_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct TextSummary {
    documents: u64,
    document_tokens: u64,
    /// Documents without tokens: all, and by kind.
    skipped_documents: u64,
    skipped: Skipped,
}

#[derive(Debug, Serialize)]
struct SelfCheckFigures {
    hook: String,
    difference: f32,
    tolerance: f32,
}

#[derive(Debug, Serialize)]
struct BusyShares {
    reading: f64,
    tokenizing: f64,
    model: f64,
    store: f64,
}

impl BusyShares {
    /// Each stage's name and share, in the order of the way of the text.
    fn named(&self) -> [(&'static str, f64); 4] {
        [
            ("reading", self.reading),
            ("tokenizing", self.tokenizing),
            ("language model", self.model),
            ("store", self.store),
        ]
    }
}

/// What a store takes on disk.
#[derive(Debug, Serialize)]
pub(crate) struct StoreFigures {
    hook: String,
    store: String,
    rows: u64,
    raw_bytes: u64,
    activation_bytes: u64,
    stored_bytes: u64,
    bytes_per_row: f64,
    compression_ratio: f64,
    clipped_values: u64,
    mean_norm: f64,
}

impl Summary {
    /// Gathers the figures of a finished dump: its stores by their hooks, `outcome` unless nothing was run, and the time
    /// that closing the stores took; `checked` is what the self-check found.
    pub(crate) fn new(
        outcome: Option<&Outcome>,
        finishing: Duration,
        stores: &[(String, StoreSummary)],
        model: &PrefixModel,
        checked: Option<&SelfCheck>,
        plan: &DumpPlan,
    ) -> Summary {
        let elapsed = outcome.map_or(Duration::ZERO, |outcome| outcome.elapsed);
        let seconds = (elapsed + finishing).as_secs_f64().max(1e-9);
        let tokens_run = outcome.map_or(0, |outcome| outcome.contexts_run) * plan.length as u64;
        let spent = outcome.map_or(Busy::default(), |outcome| outcome.busy);
        let share = |busy: Duration| busy.as_secs_f64() / seconds;
        let busy = BusyShares {
            reading: share(spent.reading),
            tokenizing: share(spent.tokenizing),
            model: share(spent.model),
            store: share(spent.store + finishing),
        };
        let busiest = busy.named().into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        Summary {
            provider: model.provider().to_owned(),
            products: model.products().name(),
            self_check: checked.map(|check| SelfCheckFigures {
                hook: check.hook.clone(),
                difference: check.difference,
                tolerance: check.tolerance,
            }),
            contexts: stores.iter().map(|(_, store)| store.contexts).min().unwrap_or(0),
            part: plan.part.as_ref().map(|(part, _)| part.to_string()),
            text_exhausted: outcome.is_some_and(|outcome| outcome.end == End::TextExhausted),
            text: outcome.map(|outcome| TextSummary {
                documents: outcome.text.documents,
                document_tokens: outcome.text.tokens,
                skipped_documents: outcome.text.skipped.documents(),
                skipped: outcome.text.skipped.clone(),
            }),
            tokens_run,
            seconds,
            tokens_per_second: tokens_run as f64 / seconds,
            bottleneck: busiest.filter(|_| tokens_run > 0).map(|(name, _)| name),
            busy,
            finish_seconds: finishing.as_secs_f64(),
            stores: stores.iter().map(|(hook, store)| StoreFigures::of(hook, store)).collect(),
            peak_memory_bytes: peak_memory(),
        }
    }

    /// The lines that end a dump on standard error.
    pub(crate) fn lines(&self) -> Vec<String> {
        let rows: u64 = self.stores.iter().map(|store| store.rows).sum();
        let mut lines = vec![format!(
            "{} rows of {} contexts in {} ({} tokens/s on {}, products in {})",
            format_count(rows as f64),
            format_count(self.contexts as f64),
            format_duration(Duration::from_secs_f64(self.seconds)),
            format_count(self.tokens_per_second.round()),
            self.provider,
            self.products,
        )];
        for store in &self.stores {
            let name = if self.stores.len() > 1 { format!("{}: ", store.hook) } else { String::new() };
            lines.extend(store.lines().into_iter().map(|line| format!("{name}{line}")));
        }
        if let Some(bottleneck) = self.bottleneck {
            let shares = self.busy.named().map(|(name, share)| format!("{name} {:.0}%", 100.0 * share));
            lines.push(format!("at work: {}; the bottleneck was the {bottleneck}", shares.join(", ")));
        }
        lines.extend(self.text.iter().flat_map(|text| text.skipped.lines()));
        if let Some(bytes) = self.peak_memory_bytes {
            lines.push(format!("peak memory {}", format_bytes(bytes)));
        }
        lines
    }
}

impl StoreFigures {
    pub(crate) fn of(hook: &str, store: &StoreSummary) -> StoreFigures {
        StoreFigures {
            hook: hook.to_owned(),
            store: store.path.display().to_string(),
            rows: store.rows,
            raw_bytes: store.raw_bytes,
            activation_bytes: store.activation_bytes,
            stored_bytes: store.stored_bytes,
            bytes_per_row: store.activation_bytes as f64 / store.rows.max(1) as f64,
            compression_ratio: store.raw_bytes as f64 / store.activation_bytes.max(1) as f64,
            clipped_values: store.clipped,
            mean_norm: store.stats.mean_norm,
        }
    }

    /// The same for a person.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{}: {:.0} bytes a row, {:.3}x smaller than raw ({} with origins, tokens and statistics)",
            format_bytes(self.activation_bytes),
            self.bytes_per_row,
            self.compression_ratio,
            format_bytes(self.stored_bytes),
        )];
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
