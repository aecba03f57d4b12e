//! Functions of each number of a row, as the vector units compute them best. Errors are a few units in the last place.

use crate::Activation;

/// What a product's numbers go through on their way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Relu,
    Silu,
    GeluTanh,
}

impl Function {
    /// None for what is left to ONNX Runtime.
    pub(crate) fn of(activation: Activation) -> Option<Function> {
        match activation {
            Activation::Relu => Some(Function::Relu),
            Activation::Silu => Some(Function::Silu),
            Activation::GeluTanh => Some(Function::GeluTanh),
            Activation::Gelu => None,
        }
    }

    /// In an attribute of a node.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Function::Relu => "relu",
            Function::Silu => "silu",
            Function::GeluTanh => "gelu-tanh",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Function> {
        [Function::Relu, Function::Silu, Function::GeluTanh].into_iter().find(|kind| kind.name() == name)
    }

    /// f(x) for each x of a row.
    pub(crate) fn apply(self, row: &mut [f32]) {
        // The function is chosen outside of the loop.
        match self {
            Function::Relu => apply(row, relu),
            Function::Silu => apply(row, silu),
            Function::GeluTanh => apply(row, gelu_tanh),
        }
    }

    /// f(x)·y for each x of a row and the y beside it.
    pub(crate) fn apply_gate(self, row: &mut [f32], factors: &[f32]) {
        match self {
            Function::Relu => apply_gate(row, factors, relu),
            Function::Silu => apply_gate(row, factors, silu),
            Function::GeluTanh => apply_gate(row, factors, gelu_tanh),
        }
    }
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    x.max(0.0)
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// x·(1 + tanh u)/2, which is x·sigmoid(2 u).
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    let u = 0.797_884_6 * x * (x * x).mul_add(0.044_715, 1.0);
    x / (1.0 + exp(-2.0 * u))
}

/// A function whose body is compiled for the widest vectors, too, and runs so where the processor has them. What it calls has to
/// be inlined to profit.
macro_rules! wide {
    ($(#[$doc:meta])* $vis:vis fn $name:ident$(<$F:ident: $bound:path>)?($($argument:ident: $kind:ty),*) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name$(<$F: $bound>)?($($argument: $kind),*) $(-> $result)? {
            #[inline(always)]
            fn plain$(<$F: $bound>)?($($argument: $kind),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512dq")]
            fn widest$(<$F: $bound>)?($($argument: $kind),*) $(-> $result)? {
                plain($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
                // SAFETY: the processor has them.
                return unsafe { widest($($argument),*) };
            }
            plain($($argument),*)
        }
    };
}

/// A function of a number.
trait OfOne: Fn(f32) -> f32 {}
impl<F: Fn(f32) -> f32> OfOne for F {}

wide! {
    fn apply<F: OfOne>(row: &mut [f32], function: F) {
        for x in row {
            *x = function(*x);
        }
    }
}

wide! {
    fn apply_gate<F: OfOne>(row: &mut [f32], factors: &[f32], function: F) {
        for (x, y) in row.iter_mut().zip(factors) {
            *x = function(*x) * y;
        }
    }
}

wide! {
    /// Replaces scores by exp(score - the largest of them) and returns the sum.
    pub(crate) fn exponentials(scores: &mut [f32]) -> f32 {
        let mut largest = f32::NEG_INFINITY;
        for lane in lanes(scores, f32::NEG_INFINITY, |lane, x| if lane > x { lane } else { x }) {
            largest = if largest > lane { largest } else { lane };
        }
        for x in scores.iter_mut() {
            *x = exp(*x - largest);
        }
        let mut sum = 0.0;
        for lane in lanes(scores, 0.0, |lane, x| lane + x) {
            sum += lane;
        }
        sum
    }
}

/// A fold over every sixteenth number, sixteen times: sums in an order that is the same everywhere.
#[inline(always)]
fn lanes(numbers: &[f32], start: f32, step: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    let mut lanes = [start; 16];
    let chunks = numbers.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = step(*lane, *x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = step(*lane, *x);
    }
    lanes
}

/// e^x by Cody and Waite's reduction and Cephes' polynomial (`expf`); 0 below -87.3, infinite above 88.3, NaN for NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding it leaves the nearest integer in the last bits.
    const ROUND: f32 = 12_582_912.0;
    let (tiny, huge) = (x < -87.3, x > 88.3);
    let x = x.clamp(-87.3, 88.3);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = r.mul_add(p, c);
    }
    let y = (r * r).mul_add(p, r) + 1.0;
    let y = f32::from_bits(y.to_bits().wrapping_add(shifted.to_bits() << 23));
    let y = if huge { f32::INFINITY } else { y };
    if tiny { 0.0 } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From -100 to 100, and what is special.
    fn numbers() -> Vec<f32> {
        let mut numbers: Vec<f32> = (-20_000..=20_000).map(|i| i as f32 * 5e-3).collect();
        numbers.extend([0.0, -0.0, 1e-30, -1e-30, f32::MAX, f32::MIN, f32::INFINITY]);
        numbers
    }

    #[test]
    fn functions_are_right_to_a_few_units_in_the_last_place() {
        for function in [Function::Relu, Function::Silu, Function::GeluTanh] {
            assert_eq!(Function::named(function.name()), Some(function));
            let mut found = numbers();
            function.apply(&mut found);
            for (x, y) in numbers().into_iter().zip(found) {
                let wide = f64::from(x);
                let expected = match function {
                    Function::Relu => wide.max(0.0),
                    Function::Silu => wide / (1.0 + (-wide).exp()),
                    Function::GeluTanh => {
                        let u = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
                        wide * 0.5 * (1.0 + u.tanh())
                    }
                };
                // What is far below 0 loses digits of the exponent's argument.
                let bound = 1e-6 * expected.abs().max(1e-3 * wide.abs().min(100.0)) + 1e-30;
                assert!(
                    (f64::from(y) - expected).abs() <= bound || f64::from(y) == expected,
                    "{function:?} {x}: {y} {expected}"
                );
            }
            let mut nan = [f32::NAN; 3];
            function.apply(&mut nan);
            assert!(function == Function::Relu || nan.iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn a_gate_is_a_factor() {
        let mut row = vec![1.0, -2.0, 3.0];
        Function::Relu.apply_gate(&mut row, &[2.0, 5.0, -1.0]);
        assert_eq!(row, [2.0, 0.0, -3.0]);
    }

    #[test]
    fn exponentials_sum_to_what_they_are() {
        for count in [1, 15, 16, 33, 1000] {
            let scores: Vec<f32> = (0..count).map(|i| (i * 37 % 101) as f32 * 0.3 - 10.0).collect();
            let largest = scores.iter().copied().fold(f32::MIN, f32::max);
            let mut found = scores.clone();
            let sum = exponentials(&mut found);
            let expected: Vec<f64> = scores.iter().map(|x| f64::from(x - largest).exp()).collect();
            for (found, expected) in found.iter().zip(&expected) {
                assert!((f64::from(*found) - expected).abs() <= 3e-7 * expected, "{found} {expected}");
            }
            let total: f64 = expected.iter().sum();
            assert!((f64::from(sum) - total).abs() <= 1e-6 * total);
        }
        let mut masked = [f32::NEG_INFINITY, 0.0];
        assert_eq!(exponentials(&mut masked), 1.0);
        assert_eq!(masked, [0.0, 1.0]);
    }
}
