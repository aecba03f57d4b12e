//! Matryoshka's prefixes: the first features of an autoencoder, which reconstruct by themselves as well.

use serde::{Deserialize, Serialize};

/// Nested prefixes of the features, narrower than all of them (B. Bussmann, N. Nabeshima, A. Karvonen and N. Nanda, "Learning
/// multi-level features with Matryoshka sparse autoencoders", 2025). The reconstruction term is
///
/// ```text
/// weight · (Σ_l mse(x̂^l, x) + mse(x̂, x)),      x̂^l = Σ_{j < m_l} a_j W_dec_j + b_dec
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "Listed", into = "Listed")]
pub struct Prefixes {
    count: usize,
    widths: [usize; Prefixes::MOST],
    weight: f64,
}

/// The same in a file.
#[derive(Serialize, Deserialize)]
struct Listed {
    widths: Vec<usize>,
    weight: f64,
}

impl TryFrom<Listed> for Prefixes {
    type Error = String;

    fn try_from(listed: Listed) -> Result<Prefixes, String> {
        Prefixes::new(&listed.widths, listed.weight)
            .ok_or_else(|| format!("{} prefixes are more than {}", listed.widths.len(), Prefixes::MOST))
    }
}

impl From<Prefixes> for Listed {
    fn from(prefixes: Prefixes) -> Listed {
        Listed { widths: prefixes.widths().to_vec(), weight: prefixes.weight }
    }
}

impl Prefixes {
    /// So many there can be.
    pub const MOST: usize = 15;

    /// Prefixes of `widths` features, ascending; None if there are too many. Without any the weight means nothing.
    pub fn new(widths: &[usize], weight: f64) -> Option<Prefixes> {
        if widths.is_empty() {
            return Some(Prefixes::default());
        }
        let mut prefixes = Prefixes { count: widths.len(), weight, ..Prefixes::default() };
        prefixes.widths.get_mut(..widths.len())?.copy_from_slice(widths);
        Some(prefixes)
    }

    /// m_l, all features together left out.
    pub fn widths(&self) -> &[usize] {
        &self.widths[..self.count]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The weight of each reconstruction's term; 1 without prefixes.
    pub fn weight(&self) -> f64 {
        if self.is_empty() { 1.0 } else { self.weight }
    }

    /// The groups of features that the prefixes, and all features, add one after another: where each ends.
    pub fn ends(&self, features: usize) -> impl Iterator<Item = usize> + '_ {
        self.widths().iter().copied().chain([features])
    }

    /// Whether they ascend, from at least 1 to less than F = `features`, and have a usable weight.
    pub(crate) fn fit(&self, features: usize) -> bool {
        let starts = [0].into_iter().chain(self.ends(features));
        starts.zip(self.ends(features)).all(|(start, end)| start < end)
            && self.weight().is_finite()
            && self.weight() > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_ascend_below_the_number_of_features() {
        let of = |widths: &[usize]| Prefixes::new(widths, 1.0).unwrap();
        assert!(Prefixes::default().fit(5) && of(&[1, 4]).fit(5));
        for wrong in [&[0, 3][..], &[3, 3], &[4, 2], &[5], &[2, 9]] {
            assert!(!of(wrong).fit(5), "{wrong:?}");
        }
        assert_eq!(of(&[1, 4]).ends(5).collect::<Vec<_>>(), [1, 4, 5]);
        assert_eq!(Prefixes::new(&[1; 16], 1.0), None);
        assert_eq!(Prefixes::new(&[], 7.0), Some(Prefixes::default()));
    }

    #[test]
    fn a_file_holds_a_list() {
        let prefixes = Prefixes::new(&[2, 8], 0.5).unwrap();
        let listed = Listed::from(prefixes);
        assert_eq!((&listed.widths[..], listed.weight), (&[2, 8][..], 0.5));
        assert_eq!(Prefixes::try_from(listed), Ok(prefixes));
        assert!(Prefixes::try_from(Listed { widths: vec![1; 20], weight: 1.0 }).is_err());
    }
}
