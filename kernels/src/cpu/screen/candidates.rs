//! The pairs that screening could not rule out.

/// A candidate, in numbers within its group of rows and its panel of features.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Candidate {
    pub(super) row: u32,
    pub(super) feature: u32,
}

/// Which pairs of a group of rows and a panel of features can be active.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    /// Words of a row.
    pub(super) stride: usize,
    /// For each row a bit for each feature, features of the panel from the lowest bit on.
    pub(super) bits: Vec<u64>,
}

impl Candidates {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.bits.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The candidates row by row, each row's features ascending.
    pub(super) fn list(&self, candidates: &mut Vec<Candidate>) {
        candidates.clear();
        for (row, words) in self.bits.chunks_exact(self.stride).enumerate() {
            for (word, bits) in words.iter().enumerate() {
                let mut bits = *bits;
                while bits != 0 {
                    let feature = 64 * word as u32 + bits.trailing_zeros();
                    candidates.push(Candidate { row: row as u32, feature });
                    bits &= bits - 1;
                }
            }
        }
    }
}
