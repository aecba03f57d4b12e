//! Small stores with known content.

use std::collections::BTreeMap;
use std::path::Path;

use activation_store::{Layout, RowType, StoreSpec, StoreSummary, StoreWriter, WriterOptions};
use ndarray::{Array2, Array3};

pub(crate) const BOS: u32 = 1;

/// A specification whose windows, shards and chunks are small and not multiples of a context.
pub(crate) fn small_spec(contexts: u64) -> StoreSpec {
    let mut spec = StoreSpec::new(12, 10, contexts);
    spec.bos_token = BOS;
    spec.vocabulary = 500;
    spec.seed = 7;
    spec.layout = Layout { window_rows: 192, shard_rows: 64, chunk_rows: 16, zstd_level: 1 };
    spec.provenance.model = "test".to_owned();
    spec.provenance.command_line = "dump --threads 1".to_owned();
    spec
}

/// Contexts `first..first + n`, `[n, T]`: BOS first, another BOS in every third context.
pub(crate) fn tokens(spec: &StoreSpec, first: u64, n: u64) -> Array2<u32> {
    let length = spec.context_length as u64;
    Array2::from_shape_fn((n as usize, spec.context_length), |(context, position)| {
        let (context, position) = (first + context as u64, position as u64);
        let bos = position == 0 || (context % 3 == 1 && position == 4);
        if bos { BOS } else { ((context * length + position) * 31 % 498 + 2) as u32 }
    })
}

/// The rows of the same contexts, `[n, T, d]`: reproducible, all different, with awkward values.
pub(crate) fn rows(spec: &StoreSpec, first: u64, n: u64) -> Array3<f32> {
    let (length, width) = (spec.context_length, spec.width);
    Array3::from_shape_fn((n as usize, length, width), |(context, position, channel)| {
        let row = (first as usize + context) * length + position;
        value(spec, (row * width + channel) as u64)
    })
}

fn value(spec: &StoreSpec, index: u64) -> f32 {
    let hash = (index ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let unit = hash as f32 / (1 << 24) as f32 - 0.5;
    match index % spec.width as u64 {
        0 => (index / spec.width as u64) as f32, // names its row
        1 => -0.0,
        2 => unit * 1e-6, // subnormal in float16
        3 => 300.0 + unit,
        _ => unit * 4.0,
    }
}

/// Appends the contexts from `writer.contexts_done()` to the specification's end, `batch` at a time.
pub(crate) fn append_all(
    writer: &mut StoreWriter,
    spec: &StoreSpec,
    batch: u64,
) -> activation_store::Result<()> {
    let mut context = writer.contexts_done();
    while context < spec.contexts {
        let n = batch.min(spec.contexts - context);
        writer.append(tokens(spec, context, n).view(), rows(spec, context, n).view())?;
        context += n;
    }
    Ok(())
}

pub(crate) fn write_store(dir: &Path, spec: &StoreSpec, batch: u64) -> StoreSummary {
    let options = WriterOptions { threads: 2, ..WriterOptions::default() };
    let mut writer = StoreWriter::open(dir, spec, &options).unwrap();
    append_all(&mut writer, spec, batch).unwrap();
    writer.finish().unwrap()
}

/// What the store makes of a value.
pub(crate) fn stored(spec: &StoreSpec, value: f32) -> f32 {
    match spec.row_type {
        RowType::F16 => half::f16::from_f32(value).to_f32(),
        RowType::F32 => value,
    }
}

/// Every file below `dir`, by its relative name.
pub(crate) fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// The first difference of two folders, for a message that can be read.
pub(crate) fn assert_same_files(left: &Path, right: &Path) {
    let (left, right) = (files(left), files(right));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&left), names(&right));
    for (name, content) in &left {
        assert!(*content == right[name], "{name} differs");
    }
}
