//! Chunks of rows as zstd frames without matches.
//!
//! The bytes of activations hardly ever repeat in runs that a match would shorten, so all that zstd gains comes from its Huffman
//! code. [`FrameWriter`] therefore writes the blocks itself: a plane of noise as it is, any other plane with one code for
//! all of its blocks. That is a third of the work, and slightly smaller. What does have matches is left to zstd, by a sample
//! of each chunk.

mod blocks;
mod code;
mod decode;
mod streams;
mod weights;
mod writer;

pub(crate) use blocks::{BLOCK, BLOCK_HEADER, HEADER_BYTES, header, raw_block};
pub(crate) use decode::BlockDecoder;
pub(crate) use writer::FrameWriter;
