//! Numbers as SAEDashboard 0.8.0 rounds and counts them.

/// Bars of a histogram.
const BINS: usize = 50;

/// As numpy's `round(x, 3)`.
pub(super) fn rounded(x: f64) -> f64 {
    (x * 1000.0).round_ties_even() / 1000.0
}

/// As Python's `round(x, decimals)`, or what `f"{x:.3f}"` prints.
pub(super) fn printed(x: f64, decimals: usize) -> f64 {
    format!("{x:.decimals$}").parse().expect("a printed number is one")
}

/// A share with the five decimals that are left of `f"{x:.3%}"`.
pub(super) fn share(x: f64) -> f64 {
    printed(x * 100.0, 3) / 100.0
}

/// `torch.linspace(start, end, steps + 1)` in float32.
pub(super) fn edges(start: f32, end: f32, steps: usize) -> Vec<f32> {
    let step = (end - start) / steps as f32;
    let edge = |at: usize| match at < steps.div_ceil(2) {
        true => start + step * at as f32,
        false => end - step * (steps - at) as f32,
    };
    (0..=steps).map(edge).collect()
}

/// Equal intervals from the least number to the largest.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Histogram {
    /// The middle of each.
    pub(super) values: Vec<f64>,
    /// Numbers in it.
    pub(super) heights: Vec<u64>,
}

impl Histogram {
    /// Of no numbers, no bars.
    pub(super) fn of(numbers: impl Iterator<Item = f32> + Clone) -> Histogram {
        let (mut least, mut largest) = (f32::INFINITY, f32::NEG_INFINITY);
        for x in numbers.clone() {
            (least, largest) = (least.min(x), largest.max(x));
        }
        if least > largest {
            return Histogram::default();
        }
        let half = (f64::from(largest) - f64::from(least)) / BINS as f64 / 2.0;
        // The sum is one of float32.
        let middle = |edge: f32| rounded(printed(f64::from(edge + half as f32), 5));
        let values = edges(least, largest, BINS).into_iter().take(BINS).map(middle).collect();
        // What `torch.histc` does with numbers that are all the same.
        let (low, high) = if least == largest { (least - 1.0, largest + 1.0) } else { (least, largest) };
        let mut heights = vec![0; BINS];
        for x in numbers {
            // In this order, as `torch.histc` has it.
            let bin = ((x - low) * BINS as f32 / (high - low)) as usize;
            heights[bin.min(BINS - 1)] += 1;
        }
        Histogram { values, heights }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_as_numpy_and_python_do() {
        assert_eq!([0.0005, 0.0015, 0.0025, -0.0004].map(rounded), [0.0, 0.002, 0.002, -0.0]);
        assert_eq!((printed(2.5, 0), printed(1.005, 2)), (2.0, 1.0));
        assert_eq!(share(0.123_456_789), 0.12346);
        assert_eq!(edges(0.0, 10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
    }

    #[test]
    fn a_histogram_has_every_number_once() {
        let numbers = [1.0_f32, 1.0, 2.0, 3.0, 6.0];
        let found = Histogram::of(numbers.iter().copied());
        // Bars of a tenth: 2 begins bar 10, 3 bar 20, and the largest number is in the last.
        let filled: Vec<(usize, u64)> =
            found.heights.iter().copied().enumerate().filter(|(_, n)| *n > 0).collect();
        assert_eq!(filled, [(0, 2), (10, 1), (20, 1), (49, 1)]);
        assert_eq!((found.values[0], found.values[49], found.values.len()), (1.05, 5.95, 50));
        assert_eq!(Histogram::of(std::iter::empty()), Histogram::default());
        let same = Histogram::of([4.0_f32; 3].into_iter());
        assert_eq!((same.heights[25], same.values[0], same.values[49]), (3, 4.0, 4.0));
    }
}
