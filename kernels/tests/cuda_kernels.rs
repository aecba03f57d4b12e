//! Kernel by kernel, emulated, against the CPU engine's pieces: random, odd-sized, empty and all-active batches.

use emulation::{Buffer, EmulatedDevice, run_again_sanitized};
use example_steps::numbers;
use kernels::cpu::Isa;
use kernels::cpu::encode::{Encode, EncodeBuffers, Search, encode_dense, encode_sparse};
use kernels::cpu::frequency::FrequencyWindow;
use kernels::cpu::pairs::ActivePairs;
use kernels::cpu::rows::{RowNorms, row_norms};
use kernels::cpu::sparsity::frequency_terms;
use kernels::cuda::device::Device;
use kernels::cuda::launch;
use kernels::cuda::launch::dense::{HalvesOrder, Split};
use kernels::cuda::launch::frequency::{WindowFeatures, frequency_parts};
use kernels::cuda::launch::lists::{
    CountFeatures, CountRows, FeatureStarts, GatherValues, ListFeatures, ListRows, TransposeMask,
};
use kernels::cuda::launch::recheck::{Operands, Recheck};
use kernels::cuda::launch::report::{REPORT_PARTS, ReportRows};
use kernels::cuda::launch::rows::{self, BatchColumns, ShiftedInput};
use kernels::cuda::launch::update::{Derive, Derived};
use kernels::cuda::launch::widen::Widen;
use kernels::cuda::launch::{Slice, mask_words, parameters_length, row_mask_words};
use kernels::error::DeviceError;
use kernels::loss::{FrequencyPenalty, LossSpec, Mse, Penalty};

/// Rows of `width` numbers padded with zeros to `stride`.
fn padded(numbers: &[f32], width: usize, stride: usize) -> Vec<f32> {
    let pad =
        |row: &[f32]| row.iter().copied().chain(std::iter::repeat_n(0.0, stride - width)).collect::<Vec<_>>();
    numbers.chunks_exact(width).flat_map(pad).collect()
}

/// How many pairs are active.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Activity {
    Some,
    None,
    All,
}

/// Bytes of a step's scalars.
const SCALAR_BYTES: usize = 56;

const ACTIVITIES: [Activity; 3] = [Activity::Some, Activity::None, Activity::All];
const SIZES: [(usize, usize, usize); 5] =
    [(1, 1, 1), (5, 3, 17), (64, 64, 64), (131, 33, 97), (300, 130, 270)];

/// A batch, an encoder and everything derived from them, here and on the device.
struct Case {
    rows: usize,
    width: usize,
    features: usize,
    stride: usize,
    words: usize,
    x: Vec<f32>,
    weights: Vec<f32>,
    bias: Vec<f32>,
    device: EmulatedDevice,
    device_x: Buffer,
    device_weights: Buffer,
    device_bias: Buffer,
    /// A report whose status is that of a running step.
    report: Buffer,
}

const REPORT_BYTES: usize = 184;

/// The report of a step that has begun: no row has been found bad yet.
fn begun(device: &mut EmulatedDevice) -> Buffer {
    let mut report = vec![0u32; REPORT_BYTES / 4];
    report[REPORT_BYTES / 4 - 2..].fill(u32::MAX);
    device.holding(&report)
}

impl Case {
    fn new((rows, width, features): (usize, usize, usize), activity: Activity) -> Case {
        let (x, weights) = (numbers(rows * width, 1), numbers(features * width, 2));
        let shift = match activity {
            Activity::Some => 0.3 * (width as f32).sqrt(),
            Activity::None => 1e3,
            Activity::All => -1e3,
        };
        let bias: Vec<f32> = numbers(features, 3).iter().map(|b| b - shift).collect();
        let stride = width.next_multiple_of(64);
        let mut device = EmulatedDevice::new();
        let device_x = device.holding(&padded(&x, width, stride));
        let device_weights = device.holding(&padded(&weights, width, stride));
        let device_bias = device.holding(&bias);
        let report = device.holding(&[0u8; REPORT_BYTES]);
        Case {
            rows,
            width,
            features,
            stride,
            words: mask_words(rows),
            x,
            weights,
            bias,
            device,
            device_x,
            device_weights,
            device_bias,
            report,
        }
    }

