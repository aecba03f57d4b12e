//! What the firings of a feature say about it.

use serde::{Deserialize, Serialize};

use super::firing::Firing;
use crate::command::arguments::FeatureKind;
use crate::laboratory::similarity::Best;

/// The quantiles of the activations that are recorded.
pub(crate) const QUANTILES: [f64; 5] = [0.1, 0.25, 0.5, 0.75, 0.9];
/// Equal intervals of the histogram, from 0 to the maximum.
const BINS: usize = 20;
/// A feature is called dense above these shares of the rows.
const DENSE: f64 = 0.1;
const VERY_DENSE: f64 = 0.2;
/// Positional, if the position alone explains more than this share of the variance of its activations.
const POSITIONAL: f64 = 0.5;
/// Led by newlines and punctuation, if more than this share of its activation is at such tokens.
const PUNCTUATION: f64 = 0.5;
/// Another feature is its twin above this cosine of their decoder rows.
const TWIN: f32 = 0.9;

/// A feature in numbers. Activations are those of the index, in float16.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) feature: u32,
    /// Rows in which it fires.
    pub(crate) firings: u64,
    /// Their share of all rows.
    pub(crate) density: f64,
    pub(crate) maximum: f32,
    /// Over the rows in which it fires.
    pub(crate) mean: f64,
    /// Of the activations above 0, at [`QUANTILES`]: number floor(q · (n - 1)) of n in ascending order.
    pub(crate) quantiles: Vec<f32>,
    /// Counts of activations in equal intervals from 0 to the maximum.
    pub(crate) histogram: Vec<u64>,
    /// The share of the variance of its activations, over all rows, that the mean of their position explains.
    pub(crate) positional_share: f64,
    /// The token with the largest sum of activations, and the token that precedes the largest.
    pub(crate) token: Option<TokenShare>,
    pub(crate) token_before: Option<TokenShare>,
    /// The share of its activation at newlines and punctuation, if token texts were known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) punctuation_share: Option<f64>,
    /// The other feature whose decoder row has the largest cosine with its own.
    pub(crate) nearest: Option<Best>,
    pub(crate) kinds: Vec<FeatureKind>,
}

/// A token, and its share of a feature's activation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct TokenShare {
    pub(crate) token: u32,
    pub(crate) share: f64,
}

/// What is known of all rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ground<'a> {
    pub(crate) context_length: usize,
    /// Rows in the index at each position, [T].
    pub(crate) rows_by_position: &'a [u64],
    /// Tokens by place.
    pub(crate) tokens: &'a [u32],
    /// Of each token, whether it is a newline or punctuation.
    pub(crate) punctuation: Option<&'a [bool]>,
}

/// Memory for one feature at a time, all zeros in between.
pub(crate) struct Scratch {
    positions: Vec<f64>,
    tokens: TokenSums,
    before: TokenSums,
    bits: Vec<u16>,
}

/// Sums by token.
struct TokenSums {
    sums: Vec<f64>,
    touched: Vec<u32>,
}

impl Scratch {
    pub(crate) fn new(ground: &Ground<'_>) -> Scratch {
        let vocabulary = ground.tokens.iter().max().map_or(0, |largest| *largest as usize + 1);
        let sums = || TokenSums { sums: vec![0.0; vocabulary], touched: Vec::new() };
        Scratch {
            positions: vec![0.0; ground.context_length],
            tokens: sums(),
            before: sums(),
            bits: Vec::new(),
        }
    }
}

