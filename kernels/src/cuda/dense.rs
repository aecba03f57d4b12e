//! The dense path: products of whole matrices, and the kernels between them.

use crate::activation::Activation;

use super::buffers::DenseBuffers;
use super::device::{Device, Element, Factor, Gemm};
use super::halves::{Halves, Matrix};
use super::launch::Slice;
use super::launch::clip::Gradients;
use super::launch::dense::{
    Activate, DecodeDense, DenseJump, DenseSlopes, Split, WrittenHalves, slope_parts,
};
use super::launch::update::UpdateDense;
use super::panel::Panel;
use crate::error::DeviceError;
use crate::path::Path;

impl<D: Device> Panel<D> {
    pub(crate) fn dense_buffers(&self) -> &DenseBuffers<D::Buffer> {
        self.dense.as_ref().expect("dense buffers are allocated before a dense pass is queued")
    }

    /// A matrix' float32 numbers.
    fn numbers<'a>(&'a self, matrix: Matrix, batch: &'a D::Buffer) -> Slice<'a, D::Buffer> {
        let dense = self.dense_buffers();
        match matrix {
            Matrix::X => self.encoder_input(batch).into(),
            Matrix::Encoder => self.ranking().encoder,
            Matrix::Decoder => self.weights_from(self.plan.decoder_at()),
            Matrix::Activations => (&dense.activations).into(),
            Matrix::Gradient => self.g().into(),
            Matrix::ByValue => (&dense.by_value).into(),
        }
    }

