//! A store of made-up rows, to train from on a machine without a language model.

use std::path::Path;

use activation_store::{Layout, Provenance, RowType, StoreSpec, StoreWriter, WriterOptions};
use anyhow::Result;

use super::numbers;

const CONTEXT: usize = 128;
/// Directions that the rows are made of, and how many each row has.
const DIRECTIONS: usize = 4096;
const ACTIVE: usize = 12;

/// Writes `contexts` contexts of 128 rows of `width` numbers to `folder`. Returns the number of failures: none.
pub(crate) fn write(folder: &Path, contexts: usize, width: usize) -> Result<usize> {
    let spec = StoreSpec {
        width,
        context_length: CONTEXT,
        contexts: contexts as u64,
        row_type: RowType::F16,
        mantissa_bits: None,
        clip: false,
        drop_bos: false,
        bos_token: 0,
        vocabulary: 50_257,
        seed: 0,
        layout: Layout { window_rows: 65_536, shard_rows: 65_536, chunk_rows: 2048, zstd_level: 1 },
        provenance: Provenance {
            model: "none".into(),
            hook: "made up".into(),
            dataset: vec!["random sums of directions".into()],
            ..Provenance::default()
        },
    };
    let directions = numbers(DIRECTIONS * width, 1);
    let mut writer = StoreWriter::open(folder, &spec, &WriterOptions::default())?;
    let tokens: Vec<u32> = (0..CONTEXT as u32).collect();
    for context in 0..contexts {
        let choices = numbers(CONTEXT * ACTIVE * 2, 77 + context as u64);
        let mut rows = vec![0.0f32; CONTEXT * width];
        for (row, choices) in rows.chunks_exact_mut(width).zip(choices.chunks_exact(ACTIVE * 2)) {
            for choice in choices.chunks_exact(2) {
                let at = (((choice[0] + 1.0) / 2.0).powi(2) * DIRECTIONS as f32) as usize;
                let direction = &directions[at.min(DIRECTIONS - 1) * width..][..width];
                row.iter_mut().zip(direction).for_each(|(x, d)| *x += (1.5 + choice[1]) * d);
            }
        }
        writer.append(&tokens, &rows)?;
    }
    writer.finish()?;
    println!("{} rows of {width} in {}", contexts * CONTEXT, folder.display());
    Ok(0)
}
