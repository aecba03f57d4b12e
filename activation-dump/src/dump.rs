//! A dump: the command line becomes a plan, model, text and store are opened, the pipeline runs, and the end
//! is told in numbers.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use activation_store::{
    Layout, Provenance, RowType, Store, StoreError, StoreSpec, StoreWriter, WriterOptions,
};
use anyhow::{Context, Result, bail};
use human_units::{format_bytes, format_count};
use language_model::{Checkpoint, HookPoint, PrefixModel, Runtime, SessionOptions, hub};

use crate::arguments::DumpArguments;
use crate::dataset::Dataset;
use crate::pipeline::{self, End, Outcome, Plan};
use crate::progress::Progress;
use crate::summary::Summary;
use crate::tokenizer::Tokenizer;

/// The exit code of a program that Ctrl-C ended: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Runs the dump that the command line asks for, or what is left of it.
pub(crate) fn dump(arguments: &DumpArguments) -> Result<ExitCode> {
    let threads = match arguments.machine.threads {
        Some(threads) => usize::from(threads),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("starting threads")?;
    let stop = stop_on_ctrl_c()?;

    // The cheap checks come first: nothing is built before the command makes sense.
    let hook = arguments.what.hook_point()?;
    let folder = hub::model(&arguments.source.model)?;
    let checkpoint = Checkpoint::open(&folder)?;
    let config = checkpoint.config();
    let plan = plan(arguments, config.max_positions)?;
    let tokenizer = Tokenizer::open(&folder, config.vocabulary, config.bos_token)?;
    let dataset = Dataset::find(&arguments.source.dataset, &arguments.source.column)?;
    let center = arguments.what.center.centers(config.norm);

    let runtime = Runtime::load(arguments.machine.onnxruntime.as_deref())?;
    let options =
        SessionOptions { device: arguments.machine.device.into(), threads, center, precision: None };
    let model = PrefixModel::load(&runtime, &checkpoint, &[hook], &options)?;

    let spec =
        store_spec(arguments, &plan, hook, &checkpoint, &tokenizer, &dataset, center, model.provider())?;
    let out = arguments.store.out.clone().unwrap_or_else(|| default_folder(&arguments.source.model, hook));
    let writer = StoreWriter::open(&out, &spec, &WriterOptions { threads, ..WriterOptions::default() })?;
    print_plan(&plan, &spec, &out, &dataset, &writer, model.provider());

    let (writer, outcome) = if writer.is_complete() {
        eprintln!("the store is complete already; nothing was run");
        (writer, Outcome::nothing())
    } else {
        let mut progress =
            Progress::start(plan.contexts, writer.contexts_done(), plan.length, spec.row_bytes());
        let ran =
            pipeline::run(&dataset, &tokenizer, &model, writer, &plan, &stop, |now| progress.update(now));
        progress.finish();
        ran?
    };
    if outcome.end == End::Interrupted {
        drop(writer); // commits the windows that are full
        let done = match Store::open(&out) {
            Err(StoreError::Incomplete { contexts_done, .. }) => contexts_done,
            _ => 0,
        };
        eprintln!(
            "stopped; {} of {} contexts are safe in {}: give the same command again to go on",
            format_count(done as f64),
            format_count(plan.contexts as f64),
            out.display()
        );
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if writer.progress().contexts == 0 {
        bail!(
            "the text has less than one context of {} tokens ({} documents were read); nothing was stored",
            plan.length,
            outcome.documents
        );
    }
    let finishing = Instant::now();
    let store = writer.finish()?;
    let summary = Summary::new(&outcome, finishing.elapsed(), &store, model.provider(), &plan);
    if outcome.end == End::TextExhausted {
        eprintln!(
            "the text ended after {} of {} tokens",
            format_count((store.contexts * plan.length as u64) as f64),
            format_count((plan.contexts * plan.length as u64) as f64)
        );
    }
    for line in summary.lines() {
        eprintln!("  {line}");
    }
    eprintln!("next: sae-trainer --store {} --loss approx-l0", out.display());
    if arguments.machine.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// A flag that Ctrl-C (or SIGTERM) raises; a second Ctrl-C ends the program at once, which loses no more
/// than the first: the store is safe at any moment.
fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // Registered first, so that it sees the flag as the earlier signal left it.
        signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .context("watching for Ctrl-C")?;
    }
    Ok(stop)
}

fn plan(arguments: &DumpArguments, max_positions: usize) -> Result<Plan> {
    let length = arguments.what.context;
    if length < 2 || length > max_positions {
        bail!("--context {length}: this model takes contexts of 2 to {max_positions} tokens");
    }
    if arguments.what.tokens == 0 {
        bail!("--tokens 0: there is nothing to do");
    }
    let contexts = arguments.what.tokens.div_ceil(length as u64);
    Ok(Plan { length, contexts, batch: usize::from(arguments.machine.batch) })
}

fn store_spec(
    arguments: &DumpArguments,
    plan: &Plan,
    hook: HookPoint,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    dataset: &Dataset,
    center: bool,
    provider: &str,
) -> Result<StoreSpec> {
    let width = checkpoint.config().d_model;
    let row_type = RowType::from(arguments.store.dtype);
    let mut provenance = Provenance {
        model: arguments.source.model.clone(),
        model_hash: checkpoint.hash()?,
        hook: hook.to_string(),
        layer: hook.layer,
        centered: center,
        tokenizer_hash: tokenizer.hash().to_owned(),
        dataset: arguments.source.dataset.clone(),
        dataset_hash: dataset.hash().to_owned(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        command_line: std::env::args().collect::<Vec<_>>().join(" "),
        ..Provenance::default()
    };
    // What decides the last bits of an activation: another provider or batch gives other roundings.
    provenance.extra.insert("provider".to_owned(), provider.into());
    provenance.extra.insert("model_batch".to_owned(), plan.batch.into());
    Ok(StoreSpec {
        row_type,
        mantissa_bits: arguments.store.mantissa_bits,
        clip: arguments.store.clip,
        drop_bos: arguments.what.drop_bos,
        bos_token: tokenizer.bos(),
        vocabulary: checkpoint.config().vocabulary as u64,
        seed: arguments.store.seed,
        layout: Layout::for_memory(width, row_type, arguments.store.shuffle_memory),
        provenance,
        ..StoreSpec::new(width, plan.length, plan.contexts)
    })
}

/// `stores/gpt2-blocks.1.hook_resid_pre`.
fn default_folder(model: &str, hook: HookPoint) -> PathBuf {
    let name = model.trim_end_matches('/').rsplit('/').next().unwrap_or("model");
    PathBuf::from("stores").join(format!("{name}-{hook}"))
}

fn print_plan(
    plan: &Plan,
    spec: &StoreSpec,
    out: &Path,
    dataset: &Dataset,
    writer: &StoreWriter,
    provider: &str,
) {
    let provenance = &spec.provenance;
    let tokens = plan.contexts * plan.length as u64;
    eprintln!("  model    {} at {} ({provider})", provenance.model, provenance.hook);
    eprintln!("  text     {} ({} files)", provenance.dataset.join(", "), dataset.file_count());
    eprintln!(
        "  rows     {} of {} {} numbers{}, {} contexts of {} tokens{}",
        format_count(tokens as f64),
        spec.width,
        spec.row_type.name(),
        if provenance.centered { ", centred" } else { "" },
        format_count(plan.contexts as f64),
        plan.length,
        if spec.drop_bos { ", BOS left out" } else { "" },
    );
    eprintln!(
        "  store    {} ({} raw; shuffled {} rows at a time)",
        out.display(),
        format_bytes(tokens * spec.row_bytes() as u64),
        format_count(spec.layout.window_rows as f64)
    );
    if writer.contexts_done() > 0 {
        eprintln!("  resume   {} contexts are there", format_count(writer.contexts_done() as f64));
    }
}
