//! `export.json`: what a folder is an export of.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use durable_files::{check_seal, sealed_document};
use serde::{Deserialize, Serialize};
use terminal::foreign_path;

use super::names::Names;

const FILE: &str = "export.json";
const FORMAT: u32 = 1;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) format: u32,
    #[serde(flatten)]
    pub(super) names: Names,
    /// CRC-32C of the decoder.
    pub(super) decoder_crc32c: u32,
    pub(super) features: usize,
    /// Files in `requests/`.
    pub(super) requests: usize,
}

impl Record {
    pub(super) fn new(names: &Names, decoder_crc32c: u32, features: usize, requests: usize) -> Record {
        Record { format: FORMAT, names: names.clone(), decoder_crc32c, features, requests }
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        fs::write(&path, sealed_document(self))
            .with_context(|| format!("cannot write {}", foreign_path(&path)))
    }

    /// Of a folder that is an export.
    pub(super) fn read(folder: &Path) -> Result<Record> {
        let path = folder.join(FILE);
        let text = fs::read(&path)
            .with_context(|| format!("{} exists and is no export for Neuronpedia", foreign_path(folder)))?;
        let damaged = || format!("{} is damaged; remove the folder and export again", foreign_path(&path));
        check_seal(&text).with_context(damaged)?;
        let record: Record = serde_json::from_slice(&text).with_context(damaged)?;
        ensure!(
            record.format == FORMAT,
            "{} is of another version; remove the folder and export again",
            foreign_path(&path)
        );
        Ok(record)
    }
}
