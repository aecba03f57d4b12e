//! The folder of cached activations that SAELens reads: what `datasets.Dataset.save_to_disk` writes.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use arrow_stream::{Columns, NumberType, StreamWriter};
use serde_json::json;

use crate::{Result, RowType, Store, StoreError};

/// Writes every full record; the number of rows.
pub(super) fn write(
    store: &Store,
    dir: &Path,
    file_bytes: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<u64> {
    let spec = store.spec();
    let length = spec.context_length as u64;
    let records = store.rows() / length;
    if records == 0 {
        return Err(StoreError::Export(format!("{} rows do not fill one record of {length}", store.rows())));
    }
    let features = features(store);
    // `Array2D` is an extension type over lists of lists.
    let shape = json!([[spec.context_length, spec.width], spec.row_type.name()]).to_string();
    let info = json!({ "info": { "features": features } }).to_string();
    let columns = Columns {
        rows: hook(store),
        numbers: match spec.row_type {
            RowType::F16 => NumberType::Half,
            RowType::F32 => NumberType::Single,
        },
        length: spec.context_length,
        width: spec.width,
        tokens: (!spec.unknown.tokens).then_some("token_ids"),
        rows_metadata: &[
            ("ARROW:extension:name", "datasets.features.features.Array2DExtensionType"),
            ("ARROW:extension:metadata", &shape),
        ],
        metadata: &[("huggingface", &info)],
    };
    // Arrow counts the elements of a batch in 31 bits; a piece also bounds the memory.
    let records_per_piece = ((1 << 24) / (length * spec.width as u64)).max(1);
    let records_per_file = (file_bytes / (length * spec.row_bytes() as u64)).max(1);
    let files = records.div_ceil(records_per_file);
    let mut names = Vec::new();
    for number in 0..files {
        let name = format!("data-{number:05}-of-{files:05}.arrow");
        let path = dir.join(&name);
        let failed = |error| StoreError::io("write", &path)(error);
        let file = File::create(&path).map_err(StoreError::io("create", &path))?;
        let mut writer = StreamWriter::new(BufWriter::new(file), columns).map_err(failed)?;
        let end = records.min((number + 1) * records_per_file);
        for start in (number * records_per_file..end).step_by(records_per_piece as usize) {
            let piece = start..end.min(start + records_per_piece);
            let rows = piece.start * length..piece.end * length;
            let tokens = if spec.unknown.tokens { Vec::new() } else { tokens_of_rows(store, rows.clone())? };
            writer.write(&store.read_raw_rows(rows)?, &tokens).map_err(failed)?;
            progress(piece.end * length);
        }
        let file = writer.finish().map_err(failed)?;
        let file = file.into_inner().map_err(|error| StoreError::io("write", &path)(error.into_error()))?;
        file.sync_all().map_err(StoreError::io("flush", &path))?;
        names.push(json!({ "filename": name }));
    }
    let write_json = |name: &str, value: &serde_json::Value| {
        let path = dir.join(name);
        fs::write(&path, format!("{value:#}\n")).map_err(StoreError::io("write", &path))
    };
    let info =
        json!({ "citation": "", "description": "", "features": features, "homepage": "", "license": "" });
    write_json("dataset_info.json", &info)?;
    let state = json!({
        "_data_files": names,
        "_fingerprint": fingerprint(store),
        "_format_columns": null,
        "_format_kwargs": {},
        "_format_type": null,
        "_output_all_columns": false,
        "_split": null,
    });
    write_json("state.json", &state)?;
    Ok(records * length)
}

/// The name of the column of activations.
fn hook(store: &Store) -> &str {
    &store.provenance().hook
}

/// The columns, as `datasets` describes them.
fn features(store: &Store) -> serde_json::Value {
    let spec = store.spec();
    let mut columns = json!({
        hook(store): { "shape": [spec.context_length, spec.width], "dtype": spec.row_type.name(), "_type": "Array2D" },
    });
    if !spec.unknown.tokens {
        columns["token_ids"] = json!({
            "feature": { "dtype": "int32", "_type": "Value" },
            "length": spec.context_length,
            "_type": "List",
        });
    }
    columns
}

/// The token of each row. Rows of a window come from neighbouring contexts, so few contexts are read.
fn tokens_of_rows(store: &Store, rows: std::ops::Range<u64>) -> Result<Vec<i32>> {
    let length = store.context_length() as u64;
    let origins = store.origin(rows)?;
    let first = origins.iter().min().map_or(0, |origin| origin / length);
    let last = origins.iter().max().map_or(0, |origin| origin / length);
    let tokens = store.context_tokens(first..last + 1)?;
    let token = |origin: u64| tokens[[(origin / length - first) as usize, (origin % length) as usize]];
    Ok(origins.into_iter().map(|origin| token(origin) as i32).collect())
}

/// Sixteen hexadecimal digits that differ between stores, as `datasets` keys its caches by them.
fn fingerprint(store: &Store) -> String {
    let identity = serde_json::to_vec(store.spec()).expect("plain data has a JSON form");
    let norm = store.stats().mean_norm.to_bits() ^ store.rows();
    format!("{:08x}{:08x}", crc32c::crc32c(&identity), crc32c::crc32c(&norm.to_le_bytes()))
}
