//! A dump from start to end: turns the command line into a plan, opens model, text and stores, runs the pipeline, and
//! reports the result.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use activation_store::{Store, StoreError, StoreSummary, StoreWriter, is_bucket};
use anyhow::{Context, Result, bail};
use human_units::{format_bytes, format_count};
use language_model::{
    Device, ModelPrecision, PrefixModel, Products, Runtime, SelfCheck, SessionOptions, Tokenizer, self_check,
};
use ndarray::ArrayView2;
use terminal::{Interrupt, foreign, foreign_path};

use crate::arguments::DumpArguments;
use crate::dataset::Dataset;
use crate::documents::ReadOptions;
use crate::model::Model;
use crate::pipeline::{self, End, Outcome};
use crate::plan::{self, DumpPlan};
use crate::probe;
use crate::progress::Progress;
use crate::share::Share;
use crate::stores::{self, Common, Target};
use crate::summary::Summary;
use crate::text::{Contexts, TextOptions};

/// The exit code of a program that Ctrl-C ended: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Everything a dump needs, opened.
struct Prepared {
    plan: DumpPlan,
    /// What `model` was loaded from, and how.
    source: Model,
    runtime: Runtime,
    options: SessionOptions,
    /// How far the model was from itself on the CPU, once that was checked.
    checked: OnceLock<SelfCheck>,
    model: PrefixModel,
    tokenizer: Option<Arc<Tokenizer>>,
    dataset: Dataset,
    text: TextOptions,
    targets: Vec<Target>,
    threads: usize,
}

