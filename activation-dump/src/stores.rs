//! The stores that a dump writes, one for each hook: where they lie, what identifies them, and whether they fit on the disk.

use std::path::{Path, PathBuf};

use activation_store::{
    Layout, Provenance, RowType, StoreError, StoreSpec, StoreWriter, WriterOptions, estimated_bytes,
    is_bucket,
};
use anyhow::Result;
use language_model::Products;

use crate::arguments::{DumpArguments, StoreArguments};
use crate::model::{Hook, Model};
use crate::plan::DumpPlan;
use crate::share::Part;

/// A store to be written.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) hook: Hook,
    pub(crate) path: PathBuf,
    pub(crate) spec: StoreSpec,
}

/// What all stores of a dump have in common.
pub(crate) struct Common<'a> {
    pub(crate) model: &'a Model,
    pub(crate) model_hash: String,
    /// Tokens of the model.
    pub(crate) vocabulary: usize,
    pub(crate) bos: u32,
    /// Hash of the tokenizer's file; empty where there is none.
    pub(crate) tokenizer_hash: String,
    pub(crate) dataset_hash: String,
    /// ONNX Runtime's name for what the model runs on.
    pub(crate) provider: String,
    /// How products with weights are computed.
    pub(crate) products: Products,
}

/// The stores of the model's hooks, whose rows have these `widths`.
pub(crate) fn targets(
    arguments: &DumpArguments,
    plan: &DumpPlan,
    common: &Common<'_>,
    widths: &[usize],
) -> Vec<Target> {
    let hooks = &common.model.hooks;
    let part = plan.part.as_ref().map(|(part, _)| *part);
    let target = |(hook, &width): (&Hook, &usize)| Target {
        path: folder(&arguments.store, &common.model.name, &hook.name, hooks.len(), part),
        spec: spec(arguments, plan, common, hook, width),
        hook: hook.clone(),
    };
    hooks.iter().zip(widths).map(target).collect()
}

fn spec(
    arguments: &DumpArguments,
    plan: &DumpPlan,
    common: &Common<'_>,
    hook: &Hook,
    width: usize,
) -> StoreSpec {
    let row_type = RowType::from(arguments.store.dtype);
    let mut provenance = Provenance {
        model: common.model.name.clone(),
        model_hash: common.model_hash.clone(),
        hook: hook.name.clone(),
        layer: hook.layer,
        centered: common.model.center,
        tokenizer_hash: common.tokenizer_hash.clone(),
        dataset: arguments.source.dataset.clone(),
        dataset_hash: common.dataset_hash.clone(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        command_line: terminal::command_line(),
        ..Provenance::default()
    };
    let extra = &mut provenance.extra;
    // What decides the last bits of an activation: another provider or batch rounds differently.
    extra.insert("provider".to_owned(), common.provider.clone().into());
    // Left out where they are float32's, as they were before there were others.
    if common.products != Products::Exact {
        extra.insert("products".to_owned(), common.products.name().into());
    }
    extra.insert("model_batch".to_owned(), plan.batch.into());
    // What leads from a context of the store to the text: it is the text's context first + stride · number.
    if plan.share.first > 0 || plan.share.stride > 1 {
        extra.insert("first_context".to_owned(), plan.share.first.into());
        extra.insert("context_stride".to_owned(), plan.share.stride.into());
    }
    if let Some((part, _)) = &plan.part {
        extra.insert("part".to_owned(), part.to_string().into());
    }
    StoreSpec {
        row_type,
        mantissa_bits: arguments.store.mantissa_bits,
        clip: arguments.store.clip,
        drop_bos: arguments.what.drop_bos,
        bos_token: common.bos,
        vocabulary: common.vocabulary as u64,
        seed: arguments.store.seed,
        layout: Layout::for_memory(width, row_type, arguments.store.shuffle_memory),
        provenance,
        ..StoreSpec::new(width, plan.length, plan.contexts)
    }
}

/// Where the store of `hook` lies: `--out`, below `--out` if there are several hooks, else `stores/MODEL-HOOK`; with the
/// number of the part.
pub(crate) fn folder(
    arguments: &StoreArguments,
    model: &str,
    hook: &str,
    hooks: usize,
    part: Option<Part>,
) -> PathBuf {
    let hook = file_name(hook);
    let path = match &arguments.out {
        Some(out) if hooks == 1 => out.clone(),
        Some(out) => out.join(hook),
        None => {
            let name = model.trim_end_matches('/').rsplit('/').next().unwrap_or("model");
            let name = name.strip_suffix(".onnx").unwrap_or(name);
            PathBuf::from("stores").join(format!("{name}-{hook}"))
        }
    };
    match part {
        None => path,
        Some(Part { number, of }) => {
            let mut name = path.file_name().unwrap_or("store".as_ref()).to_owned();
            name.push(format!("-part-{number}-of-{of}"));
            path.with_file_name(name)
        }
    }
}

/// A tensor's name as that of a folder.
fn file_name(hook: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '_' };
    hook.trim_matches(['/', '.']).chars().map(plain).collect()
}

