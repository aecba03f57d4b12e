//! The store of an import: where it lies, and what identifies it.

use std::path::PathBuf;

use activation_store::{Layout, Provenance, RowType, StoreSpec, Unknown};
use anyhow::{Result, ensure};

use super::kind::Kind;
use super::reader::{Reader, Shape};
use super::source::Source;
use crate::arguments::ImportArguments;
use crate::stores;

/// What is recorded of a source that does not say, where a name is needed.
const UNKNOWN: &str = "unknown";

/// A store to be written.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) path: PathBuf,
    pub(super) spec: StoreSpec,
    /// The source's paths, as they were given.
    pub(super) source: String,
}

impl Target {
    /// The store that the command line asks for. Reads the source's tokens once, unless their vocabulary is given.
    pub(super) fn new(
        arguments: &ImportArguments,
        kind: Kind,
        source: &Source,
        shape: Shape,
    ) -> Result<Target> {
        let what = &arguments.what;
        let known = source.tokens.is_some();
        let vocabulary = match what.vocabulary.filter(|_| known) {
            Some(vocabulary) => vocabulary,
            None => u64::from(Reader::new(source, shape, 0).largest_token()?.unwrap_or(0)) + 1,
        };
        if let Some(bos) = what.bos {
            ensure!(known, "--bos {bos}: the source has no tokens; --tokens names a file of them");
            ensure!(
                u64::from(bos) < vocabulary.max(what.vocabulary.unwrap_or(0)),
                "--bos {bos}: no row is of this token, the largest is {}; --vocabulary states the model's",
                vocabulary - 1
            );
        }
        // One more than the vocabulary's, so that no row has it.
        let padding = shape.is_padded().then_some(vocabulary as u32);
        let unknown = Unknown { tokens: !known, bos_token: what.bos.is_none() };
        let row_type = RowType::from(arguments.store.dtype);
        let layout = Layout::for_memory(source.width, row_type, arguments.store.shuffle_memory);
        let provenance = provenance(arguments, kind, source)?;
        let first = arguments.source[0].file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = what.model.clone().or(source.origin.model.clone()).unwrap_or(first);
        let spec = StoreSpec {
            row_type,
            mantissa_bits: arguments.store.mantissa_bits,
            clip: arguments.store.clip,
            drop_bos: what.drop_bos,
            bos_token: what.bos.unwrap_or(Unknown::NO_TOKEN),
            vocabulary: vocabulary + u64::from(padding.is_some()),
            seed: arguments.store.seed,
            layout,
            unknown,
            padding,
            provenance,
            ..StoreSpec::new(source.width, shape.length, shape.contexts)
        };
        spec.validate()?;
        let path = stores::folder(&arguments.store, &name, &spec.provenance.hook, 1, None);
        let source =
            arguments.source.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        Ok(Target { path, spec, source })
    }
}

fn provenance(arguments: &ImportArguments, kind: Kind, source: &Source) -> Result<Provenance> {
    let (what, origin) = (&arguments.what, &source.origin);
    let or_unknown = |given: &Option<String>, own: &Option<String>| {
        given.clone().or_else(|| own.clone()).unwrap_or_else(|| UNKNOWN.to_owned())
    };
    let hook = or_unknown(&what.hook, &origin.hook);
    let mut provenance = Provenance {
        model: or_unknown(&what.model, &origin.model),
        // "blocks.6.hook_resid_pre"
        layer: hook.split('.').nth(1).and_then(|layer| layer.parse().ok()).unwrap_or(0),
        hook,
        centered: what.centered,
        dataset: what.dataset.clone(),
        dataset_hash: source.digest()?,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        command_line: terminal::command_line(),
        ..Provenance::default()
    };
    provenance.extra.insert("imported_from".to_owned(), kind.name().into());
    provenance.extra.insert("source_dtype".to_owned(), source.element.name().into());
    if let Some(layer) = origin.source_layer {
        provenance.extra.insert("source_layer".to_owned(), layer.into());
    }
    Ok(provenance)
}
