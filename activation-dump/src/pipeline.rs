//! Turns text into stored rows, in overlapping stages joined by short queues.
//!
//! ```text
//! reading ─▶ tokenizing ─▶ packing ─▶ [contexts] ─▶ language model ─▶ [rows] ─▶ store of hook 1
//!          (see `text.rs`)                          (one thread for each        ─▶ store of hook 2 …
//!                                                    batch in flight)
//! ```
//!
//! A batch of contexts always begins at a multiple of the batch size, also after a restart. So the model sees the same
//! batches and returns the same bits in an interrupted run as in an uninterrupted one. Stores that were interrupted at
//! different places resume together: the text is run again from the least advanced store onwards, and each store takes
//! what it lacks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use activation_store::{StoreError, StoreWriter, WriteProgress};
use anyhow::{Context, Error, Result, bail};
use language_model::{Activations, PrefixModel, Tokenizer};
use ndarray::{Array2, ArrayView2, CowArray, Ix3, s};
use workers::ScopedWorker;

use crate::plan::DumpPlan;
use crate::text::{Contexts, TextCounts};

/// Batches that may wait between two stages: enough to ride out an uneven moment, little memory.
const QUEUE: usize = 4;
/// Contexts of the first batch that are checked: they take the CPU a moment.
const CHECKED: usize = 8;

/// What happened.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Why it stopped.
    pub(crate) end: End,
    /// What was read, in an interrupted dump so far.
    pub(crate) text: TextCounts,
    /// Contexts the model ran on, this time.
    pub(crate) contexts_run: u64,
    /// How busy each stage was.
    pub(crate) busy: Busy,
    /// Wall time from the first document to the last row handed to the stores.
    pub(crate) elapsed: Duration,
}

/// Why the pipeline ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All planned contexts are in the stores.
    Planned,
    /// The text ended first.
    TextExhausted,
    /// It was asked to stop.
    Interrupted,
}

/// Time spent working, not waiting for another stage; the mean over a stage's threads.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Busy {
    /// Reading and decompressing documents.
    pub(crate) reading: Duration,
    /// Tokenizing.
    pub(crate) tokenizing: Duration,
    /// The language model.
    pub(crate) model: Duration,
    /// Handing rows to the store: rounding, window, and waiting for compression and disk where these are behind; of
    /// several stores, the busiest.
    pub(crate) store: Duration,
}

/// Whole contexts on their way to the model.
struct Batch {
    /// Place in the order of the batches that are run.
    turn: u64,
    /// Index of the first context in the dump.
    first: u64,
    /// `[n, T]`.
    tokens: Array2<u32>,
}

/// What the pipeline asks of a language model.
pub(crate) trait Model: Sync {
    /// What comes of a run.
    type Activations: Rows;
    /// The hooks' names.
    fn names(&self) -> &[String];
    /// Batches that it runs at once.
    fn lanes(&self) -> usize;
    /// Contexts of every batch, if it takes no others.
    fn fixed_contexts(&self) -> Option<usize>;
    /// Runs on `ids` `[contexts, length]`.
    fn run(&self, ids: ArrayView2<'_, i64>) -> Result<Self::Activations>;
}

/// Activations at all hooks.
pub(crate) trait Rows: Send + Sync {
    /// `[contexts, length, width]`.
    fn rows(&self, hook: usize) -> CowArray<'_, f32, Ix3>;
}

impl Model for PrefixModel {
    type Activations = Activations;

    fn names(&self) -> &[String] {
        PrefixModel::names(self)
    }

    fn lanes(&self) -> usize {
        PrefixModel::lanes(self)
    }

    fn fixed_contexts(&self) -> Option<usize> {
        PrefixModel::fixed_contexts(self)
    }

    fn run(&self, ids: ArrayView2<'_, i64>) -> Result<Activations> {
        Ok(PrefixModel::run(self, ids)?)
    }
}

impl Rows for Activations {
    fn rows(&self, hook: usize) -> CowArray<'_, f32, Ix3> {
        Activations::rows(self, hook)
    }
}

/// Whole contexts with their activations, on their way to the stores.
struct Ran<A> {
    /// Index of the first context in the dump.
    first: u64,
    /// `[n, T]`.
    tokens: Array2<u32>,
    /// `[n, T, d]` for each hook, where ONNX Runtime wrote them; of a padded batch more contexts than `n`.
    activations: A,
}

/// Inspects the ids of the first contexts, `[contexts, T]`, before they are run; an error stops everything.
pub(crate) type Check<'a> = dyn Fn(ArrayView2<'_, i64>) -> Result<()> + Sync + 'a;

