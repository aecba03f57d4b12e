//! Text in, rows in a store out: three stages that overlap, joined by short queues.
//!
//! ```text
//! documents ─▶ tokenize, pack ─▶ [contexts] ─▶ language model ─▶ [rows] ─▶ store
//!              (text stage)                    (model stage)               (store stage)
//! ```
//!
//! A batch of contexts always begins at a multiple of the batch size, also after a restart, so that the
//! model sees the same batches and returns the same bits in an interrupted run as in a whole one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use activation_store::{StoreWriter, WriteProgress};
use anyhow::{Context, Result};
use language_model::{Activations, PrefixModel};

use crate::dataset::Dataset;
use crate::packing::Packer;
use crate::tokenizer::Tokenizer;

/// Batches that may wait between two stages: enough to ride out an uneven moment, little memory.
const QUEUE: usize = 4;
/// Text that is tokenized at once: many documents, so that all threads have some.
const TEXT_BYTES: usize = 1 << 20;

/// How much of what is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// T, tokens of a context.
    pub(crate) length: usize,
    /// Contexts in all.
    pub(crate) contexts: u64,
    /// Contexts the model runs on at once.
    pub(crate) batch: usize,
}

/// What happened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    /// Why it stopped.
    pub(crate) end: End,
    /// Documents read (the last may have been used in part).
    pub(crate) documents: u64,
    /// Contexts the model ran on, this time.
    pub(crate) contexts_run: u64,
    /// Time each stage was at work and not waiting for another.
    pub(crate) busy: Busy,
    /// Wall time from the first document to the last row handed to the store.
    pub(crate) elapsed: Duration,
}

impl Outcome {
    /// Of a dump that was complete before it began.
    pub(crate) fn nothing() -> Outcome {
        Outcome {
            end: End::Planned,
            documents: 0,
            contexts_run: 0,
            busy: Busy::default(),
            elapsed: Duration::ZERO,
        }
    }
}

/// Why the pipeline ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All planned contexts are in the store.
    Planned,
    /// The text ended first.
    TextExhausted,
    /// It was asked to stop.
    Interrupted,
}

/// Time at work.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Busy {
    /// Reading, tokenizing, packing.
    pub(crate) text: Duration,
    /// The language model.
    pub(crate) model: Duration,
    /// Handing rows to the store: rounding, window, and waiting for compression where that is behind.
    pub(crate) store: Duration,
}

/// Whole contexts on their way to the model.
struct Contexts {
    /// Index of the first one in the dump.
    first: u64,
    /// `[n, T]`.
    tokens: Vec<u32>,
}

/// Whole contexts with their activations, on their way to the store.
struct Rows {
    /// `[n, T]`.
    tokens: Vec<u32>,
    /// `[n·T, d]`, where ONNX Runtime wrote them.
    activations: Activations,
    /// Contexts at the front that the store has already.
    skip: usize,
}

/// What the text stage reports at its end.
struct TextEnd {
    documents: u64,
    exhausted: bool,
    busy: Duration,
}

/// Runs the three stages to their end and hands the writer back, not finished yet. `watch` is called after
/// each batch with what the store has taken in. When `stop` becomes true, the batches under way are still
/// stored.
pub(crate) fn run(
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    model: &PrefixModel,
    mut writer: StoreWriter,
    plan: &Plan,
    stop: &AtomicBool,
    mut watch: impl FnMut(&WriteProgress) + Send,
) -> Result<(StoreWriter, Outcome)> {
    let started = Instant::now();
    let done = writer.contexts_done();
    // Batches that the store has whole are not run again.
    let first = done - done % plan.batch as u64;

    std::thread::scope(|scope| {
        let (to_model, contexts) = sync_channel::<Contexts>(QUEUE);
        let (to_store, rows) = sync_channel::<Rows>(QUEUE);
        let text = scope.spawn(move || text_stage(dataset, tokenizer, plan, first, stop, to_model));
        let store = scope.spawn(move || {
            let busy = store_stage(&mut writer, plan.length, rows, &mut watch);
            (writer, busy)
        });
        let ran = model_stage(model, plan.length, done, contexts, to_store);

        let joined = (text.join(), store.join());
        let (text, (writer, store_busy)) = match joined {
            (Ok(text), Ok(store)) => (text, store),
            (Err(panic), _) | (_, Err(panic)) => std::panic::resume_unwind(panic),
        };
        // A stage that loses its neighbour ends quietly, so the first error downstream is the cause.
        let store_busy = store_busy?;
        let (contexts_run, model_busy) = ran?;
        let text = text?;
        let end = match () {
            () if stop.load(Ordering::Relaxed) => End::Interrupted,
            () if text.exhausted => End::TextExhausted,
            () => End::Planned,
        };
        let busy = Busy { text: text.busy, model: model_busy, store: store_busy };
        let elapsed = started.elapsed();
        Ok((writer, Outcome { end, documents: text.documents, contexts_run, busy, elapsed }))
    })
}

