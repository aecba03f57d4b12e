//! The hash that identifies a set of weight files.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::Error;

/// SHA-256 in hexadecimal: of the one file, or, for several, of the files' own hashes one after another.
pub(crate) fn files(paths: &[PathBuf]) -> Result<String, Error> {
    let hashes = paths.iter().map(|path| file(path)).collect::<Result<Vec<_>, _>>()?;
    Ok(match hashes.as_slice() {
        [only] => only.clone(),
        several => hex(&Sha256::digest(several.concat())),
    })
}

fn file(path: &Path) -> Result<String, Error> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).map_err(Error::io(path))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&block[..n]),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