    fn encode(&self) -> Encode<'_> {
        Encode { x: &self.x, weights: &self.weights, bias: &self.bias, width: self.width }
    }

    /// The CPU's activations, [B,F].
    fn activations(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.features];
        encode_dense(Isa::detect(), self.encode(), &mut out);
        out
    }

    /// The mask of the pairs for which `set` holds.
    fn mask(&self, set: impl Fn(usize, usize) -> bool) -> Vec<u32> {
        let mut mask = vec![0u32; self.features * self.words];
        for feature in 0..self.features {
            for row in (0..self.rows).filter(|row| set(*row, feature)) {
                mask[feature * self.words + row / 32] |= 1 << (row % 32);
            }
        }
        mask
    }

    fn exact_mask(&self) -> Vec<u32> {
        let activations = self.activations();
        self.mask(|row, feature| activations[row * self.features + feature] > 0.0)
    }

    /// Runs `row_norms` without bias; returns x_bf16, length, row_norm and row_residual.
    fn row_bounds(&mut self, bounds: bool) -> [Buffer; 4] {
        let (rows, stride) = (self.rows, self.stride);
        let mean = self.device.holding(&vec![0.0f32; stride]);
        let x_bf16 = self.device.room::<u16>(rows * stride);
        let [squared, centered, length, norm, residual] =
            std::array::from_fn(|_| self.device.room::<f32>(rows));
        let norms = rows::RowNorms {
            x: &self.device_x,
            mean: &mean,
            shifted: None,
            x_bf16: &x_bf16,
            squared: &squared,
            centered: &centered,
            length: &length,
            row_norm: &norm,
            row_residual: &residual,
            rows,
            stride,
            bounds,
            zero_check: Mse::Sum,
            report: &self.report,
        };
        norms.launch(&mut self.device).unwrap();
        [x_bf16, length, norm, residual]
    }

    /// The same sizes with other numbers.
    fn holding(mut self, x: Vec<f32>, weights: Vec<f32>, bias: Vec<f32>) -> Case {
        self.device_x = self.device.holding(&padded(&x, self.width, self.stride));
        self.device_weights = self.device.holding(&padded(&weights, self.width, self.stride));
        self.device_bias = self.device.holding(&bias);
        Case { x, weights, bias, ..self }
    }

    /// Runs `derive` on the encoder (and itself as the decoder); returns encoder_bf16, feature_base,
    /// feature_norm and feature_residual.
    fn feature_bounds(&mut self, bounds: bool) -> [Buffer; 4] {
        let (features, stride) = (self.features, self.stride);
        let mut parameters = padded(&self.weights, self.width, stride);
        parameters.extend_from_within(..);
        parameters.extend(&self.bias);
        parameters.resize(parameters_length(features, stride), 0.0);
        let parameters = self.device.holding(&parameters);
        let encoder_bf16 = self.device.room::<u16>(features * stride);
        let [base, norm, residual, decoder_norm] = std::array::from_fn(|_| self.device.room::<f32>(features));
        let derived = Derived {
            encoder_bf16: Some(&encoder_bf16),
            decoder_bf16: None,
            feature_base: &base,
            feature_norm: &norm,
            feature_residual: &residual,
            decoder_norm: &decoder_norm,
            bounds,
        };
        Derive { parameters: &parameters, derived, features, stride }.launch(&mut self.device).unwrap();
        for (feature, norm) in decoder_norm.numbers::<f32>().into_iter().enumerate() {
            let row = &self.weights[feature * self.width..][..self.width];
            let exact = row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
            assert!((f64::from(norm) - exact).abs() <= 2e-6 * exact, "the norm of feature {feature}");
        }
        [encoder_bf16, base, norm, residual]
    }

    fn screen(&mut self, bounds: bool) -> Vec<u32> {
        let [x, _, row_norm, row_residual] = self.row_bounds(bounds);
        let [encoder, base, norm, residual] = self.feature_bounds(bounds);
        let mask = self.device.room::<u32>(self.features * self.words);
        let screen = kernels::cuda::device::Screen {
            features: self.features,
            rows: self.rows,
            stride: self.stride,
            encoder: &encoder,
            x: &x,
            feature_base: &base,
            feature_norm: &norm,
            feature_residual: &residual,
            row_norm: &row_norm,
            row_residual: &row_residual,
            mask: &mask,
            words: self.words,
        };
        self.device.screen(&screen).unwrap();
        mask.numbers()
    }

    /// Row lists of a mask: starts [B+1] and features, by the kernels.
    fn row_lists(&mut self, mask: &Buffer, capacity: usize) -> (Buffer, Buffer) {
        let (rows, features, report) = (self.rows, self.features, &self.report);
        let row_mask = &self.device.room::<u32>(rows * row_mask_words(features));
        TransposeMask { mask, row_mask, features, rows, report }.launch(&mut self.device).unwrap();
        let (counts, starts) = (self.device.room::<u32>(rows), self.device.room::<u32>(rows + 1));
        let (totals, arrived) = (self.device.room::<u64>(rows.div_ceil(32)), self.device.holding(&[0u32]));
        let pairs = self.device.room::<u32>(capacity);
        let count = CountRows {
            row_mask,
            counts: &counts,
            totals: &totals,
            arrived: (&arrived).into(),
            starts: &starts,
            rows,
            features,
            capacity,
            report,
        };
        count.launch(&mut self.device).unwrap();
        assert_eq!(arrived.numbers::<u32>(), [0]);
        let list = ListRows {
            row_mask,
            counts: &counts,
            totals: &totals,
            starts: &starts,
            pair_features: &pairs,
            rows,
            features,
            capacity,
            report,
        };
        list.launch(&mut self.device).unwrap();
        (starts, pairs)
    }

    /// Rechecks the candidates of the lists in `mask` and `pairs`; the values and the number of those left in each row.
    fn recheck(
        &mut self,
        mask: &Buffer,
        starts: &Buffer,
        pairs: &Buffer,
        capacity: usize,
    ) -> (Buffer, Buffer) {
        let [_, length, ..] = self.row_bounds(true);
        let [_, _, norm, _] = self.feature_bounds(true);
        let (values, active) = (self.device.room::<f32>(capacity), self.device.room::<u32>(self.rows));
        let recheck = Recheck {
            operands: Operands::Float32 {
                x: &self.device_x,
                encoder: (&self.device_weights).into(),
                length: &length,
                feature_norm: &norm,
            },
            encoder_bias: (&self.device_bias).into(),
            starts,
            pair_features: pairs,
            row_values: &values,
            row_active: &active,
            mask,
            rows: self.rows,
            features: self.features,
            stride: self.stride,
            capacity,
            report: &self.report,
        };
        recheck.launch(&mut self.device).unwrap();
        (values, active)
    }

    fn status(&self) -> u32 {
        self.report.numbers::<u32>()[0]
    }
}

