//! NumPy's `.npy` format, version 1.0: a magic string, a header that is a Python literal, the plain array.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{Result, RowType, Store, StoreError};

/// Rows that are decoded at once.
const PIECE_ROWS: u64 = 1 << 15;

/// Writes every row, origin and token; the number of rows.
pub(super) fn write(
    store: &Store,
    dir: &Path,
    file_bytes: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<u64> {
    let spec = store.spec();
    let row_type = match spec.row_type {
        RowType::F16 => "<f2",
        RowType::F32 => "<f4",
    };
    let origin_bytes = spec.origin_bytes();
    let rows_per_file = (file_bytes / spec.row_bytes() as u64).max(1);
    for (number, start) in (0..store.rows()).step_by(rows_per_file as usize).enumerate() {
        let end = store.rows().min(start + rows_per_file);
        let mut activations = NpyFile::create(
            dir.join(format!("activations-{number:05}.npy")),
            row_type,
            &[end - start, spec.width as u64],
        )?;
        let mut origins = NpyFile::create(
            dir.join(format!("origin-{number:05}.npy")),
            if origin_bytes == 4 { "<u4" } else { "<u8" },
            &[end - start],
        )?;
        for piece in (start..end).step_by(PIECE_ROWS as usize) {
            let range = piece..end.min(piece + PIECE_ROWS);
            activations.write(&store.read_raw_rows(range.clone())?)?;
            for origin in store.origin(range.clone())? {
                origins.write(&origin.to_le_bytes()[..origin_bytes])?;
            }
            progress(range.end);
        }
        activations.finish()?;
        origins.finish()?;
    }

    if spec.unknown.tokens {
        return Ok(store.rows());
    }
    let token_bytes = spec.token_bytes();
    let mut tokens = NpyFile::create(
        dir.join("tokens.npy"),
        if token_bytes == 2 { "<u2" } else { "<u4" },
        &[store.contexts(), spec.context_length as u64],
    )?;
    let contexts_per_piece = spec.token_chunk_contexts();
    for start in (0..store.contexts()).step_by(contexts_per_piece) {
        for token in store.context_tokens(start..store.contexts().min(start + contexts_per_piece as u64))? {
            tokens.write(&token.to_le_bytes()[..token_bytes])?;
        }
    }
    tokens.finish()?;
    Ok(store.rows())
}

/// A `.npy` file that is being written.
struct NpyFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl NpyFile {
    fn create(path: PathBuf, data_type: &str, shape: &[u64]) -> Result<Self> {
        let file = File::create(&path).map_err(StoreError::io("create", &path))?;
        let mut npy = NpyFile { path, file: BufWriter::with_capacity(1 << 20, file) };
        npy.write(&header(data_type, shape))?;
        Ok(npy)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(StoreError::io("write", &self.path))
    }

    fn finish(mut self) -> Result<()> {
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .map_err(StoreError::io("write", &self.path))
    }
}

/// Magic string, version 1.0, the header's length and the header, padded to a multiple of 64 bytes.
fn header(data_type: &str, shape: &[u64]) -> Vec<u8> {
    let shape: String = shape.iter().map(|extent| format!("{extent}, ")).collect();
    let mut literal = format!("{{'descr': '{data_type}', 'fortran_order': False, 'shape': ({shape}), }}");
    while (10 + literal.len() + 1) % 64 != 0 {
        literal.push(' ');
    }
    literal.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(literal.len() as u16).to_le_bytes());
    bytes.extend_from_slice(literal.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_python_literal_padded_to_64_bytes() {
        let header = header("<f2", &[1000, 768]);
        assert_eq!(header.len(), 128);
        assert_eq!(header[..10], *b"\x93NUMPY\x01\x00\x76\x00");
        let literal = std::str::from_utf8(&header[10..]).unwrap();
        assert_eq!(literal.trim_end(), "{'descr': '<f2', 'fortran_order': False, 'shape': (1000, 768, ), }");
        assert!(literal.ends_with(" \n"));
    }
}