    /// The same as a factor of a product, without its transposition: where it begins, and numbers in a row.
    fn float32_factor<'a>(&'a self, matrix: Matrix, batch: &'a D::Buffer) -> (Slice<'a, D::Buffer>, usize) {
        (self.numbers(matrix, batch), matrix.stride(&self.plan))
    }

    fn halves(&self, matrix: Matrix) -> Option<(&D::Buffer, Halves)> {
        self.dense_buffers().halves(matrix).zip(matrix.halves(&self.plan))
    }

    /// Makes the halves of `lines` lines of one of the smaller matrices, if products are formed from halves.
    pub(super) fn split(
        &self,
        device: &mut D,
        matrix: Matrix,
        batch: &D::Buffer,
        lines: usize,
    ) -> Result<(), DeviceError> {
        let Some((out, halves)) = self.halves(matrix) else { return Ok(()) };
        let split = Split {
            from: self.numbers(matrix, batch),
            out,
            lines,
            stride: matrix.stride(&self.plan),
            order: halves.order,
            report: &self.buffers.report,
        };
        split.launch(device)
    }

    /// Where a kernel writes the halves of a or da.
    fn written_halves(&self, matrix: Matrix) -> WrittenHalves<'_, D::Buffer> {
        let Some((buffer, halves)) = self.halves(matrix) else {
            return WrittenHalves { high: None, low: None };
        };
        let at = |offset| Slice { buffer, offset };
        WrittenHalves { high: Some(at(halves.high)), low: halves.low.map(at) }
    }

    /// out [m,n] = a [m,d] · b [n,d]ᵀ, of X or g and one of the weights.
    pub(super) fn product_over_width(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        (m, n): (usize, usize),
        (a, b): (Matrix, Matrix),
        out: &D::Buffer,
    ) -> Result<(), DeviceError> {
        let (element, a, b) = match (self.halves(a), self.halves(b)) {
            // High and low halves lie side by side, so that one product sums over all of them.
            (Some((a, a_halves)), Some((b, b_halves))) => {
                (Element::Bf16, (a.into(), a_halves.stride), (b.into(), b_halves.stride))
            }
            _ => (Element::F32, self.float32_factor(a, batch), self.float32_factor(b, batch)),
        };
        device.gemm(&Gemm {
            sizes: (m, n, a.1),
            element,
            a: factor(a, false),
            b: factor(b, true),
            out,
            out_offset: 0,
            out_stride: self.plan.line,
            accumulate: false,
        })
    }

    /// out [m,stride] = a · b, a perhaps transposed, from float32 numbers or from halves: high·high alone, or the three
    /// largest of the four products of halves, the small ones first.
    fn product_to_width(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        (m, k): (usize, usize),
        (a, transposed): (Matrix, bool),
        b: Matrix,
        out: Slice<'_, D::Buffer>,
    ) -> Result<(), DeviceError> {
        let stride = self.plan.stride;
        let mut multiply = |element, a, b, accumulate| {
            device.gemm(&Gemm {
                sizes: (m, stride, k),
                element,
                a: factor(a, transposed),
                b: factor(b, false),
                out: out.buffer,
                out_offset: out.offset,
                out_stride: stride,
                accumulate,
            })
        };
        let (Some((a, a_halves)), Some((b, b_halves))) = (self.halves(a), self.halves(b)) else {
            let (a, b) = (self.float32_factor(a, batch), self.float32_factor(b, batch));
            return multiply(Element::F32, a, b, false);
        };
        let a = |offset| (Slice { buffer: a, offset }, a_halves.stride);
        let b = |offset| (Slice { buffer: b, offset }, b_halves.stride);
        let exact = match (a_halves.low, b_halves.low) {
            (Some(a_low), Some(b_low)) => {
                multiply(Element::Bf16, a(a_low), b(b_halves.high), false)?;
                multiply(Element::Bf16, a(a_halves.high), b(b_low), true)?;
                true
            }
            _ => false,
        };
        multiply(Element::Bf16, a(a_halves.high), b(b_halves.high), exact)
    }

    pub(crate) fn encode_and_decode_dense(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        rows: usize,
    ) -> Result<(), DeviceError> {
        let (plan, b, dense) = (&self.plan, &self.buffers, self.dense_buffers());
        let features = plan.features;
        self.dense_preactivations(device, batch, rows)?;
        let activate = Activate {
            a: &dense.activations,
            encoder_bias: self.ranking().bias,
            mask: &b.mask,
            halves: self.written_halves(Matrix::Activations),
            features,
            rows,
            report: &b.report,
            jump: self.thresholds().zip(dense.preactivations.as_ref()),
            above: match self.spec.activation {
                Activation::Relu | Activation::JumpRelu { .. } => None,
                // Not in training, which selects.
                Activation::BatchTopK { .. } => {
                    Some((self.threshold.unwrap_or(0.0) as f32, self.rank_norms()))
                }
                Activation::TopK { .. } => unreachable!("selections are sparse"),
            },
        };
        activate.launch(device)?;
        self.count_features(device, rows, Path::Dense)?;

        self.split(device, Matrix::Decoder, batch, features)?;
        let factors = ((Matrix::Activations, false), Matrix::Decoder);
        if let Some(part) = &self.part {
            let out = part.own().sum;
            self.product_to_width(device, batch, (rows, features), factors.0, factors.1, out)?;
            return self.decode_part_dense(device, rows);
        }
        let out = self.g().into();
        self.product_to_width(device, batch, (rows, features), factors.0, factors.1, out)?;
        let decode = DecodeDense {
            x: self.padded(batch),
            squared: &b.squared,
            centered: &b.centered,
            decoder_bias: self.weights_from(plan.decoder_bias_at()),
            decoder_norm: self.penalty_norms(),
            a: &dense.activations,
            g: self.g(),
            results: self.results(),
            features,
            rows,
            width: plan.width,
            mse: self.spec.loss.mse,
            penalty: self.spec.loss.penalty,
            scalars: &b.scalars,
            report: &b.report,
        };
        decode.launch(device)
    }

    /// The thresholds' gradients, where features have some.
    fn dense_jump(&self) -> Option<DenseJump<'_, D::Buffer>> {
        let dense = self.dense_buffers();
        let (pseudo, preactivations) = (self.pseudo()?, dense.preactivations.as_ref()?);
        Some(DenseJump { pseudo, preactivations, threshold_parts: dense.threshold_parts.as_ref()? })
    }

    pub(crate) fn update_dense(&self, device: &mut D, batch: &D::Buffer) -> Result<(), DeviceError> {
        let (plan, b, dense) = (&self.plan, &self.buffers, self.dense_buffers());
        let (rows, features) = (plan.rows, plan.features);
        self.split(device, Matrix::Gradient, batch, rows)?;
        let factors = (Matrix::Gradient, Matrix::Decoder);
        self.product_over_width(device, batch, (rows, features), factors, &dense.by_value)?;
        let slopes = DenseSlopes {
            a: &dense.activations,
            da: &dense.by_value,
            decoder_norm: self.penalty_norms(),
            slopes: &b.slopes,
            bias_parts: &dense.bias_parts,
            norm_parts: &dense.norm_parts,
            halves: self.written_halves(Matrix::ByValue),
            features,
            rows,
            penalty: self.spec.loss.penalty,
            scalars: &b.scalars,
            report: &b.report,
            jump: self.dense_jump(),
        };
        slopes.launch(device)?;

        let (sizes, transposed) = ((features, rows), true);
        let encoder = (Matrix::ByValue, transposed);
        self.product_to_width(device, batch, sizes, encoder, Matrix::X, (&dense.encoder_gradient).into())?;
        let decoder = (Matrix::Activations, transposed);
        self.product_to_width(
            device,
            batch,
            sizes,
            decoder,
            Matrix::Gradient,
            (&dense.decoder_gradient).into(),
        )?;

        if let Some(clipping) = self.clipping() {
            let gradients = Gradients {
                encoder: &dense.encoder_gradient,
                decoder: &dense.decoder_gradient,
                bias: &dense.bias_parts,
                by_norm: &dense.norm_parts,
                threshold: dense.threshold_parts.as_ref(),
                parts: slope_parts(rows, features) / features,
            };
            return self.update_clipped(device, gradients, clipping);
        }
        let update = UpdateDense {
            parameters: &b.parameters,
            derived: self.derived(),
            encoder_gradient: &dense.encoder_gradient,
            decoder_gradient: &dense.decoder_gradient,
            bias_parts: &dense.bias_parts,
            norm_parts: &dense.norm_parts,
            pre_bias: b.pre_bias.as_ref(),
            rows,
            features,
            stride: plan.stride,
            weighted: self.spec.loss.weight_by_decoder_norm,
            decoder_norm: self.spec.decoder_norm,
            scalars: &b.scalars,
            report: &b.report,
            jump: self.thresholds().zip(dense.threshold_parts.as_ref()),
        };
        update.launch(device)
    }
}

/// A factor of a product: where it begins and numbers in its rows, and its transposition.
fn factor<B>((from, stride): (Slice<'_, B>, usize), transposed: bool) -> Factor<'_, B> {
    Factor { buffer: from.buffer, offset: from.offset, stride, transposed }
}