#[test]
fn the_float32_encode_sets_exactly_the_bits_of_the_cpus_active_pairs() {
    for sizes in SIZES {
        for activity in ACTIVITIES {
            let mut case = Case::new(sizes, activity);
            let mask = case.device.room::<u32>(case.features * case.words);
            let encode = launch::encode::Encode {
                encoder: (&case.device_weights).into(),
                encoder_bias: (&case.device_bias).into(),
                x: &case.device_x,
                mask: &mask,
                features: case.features,
                rows: case.rows,
                stride: case.stride,
                report: &case.report,
            };
            encode.launch(&mut case.device).unwrap();
            assert!(mask.numbers::<u32>() == case.exact_mask(), "{sizes:?} {activity:?}");
        }
    }
}

#[test]
fn the_screen_lets_every_active_pair_pass_and_few_others() {
    for sizes in SIZES {
        for activity in ACTIVITIES {
            let mut case = Case::new(sizes, activity);
            let (screened, exact) = (case.screen(true), case.exact_mask());
            let missing = exact.iter().zip(&screened).filter(|(exact, screened)| **exact & !**screened != 0);
            assert_eq!(missing.count(), 0, "{sizes:?} {activity:?}");
            let count = |mask: &[u32]| mask.iter().map(|word| word.count_ones() as usize).sum::<usize>();
            let more = count(&screened) - count(&exact);
            assert!(more <= 5 + case.rows * case.features / 100, "{sizes:?} {activity:?}: {more} more");
        }
    }
}