/// Receives each store's progress after each of its batches.
pub(crate) type Watch<'a> = dyn FnMut(&[WriteProgress]) + Send + 'a;

/// Runs the stages to their end and hands the writers back, not finished yet; complete ones are left alone.
/// When `stop` becomes true, the batches in flight are still stored.
pub(crate) fn run<M: Model>(
    contexts: Contexts,
    tokenizer: Option<&Tokenizer>,
    model: &M,
    check: Option<&Check<'_>>,
    writers: Vec<StoreWriter>,
    plan: &DumpPlan,
    threads: usize,
    stop: &AtomicBool,
    watch: &mut Watch<'_>,
) -> Result<(Vec<StoreWriter>, Outcome)> {
    let started = Instant::now();
    let known: Vec<Known> = writers.iter().filter(|writer| !writer.is_complete()).map(Known::of).collect();
    let watched = Mutex::new((writers.iter().map(StoreWriter::progress).collect::<Vec<_>>(), watch));
    let over = AtomicBool::new(false);
    let stopping = || stop.load(Ordering::Relaxed) || over.load(Ordering::Relaxed);

    std::thread::scope(|scope| {
        let (to_model, batches) = sync_channel::<Batch>(QUEUE);
        let stopping = &stopping;
        let text = workers::spawn_scoped(scope, "packing of text", move || {
            text_stage(contexts, plan, known, stopping, to_model)
        })
        .context("starting a thread")?;

        let mut to_stores = Vec::new();
        let mut stores: Vec<Result<ScopedWorker<'_, StoreEnd>, StoreWriter>> = Vec::new();
        for (hook, writer) in writers.into_iter().enumerate() {
            if writer.is_complete() {
                stores.push(Err(writer));
                continue;
            }
            let (send, rows) = sync_channel(QUEUE);
            to_stores.push(send);
            let watched = &watched;
            let name = &model.names()[hook];
            let place = move |tokens: &[u32], context: u64| {
                format!("{name}, {}", place_in_text(tokenizer, plan, tokens, context))
            };
            let store = workers::spawn_scoped(scope, "storing of rows", move || {
                let mut seen = |progress| {
                    let (all, watch) = &mut *lock(watched);
                    all[hook] = progress;
                    watch(all);
                };
                store_stage(writer, hook, &rows, &place, &mut seen)
            });
            stores.push(Ok(store
                .context("starting a thread")
                .inspect_err(|_| over.store(true, Ordering::Relaxed))?));
        }

        let ran = model_stage(model, check, batches, to_stores);
        // Whatever ended it: nobody waits for more text.
        over.store(true, Ordering::Relaxed);

        // A stage that loses its neighbour ends quietly, so the first error downstream is the cause.
        let mut failures = Vec::new();
        let (writers, store) = join_stores(stores, &mut failures);
        let ran = ran.map_err(|error| failures.push(error)).ok();
        let text = text.join().map_err(Error::new).flatten().map_err(|error| failures.push(error)).ok();
        if !failures.is_empty() {
            return Err(failures.swap_remove(0));
        }
        let (contexts_run, model) = ran.context("the model stage ended without a result")?;
        let text = text.context("the text stage ended without a result")?;
        let end = match () {
            () if stop.load(Ordering::Relaxed) => End::Interrupted,
            () if text.exhausted => End::TextExhausted,
            () => End::Planned,
        };
        let tokenizing = text.tokenizing / threads.max(1) as u32;
        let busy = Busy { reading: text.reading, tokenizing, model, store };
        Ok((writers, Outcome { end, text: text.counts, contexts_run, busy, elapsed: started.elapsed() }))
    })
}