/// Reads, tokenizes and packs, and sends batches from context `first` on.
fn text_stage(
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    plan: &Plan,
    first: u64,
    stop: &AtomicBool,
    to_model: SyncSender<Contexts>,
) -> Result<TextEnd> {
    let mut packer = Packer::new(tokenizer.bos(), plan.length);
    let mut packed: Vec<u32> = Vec::new(); // whole contexts, less than a batch of them between documents
    let mut next = 0_u64; // index of the first context in `packed`
    let mut end = TextEnd { documents: 0, exhausted: false, busy: Duration::ZERO };
    let mut documents = dataset.documents();

    while next < plan.contexts {
        let started = Instant::now();
        let texts = take_texts(&mut documents)?;
        if texts.is_empty() {
            end.exhausted = true;
        }
        end.documents += texts.len() as u64;
        for ids in tokenizer.encode(&texts)? {
            packer.push(&ids, &mut packed);
        }
        end.busy += started.elapsed();

        let mut sent = 0; // tokens of `packed` that have gone
        while next < plan.contexts {
            let there = (packed.len() - sent) / plan.length;
            let wanted = plan.batch.min((plan.contexts - next) as usize);
            let count = if there >= wanted { wanted } else { there };
            // A batch is cut short only where the text ends.
            if count == 0 || (count < wanted && !end.exhausted) {
                break;
            }
            let tokens = packed[sent..sent + count * plan.length].to_vec();
            sent += tokens.len();
            let batch = Contexts { first: next, tokens };
            next += count as u64;
            if stop.load(Ordering::Relaxed) || (batch.first >= first && to_model.send(batch).is_err()) {
                return Ok(end);
            }
        }
        packed.drain(..sent);
        if end.exhausted {
            break;
        }
    }
    end.exhausted &= next < plan.contexts;
    Ok(end)
}

/// The next documents, about [`TEXT_BYTES`] of them; none at the end of the text.
fn take_texts(documents: &mut impl Iterator<Item = Result<String>>) -> Result<Vec<String>> {
    let (mut texts, mut bytes) = (Vec::new(), 0);
    while bytes < TEXT_BYTES {
        let Some(text) = documents.next().transpose()? else { break };
        bytes += text.len().max(1);
        texts.push(text);
    }
    Ok(texts)
}

/// Runs the model on each batch; returns the contexts run and the time at it.
fn model_stage(
    model: &PrefixModel,
    length: usize,
    done: u64,
    contexts: Receiver<Contexts>,
    to_store: SyncSender<Rows>,
) -> Result<(u64, Duration)> {
    let (mut run, mut busy) = (0, Duration::ZERO);
    for Contexts { first, tokens } in contexts {
        let started = Instant::now();
        let count = tokens.len() / length;
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        let activations = model.run(&ids, count, length).with_context(|| {
            format!("running the language model on contexts {first}..{}", first + count as u64)
        })?;
        run += count as u64;
        busy += started.elapsed();
        let skip = done.saturating_sub(first).min(count as u64) as usize;
        if to_store.send(Rows { tokens, activations, skip }).is_err() {
            break;
        }
    }
    Ok((run, busy))
}

/// Appends each batch to the store; returns the time at it.
fn store_stage(
    writer: &mut StoreWriter,
    length: usize,
    batches: Receiver<Rows>,
    watch: &mut impl FnMut(&WriteProgress),
) -> Result<Duration> {
    let mut busy = Duration::ZERO;
    for Rows { tokens, activations, skip } in batches {
        let started = Instant::now();
        let rows = activations.rows(0);
        let width = rows.len() / tokens.len();
        writer.append(&tokens[skip * length..], &rows[skip * length * width..])?;
        busy += started.elapsed();
        watch(&writer.progress());
    }
    Ok(busy)
}
