//! The activation index on disk.
//!
//! ```text
//! features/
//!     index.json                                  what was encoded, sealed
//!     features.jsonl                              the figures of each feature, a line each
//!     latents/HOOK/START_END.safetensors          the firings of features START to END, in the cache format of delphi
//!     latents/HOOK/config.json                    for delphi
//! ```
//!
//! A file of firings holds `locations` [n, 3], uint16 or uint32: context, position, feature - START; `activations` [n], float16;
//! `tokens` [contexts, T]. That is what `LatentCache.save_splits` of delphi writes and its `LatentDataset` reads
//! (delphi/latents/cache.py and loader.py). There the firings of a feature must be in the order of the text. Here they are
//! also sorted by feature, so that one feature is a piece of a file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use durable_files::{check_seal, sealed_document};
use half::f16;
use safetensors::{Dtype, View};
use serde::{Deserialize, Serialize};
use serde_json::json;
use terminal::foreign_path;

use super::figures::Figures;
use super::firing::Firing;
use crate::command::arguments::FeatureKind;

const FORMAT: u32 = 1;
pub(crate) const RECORD: &str = "index.json";
const FIGURES: &str = "features.jsonl";
const LATENTS: &str = "latents";
/// The largest header of a file of firings that is read; ours has some hundred bytes.
const LARGEST_HEADER: u64 = 1 << 20;

/// `index.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) format: u32,
    pub(crate) store: PathBuf,
    pub(crate) model: String,
    pub(crate) model_hash: String,
    pub(crate) tokenizer_hash: String,
    pub(crate) hook: String,
    /// CRC-32C of the decoder's numbers: the figures are of these weights.
    pub(crate) decoder_crc32c: u32,
    /// F.
    pub(crate) features: usize,
    pub(crate) contexts: usize,
    pub(crate) context_length: usize,
    /// Rows that were encoded at each position, [T].
    pub(crate) rows_by_position: Vec<u64>,
    pub(crate) firings: u64,
    /// Activations beyond float16, which became its largest number.
    pub(crate) clipped: u64,
    /// Whether token texts were known, so that newlines and punctuation could be told.
    pub(crate) texts: bool,
    /// Features of each file: the first, and the one behind the last.
    pub(crate) files: Vec<(usize, usize)>,
}

impl Record {
    /// Of this version of the format.
    pub(crate) fn format() -> u32 {
        FORMAT
    }

    /// Rows that were encoded.
    pub(crate) fn rows(&self) -> u64 {
        self.rows_by_position.iter().sum()
    }
}

/// An index, read.
#[derive(Debug)]
pub(crate) struct Index {
    folder: PathBuf,
    pub(crate) record: Record,
    /// Of every feature.
    pub(crate) figures: Vec<Figures>,
}

/// A tensor whose numbers are made when they are written.
struct Made<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: usize,
    make: &'a dyn Fn() -> Vec<u8>,
}

impl View for Made<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned((self.make)())
    }
    fn data_len(&self) -> usize {
        self.bytes
    }
}

/// What the firings of a file are told by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) contexts: usize,
    pub(crate) context_length: usize,
    /// 2 or 4 bytes for a token.
    pub(crate) token_bytes: usize,
}

impl Shape {
    /// Bytes of a number in `locations` of files with so many features.
    pub(crate) fn location_bytes(&self, features: usize) -> usize {
        let largest = self.contexts.max(self.context_length).max(features);
        if largest <= 1 << 16 { 2 } else { 4 }
    }
}