/// Waits for the stores: their writers, with those of the complete ones in their places, and the time of the busiest.
fn join_stores(
    stores: Vec<Result<ScopedWorker<'_, StoreEnd>, StoreWriter>>,
    failures: &mut Vec<Error>,
) -> (Vec<StoreWriter>, Duration) {
    let (mut writers, mut busy) = (Vec::new(), Duration::ZERO);
    for store in stores {
        match store.map(ScopedWorker::join) {
            Err(complete) => writers.push(complete),
            Ok(Ok(end)) => {
                failures.extend(end.failure);
                busy = busy.max(end.busy);
                writers.push(end.writer);
            }
            // Its writer is gone too; what the journal records is there when the store is opened again.
            Ok(Err(died)) => failures.push(died.into()),
        }
    }
    (writers, busy)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a resumed store holds already.
struct Known {
    /// Contexts.
    done: u64,
    /// Tokens of the last of them, `[n, T]`.
    tail: Array2<u32>,
}

impl Known {
    fn of(writer: &StoreWriter) -> Known {
        Known { done: writer.contexts_done(), tail: writer.resumed_tokens().to_owned() }
    }

    /// Refuses a batch that differs from what the store holds in its place.
    fn check(&self, first: u64, tokens: ArrayView2<'_, u32>) -> Result<()> {
        let tail_first = self.done - self.tail.nrows() as u64;
        for (index, context) in tokens.rows().into_iter().enumerate() {
            let context_number = first + index as u64;
            let Some(place) = context_number.checked_sub(tail_first) else { continue };
            if (place as usize) < self.tail.nrows() && self.tail.row(place as usize) != context {
                bail!(
                    "this is not the text that the dump was begun with: context {context_number} has other tokens in \
                     the store; give the same text, or another --out"
                );
            }
        }
        Ok(())
    }
}

/// What the text stage reports at its end.
struct TextEnd {
    counts: TextCounts,
    exhausted: bool,
    reading: Duration,
    tokenizing: Duration,
}

/// Takes batches of contexts from the text and sends those that some store lacks.
fn text_stage(
    mut contexts: Contexts,
    plan: &DumpPlan,
    known: Vec<Known>,
    stopping: &(dyn Fn() -> bool + Sync),
    to_model: SyncSender<Batch>,
) -> Result<TextEnd> {
    let done = known.iter().map(|store| store.done).min().unwrap_or(plan.contexts);
    let (mut next, mut turn, mut exhausted) = (0_u64, 0, false);
    while next < plan.contexts && !exhausted {
        let wanted = plan.batch.min((plan.contexts - next) as usize);
        let tokens = contexts.take(wanted, stopping)?;
        if stopping() {
            break; // a batch may have been cut short
        }
        let count = tokens.nrows();
        exhausted = count < wanted;
        for store in &known {
            store.check(next, tokens.view())?;
        }
        let first = next;
        next += count as u64;
        // Batches that every store has in full are not run again.
        if count > 0 && next > done {
            if to_model.send(Batch { turn, first, tokens }).is_err() {
                break;
            }
            turn += 1;
        }
    }
    if exhausted && next < done {
        bail!(
            "this is not the text that the dump was begun with: it ends after {next} contexts, and {done} are stored; \
             give the same text, or another --out"
        );
    }
    let (reading, tokenizing) = contexts.busy();
    Ok(TextEnd { counts: contexts.counts().clone(), exhausted, reading, tokenizing })
}

/// Whose turn it is to hand on rows: batches in flight end in any order, and the stores take them in that of the text.
#[derive(Default)]
struct Turns {
    next: Mutex<u64>,
    changed: Condvar,
    /// A batch will never come.
    broken: AtomicBool,
}

impl Turns {
    /// Waits for turn `turn`; false if it will never come.
    fn wait(&self, turn: u64) -> bool {
        let mut next = lock(&self.next);
        while *next != turn && !self.broken.load(Ordering::Relaxed) {
            next = self.changed.wait(next).unwrap_or_else(PoisonError::into_inner);
        }
        *next == turn
    }

    fn pass(&self) {
        *lock(&self.next) += 1;
        self.changed.notify_all();
    }

    fn give_up(&self) {
        let _next = lock(&self.next);
        self.broken.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }
}

/// Runs the model on each batch, as many at once as keep the device busy; returns the contexts run and the time at it.
fn model_stage<M: Model>(
    model: &M,
    check: Option<&Check<'_>>,
    batches: Receiver<Batch>,
    to_stores: Vec<SyncSender<Arc<Ran<M::Activations>>>>,
) -> Result<(u64, Duration)> {
    let lanes = model.lanes().max(1);
    let (batches, turns) = (Mutex::new(batches), Turns::default());
    let lane = || -> Result<(u64, Duration)> {
        let (mut run, mut busy) = (0, Duration::ZERO);
        loop {
            let received = lock(&batches).recv();
            let Ok(Batch { turn, first, tokens }) = received else { return Ok((run, busy)) };
            let started = Instant::now();
            let count = tokens.nrows();
            let mut ids = tokens.mapv(i64::from);
            // If the model takes only whole batches, the last one is padded; the results of the padding are not stored.
            let whole = model.fixed_contexts().unwrap_or(count).max(count);
            for _ in count..whole {
                ids.push_row(tokens.row(0).mapv(i64::from).view())?;
            }
            if let Some(check) = check.filter(|_| turn == 0) {
                let some = model.fixed_contexts().unwrap_or(CHECKED.min(whole));
                check(ids.slice(s![..some, ..]))?;
            }
            let ran = model.run(ids.view()).with_context(|| {
                format!("running the language model on contexts {first}..{}", first + count as u64)
            });
            let activations = ran?;
            run += count as u64;
            busy += started.elapsed();
            if !turns.wait(turn) {
                return Ok((run, busy));
            }
            let ran = Arc::new(Ran { first, tokens, activations });
            if to_stores.iter().any(|store| store.send(Arc::clone(&ran)).is_err()) {
                turns.give_up();
                return Ok((run, busy));
            }
            turns.pass();
        }
    };
    // The other lanes wait for the turn of one that failed.
    let lane = || {
        match workers::catch("language model", lane) {
            Ok(Ok(ran)) => Ok(ran),
            Ok(Err(error)) => Err(error),
            Err(died) => Err(died.into()),
        }
        .inspect_err(|_: &Error| turns.give_up())
    };
    let ends: Vec<Result<(u64, Duration)>> = std::thread::scope(|scope| {
        let started = (0..lanes).map(|_| workers::spawn_scoped(scope, "language model", lane));
        let started: Vec<_> = started.collect();
        let join = |lane: std::io::Result<ScopedWorker<'_, _>>| lane.context("starting a thread")?.join()?;
        started.into_iter().map(join).collect()
    });
    let mut total = (0, Duration::ZERO);
    for end in ends {
        let (run, busy) = end?;
        total = (total.0 + run, total.1 + busy / lanes as u32);
    }
    Ok(total)
}

/// Where in the text a context is: what a person would look for. All of it is shown, since one bad token spoils what comes
/// before it too: attention gives a later token the weight 0, and 0 times NaN is NaN.
fn place_in_text(tokenizer: Option<&Tokenizer>, plan: &DumpPlan, tokens: &[u32], context: u64) -> String {
    let snippet = match tokenizer {
        Some(tokenizer) => format!("in the text {:?}", tokenizer.snippet(tokens)),
        None => format!("at the tokens {tokens:?}"),
    };
    match plan.share.in_text(context) {
        same if same == context => snippet,
        other => format!("{snippet} (context {other} of the whole text)"),
    }
}

/// What became of a store.
struct StoreEnd {
    writer: StoreWriter,
    busy: Duration,
    failure: Option<Error>,
}

/// Appends each batch to the store of hook number `hook`.
fn store_stage<A: Rows>(
    mut writer: StoreWriter,
    hook: usize,
    batches: &Receiver<Arc<Ran<A>>>,
    place: &dyn Fn(&[u32], u64) -> String,
    seen: &mut dyn FnMut(WriteProgress),
) -> StoreEnd {
    let (mut busy, done) = (Duration::ZERO, writer.contexts_done());
    for batch in batches {
        let started = Instant::now();
        let Ran { first, tokens, activations } = &*batch;
        let skip = done.saturating_sub(*first).min(tokens.nrows() as u64) as usize;
        let rows = activations.rows(hook);
        let appended =
            writer.append(tokens.slice(s![skip.., ..]), rows.slice(s![skip..tokens.nrows(), .., ..]));
        busy += started.elapsed();
        if let Err(error) = appended {
            let cause = match &error {
                StoreError::NotFinite { context, .. } | StoreError::Overflow { context, .. } => {
                    let tokens = tokens.row((context - first) as usize);
                    Some(place(&tokens.to_vec(), *context))
                }
                _ => None,
            };
            let error = Error::new(error);
            let failure = match cause {
                Some(cause) => error.context(cause),
                None => error,
            };
            return StoreEnd { writer, busy, failure: Some(failure) };
        }
        seen(writer.progress());
    }
    StoreEnd { writer, busy, failure: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    use activation_store::{Store, StoreSpec, WriterOptions};
    use ndarray::Array3;

    use crate::documents::{Content, Document, Place, ReadOptions};
    use crate::share::Share;
    use crate::text::TextOptions;

    /// Tokens of a context.
    const LENGTH: usize = 4;
    /// Contexts of a dump.
    const CONTEXTS: u64 = 40;

    /// A model of one hook and two components that goes wrong in context `dies`.
    struct Fake {
        dies: Option<i64>,
        names: Vec<String>,
    }

    impl Rows for Array3<f32> {
        fn rows(&self, _: usize) -> CowArray<'_, f32, Ix3> {
            self.view().into()
        }
    }

    impl Model for Fake {
        type Activations = Array3<f32>;

        fn names(&self) -> &[String] {
            &self.names
        }

        fn lanes(&self) -> usize {
            3
        }

        fn fixed_contexts(&self) -> Option<usize> {
            None
        }

        fn run(&self, ids: ArrayView2<'_, i64>) -> Result<Array3<f32>> {
            assert!(!ids.iter().any(|id| Some(*id) == self.dies), "the model died");
            let (contexts, length) = ids.dim();
            Ok(Array3::from_shape_fn((contexts, length, 2), |(context, position, component)| {
                let id = ids[[context, position]] as f32;
                if component == 0 { id } else { -id }
            }))
        }
    }

    /// Documents that are contexts; each has its number + 1 as its tokens.
    fn documents() -> impl Iterator<Item = Result<Document>> + Send + 'static {
        (0..CONTEXTS as u32).map(|number| {
            let place = Place { file: "tokens".into(), inside: Some(("context", number.into())) };
            Ok(Document { place, content: Content::Context(vec![number + 1; LENGTH]) })
        })
    }

    /// Runs a dump into `store`; `dies` ends the model, `watch` is called by the thread of the store.
    fn dump(
        store: &std::path::Path,
        documents: impl Iterator<Item = Result<Document>> + Send + 'static,
        dies: Option<i64>,
        watch: &mut Watch<'_>,
    ) -> Result<End> {
        let share = Share::new(0, None);
        let plan = DumpPlan { length: LENGTH, contexts: CONTEXTS, batch: 2, share, part: None };
        let read = ReadOptions { column: String::new(), format: None, vocabulary: 100, context: LENGTH };
        let text = TextOptions { read, length: LENGTH, bos: 0, share, strict: false, threads: 2 };
        let contexts = Contexts::start(documents, None, &text)?;
        let mut spec = StoreSpec::new(2, LENGTH, CONTEXTS);
        spec.layout =
            activation_store::Layout { window_rows: 16, shard_rows: 16, chunk_rows: 16, zstd_level: 1 };
        let writer = StoreWriter::open(store, &spec, &WriterOptions::default())?;
        let model = Fake { dies, names: vec!["hook".to_owned()] };
        let stop = AtomicBool::new(false);
        let (writers, outcome) = run(contexts, None, &model, None, vec![writer], &plan, 2, &stop, watch)?;
        for writer in writers {
            writer.finish()?;
        }
        Ok(outcome.end)
    }

    /// A dump that ends with `reason`, then a sound one into the same store, which is then that of an undisturbed one.
    fn dies_and_goes_on(
        documents_that_die: impl Iterator<Item = Result<Document>> + Send + 'static,
        model_dies: Option<i64>,
        watch: &mut Watch<'_>,
        reason: &str,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let [store, whole] = ["store", "whole"].map(|name| folder.path().join(name));
        let error = dump(&store, documents_that_die, model_dies, watch).unwrap_err();
        assert!(format!("{error:#}").contains(reason), "{error:#}");
        assert!(matches!(Store::open(&store), Err(StoreError::Incomplete { .. })));
        for store in [&store, &whole] {
            assert_eq!(dump(store, documents(), None, &mut |_| {}).unwrap(), End::Planned);
        }
        let rows = |path| {
            let store = Store::open(path).unwrap();
            (store.read_raw_rows(0..store.rows()).unwrap(), store.origin(0..store.rows()).unwrap())
        };
        assert!(rows(&store) == rows(&whole));
    }

    #[test]
    fn a_reading_thread_that_dies_is_not_the_end_of_the_text() {
        let dying = documents().enumerate().map(|(number, document)| {
            assert!(number < 30, "the documents died");
            document
        });
        dies_and_goes_on(dying, None, &mut |_| {}, "the documents died");
    }

    #[test]
    fn a_model_that_dies_in_one_lane_ends_the_dump_with_its_reason() {
        for context in [1, 2, 30, CONTEXTS as i64] {
            dies_and_goes_on(documents(), Some(context), &mut |_| {}, "the model died");
        }
    }

    #[test]
    fn a_storing_thread_that_dies_ends_the_dump_with_its_reason() {
        let mut watch = |progress: &[WriteProgress]| assert!(progress[0].contexts < 20, "the progress died");
        dies_and_goes_on(documents(), None, &mut watch, "the progress died");
    }
}