/// Runs the dump that the command line asks for, or the rest of it.
pub(crate) fn dump(arguments: &DumpArguments) -> Result<ExitCode> {
    let threads = match arguments.machine.threads {
        Some(threads) => usize::from(threads),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("starting threads")?;
    let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
    activation_store::give_up_once(interrupt.shared_flag());
    let prepared = prepare(arguments, threads)?;
    if arguments.machine.dry_run {
        return dry_run(&prepared, arguments.machine.json, &interrupt);
    }
    let writers = stores::open(&prepared.targets, threads)?;
    prepared.print_plan(&writers);
    if writers.iter().all(StoreWriter::is_complete) {
        terminal::say!("{} already; nothing was run", prepared.stores_are("complete"));
        return prepared.finish(writers, None, arguments.machine.json);
    }

    let plan = &prepared.plan;
    let before = writers.iter().map(StoreWriter::contexts_done).min().unwrap_or(0);
    let token_bytes = prepared.targets.iter().map(|target| target.spec.row_bytes()).sum();
    let mut progress = Progress::start(plan.contexts, before, plan.length, token_bytes);
    let documents = prepared.dataset.documents(&prepared.text.read);
    let contexts = Contexts::start(documents, prepared.tokenizer.as_ref(), &prepared.text)?;
    let tokenizer = prepared.tokenizer.as_deref();
    let mut watch = |stores: &[_]| progress.update(stores);
    let check = |ids: ArrayView2<'_, i64>| prepared.check_against_cpu(ids);
    let check: &pipeline::Check<'_> = &check;
    let check = arguments.machine.self_check.checks(prepared.model.provider()).then_some(check);
    let ran = pipeline::run(
        contexts,
        tokenizer,
        &prepared.model,
        check,
        writers,
        plan,
        threads,
        interrupt.flag(),
        &mut watch,
    );
    progress.finish();
    let (writers, outcome) = ran?;
    if outcome.end == End::Interrupted {
        drop(writers); // commits the windows that are full
        prepared.print_interruption();
        return Ok(ExitCode::from(interrupt.requested().unwrap_or(INTERRUPTED)));
    }
    prepared.finish(writers, Some(&outcome), arguments.machine.json)
}

/// Opens everything but the stores. The cheap checks come first: nothing is built before the command makes sense.
fn prepare(arguments: &DumpArguments, threads: usize) -> Result<Prepared> {
    let source = &arguments.source;
    let model = Model::open(arguments)?;
    let mut plan = DumpPlan::new(arguments, model.max_length())?;
    let dataset = Dataset::find(&source.dataset)?;
    let tokenizer = model.tokenizer(source, !dataset.is_tokens())?;
    let bos = model.bos(source, tokenizer.as_deref())?;

    let runtime = Runtime::load(arguments.machine.onnxruntime.as_deref())?;
    let options = SessionOptions {
        device: arguments.machine.device.into(),
        threads,
        center: model.center,
        products: if arguments.machine.exact_products { Products::Exact } else { Products::MatrixUnits },
        ..SessionOptions::default()
    };
    let prefix = model.load(&runtime, &options)?;
    plan::check_length(plan.length, prefix.max_length())?;
    plan.batch = batch(arguments.machine.batch.map(usize::from), &prefix, plan.length)?;
    let vocabulary = prefix.vocabulary().or_else(|| Some(tokenizer.as_ref()?.largest_id() as usize + 1));
    let vocabulary =
        vocabulary.context("the model's vocabulary size is unknown; --tokenizer FILE supplies it")?;
    match &tokenizer {
        Some(tokenizer) => tokenizer.check(vocabulary, bos, source.bos.is_some())?,
        None if bos as usize >= vocabulary => {
            bail!("BOS is token {bos}, but the model has {vocabulary} tokens")
        }
        None => {}
    }

    let common = Common {
        model_hash: if arguments.machine.dry_run { String::new() } else { model.hash()? },
        model: &model,
        vocabulary,
        bos,
        tokenizer_hash: tokenizer.as_ref().map_or(String::new(), |tokenizer| tokenizer.hash().to_owned()),
        dataset_hash: dataset.hash().to_owned(),
        provider: prefix.provider().to_owned(),
        products: prefix.products(),
    };
    let widths: Vec<usize> = (0..model.hooks.len()).map(|hook| prefix.width(hook)).collect();
    let targets = stores::targets(arguments, &plan, &common, &widths);
    targets.iter().try_for_each(|target| target.spec.validate())?;
    let text = TextOptions {
        read: ReadOptions {
            column: source.column.clone(),
            format: source.format,
            vocabulary,
            context: plan.length,
        },
        length: plan.length,
        bos,
        share: plan.share,
        strict: source.strict,
        threads,
    };
    Ok(Prepared {
        plan,
        source: model,
        runtime,
        options,
        checked: OnceLock::new(),
        model: prefix,
        tokenizer,
        dataset,
        text,
        targets,
        threads,
    })
}

/// Contexts that the model runs on at once: as `asked` for, else what suits the model and its device.
fn batch(asked: Option<usize>, model: &PrefixModel, length: usize) -> Result<usize> {
    match (asked, model.fixed_contexts()) {
        (Some(asked), Some(fixed)) if asked != fixed => {
            bail!("--batch {asked}: the ONNX file was exported for batches of {fixed}")
        }
        (Some(asked), _) => Ok(asked),
        (None, _) => Ok(model.suggested_contexts(length)),
    }
}

fn dry_run(prepared: &Prepared, json: bool, interrupt: &Interrupt) -> Result<ExitCode> {
    let Prepared { plan, model, tokenizer, dataset, text, targets, threads, .. } = prepared;
    prepared.print_plan(&[]);
    let text = TextOptions { share: Share::new(0, None), read: text.read.clone(), ..*text };
    let contexts = Contexts::start(dataset.documents(&text.read), tokenizer.as_ref(), &text)?;
    let stopping = || interrupt.requested().is_some();
    let estimate = probe::estimate(model, contexts, targets, plan, *threads, &stopping)?;
    if let Some(code) = interrupt.requested() {
        return Ok(ExitCode::from(code));
    }
    for line in estimate.lines() {
        terminal::say!("  {}", foreign(&line));
    }
    if json {
        terminal::report!("{}", serde_json::to_string_pretty(&estimate)?);
    }
    Ok(ExitCode::SUCCESS)
}

impl Prepared {
    /// Compares the model on its device with itself on the CPU in float32, on some contexts of a first batch.
    fn check_against_cpu(&self, ids: ArrayView2<'_, i64>) -> Result<()> {
        let options = SessionOptions {
            device: Device::Cpu,
            precision: Some(ModelPrecision::Full),
            products: Products::Exact,
            ..self.options
        };
        let reference = self.source.load(&self.runtime, &options)?;
        let check = self_check(&self.model, &reference, ids)?;
        terminal::say!(
            "  check    {} agrees with the CPU in float32 on {} contexts: rows differ by at most {:.1e} at {} \
             ({:.0e} counts as rounding)",
            self.model.provider(),
            ids.nrows(),
            check.difference,
            check.hook,
            check.tolerance
        );
        self.checked.get_or_init(|| check);
        Ok(())
    }

    /// Closes the stores and reports the result; `outcome` is the pipeline's, if it ran.
    fn finish(&self, writers: Vec<StoreWriter>, outcome: Option<&Outcome>, json: bool) -> Result<ExitCode> {
        if let Some(outcome) = outcome
            && writers.iter().all(|writer| writer.progress().contexts == 0)
        {
            let skipped = outcome.text.skipped.lines().join("; ");
            let (length, share) = (self.plan.length, self.plan.share);
            let found = match outcome.text.contexts {
                0 => format!("the text has less than one context of {length} tokens"),
                contexts => format!(
                    "the text has {contexts} contexts of {length} tokens, and this dump begins with number {} of them \
                     (by --skip-tokens and --part)",
                    share.first + 1
                ),
            };
            bail!(
                "{found} ({} documents were read{}{}); nothing was stored",
                outcome.text.documents,
                if skipped.is_empty() { "" } else { ", " },
                foreign(&skipped),
            );
        }
        let finishing = Instant::now();
        let mut summaries: Vec<(String, StoreSummary)> = Vec::new();
        for (target, writer) in self.targets.iter().zip(writers) {
            summaries.push((target.hook.name.clone(), writer.finish()?));
        }
        let took = if outcome.is_some() { finishing.elapsed() } else { Duration::ZERO };
        let summary = Summary::new(outcome, took, &summaries, &self.model, self.checked.get(), &self.plan);
        if let Some(outcome) = outcome
            && outcome.end == End::TextExhausted
        {
            let stored = summaries.iter().map(|(_, store)| store.contexts).min().unwrap_or(0);
            terminal::say!(
                "the text ended after {} of {} tokens",
                format_count((stored * self.plan.length as u64) as f64),
                format_count(self.plan.tokens() as f64)
            );
        }
        for line in summary.lines() {
            terminal::say!("  {}", foreign(&line));
        }
        let store = &self.targets[0].path;
        let cache = if is_bucket(store) { " --cache FOLDER" } else { "" };
        terminal::say!("next: sae-trainer --store {}{cache} --loss approx-l0", foreign_path(store));
        if json {
            terminal::report!("{}", serde_json::to_string_pretty(&summary)?);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn print_plan(&self, writers: &[StoreWriter]) {
        let (plan, spec) = (&self.plan, &self.targets[0].spec);
        let provenance = &spec.provenance;
        let hooks: Vec<&str> = self.targets.iter().map(|target| target.hook.name.as_str()).collect();
        terminal::say!(
            "  model    {} at {} ({}{})",
            foreign(&provenance.model),
            foreign(&hooks.join(", ")),
            self.model.provider(),
            match self.model.products() {
                Products::Exact => "",
                Products::MatrixUnits => ", products on matrix units",
            }
        );
        let files = self.dataset.file_count();
        let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
        terminal::say!("  text     {} ({files})", foreign(&provenance.dataset.join(", ")));
        if let Some((part, from)) = &plan.part {
            terminal::say!("  part     {part} of the text, by {from} (--part off runs all of it)");
        }
        terminal::say!(
            "  rows     {} of {} {} numbers{}, {} contexts of {} tokens{}",
            format_count(plan.tokens() as f64),
            spec.width,
            spec.row_type.name(),
            if provenance.centered { ", centred" } else { "" },
            format_count(plan.contexts as f64),
            plan.length,
            if spec.drop_bos { ", BOS left out" } else { "" },
        );
        for (index, target) in self.targets.iter().enumerate() {
            terminal::say!(
                "  store    {} ({} raw; shuffled {} rows at a time)",
                foreign_path(&target.path),
                format_bytes(plan.tokens().saturating_mul(target.spec.row_bytes() as u64)),
                format_count(target.spec.layout.window_rows as f64)
            );
            for damage in writers.get(index).iter().flat_map(|writer| writer.damage()) {
                terminal::say!("  damaged  {damage}; everything after it is run and written again");
            }
            if let Some(writer) = writers.get(index).filter(|writer| writer.contexts_done() > 0) {
                terminal::say!(
                    "  resume   {} contexts are stored already",
                    format_count(writer.contexts_done() as f64)
                );
            }
        }
    }

    fn print_interruption(&self) {
        let done = |target: &Target| match Store::open_with(&target.path, None) {
            Err(StoreError::Incomplete { contexts_done, .. }) => contexts_done,
            Ok(store) => store.contexts(),
            Err(_) => 0,
        };
        terminal::say!(
            "stopped; {} of {} contexts are safe in {}: run the same command again to continue",
            format_count(self.targets.iter().map(done).min().unwrap_or(0) as f64),
            format_count(self.plan.contexts as f64),
            self.targets
                .iter()
                .map(|target| foreign_path(&target.path).to_string())
                .collect::<Vec<_>>()
                .join(", ")
        );
    }

    fn stores_are(&self, what: &str) -> String {
        match self.targets.len() {
            1 => format!("the store is {what}"),
            _ => format!("the stores are {what}"),
        }
    }
}