#[test]
fn without_bounds_the_screen_decides_by_the_sign_of_the_bfloat16_product() {
    for sizes in SIZES {
        let mut case = Case::new(sizes, Activity::Some);
        let mask = case.screen(false);
        let [x, ..] = case.row_bounds(false);
        let [encoder, ..] = case.feature_bounds(false);
        let wide = |bits: u16| f64::from(f32::from_bits(u32::from(bits) << 16));
        let (x, encoder) = (x.numbers::<u16>(), encoder.numbers::<u16>());
        for row in 0..case.rows {
            for feature in 0..case.features {
                let products = (0..case.stride)
                    .map(|k| wide(x[row * case.stride + k]) * wide(encoder[feature * case.stride + k]));
                let z = products.sum::<f64>() + f64::from(case.bias[feature]);
                let bit = mask[feature * case.words + row / 32] >> (row % 32) & 1 == 1;
                assert!(bit == (z > 0.0) || z.abs() < 1e-5, "{sizes:?} row {row} feature {feature}: {z}");
            }
        }
    }
}

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
        let (input, x_bf16) =
            (case.device.room::<f32>(rows * stride), case.device.room::<u16>(rows * stride));
        let [squared, centered, length, norm, residual] =
            std::array::from_fn(|_| case.device.room::<f32>(rows));
        let norms = rows::RowNorms {
            x: &case.device_x,
            mean: &mean,
            shifted: Some(ShiftedInput { bias: (&bias).into(), input: &input }),
            x_bf16: &x_bf16,
            squared: &squared,
            centered: &centered,
            length: &length,
            row_norm: &norm,
            row_residual: &residual,
            rows,
            stride,
            bounds: true,
            zero_check: Mse::Sum,
            report: &case.report,
        };
        norms.launch(&mut case.device).unwrap();

        let mut expected = RowNorms::default();
        row_norms(Isa::detect(), &case.x, case.width, &mut expected);
        assert_eq!(sum.numbers::<f64>()[..case.width], expected.sum, "{sizes:?}");
        assert_eq!(mean.numbers::<f32>()[..case.width], expected.mean, "{sizes:?}");
        let near = |got: &Buffer, expected: &[f32]| {
            for (got, expected) in got.numbers::<f32>().iter().zip(expected) {
                assert!((got - expected).abs() <= 1e-6 * expected, "{sizes:?}: {got} {expected}");
            }
        };
        near(&squared, &expected.squared);
        near(&centered, &expected.centered);
        // The other arrays are bounds: not below the truth, and not far above it.
        let (input, half) = (input.numbers::<f32>(), x_bf16.numbers::<u16>());
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
            let got = f64::from(norm.numbers::<f32>()[row]);
            assert!(got >= norms.sqrt() && got <= 1.001 * norms.sqrt() + 1e-15, "{sizes:?} {got}");
            assert!(f64::from(residual.numbers::<f32>()[row]) >= residuals.sqrt(), "{sizes:?}");
        }
    }
}

#[test]
fn rows_with_nan_or_infinity_and_rows_at_the_mean_are_named_by_the_first_of_them() {
    let mut case = Case::new((40, 5, 3), Activity::Some);
    let mut x = padded(&case.x, 5, 64);
    (x[31 * 64 + 2], x[33 * 64 + 4]) = (f32::NAN, f32::NEG_INFINITY);
    x[17 * 64..18 * 64].fill(0.0);
    case.device_x = case.device.holding(&x);
    let report = begun(&mut case.device);
    let mean = case.device.holding(&vec![0.0f32; 64]);
    let x_bf16 = case.device.room::<u16>(40 * 64);
    let [squared, centered, length, norm, residual] = std::array::from_fn(|_| case.device.room::<f32>(40));
    let norms = rows::RowNorms {
        x: &case.device_x,
        mean: &mean,
        shifted: None,
        x_bf16: &x_bf16,
        squared: &squared,
        centered: &centered,
        length: &length,
        row_norm: &norm,
        row_residual: &residual,
        rows: 40,
        stride: 64,
        bounds: true,
        zero_check: Mse::Centered,
        report: &report,
    };
    norms.launch(&mut case.device).unwrap();
    let report = report.numbers::<u32>();
    assert_eq!(report[REPORT_BYTES / 4 - 2..], [31, 17]);
}

#[test]
fn lists_hold_the_bits_of_a_mask_in_order_and_the_recheck_leaves_exactly_the_active_pairs() {
    for sizes in SIZES {
        for activity in ACTIVITIES {
            // Every pair is a candidate: the worst that a screen could do.
            for everything in [false, true] {
                let mut case = Case::new(sizes, activity);
                let candidates = if everything { case.mask(|_, _| true) } else { case.screen(true) };
                let total: u32 = candidates.iter().map(|word| word.count_ones()).sum();
                let mask = case.device.holding(&candidates);
                let capacity = total as usize;
                let (starts, pairs) = case.row_lists(&mask, capacity);
                assert_eq!(case.status(), 0);
                let (first, listed) = (starts.numbers::<u32>(), pairs.numbers::<u32>());
                for row in 0..case.rows {
                    let expected: Vec<u32> = (0..case.features)
                        .filter(|j| candidates[j * case.words + row / 32] >> (row % 32) & 1 == 1)
                        .map(|j| j as u32)
                        .collect();
                    assert_eq!(listed[first[row] as usize..first[row + 1] as usize], expected, "{sizes:?}");
                }

                let (values, active) = case.recheck(&mask, &starts, &pairs, capacity);
                let (mut buffers, mut expected) = (EncodeBuffers::default(), ActivePairs::default());
                let limit = case.rows * case.features;
                encode_sparse(
                    Isa::detect(),
                    case.encode(),
                    Search::Plain,
                    limit,
                    &mut buffers,
                    &mut expected,
                )
                .unwrap();
                let (listed, values) = (pairs.numbers::<u32>(), values.numbers::<f32>());
                for (row, active) in active.numbers::<u32>().into_iter().enumerate() {
                    let (features, activations) = expected.of_row(row);
                    let range = first[row] as usize..(first[row] + active) as usize;
                    assert_eq!(listed[range.clone()], *features, "{sizes:?} {activity:?} row {row}");
                    for (got, expected) in values[range].iter().zip(activations) {
                        let scale = expected.max((case.width as f32).sqrt());
                        assert!((got - expected).abs() <= 2e-6 * scale, "{sizes:?}: {got} {expected}");
                    }
                }
                assert!(mask.numbers::<u32>() == case.exact_mask(), "{sizes:?} {activity:?}");

                check_feature_lists(&mut case, &mask, (&starts, &active, &pairs), &listed, &values);
            }
        }
    }
}

