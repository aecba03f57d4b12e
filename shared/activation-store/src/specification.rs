//! What a store holds and how it is laid out: the fields that identify a dump.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::StoreError;

/// The element type of the stored rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowType {
    /// IEEE 754 binary16 (1 sign, 5 exponent, 10 mantissa bits).
    #[serde(rename = "float16")]
    F16,
    /// IEEE 754 binary32 (1 sign, 8 exponent, 23 mantissa bits).
    #[serde(rename = "float32")]
    F32,
}

impl RowType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            RowType::F16 => 2,
            RowType::F32 => 4,
        }
    }

    /// Mantissa bits of the type, all of which are kept when `mantissa_bits` is `None`.
    pub fn mantissa_bits(self) -> u8 {
        match self {
            RowType::F16 => 10,
            RowType::F32 => 23,
        }
    }

    /// Zarr's name of the type.
    pub fn name(self) -> &'static str {
        match self {
            RowType::F16 => "float16",
            RowType::F32 => "float32",
        }
    }
}

/// Bytes that the writer keeps for a row in the window besides its elements.
const ROW_OVERHEAD: u64 = 40;

/// How rows are cut into windows, shards and chunks, and how hard they are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Rows shuffled together before they are cut into chunks; a multiple of `shard_rows`.
    pub window_rows: usize,
    /// Rows of one shard file; a multiple of `chunk_rows`.
    pub shard_rows: usize,
    /// Rows of one inner chunk, the unit of decompression.
    pub chunk_rows: usize,
    /// zstd's compression level.
    pub zstd_level: i32,
}

impl Layout {
    /// The layout for rows of `width` elements whose shuffle window fits in `shuffle_memory` bytes:
    /// chunks of at most 2048 rows and 4 MiB raw, 16 chunks per shard, as many shards per window as fit
    /// (at least one; smaller shards when the memory is small).
    pub fn for_memory(width: usize, row_type: RowType, shuffle_memory: u64) -> Layout {
        let raw_row = (width.max(1) * row_type.bytes()) as u64;
        let fitting = (4 << 20) / raw_row;
        let chunk_rows = if fitting == 0 { 1 } else { 1_u64 << fitting.ilog2() }.clamp(16, 2048);
        let rows = shuffle_memory / (raw_row + ROW_OVERHEAD);
        // One shard is being compressed while the window fills.
        let chunks_per_shard = (rows / 4 / chunk_rows).clamp(1, 16);
        let shard_rows = chunks_per_shard * chunk_rows;
        let shards = (rows / shard_rows).saturating_sub(1).max(1);
        Layout {
            window_rows: (shards * shard_rows) as usize,
            shard_rows: shard_rows as usize,
            chunk_rows: chunk_rows as usize,
            zstd_level: 1,
        }
    }

    /// Inner chunks of a shard.
    pub fn chunks_per_shard(&self) -> usize {
        self.shard_rows / self.chunk_rows
    }
}

