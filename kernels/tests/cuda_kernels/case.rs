//! A batch and an encoder on the device, and what is derived from them there.

use emulation::{Buffer, EmulatedDevice};
use example_steps::numbers;
use kernels::cpu::Isa;
use kernels::cpu::encode::{Encode, encode_dense};
use kernels::cuda::device::{Device, Screen};
use kernels::cuda::launch::lists::{CountRows, ListRows, TransposeMask};
use kernels::cuda::launch::recheck::{Operands, Recheck};
use kernels::cuda::launch::rows;
use kernels::cuda::launch::update::{Derive, Derived};
use kernels::cuda::launch::{mask_words, parameters_length, row_mask_words};
use kernels::loss::Mse;

/// Rows of `width` numbers padded with zeros to `stride`.
pub(crate) fn padded(numbers: &[f32], width: usize, stride: usize) -> Vec<f32> {
    let pad =
        |row: &[f32]| row.iter().copied().chain(std::iter::repeat_n(0.0, stride - width)).collect::<Vec<_>>();
    numbers.chunks_exact(width).flat_map(pad).collect()
}

/// How many pairs are active.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Activity {
    Some,
    None,
    All,
}

/// Bytes of a step's scalars.
pub(crate) const SCALAR_BYTES: usize = 56;

pub(crate) const ACTIVITIES: [Activity; 3] = [Activity::Some, Activity::None, Activity::All];
pub(crate) const SIZES: [(usize, usize, usize); 5] =
    [(1, 1, 1), (5, 3, 17), (64, 64, 64), (131, 33, 97), (300, 130, 270)];

/// A batch, an encoder and everything derived from them, here and on the device.
pub(crate) struct Case {
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) features: usize,
    pub(crate) stride: usize,
    pub(crate) words: usize,
    pub(crate) x: Vec<f32>,
    pub(crate) weights: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) device: EmulatedDevice,
    pub(crate) device_x: Buffer,
    pub(crate) device_weights: Buffer,
    pub(crate) device_bias: Buffer,
    /// A report whose status is that of a running step.
    pub(crate) report: Buffer,
}

pub(crate) const REPORT_BYTES: usize = 216;
/// Words of the report: the features below the target, the first row that is not finite (behind it the first of zeros), and the
/// smallest activation.
pub(crate) const BELOW_TARGET: usize = 44;
pub(crate) const NON_FINITE_ROW: usize = 46;
pub(crate) const SMALLEST: usize = 52;

/// The report of a step that has begun: no row has been found bad yet.
pub(crate) fn begun(device: &mut EmulatedDevice) -> Buffer {
    let mut report = vec![0u32; REPORT_BYTES / 4];
    report[NON_FINITE_ROW..][..2].fill(u32::MAX);
    device.holding(&report)
}

/// What `row_norms` writes.
pub(crate) struct Norms {
    pub(crate) x_bf16: Buffer,
    pub(crate) squared: Buffer,
    pub(crate) centered: Buffer,
    pub(crate) length: Buffer,
    pub(crate) row_norm: Buffer,
    pub(crate) row_residual: Buffer,
}

impl Case {
    pub(crate) fn new((rows, width, features): (usize, usize, usize), activity: Activity) -> Case {
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

    pub(crate) fn encode(&self) -> Encode<'_> {
        Encode { x: &self.x, weights: &self.weights, bias: &self.bias, width: self.width }
    }

    /// The CPU's activations, [B,F].
    pub(crate) fn activations(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.features];
        encode_dense(Isa::detect(), self.encode(), &mut out);
        out
    }

    /// The mask of the pairs for which `set` holds.
    pub(crate) fn mask(&self, set: impl Fn(usize, usize) -> bool) -> Vec<u32> {
        let mut mask = vec![0u32; self.features * self.words];
        for feature in 0..self.features {
            for row in (0..self.rows).filter(|row| set(*row, feature)) {
                mask[feature * self.words + row / 32] |= 1 << (row % 32);
            }
        }
        mask
    }

    pub(crate) fn exact_mask(&self) -> Vec<u32> {
        let activations = self.activations();
        self.mask(|row, feature| activations[row * self.features + feature] > 0.0)
    }

    /// Runs `row_norms` on the batch, whose mean is `mean`.
    pub(crate) fn row_norms(
        &mut self,
        mean: &Buffer,
        shifted: Option<rows::ShiftedInput<'_, Buffer>>,
        bounds: bool,
        zero_check: Mse,
    ) -> Norms {
        let (rows, stride) = (self.rows, self.stride);
        let x_bf16 = self.device.room::<u16>(rows * stride);
        let [squared, centered, length, row_norm, row_residual] =
            std::array::from_fn(|_| self.device.room::<f32>(rows));
        let norms = rows::RowNorms {
            x: &self.device_x,
            mean,
            shifted,
            x_bf16: &x_bf16,
            squared: &squared,
            centered: &centered,
            length: &length,
            row_norm: &row_norm,
            row_residual: &row_residual,
            rows,
            stride,
            bounds,
            zero_check,
            report: &self.report,
        };
        norms.launch(&mut self.device).unwrap();
        Norms { x_bf16, squared, centered, length, row_norm, row_residual }
    }

    /// Runs `row_norms` without bias; returns x_bf16, length, row_norm and row_residual.
    pub(crate) fn row_bounds(&mut self, bounds: bool) -> [Buffer; 4] {
        let mean = self.device.holding(&vec![0.0f32; self.stride]);
        let norms = self.row_norms(&mean, None, bounds, Mse::Sum);
        [norms.x_bf16, norms.length, norms.row_norm, norms.row_residual]
    }

    /// The same sizes with other numbers.
    pub(crate) fn holding(mut self, x: Vec<f32>, weights: Vec<f32>, bias: Vec<f32>) -> Case {
        self.device_x = self.device.holding(&padded(&x, self.width, self.stride));
        self.device_weights = self.device.holding(&padded(&weights, self.width, self.stride));
        self.device_bias = self.device.holding(&bias);
        Case { x, weights, bias, ..self }
    }

    /// Runs `derive` on the encoder (and itself as the decoder); returns encoder_bf16, feature_base,
    /// feature_norm and feature_residual.
    pub(crate) fn feature_bounds(&mut self, bounds: bool) -> [Buffer; 4] {
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
        let derive = Derive { parameters: &parameters, derived, features, stride, thresholds: None };
        derive.launch(&mut self.device).unwrap();
        for (feature, norm) in decoder_norm.numbers::<f32>().into_iter().enumerate() {
            let row = &self.weights[feature * self.width..][..self.width];
            let exact = row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
            assert!((f64::from(norm) - exact).abs() <= 2e-6 * exact, "the norm of feature {feature}");
        }
        [encoder_bf16, base, norm, residual]
    }

    pub(crate) fn screen(&mut self, bounds: bool) -> Vec<u32> {
        let [x, _, row_norm, row_residual] = self.row_bounds(bounds);
        let [encoder, base, norm, residual] = self.feature_bounds(bounds);
        let mask = self.device.room::<u32>(self.features * self.words);
        let screen = Screen {
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
    pub(crate) fn row_lists(&mut self, mask: &Buffer, capacity: usize) -> (Buffer, Buffer) {
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
    pub(crate) fn recheck(
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
            jump: None,
        };
        recheck.launch(&mut self.device).unwrap();
        (values, active)
    }

    pub(crate) fn status(&self) -> u32 {
        self.report.numbers::<u32>()[0]
    }
}
