//! Norms and copies of a batch's rows.

use emulation::Buffer;
use example_steps::numbers;
use kernels::cpu::Isa;
use kernels::cpu::rows::{RowNorms, row_norms};
use kernels::cuda::launch::rows::{BatchColumns, ShiftedInput};
use kernels::loss::Mse;

use crate::case::{Activity, Case, NON_FINITE_ROW, SCALAR_BYTES, SIZES, begun, padded};

#[test]
fn bfloat16_copies_are_rounded_to_nearest_even_and_never_to_infinity() {
    let mut case = Case::new((2, 6, 1), Activity::Some);
    let special = [1.0, 1.003_906_2, 1.011_718_8, f32::MAX, -f32::MAX, 1e-40];
    let row = padded(&[special, [0.0; 6]].concat(), 6, 64);
    case.device_x = case.device.holding(&row);
    let [x, ..] = case.row_bounds(true);
    let bits = &x.numbers::<u16>()[..6];
    // 1 + 2⁻⁸ is half-way between 1 and 1 + 2⁻⁷: to the even one; 1 + 3·2⁻⁸ likewise, to the one above.
    assert_eq!(bits, [0x3f80, 0x3f80, 0x3f82, 0x7f7f, 0xff7f, 0x0001]);
}

#[test]
fn row_norms_and_the_batchs_mean_equal_the_cpus() {
    for sizes in SIZES {
        let mut case = Case::new(sizes, Activity::Some);
        let (rows, stride) = (case.rows, case.stride);
        let parts = case.device.room::<f64>(rows.div_ceil(64) * stride);
        let (sum, mean) = (case.device.room::<f64>(stride), case.device.room::<f32>(stride));
        let arrived = case.device.holding(&vec![0u32; stride / 64]);
        let letter: Vec<u32> = (1..=SCALAR_BYTES as u32 / 4).collect();
        let (sent, scalars) = (case.device.holding(&letter), case.device.room::<u32>(letter.len()));
        let columns = BatchColumns {
            letter: Some(&sent),
            scalars: &scalars,
            x: &case.device_x,
            partial: &parts,
            sum: &sum,
            mean: &mean,
            arrived: (&arrived).into(),
            rows,
            stride,
            report: &case.report,
        };
        columns.launch(&mut case.device).unwrap();
        assert!(arrived.numbers::<u32>().iter().all(|count| *count == 0));
        assert_eq!(scalars.numbers::<u32>(), letter);
        let bias = case.device.holding(&padded(&numbers(case.width, 9), case.width, stride));
        let input = case.device.room::<f32>(rows * stride);
        let shifted = ShiftedInput { bias: (&bias).into(), input: &input };
        let got = case.row_norms(&mean, Some(shifted), true, Mse::Sum);

        let mut expected = RowNorms::default();
        row_norms(Isa::detect(), &case.x, case.width, &mut expected);
        assert_eq!(sum.numbers::<f64>()[..case.width], expected.sum, "{sizes:?}");
        assert_eq!(mean.numbers::<f32>()[..case.width], expected.mean, "{sizes:?}");
        let near = |got: &Buffer, expected: &[f32]| {
            for (got, expected) in got.numbers::<f32>().iter().zip(expected) {
                assert!((got - expected).abs() <= 1e-6 * expected, "{sizes:?}: {got} {expected}");
            }
        };
        near(&got.squared, &expected.squared);
        near(&got.centered, &expected.centered);
        // The other arrays are bounds: not below the truth, and not far above it.
        let (input, half) = (input.numbers::<f32>(), got.x_bf16.numbers::<u16>());
        let (norm, residual) = (got.row_norm.numbers::<f32>(), got.row_residual.numbers::<f32>());
        let bias = bias.numbers::<f32>();
        for row in 0..rows {
            let range = row * stride..(row + 1) * stride;
            let x = &padded(&case.x, case.width, stride)[range.clone()];
            let exact: Vec<f32> = x.iter().zip(&bias).map(|(x, b)| x - b).collect();
            assert_eq!(input[range.clone()], exact);
            let halves = half[range].iter().map(|bits| f64::from(f32::from_bits(u32::from(*bits) << 16)));
            let (mut norms, mut residuals) = (0.0, 0.0);
            for (half, exact) in halves.zip(&exact) {
                norms += half * half;
                residuals += (f64::from(*exact) - half).powi(2);
            }
            let got = f64::from(norm[row]);
            assert!(got >= norms.sqrt() && got <= 1.001 * norms.sqrt() + 1e-15, "{sizes:?} {got}");
            assert!(f64::from(residual[row]) >= residuals.sqrt(), "{sizes:?}");
        }
    }
}

#[test]
fn the_first_row_with_nan_and_the_first_at_the_mean_are_named() {
    let mut case = Case::new((40, 5, 3), Activity::Some);
    let mut x = padded(&case.x, 5, 64);
    (x[31 * 64 + 2], x[33 * 64 + 4]) = (f32::NAN, f32::NEG_INFINITY);
    x[17 * 64..18 * 64].fill(0.0);
    case.device_x = case.device.holding(&x);
    case.report = begun(&mut case.device);
    let mean = case.device.holding(&vec![0.0f32; 64]);
    case.row_norms(&mean, None, true, Mse::Centered);
    let report = case.report.numbers::<u32>();
    assert_eq!(report[NON_FINITE_ROW..][..2], [31, 17]);
}
