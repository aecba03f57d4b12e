//! `--dry-run`: estimates what a dump would take, from the plan and a short probe of the real model on the real text.

use std::path::Path;
use std::time::{Duration, Instant};

use activation_store::{Store, StoreError, estimated_bytes, is_bucket};
use anyhow::{Result, bail};
use human_units::{format_bytes, format_count, format_duration};
use language_model::PrefixModel;
use serde::Serialize;

use crate::plan::DumpPlan;
use crate::stores::Target;
use crate::text::Contexts;

/// Time that the probe runs the model for, after a first batch that is not counted.
const PROBE: Duration = Duration::from_secs(2);

/// The estimate of a dump; the field names carry the units.
#[derive(Debug, Serialize)]
pub(crate) struct Estimate {
    provider: String,
    contexts: u64,
    tokens: u64,
    part: Option<String>,
    /// Contexts that are run on at once.
    model_batch: usize,
    stores: Vec<StoreEstimate>,
    /// Of all stores together.
    disk_bytes: u64,
    free_bytes: Option<u64>,
    /// Shuffle windows of all stores, and what the process has resident without them.
    memory_bytes: u64,
    /// Of the model, in the probe.
    model_tokens_per_second: f64,
    /// Of the tokenizer on all threads, in the probe; absent where the text was already tokenized or too short to tell.
    tokenizer_tokens_per_second: Option<f64>,
    /// For the contexts that are not stored yet, those that are left out before them included.
    seconds: f64,
    /// The number of contexts in a text that is shorter than the plan. Absent if the probe did not reach its end.
    text_contexts: Option<u64>,
}

#[derive(Debug, Serialize)]
struct StoreEstimate {
    hook: String,
    store: String,
    rows: u64,
    width: usize,
    raw_bytes: u64,
    disk_bytes: u64,
    /// It is there, whole.
    complete: bool,
    /// Contexts that are stored already.
    contexts_done: u64,
    /// Why nothing can be written there.
    problem: Option<String>,
}

/// Probes and estimates; writes nothing. `contexts` are those of the whole text, from its beginning: what is left out or
/// belongs to other parts serves a probe as well.
pub(crate) fn estimate(
    model: &PrefixModel,
    mut contexts: Contexts,
    targets: &[Target],
    plan: &DumpPlan,
    threads: usize,
    stopping: &dyn Fn() -> bool,
) -> Result<Estimate> {
    let (mut tokens_run, mut running, mut taken, mut ended) = (0_u64, Duration::ZERO, 0_u64, false);
    while !stopping() && !ended && taken < plan.contexts && running < PROBE {
        let tokens = contexts.take(plan.batch, stopping)?;
        let count = tokens.nrows();
        ended = count < plan.batch;
        if count == 0 {
            break;
        }
        if model.fixed_contexts().is_some_and(|fixed| fixed != count) {
            break;
        }
        let ids = tokens.mapv(i64::from);
        if taken == 0 {
            model.run(ids.view())?; // what the first run prepares, later ones find
        }
        let began = Instant::now();
        model.run(ids.view())?;
        running += began.elapsed();
        tokens_run += tokens.len() as u64;
        taken += count as u64;
    }
    if tokens_run == 0 {
        bail!("the text has less than one batch of contexts of {} tokens", plan.length);
    }
    let model_rate = tokens_run as f64 / running.as_secs_f64().max(1e-9) * model.lanes().max(1) as f64;
    let (_, tokenizing) = contexts.busy();
    let tokenized = contexts.tokenized() as f64;
    let tokenizer_rate = (tokenized > 0.0).then(|| tokenized / (tokenizing.as_secs_f64() / threads as f64));

    let text_contexts = ended.then(|| plan.share.within(taken).min(plan.contexts));
    let stores: Vec<StoreEstimate> = targets.iter().map(|target| store_estimate(target, plan)).collect();
    let done = stores.iter().map(|store| store.contexts_done).min().unwrap_or(0);
    let contexts_planned = text_contexts.unwrap_or(plan.contexts);
    let to_run = (contexts_planned.saturating_sub(done) * plan.length as u64) as f64;
    let to_read = (plan.share.in_text(contexts_planned) * plan.length as u64) as f64;
    let seconds = match to_run {
        0.0 => 0.0,
        _ => (to_run / model_rate).max(tokenizer_rate.map_or(0.0, |rate| to_read / rate)),
    };
    let rows = targets.iter().map(|target| target.spec.writer_memory());
    Ok(Estimate {
        provider: model.provider().to_owned(),
        contexts: plan.contexts,
        tokens: plan.tokens(),
        part: plan.part.as_ref().map(|(part, _)| part.to_string()),
        model_batch: plan.batch,
        disk_bytes: stores.iter().map(|store| store.disk_bytes).fold(0, u64::saturating_add),
        free_bytes: targets
            .first()
            .filter(|target| !is_bucket(&target.path))
            .and_then(|target| durable_files::available_space(&target.path).ok()),
        memory_bytes: rows.fold(resident_bytes(), u64::saturating_add),
        stores,
        model_tokens_per_second: model_rate,
        tokenizer_tokens_per_second: tokenizer_rate,
        seconds,
        text_contexts,
    })
}

