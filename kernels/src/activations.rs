//! What the encoder finds in rows, for those who read features rather than train them.

/// The active pairs (row, feature) of a batch, row by row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SparseActivations {
    /// Where row i's pairs begin in the lists below, and at the end where the last row's end, [B+1].
    pub row_starts: Vec<usize>,
    /// The features of each row, ascending.
    pub features: Vec<u32>,
    /// Their activations, above 0.
    pub values: Vec<f32>,
}

impl SparseActivations {
    /// Of dense activations [B,F].
    pub fn of_dense(activations: &[f32], features: usize) -> SparseActivations {
        let mut sparse = SparseActivations { row_starts: vec![0], ..SparseActivations::default() };
        for row in activations.chunks_exact(features) {
            for (feature, value) in row.iter().enumerate().filter(|(_, value)| **value > 0.0) {
                sparse.features.push(feature as u32);
                sparse.values.push(*value);
            }
            sparse.row_starts.push(sparse.features.len());
        }
        sparse
    }

    /// B.
    pub fn rows(&self) -> usize {
        self.row_starts.len().saturating_sub(1)
    }

    /// Features and activations of row i.
    pub fn of_row(&self, row: usize) -> (&[u32], &[f32]) {
        let range = self.row_starts[row]..self.row_starts[row + 1];
        (&self.features[range.clone()], &self.values[range])
    }

    /// Of features in parts, each with the number of its first one: the same rows, the parts beside each other.
    pub fn side_by_side(parts: &[(u32, SparseActivations)]) -> SparseActivations {
        if let [(0, part)] = parts {
            return part.clone();
        }
        let mut whole = SparseActivations { row_starts: vec![0], ..SparseActivations::default() };
        let rows = parts.iter().map(|(_, part)| part.rows()).min().unwrap_or(0);
        for row in 0..rows {
            for (first, part) in parts {
                let (features, values) = part.of_row(row);
                whole.features.extend(features.iter().map(|feature| first + feature));
                whole.values.extend_from_slice(values);
            }
            whole.row_starts.push(whole.features.len());
        }
        whole
    }

    /// Adds the rows of the batch that follows.
    pub fn append(&mut self, next: &SparseActivations) {
        if self.row_starts.is_empty() {
            self.row_starts.push(0);
        }
        let before = self.features.len();
        self.row_starts.extend(next.row_starts.iter().skip(1).map(|start| before + start));
        self.features.extend_from_slice(&next.features);
        self.values.extend_from_slice(&next.values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_dense_activations_keep_what_is_above_zero() {
        let mut all = SparseActivations::default();
        all.append(&SparseActivations::of_dense(&[0.0, 2.0, 0.5, 0.0, 0.0, 0.0], 3));
        all.append(&SparseActivations::of_dense(&[1.0, 0.0, 3.0], 3));
        assert_eq!(all.rows(), 3);
        assert_eq!(all.of_row(0), (&[1, 2][..], &[2.0, 0.5][..]));
        assert_eq!(all.of_row(1), (&[][..], &[][..]));
        assert_eq!(all.of_row(2), (&[0, 2][..], &[1.0, 3.0][..]));
        assert_eq!(SparseActivations::default().rows(), 0);
    }
}
