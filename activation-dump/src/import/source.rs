//! Activations that were made elsewhere, as places in files: whatever the format, rows lie in runs, one after the other.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use terminal::foreign_path;

use super::element::{Element, TokenElement};

/// Consecutive rows, or tokens, in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Index of the file.
    pub(super) file: usize,
    /// Where the first one begins, in bytes.
    pub(super) offset: u64,
    /// How many there are.
    pub(super) count: u64,
}

/// How rows are divided into contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Division {
    /// Each run is a context, whatever its length.
    Runs,
    /// Every so many rows are a context of the source.
    Whole(usize),
    /// The source has no contexts: rows are taken together in the order they have.
    Rows,
}

/// Tokens of the rows, in their order.
#[derive(Debug, Clone)]
pub(super) struct Tokens {
    pub(super) element: TokenElement,
    pub(super) runs: Vec<Run>,
}

/// What the source itself says about where its rows come from.
#[derive(Debug, Clone, Default)]
pub(super) struct Origin {
    pub(super) model: Option<String>,
    pub(super) hook: Option<String>,
    /// Number of the layer among those of the source, where it has several.
    pub(super) source_layer: Option<usize>,
    /// What may surprise whoever imports it.
    pub(super) notes: Vec<String>,
}

/// A source whose headers have been read and whose files have the sizes that these call for.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) files: Vec<PathBuf>,
    pub(super) element: Element,
    /// d, numbers of a row.
    pub(super) width: usize,
    /// Bytes from one row of a run to the next: more than a row where the rows of other layers lie between.
    pub(super) stride: u64,
    pub(super) runs: Vec<Run>,
    pub(super) tokens: Option<Tokens>,
    pub(super) division: Division,
    pub(super) origin: Origin,
}

impl Source {
    /// Bytes of a row.
    pub(super) fn row_bytes(&self) -> u64 {
        self.width as u64 * self.element.bytes()
    }

    /// Rows of all runs.
    pub(super) fn rows(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// Tells this source from others without reading all of it: the files' names and sizes and the first and last 4 KiB of
    /// each, and how many rows each has. Layers of one
    /// source have the same.
    pub(super) fn digest(&self) -> Result<String> {
        let mut hash = Sha256::new();
        for path in &self.files {
            let file = open(path)?;
            let bytes = size(path, &file)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            hash.update(format!("{}:{name}{bytes}\n", name.len()));
            for start in [0, bytes.saturating_sub(4096)] {
                let mut part = vec![0; (bytes - start).min(4096) as usize];
                file.read_exact_at(&mut part, start)
                    .with_context(|| format!("cannot read {}", foreign_path(path)))?;
                hash.update(part);
            }
        }
        let mut places = |runs: &[Run]| {
            for run in runs {
                hash.update([run.file as u64, run.count].map(u64::to_le_bytes).concat());
            }
        };
        places(&self.runs);
        places(self.tokens.as_ref().map_or(&[], |tokens| &tokens.runs));
        hash.update(format!("{} {} {}", self.element.name(), self.width, self.stride));
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Opens a file for reading.
pub(super) fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", foreign_path(path)))
}

/// Its size in bytes.
pub(super) fn size(path: &Path, file: &File) -> Result<u64> {
    let metadata = file.metadata().with_context(|| format!("cannot read {}", foreign_path(path)))?;
    ensure!(metadata.is_file(), "{} is not a file", foreign_path(path));
    Ok(metadata.len())
}

/// The longest description of a source that is read, in bytes.
const LONGEST_JSON: u64 = 64 << 20;

/// Reads a JSON file.
pub(super) fn json(path: &Path) -> Result<serde_json::Value> {
    let mut text = Vec::new();
    let read = open(path)?.take(LONGEST_JSON).read_to_end(&mut text);
    read.with_context(|| format!("cannot read {}", foreign_path(path)))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", foreign_path(path)))
}

/// The product, or an error where it cannot be counted.
pub(super) fn product(factors: &[u64]) -> Result<u64> {
    match factors.iter().try_fold(1_u64, |product, &factor| product.checked_mul(factor)) {
        Some(product) if product < 1 << 56 => Ok(product),
        _ => bail!("a shape of {factors:?} is beyond what can be counted"),
    }
}

/// A row's width, or an error where a store cannot have it.
pub(super) fn width(width: u64) -> Result<usize> {
    match usize::try_from(width) {
        Ok(width @ 1..=0x10_0000) => Ok(width),
        _ => bail!("rows of {width} numbers (1 to 1,048,576 are possible)"),
    }
}

/// The number of the layer that is imported, of `layers` that the source has: the one `asked` for, or the only one.
pub(super) fn one_layer(asked: Option<usize>, layers: usize) -> Result<usize> {
    match (asked, layers) {
        (_, 0) => bail!("it has no layers"),
        (None, 1) => Ok(0),
        (None, _) => bail!("it has {layers} layers; --source-layer takes one of 0 to {}", layers - 1),
        (Some(layer), _) if layer < layers => Ok(layer),
        (Some(layer), _) => bail!("--source-layer {layer}: it has {layers} layers, counted from 0"),
    }
}
