//! A shard file of a finished store, read chunk by chunk.
//!
//! Shards are read, not mapped into memory. If a mapped file turns out to be shorter than it was, or its disk fails, the
//! system ends the program with SIGBUS. A read fails with an error that names the file.

use std::fs::File;
use std::io::ErrorKind;
#[cfg(feature = "bucket")]
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::codec::{self, CHECKSUM, ShardIndex};
use crate::journal::ShardFile;
use crate::{Result, StoreError, StoreSpec, paths};

/// Bytes that are read at once: they are still in the processor's nearest caches when their checksum is taken.
const PIECE: usize = 128 << 10;

/// A shard file whose size, index and last checksum are those of the journal. A store can have more of them than a process
/// may have open files, so each read opens it anew.
#[derive(Debug)]
pub(crate) struct Shard {
    path: PathBuf,
    bytes: u64,
    /// When it was written last, where the file system tells; `None` too where it is still being written.
    modified: Option<SystemTime>,
    index: ShardIndex,
}

impl Shard {
    /// Opens the file `name` of the store in `dir`, which has `rows` rows, and checks it against what is recorded.
    pub(crate) fn open(
        dir: &Path,
        name: &str,
        recorded: &ShardFile,
        spec: &StoreSpec,
        rows: u64,
    ) -> Result<Shard> {
        let path = paths::check_size(dir, name, recorded.bytes)?;
        let file = File::open(&path).map_err(StoreError::io("open", &path))?;
        let metadata = file.metadata().map_err(StoreError::io("open", &path))?;
        let chunks = spec.layout.chunks_per_shard();
        // The last chunk's checksum and the index.
        let tail = (ShardIndex::encoded_len(chunks) + 4) as u64;
        let start = recorded.bytes.checked_sub(tail);
        let start = start.ok_or_else(|| StoreError::damaged(&path, "it is too short for its index"))?;
        let mut tail = vec![0; tail as usize];
        let mut shard = Shard {
            bytes: recorded.bytes,
            modified: metadata.modified().ok(),
            index: ShardIndex(Vec::new()),
            path,
        };
        shard.read_at(&file, &mut tail, start)?;
        if crc32c::crc32c(&tail) != recorded.tail_crc32c {
            let what = "its index is not the one that the journal records for this shard";
            return Err(StoreError::damaged(&shard.path, what));
        }
        let present = (rows as usize).div_ceil(spec.layout.chunk_rows);
        shard.index = ShardIndex::parse_tail(&tail, recorded.bytes, chunks, present)
            .map_err(|what| StoreError::damaged(&shard.path, what))?;
        Ok(shard)
    }

    /// The same file, whose chunks come one after the other while it is open.
    #[cfg(feature = "bucket")]
    pub(crate) fn being_filled(mut self) -> Shard {
        self.modified = None;
        self
    }

    /// Where it is.
    #[cfg(feature = "bucket")]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where in the file its chunk number `chunk` lies; `None` if that has no rows.
    #[cfg(feature = "bucket")]
    pub(crate) fn chunk(&self, chunk: usize) -> Option<Range<u64>> {
        self.index.0.get(chunk).cloned().flatten()
    }

    /// Decodes its chunk number `chunk`, which has rows, into `planes`, which are as long as the chunk.
    pub(crate) fn decode_chunk(&self, chunk: usize, decoder: &mut Decoder, planes: &mut [u8]) -> Result<()> {
        let range = self.index.0[chunk].clone().expect("a chunk with rows is in the index");
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(self.changed("it is gone".to_owned()));
            }
            Err(error) => return Err(StoreError::io("open", &self.path)(error)),
        };
        let metadata = file.metadata().map_err(StoreError::io("read", &self.path))?;
        if metadata.len() != self.bytes {
            return Err(self.changed(format!("it has {} bytes and had {}", metadata.len(), self.bytes)));
        }
        if self.modified.is_some() && metadata.modified().ok() != self.modified {
            return Err(self.changed("it was rewritten".to_owned()));
        }
        decoder.stored.resize((range.end - range.start) as usize, 0);
        let (mut checksum, mut offset) = (0, range.start);
        let front = decoder.stored.len().saturating_sub(CHECKSUM);
        let (front, last) = decoder.stored.split_at_mut(front);
        for piece in front.chunks_mut(PIECE) {
            self.read_at(&file, piece, offset)?;
            checksum = crc32c::crc32c_append(checksum, piece);
            offset += piece.len() as u64;
        }
        self.read_at(&file, last, offset)?;
        codec::decode_chunk_with(&mut decoder.decompressor, &decoder.stored, checksum, planes)
            .map_err(|what| StoreError::DamagedChunk { file: self.path.clone(), chunk, what })
    }

    fn read_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> Result<()> {
        match file.read_exact_at(buffer, offset) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(self.changed("it became shorter".to_owned()))
            }
            read => read.map_err(StoreError::io("read", &self.path)),
        }
    }

    fn changed(&self, what: String) -> StoreError {
        StoreError::Changed { file: self.path.clone(), what }
    }
}

/// What decoding takes; it is worth keeping for more than one chunk.
pub(crate) struct Decoder {
    decompressor: zstd::bulk::Decompressor<'static>,
    /// The chunk as it is in the file.
    stored: Vec<u8>,
}

impl Decoder {
    pub(crate) fn new() -> Result<Decoder> {
        let decompressor = zstd::bulk::Decompressor::new().map_err(StoreError::Zstd)?;
        Ok(Decoder { decompressor, stored: Vec::new() })
    }
}