/// Where the rows come from, as the store's attributes record it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Hub id or folder of the language model.
    pub model: String,
    /// Hash of its weights.
    pub model_hash: String,
    /// Hook point, in TransformerLens' names ("blocks.1.hook_resid_pre").
    pub hook: String,
    /// The hook's block.
    pub layer: usize,
    /// Each row had its mean over the components subtracted.
    pub centered: bool,
    /// Hash of the tokenizer's file.
    pub tokenizer_hash: String,
    /// Hub ids, files and folders of the text.
    pub dataset: Vec<String>,
    /// Hash or revision of the text.
    pub dataset_hash: String,
    /// Version of the program that wrote the store.
    pub tool_version: String,
    /// Its full command line; not compared when a store is resumed.
    pub command_line: String,
    /// Anything else worth keeping.
    #[serde(default)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// Identifies a dump. Equal specifications and equal rows give byte-identical stores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSpec {
    /// d, the elements of a row.
    pub width: usize,
    /// T, the tokens of a context.
    pub context_length: usize,
    /// Contexts planned; a finished store can have fewer.
    pub contexts: u64,
    /// Element type of the rows.
    pub row_type: RowType,
    /// Mantissa bits kept of each element (rounded to nearest-even); `None` keeps all.
    pub mantissa_bits: Option<u8>,
    /// Values beyond the row type's range become its largest value, and are counted, instead of being an error.
    pub clip: bool,
    /// Rows whose token is `bos_token` are not stored.
    pub drop_bos: bool,
    /// The token that begins every context.
    pub bos_token: u32,
    /// Tokens are 0..vocabulary; stored as uint16 up to 65,536, as uint32 beyond.
    pub vocabulary: u64,
    /// Seed of the shuffling within windows.
    pub seed: u64,
    /// Windows, shards, chunks, compression.
    pub layout: Layout,
    /// Where the rows come from.
    pub provenance: Provenance,
    /// What is not known of the text. Nothing, where a language model was run on it.
    #[serde(default, skip_serializing_if = "Unknown::is_nothing")]
    pub unknown: Unknown,
    /// The token that fills contexts up where the text of one is shorter than T. Its rows are not stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding: Option<u32>,
}

/// What is not known of the text of rows that were made elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unknown {
    /// The tokens of the rows: the store's `tokens` say nothing, except which positions are padding.
    pub tokens: bool,
    /// The token that begins contexts: `bos_token` is [`Unknown::NO_TOKEN`].
    pub bos_token: bool,
}

impl Unknown {
    /// Stands for a token that is not known; no vocabulary has it.
    pub const NO_TOKEN: u32 = u32::MAX;

    /// Everything is known.
    pub fn is_nothing(&self) -> bool {
        *self == Unknown::default()
    }
}

impl StoreSpec {
    /// A specification of float16 rows, all bits and all BOS rows kept, a window of about 2 GB,
    /// token 0 as BOS and a vocabulary of 65,536. Set other values through the fields.
    pub fn new(width: usize, context_length: usize, contexts: u64) -> StoreSpec {
        StoreSpec {
            width,
            context_length,
            contexts,
            row_type: RowType::F16,
            mantissa_bits: None,
            clip: false,
            drop_bos: false,
            bos_token: 0,
            vocabulary: 1 << 16,
            seed: 0,
            layout: Layout::for_memory(width, RowType::F16, 2_000_000_000),
            provenance: Provenance::default(),
            unknown: Unknown::default(),
            padding: None,
        }
    }

    /// Whether rows of `token` are stored.
    pub(crate) fn stores(&self, token: u32) -> bool {
        !(self.drop_bos && token == self.bos_token) && self.padding != Some(token)
    }

    /// Bytes of one stored row before compression.
    pub fn row_bytes(&self) -> usize {
        self.width * self.row_type.bytes()
    }

    /// Bytes of memory that a writer takes for rows: those of a full window, and of two shards on their way to the disk.
    pub fn writer_memory(&self) -> u64 {
        let planned = self.contexts.saturating_mul(self.context_length as u64);
        let rows = (self.layout.window_rows + 2 * self.layout.shard_rows) as u64;
        rows.min(planned).saturating_mul(self.row_bytes() as u64 + ROW_OVERHEAD)
    }

    /// Bytes of one token.
    pub(crate) fn token_bytes(&self) -> usize {
        if self.vocabulary <= 1 << 16 { 2 } else { 4 }
    }

    /// Bytes of one origin (context · context_length + position).
    pub(crate) fn origin_bytes(&self) -> usize {
        if self.contexts.saturating_mul(self.context_length as u64) <= 1 << 32 { 4 } else { 8 }
    }

    /// Contexts of one chunk of the `tokens` array, about half a million tokens.
    pub(crate) fn token_chunk_contexts(&self) -> usize {
        ((1 << 19) / self.context_length.max(1)).max(1)
    }