/// x·w + b as the definition forms it, and as the lanes of a warp do.
fn both_sums(x: &[f32], w: &[f32], bias: f32) -> (f32, f32) {
    let chain = |start: f32, columns: &mut dyn Iterator<Item = usize>| {
        columns
            .filter(|column| *column < x.len())
            .fold(start, |sum, column| x[column].mul_add(w[column], sum))
    };
    let fours = |lane: usize| {
        (0..x.len()).step_by(128).flat_map(move |first| (0..4).map(move |at| first + 4 * lane + at))
    };
    let mut lanes: Vec<f32> = (0..32).map(|lane| chain(0.0, &mut fours(lane))).collect();
    for offset in [16, 8, 4, 2, 1] {
        lanes = (0..32).map(|lane| lanes[lane] + lanes[lane ^ offset]).collect();
    }
    (chain(bias, &mut (0..x.len())), lanes[0] + bias)
}

#[test]
fn the_recheck_decides_as_the_definition_where_orders_of_summation_differ() {
    let mut worst = 0.0f64;
    for width in [64, 300, 768, 1024, 1100] {
        // Rows of equal numbers, and features whose third quarter undoes the first two: the definition's sum climbs to d/2 and
        // down again, its roundings in one direction for long stretches, other ones on the way down, while every lane's
        // stays near 0. In other features signs take turns, or numbers of all sizes are undone in another order.
        let (rows, features) = (6, 96);
        let x: Vec<f32> = (0..rows * width)
            .map(|at| {
                1.0 + [0.0, 0.3, 1e-4, 0.77, 3e-6, 0.123_456][at / width]
                    * if at / width == 3 { 1.0 } else { 0.1 }
            })
            .collect();
        let size = |at: usize| (numbers(1, at as u64)[0] * 9.0).exp2();
        let weights: Vec<f32> = (0..features * width)
            .map(|at| {
                let (feature, column) = (at / width, at % width);
                let scale = 1.0 + numbers(1, 1000 + feature as u64)[0] * 0.4;
                let half = width / 2;
                match feature % 3 {
                    0 if column < width / 4 * 2 => scale,
                    0 if column < width / 4 * 3 => -2.0 * scale,
                    1 => scale * if column / 2 % 2 == 0 { 1.0 } else { -1.0 },
                    2 if column < half => size(feature * width + column),
                    2 if column < 2 * half => -size(feature * width + (column - half) * 7 % half),
                    _ => 0.0,
                }
            })
            .collect();
        // Biases at which a row's definition is about to change its sign.
        let bias: Vec<f32> = (0..features)
            .map(|feature| {
                let (row, w) =
                    (&x[feature / 3 % rows * width..][..width], &weights[feature * width..][..width]);
                let (defined, by_lanes) = both_sums(row, w, 0.0);
                [-defined, -by_lanes, -(defined + by_lanes) / 2.0, -0.9 * defined, 1e-9][feature % 5]
            })
            .collect();
        let mut case = Case::new((rows, width, features), Activity::Some).holding(x, weights, bias);
        let mut contested = 0;
        for row in 0..rows {
            for feature in 0..features {
                let (x, w) = (&case.x[row * width..][..width], &case.weights[feature * width..][..width]);
                let (defined, by_lanes) = both_sums(x, w, case.bias[feature]);
                contested += usize::from((defined > 0.0) != (by_lanes > 0.0));
                // How far they are apart, in units of what recheck.cu allows for.
                let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
                let stride = case.stride as f64;
                let roundings = stride + stride / 32.0 + 16.0;
                let scale = norm(x) * norm(w) + f64::from(case.bias[feature].abs());
                let apart = f64::from((defined - by_lanes).abs());
                worst = worst.max(apart / (roundings * 2f64.powi(-24) * scale));
            }
        }
        assert!(contested > 10, "{contested} of {} pairs depend on the order at d {width}", rows * features);
        let mask = case.device.holding(&case.mask(|_, _| true));
        let capacity = rows * features;
        let (starts, pairs) = case.row_lists(&mask, capacity);
        case.recheck(&mask, &starts, &pairs, capacity);
        assert!(mask.numbers::<u32>() == case.exact_mask(), "d {width}");
    }
    // The bound holds, and rounding comes as near to it as a thirtieth.
    assert!((0.03..1.0).contains(&worst), "{worst}");
}

