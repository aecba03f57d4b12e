//! Products in parts, compared with float64. Without matrix units there is nothing to compare.

use matrix_units::{Left, Matrix, MatrixUnits, Out, PANEL, Parts, Right, Start, multiply, pack_and_multiply};

/// Numbers that look random, the same ones every time: a linear congruential generator's upper bits, in [-1, 1).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
    fn many(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    m: usize,
    k: usize,
    n: usize,
}

const SIZES: [Sizes; 9] = [
    Sizes { m: 1, k: 33, n: 17 },
    Sizes { m: 1, k: 1, n: 1 },
    Sizes { m: 16, k: 32, n: 16 },
    Sizes { m: 32, k: 64, n: 32 },
    Sizes { m: 33, k: 31, n: 65 },
    Sizes { m: 48, k: 700, n: 96 },
    Sizes { m: 257, k: 96, n: 40 },
    Sizes { m: 7, k: 2100, n: 50 },
    Sizes { m: 300, k: 1056, n: 34 },
];

/// a · b and |a| · |b| in float64, from a [m,k] and b [k,n].
fn exact(a: &[f32], b: &[f32], Sizes { m, k, n }: Sizes) -> Vec<(f64, f64)> {
    let mut sums = vec![(0.0, 0.0); m * n];
    for i in 0..m {
        for j in 0..n {
            for l in 0..k {
                let product = f64::from(a[i * k + l]) * f64::from(b[l * n + j]);
                sums[i * n + j].0 += product;
                sums[i * n + j].1 += product.abs();
            }
        }
    }
    sums
}

/// Of |a|·|b|: what is left out, and float32 sums of `k` pairs, each of which may round twice a part.
fn tolerance(parts: Parts, k: usize) -> f64 {
    let (left_out, products) = match parts {
        Parts::Three => (2f64.powi(-16), 3.0),
        Parts::Six => (2f64.powi(-23), 6.0),
    };
    left_out + products * (k as f64 + 2.0) * 2f64.powi(-24)
}

fn transposed(numbers: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut result = Vec::with_capacity(numbers.len());
    for column in 0..columns {
        result.extend((0..rows).map(|row| numbers[row * columns + column]));
    }
    result
}

fn product(units: MatrixUnits, parts: Parts, a: &[f32], b: &[f32], Sizes { m, k, n }: Sizes) -> Vec<f32> {
    let left = Left::new(units, parts, (m, k), Matrix::rows(a, k));
    let right = Right::new(units, parts, (n, k), Matrix::rows(b, n));
    let mut out = vec![f32::NAN; m * n];
    let start = Start::Zero;
    multiply(&left, 0..left.panels(), &right, 0..right.panels(), start, Out::new(&mut out, m, n));
    out
}

fn assert_close(
    out: &[f32],
    exact: &[(f64, f64)],
    tolerance: f64,
    smallest: f64,
    what: impl std::fmt::Debug,
) {
    assert_eq!(out.len(), exact.len());
    for (index, (out, (sum, magnitude))) in out.iter().zip(exact).enumerate() {
        let error = (f64::from(*out) - sum).abs();
        assert!(
            error <= tolerance * magnitude + smallest,
            "{what:?}, {index}: {out} for {sum} of {magnitude}"
        );
    }
}

#[test]
fn products_of_all_sizes_are_as_exact_as_their_parts() {
    let Some(units) = MatrixUnits::get() else { return };
    let mut numbers = Numbers(1);
    for sizes in SIZES {
        let (a, b) = (numbers.many(sizes.m * sizes.k), numbers.many(sizes.k * sizes.n));
        for parts in [Parts::Three, Parts::Six] {
            let out = product(units, parts, &a, &b, sizes);
            assert_close(&out, &exact(&a, &b, sizes), tolerance(parts, sizes.k), 1e-37, (sizes, parts));
        }
    }
}