    /// Checks every field against the format's limits.
    pub fn validate(&self) -> Result<(), StoreError> {
        let fail = |what: String| Err(StoreError::Specification(what));
        let layout = &self.layout;
        if self.width == 0 || self.width > 1 << 20 {
            return fail(format!("a row width of {} (1 to 1,048,576 are possible)", self.width));
        }
        if self.context_length == 0 || self.context_length > 1 << 24 {
            return fail(format!(
                "a context length of {} (1 to 16,777,216 are possible)",
                self.context_length
            ));
        }
        if self.contexts > (1 << 56) / self.context_length as u64 {
            return fail(format!("{} contexts of {} tokens", self.contexts, self.context_length));
        }
        if self.vocabulary == 0 || self.vocabulary > 1 << 32 {
            return fail(format!("a vocabulary of {}", self.vocabulary));
        }
        if self.drop_bos && self.unknown.bos_token {
            return fail("rows of BOS left out, and BOS unknown".to_owned());
        }
        if let Some(bits) = self.mantissa_bits
            && (bits == 0 || bits > self.row_type.mantissa_bits())
        {
            let name = self.row_type.name();
            return fail(format!("{bits} mantissa bits ({name} has 1 to {})", self.row_type.mantissa_bits()));
        }
        if layout.chunk_rows == 0 || layout.chunk_rows > (1 << 30) / self.row_bytes() {
            return fail(format!("chunks of {} rows (at least 1, at most 1 GiB raw)", layout.chunk_rows));
        }
        if layout.shard_rows == 0
            || !layout.shard_rows.is_multiple_of(layout.chunk_rows)
            || layout.chunks_per_shard() > 1 << 20
        {
            return fail(format!(
                "shards of {} rows are not a multiple of the {} rows of a chunk (at most 1,048,576 times)",
                layout.shard_rows, layout.chunk_rows
            ));
        }
        if layout.window_rows == 0
            || !layout.window_rows.is_multiple_of(layout.shard_rows)
            || layout.window_rows > u32::MAX as usize
        {
            return fail(format!(
                "a window of {} rows is not a multiple of the {} rows of a shard (at most 2^32 - 1)",
                layout.window_rows, layout.shard_rows
            ));
        }
        if !zstd::compression_level_range().contains(&layout.zstd_level) {
            return fail(format!("zstd level {}", layout.zstd_level));
        }
        Ok(())
    }

    /// One sentence for each field in which `requested` asks for another dump than `self`.
    /// The command line may differ: a resumed dump can use other paths or thread counts.
    pub(crate) fn differences(&self, requested: &StoreSpec) -> Vec<String> {
        self.differences_beside(requested, &[])
    }

    /// The same, fields of `apart` apart.
    pub(crate) fn differences_beside(&self, requested: &StoreSpec, apart: &[&str]) -> Vec<String> {
        let value = |spec: &StoreSpec| serde_json::to_value(spec).unwrap_or_default();
        let mut found = Vec::new();
        compare("", &value(self), &value(requested), &mut found);
        found.retain(|(path, _)| path != "provenance.command_line" && !apart.contains(&&**path));
        found.into_iter().map(|(_, sentence)| sentence).collect()
    }
}

/// Walks two JSON values and notes the leaves that differ, with their dotted paths.
fn compare(
    path: &str,
    stored: &serde_json::Value,
    requested: &serde_json::Value,
    found: &mut Vec<(String, String)>,
) {
    use serde_json::Value;
    if let (Value::Object(left), Value::Object(right)) = (stored, requested) {
        let names: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
        for name in names {
            let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            compare(
                &below,
                left.get(name).unwrap_or(&Value::Null),
                right.get(name).unwrap_or(&Value::Null),
                found,
            );
        }
    } else if stored != requested {
        found.push((path.to_owned(), format!("{path} is {stored} there, {requested} here")));
    }
}
