//! The folder of cached activations that SAELens reads: what `datasets.Dataset.save_to_disk` writes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, FixedSizeListArray, Float16Array, Float32Array, Int32Array, ListArray, RecordBatch,
};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema};
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
    let schema = Arc::new(schema(store, &features));
    // Arrow counts the elements of a batch in 31 bits; a piece also bounds the memory.
    let records_per_piece = ((1 << 24) / (length * spec.width as u64)).max(1);
    let records_per_file = (file_bytes / (length * spec.row_bytes() as u64)).max(1);
    let files = records.div_ceil(records_per_file);
    let mut names = Vec::new();
    for number in 0..files {
        let name = format!("data-{number:05}-of-{files:05}.arrow");
        let path = dir.join(&name);
        let failed = |error: ArrowError| match error {
            ArrowError::IoError(_, source) => StoreError::io("write", &path)(source),
            other => StoreError::Export(format!("{}: {other}", path.display())),
        };
        let file = File::create(&path).map_err(StoreError::io("create", &path))?;
        let mut writer = StreamWriter::try_new(BufWriter::new(file), &schema).map_err(failed)?;
        let end = records.min((number + 1) * records_per_file);
        for start in (number * records_per_file..end).step_by(records_per_piece as usize) {
            let piece = start..end.min(start + records_per_piece);
            let batch = batch(store, &schema, piece.clone())?;
            writer.write(&batch).map_err(failed)?;
            progress(piece.end * length);
        }
        writer.finish().map_err(failed)?;
        let file = writer.into_inner().map_err(failed)?;
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
    json!({
        hook(store): { "shape": [spec.context_length, spec.width], "dtype": spec.row_type.name(), "_type": "Array2D" },
        "token_ids": {
            "feature": { "dtype": "int32", "_type": "Value" },
            "length": spec.context_length,
            "_type": "List",
        },
    })
}

/// The columns, as Arrow describes them: `Array2D` is an extension type over lists of lists.
fn schema(store: &Store, features: &serde_json::Value) -> Schema {
    let spec = store.spec();
    let shape = json!([[spec.context_length, spec.width], spec.row_type.name()]);
    let extension = HashMap::from([
        ("ARROW:extension:name".to_owned(), "datasets.features.features.Array2DExtensionType".to_owned()),
        ("ARROW:extension:metadata".to_owned(), shape.to_string()),
    ]);
    let activations = Field::new(hook(store), activations_type(spec.row_type), true).with_metadata(extension);
    let tokens = Field::new("token_ids", tokens_type(spec.context_length), true);
    let info = json!({ "info": { "features": features } });
    Schema::new(vec![activations, tokens])
        .with_metadata(HashMap::from([("huggingface".to_owned(), info.to_string())]))
}

fn element_field(row_type: RowType) -> Arc<Field> {
    let element = match row_type {
        RowType::F16 => DataType::Float16,
        RowType::F32 => DataType::Float32,
    };
    Arc::new(Field::new("item", element, true))
}

fn row_field(row_type: RowType) -> Arc<Field> {
    Arc::new(Field::new("item", DataType::List(element_field(row_type)), true))
}

fn activations_type(row_type: RowType) -> DataType {
    DataType::List(row_field(row_type))
}

fn token_field() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Int32, true))
}

fn tokens_type(length: usize) -> DataType {
    DataType::FixedSizeList(token_field(), length as i32)
}

/// The records `range`: T rows each, in the order of the store.
fn batch(store: &Store, schema: &Arc<Schema>, range: std::ops::Range<u64>) -> Result<RecordBatch> {
    let spec = store.spec();
    let (length, width) = (spec.context_length, spec.width);
    let records = (range.end - range.start) as usize;
    let rows = range.start * length as u64..range.end * length as u64;
    let raw = Buffer::from_vec(store.read_raw_rows(rows.clone())?);
    let elements: ArrayRef = match spec.row_type {
        RowType::F16 => {
            Arc::new(Float16Array::new(ScalarBuffer::new(raw, 0, records * length * width), None))
        }
        RowType::F32 => {
            Arc::new(Float32Array::new(ScalarBuffer::new(raw, 0, records * length * width), None))
        }
    };
    let failed = |error: ArrowError| StoreError::Export(error.to_string());
    let in_rows = OffsetBuffer::from_repeated_length(width, records * length);
    let row_lists =
        ListArray::try_new(element_field(spec.row_type), in_rows, elements, None).map_err(failed)?;
    let in_records = OffsetBuffer::from_repeated_length(length, records);
    let activations = ListArray::try_new(row_field(spec.row_type), in_records, Arc::new(row_lists), None)
        .map_err(failed)?;
    let tokens = Int32Array::from(tokens_of_rows(store, rows)?);
    let tokens =
        FixedSizeListArray::try_new(token_field(), length as i32, Arc::new(tokens), None).map_err(failed)?;
    RecordBatch::try_new(schema.clone(), vec![Arc::new(activations), Arc::new(tokens)]).map_err(failed)
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