impl Figures {
    /// Of a feature whose firings are `firings`, by place.
    pub(crate) fn of(
        feature: u32,
        firings: &[Firing],
        nearest: Option<Best>,
        ground: &Ground<'_>,
        scratch: &mut Scratch,
    ) -> Figures {
        let length = ground.context_length;
        let (mut sum, mut squares, mut punctuation) = (0.0, 0.0, 0.0);
        scratch.positions.fill(0.0);
        for firing in firings {
            let (place, a) = (firing.place() as usize, f64::from(firing.activation()));
            sum += a;
            squares += a * a;
            scratch.positions[place % length] += a;
            let token = ground.tokens[place];
            scratch.tokens.add(token, a);
            if place % length > 0 {
                scratch.before.add(ground.tokens[place - 1], a);
            }
            if ground.punctuation.is_some_and(|of| of.get(token as usize) == Some(&true)) {
                punctuation += a;
            }
        }
        scratch.bits.clear();
        scratch.bits.extend(firings.iter().map(|firing| firing.bits()));
        scratch.bits.sort_unstable();
        let value = |bits: u16| half::f16::from_bits(bits).to_f32();
        let maximum = scratch.bits.last().map_or(0.0, |bits| value(*bits));
        let rows = ground.rows_by_position.iter().sum::<u64>() as f64;
        let mut figures = Figures {
            feature,
            firings: firings.len() as u64,
            density: firings.len() as f64 / rows,
            maximum,
            mean: if firings.is_empty() { 0.0 } else { sum / firings.len() as f64 },
            quantiles: match scratch.bits.len() {
                0 => Vec::new(),
                n => QUANTILES.map(|q| value(scratch.bits[(q * (n - 1) as f64) as usize])).to_vec(),
            },
            histogram: histogram(firings, maximum),
            positional_share: positional_share(&scratch.positions, ground.rows_by_position, sum, squares),
            token: scratch.tokens.take_largest(sum),
            token_before: scratch.before.take_largest(sum),
            punctuation_share: ground.punctuation.map(|_| if sum > 0.0 { punctuation / sum } else { 0.0 }),
            nearest,
            kinds: Vec::new(),
        };
        figures.kinds = figures.kinds();
        figures
    }

    fn kinds(&self) -> Vec<FeatureKind> {
        let all = [
            (FeatureKind::Dead, self.firings == 0),
            (FeatureKind::Dense, self.density > DENSE),
            (FeatureKind::VeryDense, self.density > VERY_DENSE),
            (FeatureKind::Positional, self.positional_share > POSITIONAL),
            (FeatureKind::Punctuation, self.punctuation_share.is_some_and(|share| share > PUNCTUATION)),
            (FeatureKind::Twin, self.nearest.is_some_and(|best| best.cosine > TWIN)),
        ];
        all.into_iter().filter(|(_, is)| *is).map(|(kind, _)| kind).collect()
    }
}

impl TokenSums {
    fn add(&mut self, token: u32, activation: f64) {
        let sum = &mut self.sums[token as usize];
        if *sum == 0.0 {
            self.touched.push(token);
        }
        *sum += activation;
    }

    /// The token with the largest sum, the lowest of equals, with its share of `total`; leaves zeros.
    fn take_largest(&mut self, total: f64) -> Option<TokenShare> {
        let mut largest: Option<(f64, u32)> = None;
        for token in self.touched.drain(..) {
            let sum = std::mem::take(&mut self.sums[token as usize]);
            if largest.is_none_or(|(most, first)| sum > most || sum == most && token < first) {
                largest = Some((sum, token));
            }
        }
        largest.map(|(sum, token)| TokenShare { token, share: sum / total })
    }
}

fn histogram(firings: &[Firing], maximum: f32) -> Vec<u64> {
    let mut counts = vec![0; BINS];
    for firing in firings {
        // In this order the product is exact, and so is the quotient of a number on an edge.
        let bin = (f64::from(firing.activation()) * BINS as f64 / f64::from(maximum)) as usize;
        counts[bin.min(BINS - 1)] += 1;
    }
    counts
}

/// The mean activation at each position, over all its rows, [T].
pub(crate) fn position_means(sums: &[f64], rows: &[u64]) -> Vec<f64> {
    let mean = |(sum, rows): (&f64, &u64)| if *rows > 0 { sum / *rows as f64 } else { 0.0 };
    sums.iter().zip(rows).map(mean).collect()
}

