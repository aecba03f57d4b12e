//! `select`: between encode and decode. The encode finds the pairs (row, feature) that can matter; the selection says which
//! of them are active, and which others the backward pass has to see.

use rayon::prelude::*;

use crate::activation::Activation;
use crate::path::Path;

use super::pairs::{ActivePairs, Block, Pair, ROW_GROUP};

/// What a selection leaves of a batch's pairs.
#[derive(Debug, Default)]
pub struct Selected {
    /// The active pairs, which go on to decode, backward and the counts.
    pub kept: ActivePairs,
    /// Pairs that are not active, but whose z lies so near to a threshold that the threshold's gradient sees them. None where
    /// no threshold is trained.
    pub near: ActivePairs,
    /// What the encode found, where that is more than is kept.
    found: ActivePairs,
}

impl Selected {
    /// Selects among the pairs with z > 0 that the encode has found: those in `kept`, or, on the dense path, `activations`
    /// [B,F], which are max(z, 0). Returns where the active ones are now.
    pub fn select(
        &mut self,
        activation: Activation,
        found: Path,
        activations: &[f32],
        features: usize,
    ) -> Path {
        match (activation, found) {
            (Activation::Relu, path) => path,
            (Activation::TopK { k }, Path::Sparse) => {
                std::mem::swap(&mut self.kept, &mut self.found);
                let Selected { kept, found, .. } = self;
                let rows = found.row_starts.len() - 1;
                keep_largest(k, (rows, features), kept, |row, pairs| {
                    let (features, values) = found.of_row(row);
                    let pair = |(feature, value): (&u32, &f32)| Pair {
                        row: row as u32,
                        feature: *feature,
                        value: *value,
                    };
                    pairs.extend(features.iter().zip(values).map(pair));
                });
                Path::Sparse
            }
            (Activation::TopK { k }, Path::Dense) => {
                let rows = activations.len() / features;
                keep_largest(k, (rows, features), &mut self.kept, |row, pairs| {
                    let values = activations[row * features..][..features].iter().enumerate();
                    let active = values.filter(|(_, value)| **value > 0.0);
                    pairs.extend(active.map(|(feature, value)| Pair {
                        row: row as u32,
                        feature: feature as u32,
                        value: *value,
                    }));
                });
                Path::Sparse
            }
        }
    }
}

/// Puts the k largest pairs of each row into `kept`, of equal ones those of the lower features. `of_row` adds a row's pairs,
/// features ascending. Cost: one visit of each pair.
fn keep_largest(
    k: usize,
    (rows, features): (usize, usize),
    kept: &mut ActivePairs,
    of_row: impl Fn(usize, &mut Vec<Pair>) + Sync,
) {
    let group = |group: usize| {
        let (mut block, mut pairs) = (Block::default(), Vec::new());
        block.begin_group();
        for row in group * ROW_GROUP..((group + 1) * ROW_GROUP).min(rows) {
            pairs.clear();
            of_row(row, &mut pairs);
            if pairs.len() > k {
                let larger = |a: &Pair, b: &Pair| b.value.total_cmp(&a.value).then(a.feature.cmp(&b.feature));
                pairs.select_nth_unstable_by(k - 1, larger);
                pairs.truncate(k);
                pairs.sort_unstable_by_key(|pair| pair.feature);
            }
            block.pairs.extend_from_slice(&pairs);
        }
        block.begin_group();
        block
    };
    let blocks: Vec<Block> = (0..rows.div_ceil(ROW_GROUP)).into_par_iter().map(group).collect();
    kept.sort(&[blocks], rows, features, ROW_GROUP, features);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    /// Activations in which values repeat and many are 0.
    fn activations(rows: usize, features: usize) -> Vec<f32> {
        (0..rows * features)
            .map(|at| ((at * 7919 + at / features * 31) % 13) as f32 - 4.0)
            .map(|z| z.max(0.0))
            .collect()
    }

    fn dense(pairs: &ActivePairs, rows: usize, features: usize) -> Vec<f64> {
        let mut out = vec![0.0; rows * features];
        for row in 0..rows {
            let (features_of_row, values) = pairs.of_row(row);
            assert!(features_of_row.is_sorted());
            for (feature, value) in features_of_row.iter().zip(values) {
                out[row * features + *feature as usize] = f64::from(*value);
            }
        }
        out
    }

    #[test]
    fn the_k_largest_are_kept_from_dense_activations_and_from_pairs() {
        for (rows, features, k) in [(1, 1, 1), (100, 37, 5), (49, 64, 64), (3, 500, 1)] {
            let activations = activations(rows, features);
            let z: Vec<f64> = activations.iter().map(|a| f64::from(*a)).collect();
            let topk = Activation::TopK { k };
            let expected: Vec<f64> =
                z.chunks_exact(features).flat_map(|z| reference::select(topk, z)).collect();
            let mut selected = Selected::default();
            assert_eq!(selected.select(topk, Path::Dense, &activations, features), Path::Sparse);
            assert_eq!(dense(&selected.kept, rows, features), expected, "{rows} {features} {k}");
            assert_eq!(selected.kept.counts().len(), features);
            // All pairs above 0, as an encode finds them.
            keep_largest(features, (rows, features), &mut selected.kept, |row, pairs| {
                let values = activations[row * features..][..features].iter().enumerate();
                pairs.extend(values.filter(|(_, value)| **value > 0.0).map(|(feature, value)| Pair {
                    row: row as u32,
                    feature: feature as u32,
                    value: *value,
                }));
            });
            assert_eq!(dense(&selected.kept, rows, features), z);
            selected.select(topk, Path::Sparse, &[], features);
            assert_eq!(dense(&selected.kept, rows, features), expected, "{rows} {features} {k}");
        }
    }
}