#[test]
fn the_rms_error_is_that_of_the_class() {
    let Some(units) = MatrixUnits::get() else { return };
    let (mut numbers, sizes) = (Numbers(2), Sizes { m: 96, k: 768, n: 96 });
    let (a, b) = (numbers.many(sizes.m * sizes.k), numbers.many(sizes.k * sizes.n));
    let exact = exact(&a, &b, sizes);
    for (parts, bound) in [(Parts::Three, 6e-6), (Parts::Six, 1e-6)] {
        let out = product(units, parts, &a, &b, sizes);
        let errors: f64 = out.iter().zip(&exact).map(|(out, (sum, _))| (f64::from(*out) - sum).powi(2)).sum();
        let sums: f64 = exact.iter().map(|(sum, _)| sum.powi(2)).sum();
        assert!((errors / sums).sqrt() < bound, "{parts:?}: {}", (errors / sums).sqrt());
    }
}

#[test]
fn exact_products_are_exact() {
    let Some(units) = MatrixUnits::get() else { return };
    let (mut numbers, sizes) = (Numbers(3), Sizes { m: 40, k: 70, n: 50 });
    // Whole numbers up to 2¹⁰, with sums below 2²⁴, need no rounding: two bfloat16 numbers hold 16 bits.
    let mut whole =
        |count, size: f32| numbers.many(count).iter().map(|x| (x * size).round()).collect::<Vec<_>>();
    let (a, b) = (whole(sizes.m * sizes.k, 1000.0), whole(sizes.k * sizes.n, 100.0));
    let expected: Vec<f32> = exact(&a, &b, sizes).iter().map(|(sum, _)| *sum as f32).collect();
    assert_eq!(product(units, Parts::Six, &a, &b, sizes), expected);
    let short: Vec<f32> = b.iter().map(|x| (x / 2.0).round()).collect();
    let expected: Vec<f32> = exact(&a, &short, sizes).iter().map(|(sum, _)| *sum as f32).collect();
    assert_eq!(product(units, Parts::Three, &a, &short, sizes), expected);
}

#[test]
fn a_wide_range_of_magnitudes_keeps_its_error() {
    let Some(units) = MatrixUnits::get() else { return };
    let (mut numbers, sizes) = (Numbers(4), Sizes { m: 35, k: 130, n: 37 });
    let mut wide = |count: usize| -> Vec<f32> {
        (0..count).map(|_| numbers.next() * 2f32.powf(numbers.next() * 50.0)).collect()
    };
    let (a, b) = (wide(sizes.m * sizes.k), wide(sizes.k * sizes.n));
    for parts in [Parts::Three, Parts::Six] {
        let out = product(units, parts, &a, &b, sizes);
        assert_close(&out, &exact(&a, &b, sizes), tolerance(parts, sizes.k), 0.0, parts);
    }
}

#[test]
fn numbers_too_small_to_split_lose_no_more_than_they_are() {
    let Some(units) = MatrixUnits::get() else { return };
    let (mut numbers, sizes) = (Numbers(5), Sizes { m: 33, k: 40, n: 18 });
    // Some are subnormal, and what others leave when they are split is.
    let a: Vec<f32> = numbers.many(sizes.m * sizes.k).iter().map(|x| x * 2f32.powi(-122)).collect();
    let b: Vec<f32> = numbers.many(sizes.k * sizes.n).iter().map(|x| x * 4.0).collect();
    for parts in [Parts::Three, Parts::Six] {
        let out = product(units, parts, &a, &b, sizes);
        // A factor, or what it leaves, of less than 2⁻¹²⁶, times 4; and sums that small count as 0.
        let smallest = sizes.k as f64 * 3.0 * 4.0 * 2f64.powi(-126);
        assert_close(&out, &exact(&a, &b, sizes), tolerance(parts, sizes.k), smallest, parts);
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let Some(units) = MatrixUnits::get() else { return };
    let sizes = Sizes { m: 3, k: 5, n: 2 };
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (mut a, b) = (vec![1.0; 15], vec![1.0; 10]);
        a[6] = odd;
        let out = product(units, Parts::Three, &a, &b, sizes);
        assert_eq!((out[0], out[4]), (5.0, 5.0));
        assert!(!out[2].is_finite() && !out[3].is_finite());
    }
}