/// Opens every store, new or unfinished or complete. With several, the disk must have room for all of them together; each
/// alone is the store's own concern.
pub(crate) fn open(targets: &[Target], threads: usize) -> Result<Vec<StoreWriter>> {
    check_space(targets)?;
    // Compression threads idle while their store has nothing to do.
    let options = WriterOptions { threads, ..WriterOptions::default() };
    targets.iter().map(|target| Ok(StoreWriter::open(&target.path, &target.spec, &options)?)).collect()
}

fn check_space(targets: &[Target]) -> Result<()> {
    let [first, _, ..] = targets else { return Ok(()) };
    // Nobody knows what room a bucket has.
    if is_bucket(&first.path) {
        return Ok(());
    }
    let needed: u64 = targets
        .iter()
        .map(|target| estimated_bytes(&target.spec).saturating_sub(bytes_below(&target.path)))
        .fold(0, u64::saturating_add);
    let available = durable_files::available_space(&first.path)?;
    if needed > available {
        let dir = first.path.parent().unwrap_or(&first.path).to_owned();
        return Err(StoreError::NoSpace { dir, needed, available }.into());
    }
    Ok(())
}

/// Bytes of all files below a folder; what cannot be read has none.
fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => bytes_below(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::CommandLine;

    #[test]
    fn stores_are_named_after_hook_and_part() {
        let arguments = |words: &[&str]| {
            let words = std::iter::once("activation-dump").chain(words.iter().copied());
            CommandLine::parse_from(words).dump.store
        };
        let name = |words: &[&str], model: &str, hook: &str, hooks: usize, part: Option<Part>| {
            folder(&arguments(words), model, hook, hooks, part).display().to_string()
        };
        let (hook, part) = ("blocks.1.hook_resid_pre", Some(Part { number: 1, of: 4 }));
        assert_eq!(name(&[], "openai/gpt2", hook, 1, None), "stores/gpt2-blocks.1.hook_resid_pre");
        assert_eq!(name(&["--out", "a/b"], "m", hook, 1, None), "a/b");
        assert_eq!(name(&["--out", "a/b"], "m", hook, 2, None), "a/b/blocks.1.hook_resid_pre");
        assert_eq!(name(&["--out", "a/b/"], "m", hook, 1, part), "a/b-part-1-of-4");
        assert_eq!(name(&["--out", "s3://a/b"], "m", hook, 1, part), "s3://a/b-part-1-of-4");
        assert_eq!(name(&["--out", "s3://a/b"], "m", hook, 2, None), "s3://a/b/blocks.1.hook_resid_pre");
        assert_eq!(name(&["--out", "a"], "m", hook, 2, part), "a/blocks.1.hook_resid_pre-part-1-of-4");
        assert_eq!(
            name(&[], "models/tiny.onnx", "/model/layers.1/Add_output_0", 1, None),
            "stores/tiny-model_layers.1_Add_output_0"
        );
    }
}
