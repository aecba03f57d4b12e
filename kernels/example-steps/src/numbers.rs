//! Numbers from a seed, and how far two lists of them are apart.

use ndarray::Array2;

/// `count` numbers in [−1, 1), multiples of 2⁻²³ without a pattern that a wrong index could keep. The seed 0 begins with
/// numbers near −1.
pub fn numbers(count: usize, seed: u64) -> Vec<f32> {
    words(seed).take(count).map(|word| (word >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

/// [`numbers`] as rows, [count,width].
pub fn rows(count: usize, width: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_vec((count, width), numbers(count * width, seed)).expect("as many numbers")
}

/// `count` numbers in [−1, 1), multiples of 2⁻⁵²; from the same seed those of [`numbers`] with more bits.
pub fn numbers_f64(count: usize, seed: u64) -> Vec<f64> {
    words(seed).take(count).map(|word| (word >> 11) as f64 / (1u64 << 52) as f64 - 1.0).collect()
}

/// George Marsaglia's xorshift64 ("Xorshift RNGs", 2003), with the shifts 13, 7 and 17.
fn words(seed: u64) -> impl Iterator<Item = u64> {
    let first = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = |state: &u64| {
        let mut state = *state;
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some(state)
    };
    std::iter::successors(Some(first), next).skip(1)
}

/// The same numbers with more bits.
pub fn wide(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|v| f64::from(*v)).collect()
}

/// The same numbers, rounded to nearest.
pub fn single(numbers: &[f64]) -> Vec<f32> {
    numbers.iter().map(|v| *v as f32).collect()
}

/// ‖got − expected‖ / ‖expected‖, or ‖got‖ where zeros are expected.
///
/// # Panics
/// If their lengths differ.
pub fn relative_difference(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let squared: f64 = got.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    let scale: f64 = expected.iter().map(|v| v * v).sum();
    if scale == 0.0 { squared.sqrt() } else { (squared / scale).sqrt() }
}