#[test]
fn either_orientation_packs_the_same() {
    let Some(units) = MatrixUnits::get() else { return };
    let mut numbers = Numbers(6);
    for sizes in SIZES {
        let Sizes { m, k, n } = sizes;
        let (a, b) = (numbers.many(m * k), numbers.many(k * n));
        let expected = product(units, Parts::Six, &a, &b, sizes);
        let (down, across) = (transposed(&a, m, k), transposed(&b, k, n));
        // Every second number of twice as many.
        let spread: Vec<f32> = b.iter().flat_map(|x| [*x, f32::NAN]).collect();
        let lefts = [Matrix::rows(&a, k), Matrix::rows(&down, m).transposed()];
        let rights = [
            Matrix::rows(&b, n),
            Matrix::rows(&across, k).transposed(),
            Matrix::strided(&spread[..2 * k * n - 1], 2 * n, 2),
        ];
        for left in lefts {
            for right in rights {
                let left = Left::new(units, Parts::Six, (m, k), left);
                let right = Right::new(units, Parts::Six, (n, k), right);
                let mut out = vec![f32::NAN; m * n];
                let whole = Out::new(&mut out, m, n);
                multiply(&left, 0..left.panels(), &right, 0..right.panels(), Start::Zero, whole);
                assert_eq!(out, expected, "{sizes:?}");
            }
        }
    }
}

#[test]
fn a_product_is_added_to_what_it_starts_with() {
    let Some(units) = MatrixUnits::get() else { return };
    let mut numbers = Numbers(7);
    for sizes in SIZES {
        let Sizes { m, k, n } = sizes;
        let (a, b, row, before) =
            (numbers.many(m * k), numbers.many(k * n), numbers.many(n), numbers.many(m * n));
        let left = Left::new(units, Parts::Six, (m, k), Matrix::rows(&a, k));
        let right = Right::new(units, Parts::Six, (n, k), Matrix::rows(&b, n));
        let added = |start: Start<'_>, base: &dyn Fn(usize) -> f32| {
            let mut out = before.clone();
            let panels = (0..left.panels(), 0..right.panels());
            multiply(&left, panels.0, &right, panels.1, start, Out::new(&mut out, m, n));
            let with_base = |(index, (sum, magnitude)): (usize, (f64, f64))| {
                let base = f64::from(base(index));
                (sum + base, magnitude + base.abs())
            };
            let expected: Vec<_> = exact(&a, &b, sizes).into_iter().enumerate().map(with_base).collect();
            assert_close(&out, &expected, tolerance(Parts::Six, k), 1e-37, (sizes, start));
        };
        added(Start::Row(&row), &|index| row[index % n]);
        added(Start::Scaled(1.0), &|index| before[index]);
        added(Start::Scaled(-0.5), &|index| -0.5 * before[index]);
        added(Start::Scaled(0.0), &|_| 0.0);
    }
}

