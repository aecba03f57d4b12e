//! How the files of a store are read, wherever it lies.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::paths::JOURNAL;

/// The files of one store. Names are relative to it, with `/`; one that is not there is [`ErrorKind::NotFound`].
pub(crate) trait Files: Sync {
    /// Where the store lies, for messages.
    fn place(&self) -> &Path;

    /// All of a file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;

    /// The bytes of a file, without reading it.
    fn size(&self, name: &str) -> io::Result<u64>;

    /// The crc32c of a file.
    fn checksum(&self, name: &str) -> io::Result<u32>;

    /// The journal of a store that need not be finished, as far as there is one.
    fn journal(&self) -> io::Result<Vec<u8>>;
}

/// A store in a folder.
#[derive(Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(dir: &Path) -> Folder {
        Folder(dir.to_path_buf())
    }
}

impl Files for Folder {
    fn place(&self) -> &Path {
        &self.0
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.0.join(name))
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        Ok(fs::metadata(self.0.join(name))?.len())
    }

    /// The file is read in pieces that stay in the processor's cache.
    fn checksum(&self, name: &str) -> io::Result<u32> {
        let (mut file, mut buffer, mut checksum) = (File::open(self.0.join(name))?, vec![0; 256 << 10], 0);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(checksum),
                read => checksum = crc32c::crc32c_append(checksum, &buffer[..read]),
            }
        }
    }

    fn journal(&self) -> io::Result<Vec<u8>> {
        match self.read(JOURNAL) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            journal => journal,
        }
    }
}
