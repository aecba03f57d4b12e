//! The active pairs (row, feature) with a > 0, sorted by row and by feature.

use rayon::prelude::*;

/// One active pair as the encode finds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pair {
    /// The row i.
    pub(crate) row: u32,
    /// The feature j.
    pub(crate) feature: u32,
    /// a_ij > 0.
    pub(crate) value: f32,
}

/// The active pairs of a block of rows × a block of features. Pairs of one row are in the order of
/// their features, pairs of one feature in the order of their rows.
#[derive(Debug, Default)]
pub(crate) struct Block {
    /// The pairs.
    pub(crate) pairs: Vec<Pair>,
    /// Where the pairs of each group of [`ROW_GROUP`] rows begin, and at the end where the last one ends.
    pub(crate) group_starts: Vec<usize>,
    /// Pairs that screening left to recompute.
    pub(crate) rechecked: usize,
}

impl Block {
    /// Forgets everything but the memory.
    pub(crate) fn clear(&mut self) {
        self.pairs.clear();
        self.group_starts.clear();
        self.rechecked = 0;
    }

    /// The pairs that follow belong to the next group of rows.
    pub(crate) fn begin_group(&mut self) {
        self.group_starts.push(self.pairs.len());
    }
}

/// Rows that are sorted together; a multiple of every tile's height.
pub(crate) const ROW_GROUP: usize = 96;

/// The active pairs of a batch, twice.
#[derive(Debug, Default)]
pub struct ActivePairs {
    /// Where row i's pairs begin in `features` and `row_values`; [B+1].
    pub row_starts: Vec<usize>,
    /// The features of each row, ascending.
    pub features: Vec<u32>,
    /// Their activations.
    pub row_values: Vec<f32>,
    /// Where feature j's pairs begin in `rows` and `feature_values`; [F+1].
    pub feature_starts: Vec<usize>,
    /// The rows of each feature, ascending.
    pub rows: Vec<u32>,
    /// Their activations.
    pub feature_values: Vec<f32>,
}

impl ActivePairs {
    /// The number of pairs.
    pub fn len(&self) -> usize {
        self.features.len()
    }

    /// Whether no activation is above 0.
    pub fn is_empty(&self) -> bool {
        self.features.is_empty()
    }

    /// Features and activations of row i.
    pub fn of_row(&self, row: usize) -> (&[u32], &[f32]) {
        let range = self.row_starts[row]..self.row_starts[row + 1];
        (&self.features[range.clone()], &self.row_values[range])
    }

    /// Rows and activations of feature j.
    pub fn of_feature(&self, feature: usize) -> (&[u32], &[f32]) {
        let range = self.feature_starts[feature]..self.feature_starts[feature + 1];
        (&self.rows[range.clone()], &self.feature_values[range])
    }

    /// Divides each activation by its feature's number, [F].
    pub(crate) fn divide(&mut self, by: &[f32]) {
        let of_rows = self.row_values.par_iter_mut().zip(&self.features);
        of_rows.for_each(|(value, feature)| *value /= by[*feature as usize]);
        for (feature, range) in self.feature_starts.windows(2).enumerate() {
            self.feature_values[range[0]..range[1]].iter_mut().for_each(|value| *value /= by[feature]);
        }
    }

    /// In how many rows each feature is active, [F].
    pub fn counts(&self) -> Vec<u32> {
        self.feature_starts.windows(2).map(|at| (at[1] - at[0]) as u32).collect()
    }

    /// Fills both lists from the encode's blocks, which form a grid: `blocks[p][r]` holds the features
    /// from p·`panel` and the rows from r·`row_block`, a multiple of [`ROW_GROUP`].
    pub(crate) fn sort(
        &mut self,
        blocks: &[Vec<Block>],
        rows: usize,
        features: usize,
        row_block: usize,
        panel: usize,
    ) {
        self.sort_by_feature(blocks, features, panel);
        sort_by_row(
            blocks,
            (rows, row_block),
            (&mut self.row_starts, &mut self.features, &mut self.row_values),
        );
    }

    /// Takes those of `found` for which `keep` says so of their place.
    pub(crate) fn sort_some(
        &mut self,
        found: &RowPairs,
        features: usize,
        keep: impl Fn(usize) -> bool + Sync,
    ) {
        let rows = found.rows();
        let group = |group: usize| {
            let mut block = Block::default();
            block.begin_group();
            for row in group * ROW_GROUP..((group + 1) * ROW_GROUP).min(rows) {
                let kept = (found.starts[row]..found.starts[row + 1]).filter(|at| keep(*at));
                let pair =
                    |at| Pair { row: row as u32, feature: found.features[at], value: found.values[at] };
                block.pairs.extend(kept.map(pair));
            }
            block.begin_group();
            block
        };
        let groups: Vec<Block> = (0..rows.div_ceil(ROW_GROUP)).into_par_iter().map(group).collect();
        self.sort(&[groups], rows, features, ROW_GROUP, features);
    }