fn store_estimate(target: &Target, plan: &DumpPlan) -> StoreEstimate {
    let (complete, contexts_done, problem) = match Store::open_with(&target.path, None) {
        Ok(store) => (true, store.contexts(), None),
        Err(StoreError::Incomplete { contexts_done, .. }) => (false, contexts_done, None),
        Err(StoreError::NotFound(_)) => (false, 0, None),
        Err(error) => (false, 0, Some(format!("{:#}", anyhow::Error::new(error)))),
    };
    StoreEstimate {
        hook: target.hook.name.clone(),
        store: target.path.display().to_string(),
        rows: plan.tokens(),
        width: target.spec.width,
        raw_bytes: plan.tokens().saturating_mul(target.spec.row_bytes() as u64),
        disk_bytes: estimated_bytes(&target.spec),
        complete,
        contexts_done,
        problem,
    }
}

impl Estimate {
    /// The lines for people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for store in &self.stores {
            let there = match &store.problem {
                Some(problem) => format!("; but {problem}"),
                None if store.complete => "; a complete store exists".to_owned(),
                None if store.contexts_done > 0 => {
                    format!("; {} contexts are stored already", format_count(store.contexts_done as f64))
                }
                None => String::new(),
            };
            lines.push(format!(
                "{}: about {} ({} raw) in {}{there}",
                store.hook,
                format_bytes(store.disk_bytes),
                format_bytes(store.raw_bytes),
                store.store,
            ));
        }
        let fits = match self.free_bytes {
            Some(free) if free < self.disk_bytes => {
                format!("; there is NO ROOM: {} are free", format_bytes(free))
            }
            Some(free) => format!(" of {} free", format_bytes(free)),
            None => String::new(),
        };
        lines.push(format!("disk: about {}{fits}", format_bytes(self.disk_bytes)));
        lines.push(format!("memory: about {}", format_bytes(self.memory_bytes)));
        let tokenizer = self
            .tokenizer_tokens_per_second
            .map_or(String::new(), |rate| format!(", the tokenizer {}", format_count(rate.round())));
        lines.push(format!(
            "time: about {} (in a probe the model ran {} tokens/s on {}{tokenizer})",
            format_duration(Duration::try_from_secs_f64(self.seconds).unwrap_or(Duration::MAX)),
            format_count(self.model_tokens_per_second.round()),
            self.provider,
        ));
        if let Some(contexts) = self.text_contexts.filter(|&contexts| contexts < self.contexts) {
            lines.push(format!(
                "the text has only {} of the {} contexts; the figures above, except the time, are for all",
                format_count(contexts as f64),
                format_count(self.contexts as f64)
            ));
        }
        lines.push("dry run: nothing was written".to_owned());
        lines
    }
}

/// What this process has resident now, where the system tells (Linux).
fn resident_bytes() -> u64 {
    let read = |path: &Path| -> Option<u64> {
        let status = std::fs::read_to_string(path).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    };
    read(Path::new("/proc/self/status")).unwrap_or(0)
}