/// Lists by feature hold the same pairs and values as those by row.
fn check_feature_lists(
    case: &mut Case,
    mask: &Buffer,
    (starts, active, pairs): (&Buffer, &Buffer, &Buffer),
    listed: &[u32],
    values: &[f32],
) {
    let (rows, features, capacity) = (case.rows, case.features, listed.len());
    let device_values = case.device.holding(values);
    let counts = case.device.room::<u32>(features);
    let [feature_starts, segment_starts] = std::array::from_fn(|_| case.device.room::<u32>(features + 1));
    let (totals, arrived) = (case.device.room::<u64>(features.div_ceil(32)), case.device.holding(&[0u32]));
    let starts_of_features = || FeatureStarts { pairs: &feature_starts, segments: &segment_starts };
    let count = CountFeatures {
        mask,
        counts: &counts,
        totals: &totals,
        arrived: (&arrived).into(),
        starts: Some(starts_of_features()),
        features,
        rows,
        report: &case.report,
    };
    count.launch(&mut case.device).unwrap();
    let pair_rows = case.device.room::<u32>(listed.len());
    let segment_features = case.device.room::<u32>(listed.len().div_ceil(32));
    let [feature_values, feature_slopes] = std::array::from_fn(|_| case.device.room::<f32>(listed.len()));
    // No penalty: what it would be is compared in whole steps.
    let (penalties, scalars) =
        (case.device.holding(&vec![0.0f32; features]), case.device.holding(&[0u8; SCALAR_BYTES]));
    let list = ListFeatures {
        mask,
        counts: &counts,
        totals: &totals,
        starts: starts_of_features(),
        segment_features: &segment_features,
        pair_rows: &pair_rows,
        features,
        rows,
        capacity,
        report: &case.report,
    };
    list.launch(&mut case.device).unwrap();
    let gather = GatherValues {
        feature_starts: &feature_starts,
        pair_rows: &pair_rows,
        row_starts: starts,
        row_active: active,
        pair_features: pairs,
        row_values: &device_values,
        slopes: &penalties,
        by_norm: None,
        feature_values: &feature_values,
        feature_slopes: &feature_slopes,
        features,
        rows,
        capacity,
        penalty: Penalty::None,
        scalars: &scalars,
        report: &case.report,
    };
    gather.launch(&mut case.device).unwrap();

    let mut expected: Vec<Vec<(u32, f32)>> = vec![Vec::new(); features];
    let (first, active) = (starts.numbers::<u32>(), active.numbers::<u32>());
    for row in 0..rows {
        for at in first[row]..first[row] + active[row] {
            expected[listed[at as usize] as usize].push((row as u32, values[at as usize]));
        }
    }
    let (begin, pair_rows) = (feature_starts.numbers::<u32>(), pair_rows.numbers::<u32>());
    let (segments, feature_values) = (segment_starts.numbers::<u32>(), feature_values.numbers::<f32>());
    let owners = segment_features.numbers::<u32>();
    for (feature, expected) in expected.iter().enumerate() {
        let range = begin[feature] as usize..begin[feature + 1] as usize;
        let got: Vec<(u32, f32)> = pair_rows[range.clone()]
            .iter()
            .copied()
            .zip(feature_values[range.clone()].iter().copied())
            .collect();
        assert_eq!(got, *expected, "feature {feature}");
        assert!(feature_slopes.numbers::<f32>()[range].iter().all(|&slope| slope == 0.0));
        let count = expected.len().div_ceil(64);
        let count = if expected.len() > 64 { count } else { 0 };
        let own = segments[feature] as usize..segments[feature + 1] as usize;
        assert_eq!(own.len(), count, "feature {feature}");
        assert!(owners[own].iter().all(|owner| *owner as usize == feature), "feature {feature}");
    }
}

#[test]
fn one_candidate_too_many_refuses_the_step_and_no_later_kernel_writes() {
    let mut case = Case::new((131, 33, 97), Activity::Some);
    let candidates = case.exact_mask();
    let total: u32 = candidates.iter().map(|word| word.count_ones()).sum();
    assert!(total > 100);
    let mask = case.device.holding(&candidates);
    case.row_lists(&mask, total as usize);
    assert_eq!(case.status(), 0, "just as many fit");
    let (_, pairs) = case.row_lists(&mask, total as usize - 1);
    assert_eq!(case.status(), 4);
    assert!(pairs.numbers::<u32>().iter().all(|word| *word == u32::MAX), "the list was written");
    assert!(mask.numbers::<u32>() == candidates);
}

