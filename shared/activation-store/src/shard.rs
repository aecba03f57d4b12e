//! A shard file of a finished store, read chunk by chunk.
//!
//! Shards are read, not mapped into memory. If a mapped file turns out to be shorter than it was, or its disk fails, the
//! system ends the program with SIGBUS. A read fails with an error that names the file.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::codec::{self, CHECKSUM, ShardIndex};
use crate::frame::{self, BLOCK, BLOCK_HEADER, BlockDecoder, HEADER_BYTES};
use crate::journal::ShardFile;
use crate::{Result, StoreError, StoreSpec, paths};

/// Bytes that are read at once: they are still in the processor's nearest caches when their checksum is taken.
const PIECE: usize = BLOCK + BLOCK_HEADER;

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
        let bytes = ChunkBytes { shard: self, file: &file, range, checksum: 0 };
        if decoder.decode_in_place(bytes.clone(), planes)? {
            return Ok(());
        }
        decoder.decode(bytes, planes)?.map_err(|what| StoreError::DamagedChunk {
            file: self.path.clone(),
            chunk,
            what,
        })
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
    blocks: BlockDecoder,
    /// The chunk as it is in the file.
    stored: Vec<u8>,
}

impl Decoder {
    pub(crate) fn new() -> Result<Decoder> {
        let decompressor = zstd::bulk::Decompressor::new().map_err(StoreError::Zstd)?;
        Ok(Decoder { decompressor, blocks: BlockDecoder::default(), stored: Vec::new() })
    }

    /// Reads a chunk and decodes it, or says what is wrong with it.
    fn decode(
        &mut self,
        mut bytes: ChunkBytes<'_>,
        planes: &mut [u8],
    ) -> Result<std::result::Result<(), String>> {
        self.stored.resize(bytes.left(), 0);
        let front = self.stored.len().saturating_sub(CHECKSUM);
        let (front, last) = self.stored.split_at_mut(front);
        bytes.read(front)?;
        let checksum = bytes.checksum;
        bytes.read(last)?;
        Ok(codec::decode_chunk_with(&mut self.decompressor, &self.stored, checksum, planes))
    }

    /// Reads a chunk whose first blocks are as they were right to where they belong, and decodes the others. False if the chunk
    /// is not like this, or is damaged: `decode` then does it, or tells what is wrong.
    fn decode_in_place(&mut self, mut bytes: ChunkBytes<'_>, planes: &mut [u8]) -> Result<bool> {
        const HEAD: usize = HEADER_BYTES + BLOCK_HEADER;
        let Some(mut left) = bytes.left().checked_sub(HEAD + CHECKSUM) else { return Ok(false) };
        let mut head = [0; HEAD];
        bytes.read(&mut head)?;
        let (header, mut block) = head.split_last_chunk().map_or((&head[..], [0; 3]), |(a, b)| (a, *b));
        if frame::header(planes.len()).is_none_or(|expected| header != expected) {
            return Ok(false);
        }
        let mut filled = 0;
        while let Some(size) = frame::raw_block(block) {
            // The block, and the next one's header, which the next one then overwrites.
            let end = filled + size + BLOCK_HEADER;
            if end > planes.len() || size + BLOCK_HEADER > left {
                return Ok(false);
            }
            bytes.read(&mut planes[filled..end])?;
            block.copy_from_slice(&planes[filled + size..end]);
            filled += size;
            left -= size + BLOCK_HEADER;
        }
        // What is left is a frame once it has a header. Matches that reach back beyond it are an error of zstd.
        let planes = &mut planes[filled..];
        let Some(header) = frame::header(planes.len()) else { return Ok(false) };
        self.stored.resize(HEAD + left + CHECKSUM, 0);
        self.stored[..HEADER_BYTES].copy_from_slice(&header);
        self.stored[HEADER_BYTES..HEAD].copy_from_slice(&block);
        bytes.read(&mut self.stored[HEAD..HEAD + left])?;
        let checksum = bytes.checksum;
        bytes.read(&mut self.stored[HEAD + left..])?;
        let (frame, recorded) = self.stored.split_at(HEAD + left);
        if recorded != checksum.to_le_bytes() {
            return Ok(false);
        }
        Ok(self.blocks.decode(frame, HEADER_BYTES, planes)
            || codec::decode_chunk_with(&mut self.decompressor, &self.stored, checksum, planes).is_ok())
    }
}

/// The bytes of a chunk, which are read from the first to the last.
#[derive(Clone)]
struct ChunkBytes<'a> {
    shard: &'a Shard,
    file: &'a File,
    /// Those that were not read yet.
    range: Range<u64>,
    /// Of those that were read.
    checksum: u32,
}

impl ChunkBytes<'_> {
    fn left(&self) -> usize {
        (self.range.end - self.range.start) as usize
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<()> {
        for piece in buffer.chunks_mut(PIECE) {
            self.shard.read_at(self.file, piece, self.range.start)?;
            self.checksum = crc32c::crc32c_append(self.checksum, piece);
            self.range.start += piece.len() as u64;
        }
        Ok(())
    }
}
