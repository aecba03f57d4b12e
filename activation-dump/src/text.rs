//! Turns text into contexts of tokens: one thread reads documents, all threads tokenize them, and the caller packs them.
//!
//! ```text
//! reading ─▶ [batches of documents, each a task of the thread pool] ─▶ packing
//! ```
//!
//! Tasks finish in any order, but their results are taken in the order of the text. So the output, counts included, is the
//! same for any number of threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use language_model::Tokenizer;
use ndarray::Array2;
use workers::{Answer, Next, Source};

use crate::cutting::{self, Pieces};
use crate::damage::Skipped;
use crate::documents::{Content, Damage, DamageKind, Document, Place, ReadOptions};
use crate::packing::Packer;
use crate::share::Share;

/// Text that one task tokenizes, in bytes: enough that the hand-over costs nothing, little enough that a short dump does
/// not tokenize much that it will not use.
const TASK_BYTES: usize = 64 << 10;
/// How long to wait for text before checking whether the dump should stop.
const PATIENCE: Duration = Duration::from_millis(100);

/// A document whose text is tokenized.
type Encoded = Document<Vec<u32>>;

type Task = Answer<Result<Vec<Encoded>>>;

/// Nanoseconds at work, of all threads together.
#[derive(Debug, Default)]
struct Clocks {
    reading: AtomicU64,
    tokenizing: AtomicU64,
    /// Tokens that the tokenizer produced.
    tokenized: AtomicU64,
}

/// The text, and the part of it that is wanted.
pub(crate) struct TextOptions {
    pub(crate) read: ReadOptions,
    /// T, tokens of a context.
    pub(crate) length: usize,
    /// The token that begins contexts and documents.
    pub(crate) bos: u32,
    /// The contexts that are wanted.
    pub(crate) share: Share,
    /// A document that cannot be read or is empty is an error.
    pub(crate) strict: bool,
    /// Threads that tokenize.
    pub(crate) threads: usize,
}

/// What was read up to the last context taken; it does not depend on threads, batches and interruptions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TextCounts {
    /// Documents with tokens (the last may have been used in part).
    pub(crate) documents: u64,
    /// Tokens of theirs, BOS not included.
    pub(crate) tokens: u64,
    /// Contexts that they made, wanted or not.
    pub(crate) contexts: u64,
    /// Documents without.
    pub(crate) skipped: Skipped,
}

/// The wanted contexts of a text, one after another.
pub(crate) struct Contexts {
    tasks: Source<Task>,
    clocks: Arc<Clocks>,
    documents: std::vec::IntoIter<Encoded>,
    packer: Packer,
    length: usize,
    share: Share,
    strict: bool,
    /// Whole contexts, wanted or not, that were packed and not looked at.
    packed: Vec<u32>,
    /// Tokens of `packed` that were looked at.
    looked_at: usize,
    /// Number in the text of the first context that was not.
    next: u64,
    counts: TextCounts,
}

impl Contexts {
    /// Starts reading and tokenizing. The threads end by themselves when the value is dropped; a reader that waits for
    /// standard input or the hub ends when that answers.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub(crate) fn start(
        documents: impl Iterator<Item = Result<Document>> + Send + 'static,
        tokenizer: Option<&Arc<Tokenizer>>,
        options: &TextOptions,
    ) -> Result<Contexts> {
        // Tasks that are under way or done and not packed.
        let ahead = 2 * options.threads + 2;
        let clocks = Arc::new(Clocks::default());
        let (tokenizer, times) = (tokenizer.cloned(), Arc::clone(&clocks));
        let documents = Pieces::new(documents, tokenizer.clone(), cutting::SIZES);
        let tasks = Source::start("reading of text", ahead, move |tasks| {
            read(documents, tokenizer.as_ref(), &times, tasks);
        });
        Ok(Contexts {
            tasks: tasks.context("starting the thread that reads text")?,
            clocks,
            documents: Vec::new().into_iter(),
            packer: Packer::new(options.bos, options.length),
            length: options.length,
            share: options.share,
            strict: options.strict,
            packed: Vec::new(),
            looked_at: 0,
            next: 0,
            counts: TextCounts::default(),
        })
    }

    /// The next `count` wanted contexts, `[count, T]`; fewer only where the text ends or `stopping` says so.
    ///
    /// # Errors
    /// If reading fails for reasons outside the text; with `strict`, also if a document has no tokens.
    pub(crate) fn take(&mut self, count: usize, stopping: &dyn Fn() -> bool) -> Result<Array2<u32>> {
        let mut taken = Vec::new();
        while taken.len() < count * self.length {
            let Some(context) = self.packed.get(self.looked_at..self.looked_at + self.length) else {
                self.packed.clear();
                self.looked_at = 0;
                match self.next_document(stopping)? {
                    Some(document) => self.pack(document)?,
                    None => break,
                }
                continue;
            };
            if self.share.has(self.next) {
                taken.extend_from_slice(context);
            }
            self.next += 1;
            self.counts.contexts += 1;
            self.looked_at += self.length;
        }
        Ok(Array2::from_shape_vec((taken.len() / self.length, self.length), taken)?)
    }

    /// What was read for the contexts taken so far.
    pub(crate) fn counts(&self) -> &TextCounts {
        &self.counts
    }

    /// The time at work of the reading thread, and of the tokenizing threads together.
    pub(crate) fn busy(&self) -> (Duration, Duration) {
        let time = |clock: &AtomicU64| Duration::from_nanos(clock.load(Ordering::Relaxed));
        (time(&self.clocks.reading), time(&self.clocks.tokenizing))
    }

    /// Tokens of text that were tokenized so far, those read ahead included.
    pub(crate) fn tokenized(&self) -> u64 {
        self.clocks.tokenized.load(Ordering::Relaxed)
    }

    /// The next document; `None` when there are no more or `stopping` says so.
    fn next_document(&mut self, stopping: &dyn Fn() -> bool) -> Result<Option<Encoded>> {
        loop {
            if let Some(document) = self.documents.next() {
                return Ok(Some(document));
            }
            let Some(task) = self.next_task(stopping)? else { return Ok(None) };
            let documents = loop {
                match task.within(PATIENCE)? {
                    Some(documents) => break documents?,
                    None if stopping() => return Ok(None),
                    None => {}
                }
            };
            self.documents = documents.into_iter();
        }
    }

    fn next_task(&mut self, stopping: &dyn Fn() -> bool) -> Result<Option<Task>> {
        while !stopping() {
            match self.tasks.next_within(PATIENCE)? {
                Next::Value(task) => return Ok(Some(task)),
                Next::Waiting => {}
                Next::End => return Ok(None),
            }
        }
        Ok(None)
    }

    fn pack(&mut self, document: Encoded) -> Result<()> {
        let Encoded { place, content } = document;
        let (documents, tokens) = match content {
            Content::Text(tokens) if tokens.is_empty() => {
                return self.skip(&place, &Damage::new(DamageKind::Empty, "an empty document"));
            }
            Content::Damaged(damage) => return self.skip(&place, &damage),
            Content::Text(tokens) => {
                self.packer.push(&tokens, &mut self.packed);
                (1, tokens.len())
            }
            Content::Part { text: tokens, begins, ends } => {
                let first = self.packer.push_part(&tokens, begins, &mut self.packed);
                if ends && self.packer.is_at_start() {
                    return self.skip(&place, &Damage::new(DamageKind::Empty, "an empty document"));
                }
                (u64::from(first), tokens.len())
            }
            Content::Stream { tokens, begins } => {
                (self.packer.push_stream(&tokens, begins, &mut self.packed), tokens.len())
            }
            Content::Context(tokens) => {
                self.packed.extend_from_slice(&tokens);
                (1, tokens.len())
            }
        };
        self.counts.documents += documents;
        self.counts.tokens += tokens as u64;
        Ok(())
    }

    fn skip(&mut self, place: &Place, damage: &Damage) -> Result<()> {
        if self.strict {
            bail!("{place}: {} ({})", damage.what, "without --strict it would be counted and skipped");
        }
        self.counts.skipped.add(place, damage);
        Ok(())
    }
}