#[test]
fn frequencies_and_slopes_equal_the_cpus_while_batches_enter_leave_and_fall_out() {
    const FEATURES: usize = 300;
    const LENGTH: usize = 4;
    let rows = 40;
    let frequency = |coefficient, target| Some(FrequencyPenalty { coefficient, target });
    let loss = LossSpec {
        min_sparsity: frequency(1e-3, 0.1),
        max_sparsity: frequency(2e-3, 0.6),
        ..LossSpec::reconstruction(Mse::Sum)
    };
    let mut device = EmulatedDevice::new();
    let targets = device.holding(&[1e-3f64, 0.1, 2e-3, 0.6, 1.0, 1.0]);
    let window = device.holding(&[0u32; 6]);
    let arrived = device.holding(&[0u32; 2]);
    let report_parts = device.room::<f64>(REPORT_PARTS);
    let scalars = device.holding(&[0u8; SCALAR_BYTES]);
    let (levels, summed) = (device.room::<f64>(LENGTH), device.room::<u32>(LENGTH));
    let (changes, ring) = (device.room::<u32>(LENGTH), device.room::<u32>(LENGTH * FEATURES));
    let (sums, fired) = (device.holding(&[0u32; FEATURES]), device.holding(&[7u64; FEATURES]));
    let (frequencies, slopes) = (device.room::<f32>(FEATURES), device.room::<f32>(FEATURES));
    let parts = device.room::<f64>(frequency_parts(FEATURES));
    let zeros = device.holding(&vec![0.0f64; 64]);
    let mut expected = FrequencyWindow::new(LENGTH, rows, FEATURES);
    let mut since = vec![7u64; FEATURES];
    // Densities that make outliers of what came before, then of themselves; batches in which nothing fires.
    for (t, scale) in [3.0, 4.0, 40.0, 3.0, 3.5, 0.0, 3.0, 0.0, 0.0, 40.0, 40.0, 2.0].into_iter().enumerate()
    {
        let counts: Vec<u32> =
            numbers(FEATURES, 50 + t as u64).iter().map(|v| (v.abs() * scale) as u32).collect();
        let device_counts = device.holding(&counts);
        let report = begun(&mut device);
        // The batch as it is reported: no error, and in its first rows as many active features as a row can have.
        let total: u32 = counts.iter().sum();
        let mut results = vec![[0u32; 8]; rows];
        for (row, result) in results.iter_mut().enumerate() {
            result[3] = total.saturating_sub((row * FEATURES) as u32).min(FEATURES as u32);
        }
        let results = device.holding(&results.concat());
        let report_rows = ReportRows {
            results: &results,
            squared: &zeros,
            centered: &zeros,
            column_sum: &zeros,
            parts: &report_parts,
            arrived: (&arrived).into(),
            rows,
            width: 64,
            mse: Mse::Sum,
            training: true,
            scalars: &scalars,
            window: &window,
            levels: &levels,
            summed: &summed,
            change_list: &changes,
            window_length: LENGTH,
            report: &report,
        };
        report_rows.launch(&mut device).unwrap();
        let window_features = WindowFeatures {
            counts: &device_counts,
            window: &window,
            change_list: &changes,
            ring: &ring,
            sums: &sums,
            frequencies: &frequencies,
            slopes: &slopes,
            steps_since_fired: &fired,
            partial: &parts,
            arrived: Slice { buffer: &arrived, offset: 4 },
            features: FEATURES,
            rows,
            window_length: LENGTH,
            targets: &targets,
            scalars: &scalars,
            report: &report,
        };
        window_features.launch(&mut device).unwrap();

        expected.push(&counts);
        let mut expected_slopes = vec![0.0; FEATURES];
        let terms = frequency_terms(&loss, &expected, rows, &mut expected_slopes);
        let expected_frequencies: Vec<f32> = (0..FEATURES).map(|j| expected.frequency(j) as f32).collect();
        assert_eq!(frequencies.numbers::<f32>(), expected_frequencies, "batch {t}");
        for (got, expected) in slopes.numbers::<f32>().iter().zip(&expected_slopes) {
            assert!((got - expected).abs() <= 1e-6 * expected.abs(), "batch {t}: {got} {expected}");
        }
        let reported: Vec<f64> = bytemuck::pod_collect_to_vec(&report.numbers::<u8>()[16..56]);
        let [loss, _, _, min, max] = reported[..] else { unreachable!("five numbers") };
        assert!((min - terms.min).abs() <= 1e-12 * terms.min, "batch {t}");
        assert!((max - terms.max).abs() <= 1e-12 * terms.max, "batch {t}");
        assert_eq!(loss, min + max);
        assert_eq!(arrived.numbers::<u32>(), [0, 0], "counters are ready for the next batch");
        assert_eq!(report.numbers::<u32>()[REPORT_BYTES / 4 - 4], terms.below_target as u32, "batch {t}");
        let update = |since: &mut u64, count: &u32| *since = if *count > 0 { 0 } else { *since + 1 };
        since.iter_mut().zip(&counts).for_each(|(since, count)| update(since, count));
        assert_eq!(fired.numbers::<u64>(), since, "batch {t}");
    }
}

