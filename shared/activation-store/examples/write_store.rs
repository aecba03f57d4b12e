//! Writes a store from files of plain numbers, for tests against other readers and for experiments:
//!
//!     write_store FOLDER SPECIFICATION.json TOKENS ROWS
//!
//! TOKENS holds `[contexts, context_length]` little-endian uint32, ROWS `[contexts · context_length, width]`
//! little-endian float32.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

use activation_store::{StoreSpec, StoreWriter, WriterOptions};
use ndarray::{ArrayView2, ArrayView3, s};

fn main() {
    let arguments: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder, specification, tokens, rows] = &arguments[..] else {
        eprintln!("usage: write_store FOLDER SPECIFICATION.json TOKENS ROWS");
        process::exit(2);
    };
    if let Err(error) = write(folder, specification, tokens, rows) {
        eprintln!("error: {error}");
        process::exit(1);
    }
}

fn write(
    folder: &Path,
    specification: &Path,
    tokens: &Path,
    rows: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let spec: StoreSpec = serde_json::from_slice(&fs::read(specification)?)?;
    let tokens: Vec<u32> = bytemuck::pod_collect_to_vec(&fs::read(tokens)?);
    let rows: Vec<f32> = bytemuck::pod_collect_to_vec(&fs::read(rows)?);
    let mut writer = StoreWriter::open(folder, &spec, &WriterOptions::default())?;
    let (length, width) = (spec.context_length, spec.width);
    let contexts = tokens.len() / length;
    let tokens = ArrayView2::from_shape((contexts, length), &tokens)?;
    let rows = ArrayView3::from_shape((contexts, length, width), &rows)?;
    let done = writer.contexts_done() as usize;
    writer.append(tokens.slice(s![done.., ..]), rows.slice(s![done.., .., ..]))?;
    let summary = writer.finish()?;
    println!("{} rows, {} bytes", summary.rows, summary.stored_bytes);
    Ok(())
}