    fn sort_by_feature(&mut self, blocks: &[Vec<Block>], features: usize, panel: usize) {
        self.feature_starts.clear();
        self.feature_starts.resize(features + 1, 0);
        // counts[j] at position j + 1, so that the running sum turns them into starts.
        self.feature_starts[1..].par_chunks_mut(panel).zip(blocks).enumerate().for_each(
            |(p, (counts, blocks))| {
                for pair in blocks.iter().flat_map(|block| &block.pairs) {
                    counts[pair.feature as usize - p * panel] += 1;
                }
            },
        );
        running_sum(&mut self.feature_starts);
        let starts = &self.feature_starts;
        let total = starts[features];
        set_lengths(&mut self.rows, &mut self.feature_values, total);
        let ends = (0..blocks.len()).map(|p| starts[((p + 1) * panel).min(features)]);
        let parts = split_at_ends(&mut self.rows, &mut self.feature_values, ends);
        parts.into_par_iter().zip(blocks).enumerate().for_each(|(p, ((rows, values), blocks))| {
            let first = p * panel;
            let base = starts[first];
            let mut next: Vec<usize> =
                starts[first..((p + 1) * panel).min(features)].iter().map(|start| start - base).collect();
            for pair in blocks.iter().flat_map(|block| &block.pairs) {
                let at = &mut next[pair.feature as usize - first];
                rows[*at] = pair.row;
                values[*at] = pair.value;
                *at += 1;
            }
        });
    }
}

/// Pairs of a batch sorted by row alone: what an encode finds before it is decided which of them are active.
#[derive(Debug, Default)]
pub struct RowPairs {
    /// Where row i's pairs begin in the lists below; [B+1].
    pub starts: Vec<usize>,
    /// The features of each row, ascending.
    pub features: Vec<u32>,
    /// Their z.
    pub values: Vec<f32>,
}

impl RowPairs {
    /// Features and z of row i.
    pub fn of_row(&self, row: usize) -> (&[u32], &[f32]) {
        let range = self.starts[row]..self.starts[row + 1];
        (&self.features[range.clone()], &self.values[range])
    }

    /// B.
    pub fn rows(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// As [`ActivePairs::sort`].
    pub(crate) fn sort(&mut self, blocks: &[Vec<Block>], rows: usize, row_block: usize) {
        sort_by_row(blocks, (rows, row_block), (&mut self.starts, &mut self.features, &mut self.values));
    }
}

/// Fills `starts`, `features` and `values` of `rows` rows from blocks of `row_block` rows.
fn sort_by_row(
    blocks: &[Vec<Block>],
    (rows, row_block): (usize, usize),
    (starts, features, values): (&mut Vec<usize>, &mut Vec<u32>, &mut Vec<f32>),
) {
    // The pairs of row group g in every panel, panels (so features) ascending.
    let of_group = |g: usize| {
        let (block, group) = (g * ROW_GROUP / row_block, g * ROW_GROUP % row_block / ROW_GROUP);
        blocks.iter().flat_map(move |panel| {
            let block = &panel[block];
            &block.pairs[block.group_starts[group]..block.group_starts[group + 1]]
        })
    };
    starts.clear();
    starts.resize(rows + 1, 0);
    starts[1..].par_chunks_mut(ROW_GROUP).enumerate().for_each(|(g, counts)| {
        for pair in of_group(g) {
            counts[pair.row as usize - g * ROW_GROUP] += 1;
        }
    });
    running_sum(starts);
    set_lengths(features, values, starts[rows]);
    let groups = rows.div_ceil(ROW_GROUP);
    let ends = (0..groups).map(|g| starts[((g + 1) * ROW_GROUP).min(rows)]);
    let parts = split_at_ends(features, values, ends);
    parts.into_par_iter().enumerate().for_each(|(g, (features, values))| {
        let first = g * ROW_GROUP;
        let base = starts[first];
        let mut next: Vec<usize> =
            starts[first..(first + ROW_GROUP).min(rows)].iter().map(|start| start - base).collect();
        for pair in of_group(g) {
            let at = &mut next[pair.row as usize - first];
            features[*at] = pair.feature;
            values[*at] = pair.value;
            *at += 1;
        }
    });
}

/// counts → starts: each number becomes the sum of itself and all before it.
fn running_sum(numbers: &mut [usize]) {
    let mut sum = 0;
    for number in numbers {
        sum += *number;
        *number = sum;
    }
}

/// Makes both lists `length` long; what they held before is of no interest, so only growth writes.
fn set_lengths(indices: &mut Vec<u32>, values: &mut Vec<f32>, length: usize) {
    indices.resize(length, 0);
    values.resize(length, 0.0);
}

/// Cuts two lists of one length into disjoint parts that end at `ends`.
fn split_at_ends<'a>(
    indices: &'a mut [u32],
    values: &'a mut [f32],
    ends: impl Iterator<Item = usize>,
) -> Vec<(&'a mut [u32], &'a mut [f32])> {
    let (mut indices, mut values, mut start) = (indices, values, 0);
    ends.map(|end| {
        let (index_part, index_rest) = std::mem::take(&mut indices).split_at_mut(end - start);
        let (value_part, value_rest) = std::mem::take(&mut values).split_at_mut(end - start);
        (indices, values, start) = (index_rest, value_rest, end);
        (index_part, value_part)
    })
    .collect()
}
