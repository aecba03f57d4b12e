//! The `zarr.json` files: what Zarr v3 needs to know, and the store's own attributes.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use std::path::Path;

use crate::{Result, StoreError, StoreSpec};

/// Version of the format that this crate writes and reads.
pub(crate) const FORMAT_VERSION: u64 = 1;
/// Name of every metadata file.
pub(crate) const ZARR_JSON: &str = "zarr.json";

/// The attributes of a store's group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Attributes {
    /// Always "activation-store".
    pub(crate) format: String,
    pub(crate) format_version: u64,
    /// Every file has its final content.
    pub(crate) complete: bool,
    /// Rows stored; 0 until the store is complete.
    pub(crate) rows: u64,
    /// Contexts stored; 0 until the store is complete.
    pub(crate) contexts: u64,
    /// Values clipped to the row type's range.
    pub(crate) clipped: u64,
    pub(crate) specification: StoreSpec,
}

impl Attributes {
    /// The group's metadata.
    pub(crate) fn group(&self) -> Value {
        json!({ "zarr_format": 3, "node_type": "group", "attributes": self })
    }
}

/// A group without attributes.
pub(crate) fn plain_group() -> Value {
    json!({ "zarr_format": 3, "node_type": "group", "attributes": {} })
}

/// Metadata of the `activations` array, `[rows, d]`.
pub(crate) fn activations(spec: &StoreSpec, rows: u64) -> Value {
    array(
        spec.row_type.name(),
        json!([rows, spec.width]),
        json!([spec.layout.shard_rows, spec.width]),
        json!(0.0),
        json!([sharding(spec, json!([spec.layout.chunk_rows, spec.width]), spec.row_type.bytes())]),
        json!(["row", "channel"]),
    )
}

/// Metadata of the `origin` array, `[rows]`.
pub(crate) fn origin(spec: &StoreSpec, rows: u64) -> Value {
    array(
        if spec.origin_bytes() == 4 { "uint32" } else { "uint64" },
        json!([rows]),
        json!([spec.layout.shard_rows]),
        json!(0),
        json!([sharding(spec, json!([spec.layout.chunk_rows]), spec.origin_bytes())]),
        json!(["row"]),
    )
}

/// Metadata of the `tokens` array, `[contexts, context_length]`.
pub(crate) fn tokens(spec: &StoreSpec, contexts: u64) -> Value {
    array(
        if spec.token_bytes() == 2 { "uint16" } else { "uint32" },
        json!([contexts, spec.context_length]),
        json!([spec.token_chunk_contexts(), spec.context_length]),
        json!(0),
        chunk_codecs(spec, spec.token_bytes()),
        json!(["context", "position"]),
    )
}

/// Metadata of a float64 array of the statistics: `[d]`, or a single number.
pub(crate) fn statistic(width: Option<usize>) -> Value {
    let shape: Vec<usize> = width.into_iter().collect();
    let names: Vec<&str> = width.map(|_| "channel").into_iter().collect();
    array("float64", json!(shape), json!(shape), json!(0.0), json!([bytes()]), json!(names))
}

fn array(
    data_type: &str,
    shape: Value,
    chunk: Value,
    fill_value: Value,
    codecs: Value,
    names: Value,
) -> Value {
    json!({
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": data_type,
        "chunk_grid": { "name": "regular", "configuration": { "chunk_shape": chunk } },
        "chunk_key_encoding": { "name": "default", "configuration": { "separator": "/" } },
        "fill_value": fill_value,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": names,
    })
}

fn sharding(spec: &StoreSpec, chunk: Value, element: usize) -> Value {
    json!({
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": chunk,
            "codecs": chunk_codecs(spec, element),
            "index_codecs": [bytes(), crc32c()],
            "index_location": "end",
        },
    })
}

fn chunk_codecs(spec: &StoreSpec, element: usize) -> Value {
    json!([
        bytes(),
        { "name": "numcodecs.shuffle", "configuration": { "elementsize": element } },
        { "name": "zstd", "configuration": { "level": spec.layout.zstd_level, "checksum": false } },
        crc32c(),
    ])
}

fn bytes() -> Value {
    json!({ "name": "bytes", "configuration": { "endian": "little" } })
}

fn crc32c() -> Value {
    json!({ "name": "crc32c" })
}

/// The text of a metadata file.
pub(crate) fn text(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("a JSON value has a text");
    text.push(b'\n');
    text
}

/// Reads the attributes out of the text of a store's `zarr.json`.
pub(crate) fn parse_attributes(dir: &Path, text: &[u8]) -> Result<Attributes> {
    let path = dir.join(ZARR_JSON);
    let group: serde_json::Value = serde_json::from_slice(text)
        .map_err(|error| StoreError::damaged(&path, format!("it is not JSON ({error})")))?;
    let attributes = &group["attributes"];
    if attributes["format"] != "activation-store" {
        return Err(StoreError::NotAStore(dir.to_path_buf()));
    }
    let version = attributes["format_version"].as_u64().unwrap_or(0);
    if version != FORMAT_VERSION {
        let dir = dir.to_path_buf();
        return Err(StoreError::Version { dir, found: version, supported: FORMAT_VERSION });
    }
    let attributes: Attributes = serde_json::from_value(attributes.clone())
        .map_err(|error| StoreError::damaged(&path, format!("its attributes are not a store's ({error})")))?;
    if group != attributes.group() {
        return Err(StoreError::damaged(&path, "it is not the metadata of a store's group"));
    }
    attributes
        .specification
        .validate()
        .map_err(|error| StoreError::damaged(&path, format!("its specification is impossible: {error}")))?;
    Ok(attributes)
}
