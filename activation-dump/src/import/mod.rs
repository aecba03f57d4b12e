//! `import`: a store from activations that another program wrote.
//!
//! Whatever its format, a source is runs of rows in files (`source.rs`). The formats' files read headers alone, and refuse a
//! source that is not whole before anything is written. Then one thread reads contexts, and the store takes them in order.

mod arrays;
mod element;
pub(crate) mod kind;
mod memmap;
mod progress;
mod reader;
mod sae_lens;
mod saev;
mod source;
mod target;
mod vllm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use activation_store::{StoreError, StoreSummary, StoreWriter, WriterOptions};
use anyhow::{Context, Error, Result, bail, ensure};
use human_units::{format_count, format_duration};
use serde_json::json;
use terminal::{Interrupt, foreign, foreign_path};

use crate::arguments::{ImportArguments, ImportedArguments};
use crate::summary::StoreFigures;
use kind::Kind;
use progress::Progress;
use reader::{Contexts, Reader, Shape};
use source::{Division, Source};
use target::Target;

/// The exit code of a program that Ctrl-C ended: 128 + SIGINT.
const INTERRUPTED: u8 = 130;
/// Batches of contexts that may wait for the store.
const QUEUE: usize = 2;

/// Imports what the command line names, or the rest of it.
pub(crate) fn import(arguments: &ImportArguments) -> Result<ExitCode> {
    let threads = match arguments.threads {
        Some(threads) => usize::from(threads),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
    activation_store::give_up_once(interrupt.shared_flag());
    let (kind, source) = open(&arguments.source, &arguments.what)?;
    let shape = Shape::of(&source, arguments.what.context.map(|length| length as usize))?;
    let target = Target::new(arguments, kind, &source, shape)?;
    print_plan(kind, &source, shape, &target);
    if arguments.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    let options = WriterOptions { threads, planned_rows: Some(shape.rows), ..WriterOptions::default() };
    let mut writer = StoreWriter::open(&target.path, &target.spec, &options)?;
    for damage in writer.damage() {
        terminal::say!("  damaged  {}; everything after it is imported again", foreign(damage));
    }
    let started = Instant::now();
    if writer.is_complete() {
        terminal::say!("the store is complete already; nothing was imported");
    } else if let Some(rows) = copy(&source, shape, &target, &mut writer, &interrupt)? {
        let (contexts, path) = (writer.progress().contexts, foreign_path(&target.path));
        drop(writer); // commits the windows that are full
        terminal::say!(
            "stopped after {} rows ({} contexts); full windows are safe in {path}: run the same command again to continue",
            format_count(rows as f64),
            format_count(contexts as f64),
        );
        return Ok(ExitCode::from(interrupt.requested().unwrap_or(INTERRUPTED)));
    }
    let summary = writer.finish()?;
    report(arguments, kind, &source, &target, &summary, started)
}

/// Reads all of a source, of its first layer, without a store; returns the number of rows.
pub(crate) fn read(path: &std::path::Path) -> Result<u64> {
    let kind = Kind::of(path)?;
    let source = match kind {
        Kind::Npy => arrays::open(kind::files(path, "npy")?)?,
        Kind::Vllm => vllm::open(kind::files(path, "safetensors")?, Some(0))?,
        Kind::SaeLens => sae_lens::open(path, None)?,
        Kind::Memmap => memmap::open(path)?,
        Kind::Saev => saev::open(path, Some(0))?,
    };
    let shape = Shape::of(&source, None)?;
    source.digest()?;
    let mut reader = Reader::new(&source, shape, u32::MAX);
    reader.largest_token()?;
    let (mut next, mut rows) = (0, 0);
    while next < shape.contexts {
        rows += reader.read(next, reader.at_once())?.each().map(|(_, rows)| rows.nrows() as u64).sum::<u64>();
        next += reader.at_once();
    }
    Ok(rows)
}

/// Opens the source, in the format that it shows or that is asked for.
fn open(paths: &[PathBuf], what: &ImportedArguments) -> Result<(Kind, Source)> {
    let kind = match what.from {
        Some(kind) => kind,
        None => Kind::of(&paths[0])?,
    };
    let files = |ending: &str| -> Result<Vec<PathBuf>> {
        let each: Vec<_> = paths.iter().map(|path| kind::files(path, ending)).collect::<Result<_>>()?;
        let tokens = what.tokens.as_deref().and_then(|tokens| tokens.canonicalize().ok());
        let is_tokens = |path: &PathBuf| tokens.is_some() && path.canonicalize().ok() == tokens;
        Ok(each.into_iter().flatten().filter(|path| !is_tokens(path)).collect())
    };
    let has_layers = matches!(kind, Kind::Vllm | Kind::Saev);
    ensure!(
        has_layers || what.source_layer.is_none(),
        "--source-layer: a source of the format {} has one layer",
        kind.name()
    );
    let mut source = match kind {
        Kind::Npy => arrays::open(files("npy")?)?,
        Kind::Vllm => vllm::open(files("safetensors")?, what.source_layer)?,
        Kind::SaeLens => sae_lens::open(kind::only(paths, kind)?, what.hook.as_deref())?,
        Kind::Memmap => memmap::open(kind::only(paths, kind)?)?,
        Kind::Saev => saev::open(kind::only(paths, kind)?, what.source_layer)?,
    };
    if let Some(tokens) = &what.tokens {
        ensure!(source.tokens.is_none(), "--tokens: the source has tokens of its own");
        arrays::tokens(tokens, &mut source)?;
    }
    Ok((kind, source))
}

fn print_plan(kind: Kind, source: &Source, shape: Shape, target: &Target) {
    let provenance = &target.spec.provenance;
    let files = source.files.len();
    terminal::say!(
        "  source   {} ({}, {})",
        foreign(&target.source),
        kind.name(),
        if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
    );
    for note in &source.origin.notes {
        terminal::say!("  note     {note}");
    }
    terminal::say!("  model    {} at {}", foreign(&provenance.model), foreign(&provenance.hook));
    terminal::say!(
        "  rows     {} of {} {} numbers, {} contexts of {}{}{}",
        format_count(shape.rows as f64),
        source.width,
        source.element.name(),
        format_count(shape.contexts as f64),
        if source.division == Division::Runs && shape.is_padded() { "up to " } else { "" },
        shape.length,
        if source.tokens.is_none() { ", tokens unknown" } else { "" },
    );
    terminal::say!(
        "  store    {} ({} numbers; shuffled {} rows at a time)",
        foreign_path(&target.path),
        target.spec.row_type.name(),
        format_count(target.spec.layout.window_rows as f64)
    );
}

/// Gives the store the contexts that it lacks. Returns the rows taken in if it was asked to stop before the end.
fn copy(
    source: &Source,
    shape: Shape,
    target: &Target,
    writer: &mut StoreWriter,
    interrupt: &Interrupt,
) -> Result<Option<u64>> {
    let mut reader = Reader::new(source, shape, target.spec.padding.unwrap_or(0));
    let done = writer.contexts_done();
    check_resumed(&mut reader, writer)?;
    if done > 0 {
        terminal::say!("  resume   {} contexts are stored already", format_count(done as f64));
    }
    let before = reader.rows_before(done);
    let mut progress = Progress::start(shape.rows, before, target.spec.row_bytes() as u64);
    let place = Reader::new(source, shape, 0);
    let (send, receive) = sync_channel::<Contexts>(QUEUE);
    let mut rows = before;
    let copied = std::thread::scope(|scope| -> Result<bool> {
        let read = move || -> Result<()> {
            let at_once = reader.at_once();
            let mut next = done;
            while next < shape.contexts && send.send(reader.read(next, at_once)?).is_ok() {
                next += at_once;
            }
            Ok(())
        };
        let reading = workers::spawn_scoped(scope, "reading", read).context("starting a thread")?;
        for batch in receive {
            for (number, (tokens, context)) in (batch.first..).zip(batch.each()) {
                rows += context.nrows() as u64;
                writer.append_context(tokens, context).map_err(|error| located(error, &place, number))?;
            }
            progress.update(rows, &writer.progress());
            if interrupt.flag().load(Ordering::Relaxed) {
                return Ok(false); // the receiver goes, and the reader with it
            }
        }
        reading.join()??;
        Ok(true)
    });
    progress.finish();
    Ok(if copied? { None } else { Some(rows) })
}

/// Refuses a source whose tokens are not those that the store holds in their place.
fn check_resumed(reader: &mut Reader<'_>, writer: &StoreWriter) -> Result<()> {
    let (done, tail) = (writer.contexts_done(), writer.resumed_tokens());
    let first = done - tail.nrows() as u64;
    let mut next = first;
    while next < done {
        let batch = reader.read_tokens_of(next, done - next)?;
        for (context, tokens) in (next..done).zip(batch.outer_iter()) {
            if tail.row((context - first) as usize) != tokens {
                bail!(
                    "this is not the source that the import was begun with: context {context} has other tokens in the \
                     store; give the same source, or another --out"
                );
            }
        }
        next += batch.nrows() as u64;
    }
    Ok(())
}

/// Says where in the source a number that cannot be stored is.
fn located(error: StoreError, reader: &Reader<'_>, number: u64) -> Error {
    let row = match &error {
        StoreError::NotFinite { position, .. } | StoreError::Overflow { position, .. } => Some(*position),
        _ => None,
    };
    let error = Error::new(error);
    match row {
        Some(row) => error.context(reader.place(number, row as u64)),
        None => error,
    }
}

fn report(
    arguments: &ImportArguments,
    kind: Kind,
    source: &Source,
    target: &Target,
    store: &StoreSummary,
    started: Instant,
) -> Result<ExitCode> {
    let seconds = started.elapsed().as_secs_f64().max(1e-9);
    let figures = StoreFigures::of(&target.spec.provenance.hook, store);
    terminal::say!(
        "  {} rows of {} contexts in {}",
        format_count(store.rows as f64),
        format_count(store.contexts as f64),
        format_duration(started.elapsed())
    );
    for line in figures.lines() {
        terminal::say!("  {}", foreign(&line));
    }
    terminal::say!("next: sae-trainer --store {} --loss approx-l0", foreign_path(&target.path));
    if arguments.json {
        let summary = json!({
            "source": target.source,
            "format": kind.name(),
            "files": source.files.len(),
            "rows": store.rows,
            "contexts": store.contexts,
            "context_length": target.spec.context_length,
            "tokens_known": !target.spec.unknown.tokens,
            "seconds": seconds,
            "rows_per_second": store.rows as f64 / seconds,
            "store": figures,
        });
        terminal::report!("{}", serde_json::to_string_pretty(&summary)?);
    }
    Ok(ExitCode::SUCCESS)
}