#[test]
fn no_bit_depends_on_how_the_work_is_divided() {
    let Some(units) = MatrixUnits::get() else { return };
    let mut numbers = Numbers(8);
    for (sizes, parts) in SIZES.into_iter().flat_map(|sizes| [(sizes, Parts::Three), (sizes, Parts::Six)]) {
        let Sizes { m, k, n } = sizes;
        let (a, b, row) = (numbers.many(m * k), numbers.many(k * n), numbers.many(n));
        let (left, right) = (Matrix::rows(&a, k), Matrix::rows(&b, n));
        let packed = Left::new(units, parts, (m, k), left);
        let mut columns = Right::zeros(units, parts, n, k);
        std::thread::scope(|scope| {
            columns.split(1).for_each(|mut panels| {
                scope.spawn(move || panels.pack(right));
            });
        });
        let mut whole = vec![f32::NAN; m * n];
        let panels = (0..packed.panels(), 0..columns.panels());
        let start = Start::Row(&row);
        multiply(&packed, panels.0, &columns, panels.1, start, Out::new(&mut whole, m, n));

        // Each panel of rows alone, packed on the way, on threads of their own.
        let mut pieces = vec![f32::NAN; m * n];
        std::thread::scope(|scope| {
            let mut rest = Out::new(&mut pieces, m, n);
            for first in (0..m).step_by(PANEL) {
                let rows = PANEL.min(m - first);
                let (out, others) = rest.split_rows(rows);
                rest = others;
                let (columns, row) = (&columns, &row);
                scope.spawn(move || {
                    let mut space = Left::zeros(units, Parts::Three, 0, 0);
                    let start = Start::Row(row);
                    pack_and_multiply(
                        left.from(first, 0),
                        rows,
                        &mut space,
                        columns,
                        0..columns.panels(),
                        start,
                        out,
                    );
                });
            }
        });
        assert_eq!(pieces, whole, "{sizes:?} {parts:?}");

        // Each panel of columns alone.
        let mut pieces = vec![f32::NAN; m * n];
        let mut rest = Out::new(&mut pieces, m, n);
        for panel in 0..columns.panels() {
            let width = PANEL.min(n - panel * PANEL);
            let (out, others) = rest.split_columns(width);
            rest = others;
            let start = Start::Row(&row[panel * PANEL..panel * PANEL + width]);
            multiply(&packed, 0..packed.panels(), &columns, panel..panel + 1, start, out);
        }
        assert_eq!(pieces, whole, "{sizes:?} {parts:?}");
    }
}

#[test]
fn the_depth_can_be_divided_too() {
    let Some(units) = MatrixUnits::get() else { return };
    let (mut numbers, sizes) = (Numbers(9), Sizes { m: 20, k: 96, n: 33 });
    let Sizes { m, k, n } = sizes;
    let (a, b) = (numbers.many(m * k), numbers.many(k * n));
    let whole = product(units, Parts::Three, &a, &b, sizes);
    let mut out = vec![f32::NAN; m * n];
    for (first, depth, start) in [(0, 32, Start::Zero), (32, 64, Start::Scaled(1.0))] {
        let left = Left::new(units, Parts::Three, (m, depth), Matrix::rows(&a, k).from(0, first));
        let right = Right::new(units, Parts::Three, (n, depth), Matrix::rows(&b, n).from(first, 0));
        multiply(&left, 0..left.panels(), &right, 0..right.panels(), start, Out::new(&mut out, m, n));
    }
    assert_eq!(out, whole);
}

#[test]
fn nothing_is_written_between_rows_that_lie_apart() {
    let Some(units) = MatrixUnits::get() else { return };
    let (m, k, n, stride) = (35, 10, 35, 50);
    let left = Left::new(units, Parts::Three, (m, k), Matrix::rows(&[1.0; 350], k));
    let right = Right::new(units, Parts::Three, (n, k), Matrix::rows(&[2.0; 350], n));
    let mut numbers = vec![-1.0; (m - 1) * stride + n];
    let out = Out::strided(&mut numbers, m, n, stride);
    multiply(&left, 0..left.panels(), &right, 0..right.panels(), Start::Zero, out);
    for (index, number) in numbers.iter().enumerate() {
        assert_eq!(*number, if index % stride < n { 20.0 } else { -1.0 }, "{index}");
    }
}

#[test]
fn nothing_is_a_product_too() {
    let Some(units) = MatrixUnits::get() else { return };
    let left = Left::new(units, Parts::Three, (2, 0), Matrix::rows(&[], 0));
    let right = Right::new(units, Parts::Three, (3, 0), Matrix::rows(&[], 3));
    let mut out = [f32::NAN; 6];
    multiply(&left, 0..1, &right, 0..1, Start::Row(&[1.0, 2.0, 3.0]), Out::new(&mut out, 2, 3));
    assert_eq!(out, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
    multiply(&left, 0..0, &right, 0..1, Start::Zero, Out::new(&mut [], 0, 3));
}

#[test]
#[should_panic(expected = "does not lie within")]
fn a_factor_that_is_too_short_is_refused() {
    let Some(units) = MatrixUnits::get() else { panic!("does not lie within") };
    Left::new(units, Parts::Three, (2, 3), Matrix::rows(&[0.0; 5], 3));
}