/// Variance between the means of positions over variance of all rows: Σ n_p (m_p - m)² / (Σ a² - n m²); 0 of what never varies.
fn positional_share(sums: &[f64], rows: &[u64], sum: f64, squares: f64) -> f64 {
    let n = rows.iter().sum::<u64>() as f64;
    let mean = sum / n;
    let all = squares - n * mean * mean;
    let means = position_means(sums, rows);
    let between: f64 = means.iter().zip(rows).map(|(of, rows)| *rows as f64 * (of - mean).powi(2)).sum();
    if all > 1e-12 * squares { (between / all).clamp(0.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    /// Of firings (place, activation) in contexts of 4 tokens whose token is their place / 2.
    fn figures(contexts: usize, firings: &[(u32, f32)]) -> Figures {
        let tokens: Vec<u32> = (0..4 * contexts as u32).map(|place| place / 2).collect();
        let rows = vec![contexts as u64; 4];
        let punctuation = vec![true, false];
        let ground = Ground {
            context_length: 4,
            rows_by_position: &rows,
            tokens: &tokens,
            punctuation: Some(&punctuation),
        };
        let firings: Vec<Firing> =
            firings.iter().map(|(place, a)| Firing::new(0, *place, f16::from_f32(*a))).collect();
        let mut scratch = Scratch::new(&ground);
        let found = Figures::of(3, &firings, None, &ground, &mut scratch);
        assert_eq!(found, Figures::of(3, &firings, None, &ground, &mut scratch), "nothing is left over");
        found
    }

    #[test]
    fn a_feature_of_a_position_is_told_from_one_of_a_token() {
        // The same at every second position, and nowhere else.
        let planted = figures(3, &[(1, 2.0), (5, 2.0), (9, 2.0)]);
        assert!((planted.positional_share - 1.0).abs() < 1e-12);
        assert_eq!(planted.kinds, [FeatureKind::Dense, FeatureKind::VeryDense, FeatureKind::Positional]);
        // As often at each position.
        let even = figures(4, &[(0, 1.0), (5, 1.0), (10, 1.0), (15, 1.0)]);
        assert_eq!(even.positional_share, 0.0);
        // Worked out by hand: means [1/2, 0, 0, 0] of two rows each, m = 1/8; Σ a² = 1.
        let half = figures(2, &[(4, 1.0)]);
        let between = 2.0 * (0.375_f64.powi(2) + 3.0 * 0.125_f64.powi(2));
        assert!((half.positional_share - between / (1.0 - 8.0 / 64.0)).abs() < 1e-12);
    }

    #[test]
    fn a_feature_that_never_fires_is_dead_and_one_that_always_does_varies_not() {
        let dead = figures(2, &[]);
        assert_eq!((&dead.kinds[..], dead.density, dead.maximum), (&[FeatureKind::Dead][..], 0.0, 0.0));
        assert!(dead.quantiles.is_empty() && dead.token.is_none() && dead.histogram.iter().all(|n| *n == 0));
        let constant: Vec<(u32, f32)> = (0..8).map(|place| (place, 0.1)).collect();
        assert_eq!(figures(2, &constant).positional_share, 0.0);
    }

    #[test]
    fn figures_are_those_worked_out_by_hand() {
        let found = figures(2, &[(0, 1.0), (1, 3.0), (3, 2.0), (4, 8.0), (7, 1.0)]);
        assert_eq!((found.firings, found.density, found.maximum, found.mean), (5, 5.0 / 8.0, 8.0, 3.0));
        assert_eq!(found.quantiles, [1.0, 1.0, 2.0, 3.0, 3.0]);
        // 1 of 8 is at 2.5 intervals of 20, 2 at 5, 3 at 7.5, 8 in the last.
        let filled: Vec<(usize, u64)> =
            found.histogram.iter().copied().enumerate().filter(|(_, n)| *n > 0).collect();
        assert_eq!(filled, [(2, 2), (5, 1), (7, 1), (19, 1)]);
        // Token 2 (places 4 and 5) has 8 of 15; before: place 0 the 3 of place 1, place 2 the 2, place 6 the 1.
        assert_eq!(found.token, Some(TokenShare { token: 2, share: 8.0 / 15.0 }));
        assert_eq!(found.token_before, Some(TokenShare { token: 0, share: 3.0 / 15.0 }));
        assert_eq!(found.punctuation_share, Some(4.0 / 15.0));
    }
}