/// Writes the firings of `features`, whose numbers of firings are `counts`, one after the other.
pub(crate) fn write_firings(
    folder: &Path,
    hook: &str,
    features: Range<usize>,
    counts: &[u64],
    firings: &[Firing],
    tokens: &[u32],
    shape: Shape,
) -> Result<()> {
    let path = firings_file(folder, hook, &features);
    let parent = path.parent().expect("it is in the folder of its hook");
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", foreign_path(parent)))?;
    let bytes = shape.location_bytes(features.len());
    let locations = || {
        let mut numbers = Vec::with_capacity(3 * bytes * firings.len());
        let mut firings = firings.iter();
        for (feature, count) in counts.iter().enumerate() {
            for firing in firings.by_ref().take(*count as usize) {
                let place = firing.place() as usize;
                for number in [place / shape.context_length, place % shape.context_length, feature] {
                    numbers.extend_from_slice(&(number as u32).to_le_bytes()[..bytes]);
                }
            }
        }
        numbers
    };
    let activations = || firings.iter().flat_map(|firing| firing.bits().to_le_bytes()).collect();
    let of_tokens = || {
        let bytes = tokens.iter().flat_map(|token| token.to_le_bytes().into_iter().take(shape.token_bytes));
        bytes.collect()
    };
    let unsigned = |bytes: usize| if bytes == 2 { Dtype::U16 } else { Dtype::U32 };
    let made = |dtype: Dtype, shape: &[usize], size: usize, make| Made {
        dtype,
        shape: shape.to_vec(),
        bytes: shape.iter().product::<usize>() * size,
        make,
    };
    let n = firings.len();
    let tensors: [(&str, Made<'_>); 3] = [
        ("locations", made(unsigned(bytes), &[n, 3], bytes, &locations as &dyn Fn() -> Vec<u8>)),
        ("activations", made(Dtype::F16, &[n], 2, &activations)),
        (
            "tokens",
            made(
                unsigned(shape.token_bytes),
                &[shape.contexts, shape.context_length],
                shape.token_bytes,
                &of_tokens,
            ),
        ),
    ];
    let write = || format!("cannot write {}", foreign_path(&path));
    safetensors::serialize_to_file(tensors, None, &path).with_context(write)
}

/// Writes everything but the firings.
pub(crate) fn write_record(folder: &Path, record: &Record, figures: &[Figures]) -> Result<()> {
    let write = |path: PathBuf, text: String| -> Result<()> {
        fs::write(&path, text).with_context(|| format!("cannot write {}", foreign_path(&path)))
    };
    let hook = folder.join(LATENTS).join(&record.hook);
    // delphi takes the tokenizer from `model_name`; the rest is what its own configuration of a cache has.
    let config = json!({
        "dataset_repo": "", "dataset_split": "", "dataset_name": "", "dataset_column": "text", "batch_size": 32,
        "cache_ctx_len": record.context_length, "n_tokens": record.contexts * record.context_length,
        "n_splits": record.files.len(), "model_name": record.model,
    });
    write(hook.join("config.json"), serde_json::to_string_pretty(&config)? + "\n")?;
    let lines = figures.iter().map(|of| Ok(serde_json::to_string(of)? + "\n")).collect::<Result<String>>()?;
    write(folder.join(FIGURES), lines)?;
    write(folder.join(RECORD), sealed_document(record))
}

/// `latents/HOOK/START_END.safetensors`, END being the last feature.
fn firings_file(folder: &Path, hook: &str, features: &Range<usize>) -> PathBuf {
    let name = format!("{}_{}.safetensors", features.start, features.end - 1);
    folder.join(LATENTS).join(hook).join(name)
}

impl Index {
    /// Reads what is in `folder`, firings apart.
    pub(crate) fn open(folder: &Path) -> Result<Index> {
        let path = folder.join(RECORD);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", foreign_path(&path)))?;
        let damaged = |path: &Path| format!("{} is damaged; make the index again", foreign_path(path));
        check_seal(&text).with_context(|| damaged(&path))?;
        let record: Record = serde_json::from_slice(&text).with_context(|| damaged(&path))?;
        ensure!(
            record.format == FORMAT,
            "{} is of format {}, and this version reads {FORMAT}; make the index again",
            foreign_path(&path),
            record.format
        );
        let path = folder.join(FIGURES);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", foreign_path(&path)))?;
        let figures: Vec<Figures> = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .with_context(|| damaged(&path))?;
        let in_order = figures.iter().enumerate().all(|(at, of)| of.feature as usize == at);
        ensure!(in_order && figures.len() == record.features, damaged(&path));
        Ok(Index { folder: folder.to_owned(), record, figures })
    }

    /// The features of a kind, by their number.
    pub(crate) fn of_kind(&self, kind: FeatureKind) -> impl Iterator<Item = &Figures> {
        self.figures.iter().filter(move |of| kind == FeatureKind::All || of.kinds.contains(&kind))
    }

    /// The firings of one feature, by place.
    pub(crate) fn firings(&self, feature: usize) -> Result<Vec<Firing>> {
        let files = &self.record.files;
        let found = files.iter().find(|(start, end)| (*start..*end).contains(&feature));
        let (start, end) = *found.context("no file of the index has this feature")?;
        let count = |features: &[Figures]| features.iter().map(|of| of.firings).sum::<u64>() as usize;
        let first = count(&self.figures[start..feature]);
        let file = self.open_firings(start..end)?;
        file.firings(first..first + count(&self.figures[feature..=feature]), &self.record)
    }

    /// Tokens by place.
    pub(crate) fn tokens(&self) -> Result<Vec<u32>> {
        let (start, end) = *self.record.files.first().context("the index has no files")?;
        self.open_firings(start..end)?.tokens(&self.record)
    }

    /// Calls `take` with every firing of every feature: feature, place, and bits of the activation. Features ascend, and places
    /// within a feature.
    pub(crate) fn each_firing(&self, mut take: impl FnMut(usize, usize, u16)) -> Result<()> {
        let places = self.record.contexts * self.record.context_length;
        for (start, end) in &self.record.files {
            let file = self.open_firings(*start..*end)?;
            let n = file.rows(self)?;
            for first in (0..n).step_by(PIECE) {
                let piece = first..(first + PIECE).min(n);
                let activations = file.numbers("activations", piece.clone())?;
                for ([place, feature], bits) in file.places(piece, &self.record)?.into_iter().zip(activations)
                {
                    ensure!(place < places && start + feature < *end, file.damaged());
                    take(start + feature, place, bits as u16);
                }
            }
        }
        Ok(())
    }

    fn open_firings(&self, features: Range<usize>) -> Result<FiringsFile> {
        FiringsFile::open(firings_file(&self.folder, &self.record.hook, &features))
    }
}

/// Firings that are read at once.
const PIECE: usize = 1 << 20;

/// An open file of firings.
struct FiringsFile {
    path: PathBuf,
    file: File,
    tensors: BTreeMap<String, Tensor>,
    /// Where the numbers begin.
    data: u64,
}

/// What the header of a safetensors file says of a tensor.
#[derive(Debug, Deserialize)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl FiringsFile {
    fn open(path: PathBuf) -> Result<FiringsFile> {
        let read = || format!("cannot read {}", foreign_path(&path));
        let file = File::open(&path).with_context(read)?;
        let length = file.metadata().with_context(read)?.len();
        let mut size = [0; 8];
        file.read_exact_at(&mut size, 0).with_context(read)?;
        let size = u64::from_le_bytes(size);
        ensure!(size <= LARGEST_HEADER.min(length), damaged(&path));
        let mut header = vec![0; size as usize];
        file.read_exact_at(&mut header, 8).with_context(read)?;
        let tensors: BTreeMap<String, Tensor> =
            serde_json::from_slice(&header).with_context(|| damaged(&path))?;
        let fits = |tensor: &Tensor| {
            let (start, end) = tensor.data_offsets;
            let numbers = tensor.shape.iter().try_fold(1_usize, |n, side| n.checked_mul(*side));
            let bytes = numbers.and_then(|n| n.checked_mul(tensor.dtype.bitsize() / 8));
            let inside = end.checked_add(8 + size).is_some_and(|end| end <= length);
            inside && bytes.map(|bytes| bytes as u64) == end.checked_sub(start)
        };
        ensure!(tensors.values().all(fits), damaged(&path));
        Ok(FiringsFile { path, file, tensors, data: 8 + size })
    }

    /// Firings in it, which must be as many as the figures of its features say.
    fn rows(&self, index: &Index) -> Result<usize> {
        let n = self.tensor("locations")?.shape[0];
        ensure!(n as u64 <= index.record.firings, self.damaged());
        Ok(n)
    }

    /// Place and feature, counted from the file's first, of some of its firings.
    fn places(&self, firings: Range<usize>, record: &Record) -> Result<Vec<[usize; 2]>> {
        let numbers = self.numbers("locations", 3 * firings.start..3 * firings.end)?;
        let places = numbers
            .chunks_exact(3)
            .map(|of| [of[0] as usize * record.context_length + of[1] as usize, of[2] as usize]);
        Ok(places.collect())
    }

    fn firings(&self, firings: Range<usize>, record: &Record) -> Result<Vec<Firing>> {
        let places = self.places(firings.clone(), record)?;
        let activations = self.numbers("activations", firings)?;
        let last = record.contexts * record.context_length;
        let pairs = places.iter().zip(activations);
        pairs
            .map(|([place, _], bits)| match *place < last {
                true => Ok(Firing::new(0, *place as u32, f16::from_bits(bits as u16))),
                false => bail!(self.damaged()),
            })
            .collect()
    }

    fn tokens(&self, record: &Record) -> Result<Vec<u32>> {
        let shape = [record.contexts, record.context_length];
        ensure!(self.tensor("tokens")?.shape == shape, self.damaged());
        self.numbers("tokens", 0..record.contexts * record.context_length)
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).filter(|tensor| !tensor.shape.is_empty()).with_context(|| self.damaged())
    }

    /// Some of the numbers of a tensor, bits of float16 among them.
    fn numbers(&self, name: &str, range: Range<usize>) -> Result<Vec<u32>> {
        let tensor = self.tensor(name)?;
        let size = match tensor.dtype {
            Dtype::U16 | Dtype::F16 => 2,
            Dtype::U32 => 4,
            _ => bail!(self.damaged()),
        };
        let numbers: usize = tensor.shape.iter().product();
        ensure!(range.start <= range.end && range.end <= numbers, self.damaged());
        let mut bytes = vec![0; (range.end - range.start) * size];
        let at = self.data + tensor.data_offsets.0 + (range.start * size) as u64;
        self.file
            .read_exact_at(&mut bytes, at)
            .with_context(|| format!("cannot read {}", foreign_path(&self.path)))?;
        let number = |bytes: &[u8]| match bytes {
            [a, b] => u32::from(u16::from_le_bytes([*a, *b])),
            bytes => u32::from_le_bytes(bytes.try_into().expect("four bytes")),
        };
        Ok(bytes.chunks_exact(size).map(number).collect())
    }

    fn damaged(&self) -> String {
        damaged(&self.path)
    }
}

fn damaged(path: &Path) -> String {
    format!("{} is damaged; make the index again", foreign_path(path))
}
