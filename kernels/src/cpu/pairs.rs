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
    pub(crate) fn take(&mut self, found: &RowPairs, features: usize, keep: impl Fn(usize) -> bool + Sync) {
        let (rows, starts) = (found.rows(), &mut self.row_starts);
        let places = |row: usize| (found.starts[row]..found.starts[row + 1]).filter(|at| keep(*at));
        starts.clear();
        starts.resize(rows + 1, 0);
        let counts = starts[1..].par_iter_mut().with_min_len(ROW_GROUP).enumerate();
        counts.for_each(|(row, count)| *count = places(row).count());
        running_sum(starts);
        set_lengths(&mut self.features, &mut self.row_values, starts[rows]);
        let groups = rows.div_ceil(ROW_GROUP);
        let ends = (0..groups).map(|group| starts[((group + 1) * ROW_GROUP).min(rows)]);
        let parts = split_at_ends(&mut self.features, &mut self.row_values, ends);
        parts.into_par_iter().enumerate().for_each(|(group, (own_features, own_values))| {
            let kept = (group * ROW_GROUP..((group + 1) * ROW_GROUP).min(rows)).flat_map(places);
            for ((feature, value), at) in own_features.iter_mut().zip(own_values).zip(kept) {
                (*feature, *value) = (found.features[at], found.values[at]);
            }
        });
        self.turn(features);
    }

    /// Fills the lists by feature from those by row. Each thread takes a range of features, however many threads there are.
    fn turn(&mut self, features: usize) {
        let ActivePairs { row_starts, features: of_pairs, row_values, feature_starts, rows, feature_values } =
            self;
        let range = features.div_ceil(rayon::current_num_threads()).max(1);
        // Row i's pairs with features from `first` on, below `end`.
        let within = |row: usize, first: usize, end: usize| {
            let (start, all) = (row_starts[row], &of_pairs[row_starts[row]..row_starts[row + 1]]);
            let place = |feature: usize| match feature {
                0 => 0,
                feature if feature >= features => all.len(),
                feature => all.partition_point(|of_pair| (*of_pair as usize) < feature),
            };
            start + place(first)..start + place(end)
        };
        let row_count = row_starts.len() - 1;
        feature_starts.clear();
        feature_starts.resize(features + 1, 0);
        feature_starts[1..].par_chunks_mut(range).enumerate().for_each(|(part, counts)| {
            let first = part * range;
            for row in 0..row_count {
                for feature in &of_pairs[within(row, first, first + counts.len())] {
                    counts[*feature as usize - first] += 1;
                }
            }
        });
        running_sum(feature_starts);
        set_lengths(rows, feature_values, feature_starts[features]);
        let starts = &*feature_starts;
        let ends = (0..features.div_ceil(range)).map(|part| starts[((part + 1) * range).min(features)]);
        let parts = split_at_ends(rows, feature_values, ends);
        parts.into_par_iter().enumerate().for_each(|(part, (rows, values))| {
            let (first, end) = (part * range, ((part + 1) * range).min(features));
            let base = starts[first];
            let mut next: Vec<usize> = starts[first..end].iter().map(|start| start - base).collect();
            for row in 0..row_count {
                for at in within(row, first, end) {
                    let place = &mut next[of_pairs[at] as usize - first];
                    (rows[*place], values[*place]) = (row as u32, row_values[at]);
                    *place += 1;
                }
            }
        });
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

    /// Puts the pairs of `others`, row by row, in the place of those of the given rows, which ascend.
    pub(crate) fn replace(&mut self, rows: &[usize], others: &RowPairs) {
        let mut replaced = RowPairs { starts: vec![0], ..RowPairs::default() };
        let mut next = 0;
        for row in 0..self.rows() {
            let is_replaced = rows.get(next) == Some(&row);
            let (features, values) = if is_replaced { others.of_row(next) } else { self.of_row(row) };
            next += usize::from(is_replaced);
            replaced.features.extend_from_slice(features);
            replaced.values.extend_from_slice(values);
            replaced.starts.push(replaced.features.len());
        }
        *self = replaced;
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
pub(super) fn split_at_ends<'a, A, B>(
    indices: &'a mut [A],
    values: &'a mut [B],
    ends: impl Iterator<Item = usize>,
) -> Vec<(&'a mut [A], &'a mut [B])> {
    let (mut indices, mut values, mut start) = (indices, values, 0);
    ends.map(|end| {
        let (index_part, index_rest) = std::mem::take(&mut indices).split_at_mut(end - start);
        let (value_part, value_rest) = std::mem::take(&mut values).split_at_mut(end - start);
        (indices, values, start) = (index_rest, value_rest, end);
        (index_part, value_part)
    })
    .collect()
}