#[test]
fn halves_of_a_split_matrix_add_up_to_17_bits() {
    let mut device = EmulatedDevice::new();
    let (lines, stride) = (5, 192);
    let values: Vec<f32> = numbers(lines * stride, 5).iter().map(|v| v * v * v * 100.0).collect();
    let report = device.holding(&[0u8; REPORT_BYTES]);
    let from = device.holding(&values);
    let mut split = |order, copies: usize| -> Vec<f32> {
        let out = &device.room::<u16>(copies * lines * stride);
        let split = Split { from: (&from).into(), out, lines, stride, order, report: &report };
        split.launch(&mut device).unwrap();
        out.numbers::<u16>().into_iter().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect()
    };
    let alone = split(HalvesOrder::High, 1);
    let (left, right) = (split(HalvesOrder::LowHighHigh, 3), split(HalvesOrder::HighLowHigh, 3));
    for (at, value) in values.iter().enumerate() {
        let (line, column) = (at / stride, at % stride);
        let of = |halves: &[f32]| [0, 1, 2].map(|part| halves[(3 * line + part) * stride + column]);
        let (high, [low, ..]) = (alone[at], of(&left));
        let rest = value - high - low;
        assert!(rest.abs() <= 2.0f32.powi(-17) * value.abs(), "{value}: {rest}");
        assert_eq!((of(&left), of(&right)), ([low, high, high], [high, low, high]));
    }
}

#[test]
fn every_half_precision_number_becomes_the_same_float32_number() {
    let mut device = EmulatedDevice::new();
    let all_of_them: Vec<u16> = (0..=u16::MAX).collect();
    // A last thread with fewer than its four numbers, too.
    for count in [1, 2, 1023, 1025, all_of_them.len()] {
        let values = &all_of_them[all_of_them.len() - count..];
        let (from, out) = (device.holding(values), device.room::<f32>(count));
        Widen { from: &from, out: &out, numbers: count }.launch(&mut device).unwrap();
        for (got, &bits) in out.numbers::<f32>().into_iter().zip(values) {
            let expected = half::f16::from_bits(bits).to_f32();
            let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
            assert!(same, "{bits:#x}: {got} instead of {expected}");
        }
    }
}

#[test]
fn a_short_buffer_is_refused_with_the_argument_and_both_sizes() {
    let mut device = EmulatedDevice::new();
    let (from, out) = (device.room::<u16>(100), device.room::<f32>(100));
    let launch =
        |device: &mut EmulatedDevice, numbers| Widen { from: &from, out: &out, numbers }.launch(device);
    launch(&mut device, 100).unwrap();
    let error = launch(&mut device, 101).unwrap_err();
    let short = DeviceError::ShortBuffer { kernel: "widen", argument: "in", found: 200, needed: 202 };
    assert_eq!(error, short);
    assert_eq!(error.to_string(), "widen takes 202 bytes as `in`, but the buffer has 200 from there on");
    // A part of a buffer ends where the buffer does.
    let report = device.holding(&[0u8; REPORT_BYTES]);
    let (matrix, halves) = (device.room::<f32>(128), device.room::<u16>(128));
    let split = |offset| Split {
        from: Slice { buffer: &matrix, offset },
        out: &halves,
        lines: 1,
        stride: 64,
        order: HalvesOrder::High,
        report: &report,
    };
    split(4 * 64).launch(&mut device).unwrap();
    for offset in [4 * 64 + 4, 4 * 128 + 4] {
        let found = (4 * 128usize).saturating_sub(offset);
        let short = DeviceError::ShortBuffer { kernel: "split", argument: "in", found, needed: 256 };
        assert_eq!(split(offset).launch(&mut device), Err(short));
    }
    let launched = device.launched.into_iter().collect::<Vec<_>>();
    assert_eq!(launched, [("split", 1), ("widen", 1)], "nothing was launched that was refused");
}

#[test]
fn no_kernel_reads_or_writes_outside_of_its_buffers() {
    run_again_sanitized("no_kernel_reads_or_writes_outside_of_its_buffers");
}
