//! `info`, `verify` and `export`: the subcommands that read a finished store.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use activation_store::{ExportFormat, Store};
use anyhow::Result;
use human_units::{format_bytes, format_count};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use terminal::{foreign, foreign_path};

use crate::arguments::{ExportArguments, ExportChoice, InfoArguments, VerifyArguments};

/// Prints what the store holds.
pub(crate) fn info(arguments: &InfoArguments) -> Result<ExitCode> {
    let store = Store::open_with(&arguments.store, None)?;
    let (spec, summary, stats) = (store.spec(), store.summary(), store.stats());
    let ratio = summary.raw_bytes as f64 / summary.activation_bytes.max(1) as f64;
    let bytes_per_row = summary.activation_bytes as f64 / summary.rows.max(1) as f64;
    if arguments.json {
        let value = json!({
            "store": store.path(),
            "rows": summary.rows,
            "contexts": summary.contexts,
            "raw_bytes": summary.raw_bytes,
            "activation_bytes": summary.activation_bytes,
            "stored_bytes": summary.stored_bytes,
            "bytes_per_row": bytes_per_row,
            "compression_ratio": ratio,
            "clipped_values": summary.clipped,
            "specification": spec,
            "statistics": { "mean": stats.mean, "variance": stats.variance, "mean_norm": stats.mean_norm },
        });
        terminal::report!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(ExitCode::SUCCESS);
    }
    let from = &spec.provenance;
    let bits = spec.mantissa_bits.map_or(String::new(), |bits| format!(", {bits} mantissa bits kept"));
    let count = |number: u64| format_count(number as f64);
    terminal::report!("store        {}", foreign_path(store.path()));
    terminal::report!(
        "activations  {} of {}{}",
        foreign(&from.hook),
        foreign(&from.model),
        if from.centered { ", centred" } else { "" }
    );
    terminal::report!("text         {}", foreign(&from.dataset.join(", ")));
    terminal::report!(
        "rows         {} of {} {} numbers{bits}",
        count(summary.rows),
        spec.width,
        spec.row_type.name()
    );
    let bos = match (spec.unknown.bos_token, spec.drop_bos) {
        (true, _) => "unknown".to_owned(),
        (false, true) => format!("{} and its rows are left out", spec.bos_token),
        (false, false) => spec.bos_token.to_string(),
    };
    terminal::report!(
        "contexts     {} of {}{} tokens{}, BOS is {bos}",
        count(summary.contexts),
        if spec.padding.is_some() { "up to " } else { "" },
        spec.context_length,
        if spec.unknown.tokens { ", which are unknown" } else { "" },
    );
    terminal::report!(
        "size         {}: {bytes_per_row:.0} bytes a row, {ratio:.3}x smaller than raw; {} with all files",
        format_bytes(summary.activation_bytes),
        format_bytes(summary.stored_bytes)
    );
    terminal::report!(
        "shuffled     {} rows at a time, seed {}; chunks of {} rows, shards of {}",
        count(spec.layout.window_rows as u64),
        spec.seed,
        spec.layout.chunk_rows,
        count(spec.layout.shard_rows as u64)
    );
    let variance: f64 = stats.variance.iter().sum();
    terminal::report!("statistics   mean norm {:.4}, total variance {variance:.4}", stats.mean_norm);
    if summary.clipped > 0 {
        terminal::report!("clipped      {} values beyond float16", summary.clipped);
    }
    terminal::report!(
        "hashes       weights {}, tokenizer {}",
        foreign(short(&from.model_hash)),
        foreign(short(&from.tokenizer_hash))
    );
    terminal::report!("             text {}", foreign(short(&from.dataset_hash)));
    terminal::report!(
        "written by   {} {}: {}",
        env!("CARGO_PKG_NAME"),
        foreign(&from.tool_version),
        foreign(&from.command_line)
    );
    Ok(ExitCode::SUCCESS)
}

/// Reads everything; the exit code is 1 if anything is damaged.
pub(crate) fn verify(arguments: &VerifyArguments) -> Result<ExitCode> {
    let bar = ProgressBar::no_length();
    bar.set_style(
        ProgressStyle::with_template("  {bytes} read, {bytes_per_sec}").expect("the template is constant"),
    );
    let reached = AtomicU64::new(0);
    let report = activation_store::verify(&arguments.store, &|bytes| {
        let most = reached.fetch_max(bytes, Ordering::Relaxed).max(bytes);
        bar.set_position(most);
    })?;
    bar.finish_and_clear();
    if arguments.json {
        let problems: Vec<_> = report
            .problems
            .iter()
            .map(|problem| json!({ "file": problem.file, "chunk": problem.chunk, "what": problem.what }))
            .collect();
        let value = json!({ "files": report.files, "bytes": report.bytes, "problems": problems });
        terminal::report!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        for problem in &report.problems {
            match problem.chunk {
                Some(chunk) => {
                    terminal::report!("{}, chunk {chunk}: {}", problem.file, foreign(&problem.what))
                }
                None => terminal::report!("{}: {}", problem.file, foreign(&problem.what)),
            }
        }
        let read = format!("{} files, {} read", report.files, format_bytes(report.bytes));
        match report.problems.len() {
            0 => terminal::report!("{} is sound ({read})", foreign_path(&arguments.store)),
            found => {
                terminal::report!("{} is damaged in {found} places ({read})", foreign_path(&arguments.store))
            }
        }
    }
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes the rows in another tool's format.
pub(crate) fn export(arguments: &ExportArguments) -> Result<ExitCode> {
    let store = Store::open(&arguments.store)?;
    let format = match arguments.format {
        ExportChoice::SaeLens => ExportFormat::SaeLens,
        ExportChoice::Npy => ExportFormat::Npy,
    };
    let bar = ProgressBar::new(store.rows());
    let template = "  {bar:30} {percent:>3}%  {human_pos} rows, {per_sec}, ETA {eta}";
    bar.set_style(ProgressStyle::with_template(template).expect("the template is constant"));
    let summary =
        activation_store::export(&store, format, &arguments.out, &mut |rows| bar.set_position(rows))?;
    bar.finish_and_clear();
    terminal::say!(
        "{} rows in {} files, {}, in {}",
        format_count(summary.rows as f64),
        summary.files,
        format_bytes(summary.bytes),
        foreign_path(&summary.path)
    );
    if summary.rows_left_out > 0 {
        terminal::say!("{} rows at the end did not fill a record and were left out", summary.rows_left_out);
    }
    Ok(ExitCode::SUCCESS)
}

/// The beginning of a hash, enough to distinguish two by eye.
fn short(hash: &str) -> &str {
    hash.get(..16).unwrap_or(hash)
}
