//! What the machine can do at most: the ceilings that measured times are compared with.

use std::hint::black_box;
use std::time::{Duration, Instant};

use matrix_units::{Left, Matrix, Out, Parts, Right, Start, multiply};
use rayon::prelude::*;

use super::isa::{Isa, madd, per_isa};

/// How long a rate is measured; the best of several repetitions counts.
const LONG_ENOUGH: Duration = Duration::from_millis(20);
const REPETITIONS: usize = 5;

per_isa! {
    /// `rounds` multiply-adds on each of 96 independent sums: 12 vectors of AVX2, enough to hide the latency.
    fn chains(rounds: usize, sums: &mut [f32; 96], factor: f32, added: f32) {
        let mut lanes = *sums;
        for _ in 0..rounds {
            for lane in &mut lanes {
                *lane = madd::<FMA>(*lane, factor, added);
            }
        }
        *sums = lanes;
    }
}

/// Float32 operations per second (a multiply-add counts as two) that all threads of the current pool
/// reach together on numbers in registers.
pub fn multiply_add_rate(isa: Isa) -> f64 {
    const ROUNDS: usize = 200_000;
    let threads = rayon::current_num_threads();
    let once = || {
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
            let mut sums = black_box([1.0; 96]);
            chains(isa, ROUNDS, &mut sums, black_box(0.999_999), black_box(1e-6));
            black_box(sums);
        });
    };
    (threads * ROUNDS * 96 * 2) as f64 / shortest(once)
}

/// Operations per second on bfloat16 numbers (a multiply-add counts as two) that the matrix units of all threads of the current
/// pool reach together on numbers in the nearest caches; None without matrix units.
pub fn matrix_unit_rate(isa: Isa) -> Option<f64> {
    const ROUNDS: usize = 500;
    const DEPTH: usize = 128;
    const LANES: usize = 32;
    let units = isa.matrix_units()?;
    let threads = rayon::current_num_threads();
    // Any numbers but zeros, with which units work faster.
    let numbers: Vec<f32> = (0..LANES * DEPTH).map(|at| ((at as f32 + 0.3) * 1.7).sin()).collect();
    let left = Left::new(units, Parts::Three, (LANES, DEPTH), Matrix::rows(&numbers, DEPTH));
    let right = Right::new(units, Parts::Three, (LANES, DEPTH), Matrix::rows(&numbers, LANES));
    let once = || {
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
            let mut sums = [0.0; LANES * LANES];
            for _ in 0..ROUNDS {
                multiply(&left, 0..1, &right, 0..1, Start::Zero, Out::new(&mut sums, LANES, LANES));
                black_box(&mut sums);
            }
        });
    };
    // Three products make one.
    Some((3 * threads * ROUNDS * LANES * LANES * DEPTH * 2) as f64 / shortest(once))
}

/// Bytes per second, read and written together, of a copy between arrays far larger than any cache.
pub fn copy_rate() -> f64 {
    const NUMBERS: usize = 32 << 20;
    let from = vec![1.0f32; NUMBERS];
    let mut to = vec![0.0f32; NUMBERS];
    let part = NUMBERS.div_ceil(rayon::current_num_threads());
    let once = || {
        to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| {
            to.copy_from_slice(from);
        });
        black_box(&mut to);
    };
    (2 * 4 * NUMBERS) as f64 / shortest(once)
}

/// Seconds of the fastest of several runs, each repeated until it is long enough to be timed.
fn shortest(mut once: impl FnMut()) -> f64 {
    (0..REPETITIONS)
        .map(|_| {
            let (start, mut runs) = (Instant::now(), 0);
            while runs == 0 || start.elapsed() < LONG_ENOUGH {
                once();
                runs += 1;
            }
            start.elapsed().as_secs_f64() / f64::from(runs)
        })
        .fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_a_computer() {
        // From a microcontroller to a rack: wrong units or a loop that was optimised away fall outside.
        let rate = multiply_add_rate(Isa::detect());
        assert!((1e7..1e14).contains(&rate), "{rate:e} operations a second");
        if let Some(rate) = matrix_unit_rate(Isa::detect()) {
            assert!((1e9..1e16).contains(&rate), "{rate:e} operations a second");
        }
        let rate = copy_rate();
        assert!((1e7..1e13).contains(&rate), "{rate:e} bytes a second");
    }
}