/// Reads documents and has them tokenized, batch by batch, until they end or nobody wants them.
fn read(
    mut documents: impl Iterator<Item = Result<Document>>,
    tokenizer: Option<&Arc<Tokenizer>>,
    clocks: &Arc<Clocks>,
    tasks: &SyncSender<Task>,
) {
    loop {
        let started = Instant::now();
        let (mut batch, mut bytes, mut failure) = (Vec::new(), 0, None);
        while bytes < TASK_BYTES {
            match documents.next() {
                Some(Ok(document)) => {
                    bytes += size(&document.content);
                    batch.push(document);
                }
                Some(Err(error)) => {
                    failure = Some(error);
                    break;
                }
                None => break,
            }
        }
        clocks.reading.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        let last = bytes < TASK_BYTES;
        if !batch.is_empty() {
            let (tokenizer, clocks) = (tokenizer.cloned(), Arc::clone(clocks));
            let (work, task) = workers::task("tokenizing", move || {
                let started = Instant::now();
                let encoded: Result<Vec<Encoded>> =
                    batch.into_iter().map(|document| encode(document, tokenizer.as_deref())).collect();
                let tokens = |document: &Encoded| match &document.content {
                    Content::Text(tokens) | Content::Part { text: tokens, .. } => tokens.len() as u64,
                    _ => 0,
                };
                let tokens: u64 = encoded.iter().flatten().map(tokens).sum();
                clocks.tokenized.fetch_add(tokens, Ordering::Relaxed);
                clocks.tokenizing.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
                encoded
            });
            rayon::spawn(work);
            if tasks.send(task).is_err() {
                return;
            }
        }
        if let Some(error) = failure {
            // What was read before is packed first, whatever came after it.
            let _ = tasks.send(Answer::ready(Err(error)));
            return;
        }
        if last {
            return;
        }
    }
}

/// Bytes of a document, and of the place that an empty one takes.
fn size(content: &Content) -> usize {
    64 + match content {
        Content::Text(text) | Content::Part { text, .. } => text.len(),
        Content::Stream { tokens, .. } | Content::Context(tokens) => 4 * tokens.len(),
        Content::Damaged(_) => 0,
    }
}

fn encode(document: Document, tokenizer: Option<&Tokenizer>) -> Result<Encoded> {
    let Document { place, content } = document;
    let encode = |text: &str| {
        let tokenizer =
            tokenizer.ok_or_else(|| anyhow!("{place} is text, and there is no tokenizer for it"))?;
        tokenizer.encode(text).with_context(|| place.to_string())
    };
    let content = match content {
        Content::Text(text) => Content::Text(encode(&text)?),
        Content::Part { text, begins, ends } => Content::Part { text: encode(&text)?, begins, ends },
        Content::Stream { tokens, begins } => Content::Stream { tokens, begins },
        Content::Context(tokens) => Content::Context(tokens),
        Content::Damaged(damage) => Content::Damaged(damage),
    };
    Ok(Encoded { place, content })
}
