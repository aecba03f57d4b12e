//! The dense path: products of whole matrices, and the kernels between them.

use super::buffers::{DenseBuffers, Halves, all, count, launch, maybe, update_blocks};
use super::device::{Argument, Device, DeviceError, Element, Factor, Gemm};
use super::forward::mask_words;
use super::layout::{mse_kind, norm_kind, penalty_kind};
use super::plan::{Path, SLOPE_ROWS};
use super::resident::CudaStep;
use super::train::per_chunks;

/// A matrix that is a factor of dense products: its place among the halves, and float32 numbers.
#[derive(Clone, Copy)]
enum Matrix {
    X = 0,
    Encoder = 1,
    Decoder = 2,
    Activations = 3,
    Gradient = 4,
    ByValue = 5,
}

impl<D: Device> CudaStep<D> {
    fn dense_buffers(&self) -> &DenseBuffers<D::Buffer> {
        self.dense.as_ref().expect("dense buffers are allocated before a dense pass is queued")
    }

    /// A matrix' float32 numbers: buffer, first byte, numbers from one row to the next.
    fn numbers<'a>(&'a self, matrix: Matrix, batch: &'a D::Buffer) -> (&'a D::Buffer, usize, usize) {
        let (b, dense, stride) = (&self.buffers, self.dense_buffers(), self.plan.stride);
        match matrix {
            Matrix::X => (self.encoder_input(batch), 0, stride),
            Matrix::Encoder => (&b.parameters, 0, stride),
            Matrix::Decoder => (&b.parameters, 4 * self.decoder_at(), stride),
            Matrix::Activations => (&dense.activations, 0, self.plan.line),
            Matrix::Gradient => (&b.g, 0, stride),
            Matrix::ByValue => (&dense.by_value, 0, self.plan.line),
        }
    }

    fn halves(&self, matrix: Matrix) -> Option<&Halves<D::Buffer>> {
        self.dense_buffers().halves.as_ref().map(|halves| &halves[matrix as usize])
    }

    /// Makes the halves of one of the smaller matrices, if products are formed from halves.
    fn split(
        &self,
        device: &mut D,
        matrix: Matrix,
        batch: &D::Buffer,
        lines: usize,
    ) -> Result<(), DeviceError> {
        let Some(halves) = self.halves(matrix) else { return Ok(()) };
        let (buffer, offset, stride) = self.numbers(matrix, batch);
        let order = match halves.low {
            None => 0,
            Some(low) if low < halves.high => 1,
            Some(_) => 2,
        };
        let arguments = [
            Argument::Buffer(buffer, offset),
            all(&halves.buffer),
            count(stride),
            Argument::U32(order),
            all(&self.buffers.report),
        ];
        launch(device, ("dense", "split"), (lines, 1), self.plan.decode_threads, &arguments)
    }

    /// Where a kernel writes the halves of a or da: high, and low where it is wanted.
    fn written_halves(&self, matrix: Matrix) -> [Argument<'_, D::Buffer>; 2] {
        let Some(halves) = self.halves(matrix) else { return [Argument::Null, Argument::Null] };
        let at = |offset| Argument::Buffer(&halves.buffer, offset);
        [at(halves.high), halves.low.map_or(Argument::Null, at)]
    }

    /// out [m,n] = a [m,d] · b [n,d]ᵀ, of X or g and one of the weights.
    fn product_over_width(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        (m, n): (usize, usize),
        (a, b): (Matrix, Matrix),
        out: &D::Buffer,
    ) -> Result<(), DeviceError> {
        let (element, k, a, b) = match (self.halves(a), self.halves(b)) {
            // High and low halves lie side by side, so that one product sums over all of them.
            (Some(a), Some(b)) => {
                (Element::Bf16, a.stride, (&a.buffer, 0, a.stride), (&b.buffer, 0, b.stride))
            }
            _ => (Element::F32, self.plan.stride, self.numbers(a, batch), self.numbers(b, batch)),
        };
        device.gemm(&Gemm {
            sizes: (m, n, k),
            element,
            a: Factor { buffer: a.0, offset: a.1, stride: a.2, transposed: false },
            b: Factor { buffer: b.0, offset: b.1, stride: b.2, transposed: true },
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
        out: &D::Buffer,
    ) -> Result<(), DeviceError> {
        let stride = self.plan.stride;
        let mut multiply =
            |element, a: (&D::Buffer, usize, usize), b: (&D::Buffer, usize, usize), accumulate| {
                device.gemm(&Gemm {
                    sizes: (m, stride, k),
                    element,
                    a: Factor { buffer: a.0, offset: a.1, stride: a.2, transposed },
                    b: Factor { buffer: b.0, offset: b.1, stride: b.2, transposed: false },
                    out,
                    out_offset: 0,
                    out_stride: stride,
                    accumulate,
                })
            };
        let (Some(a), Some(b)) = (self.halves(a), self.halves(b)) else {
            return multiply(Element::F32, self.numbers(a, batch), self.numbers(b, batch), false);
        };
        let (a_high, b_high) = ((&a.buffer, a.high, a.stride), (&b.buffer, b.high, b.stride));
        let exact = match (a.low, b.low) {
            (Some(a_low), Some(b_low)) => {
                multiply(Element::Bf16, (&a.buffer, a_low, a.stride), b_high, false)?;
                multiply(Element::Bf16, a_high, (&b.buffer, b_low, b.stride), true)?;
                true
            }
            _ => false,
        };
        multiply(Element::Bf16, a_high, b_high, exact)
    }

    pub(crate) fn encode_and_decode_dense(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        rows: usize,
    ) -> Result<(), DeviceError> {
        let (plan, b, dense) = (&self.plan, &self.buffers, self.dense_buffers());
        let (features, stride, line, words) = (plan.features, plan.stride, plan.line, mask_words(rows));
        self.split(device, Matrix::X, batch, rows)?;
        self.split(device, Matrix::Encoder, batch, features)?;
        let activations = &dense.activations;
        let factors = (Matrix::X, Matrix::Encoder);
        self.product_over_width(device, batch, (rows, features), factors, activations)?;
        let [high, low] = self.written_halves(Matrix::Activations);
        let arguments = [
            all(activations),
            Argument::Buffer(&b.parameters, 4 * self.encoder_bias_at()),
            all(&b.mask),
            high,
            low,
            count(features),
            count(rows),
            count(line),
            count(words),
            all(&b.report),
        ];
        launch(device, ("dense", "activate"), (features.div_ceil(256), words), 256, &arguments)?;
        self.count_features(device, rows, Path::Dense)?;

        self.split(device, Matrix::Decoder, batch, features)?;
        let factors = ((Matrix::Activations, false), Matrix::Decoder);
        self.product_to_width(device, batch, (rows, features), factors.0, factors.1, &b.g)?;
        launch(
            device,
            ("dense", "decode_dense"),
            (rows, 1),
            256,
            &[
                all(self.padded(batch)),
                all(&b.squared),
                all(&b.centered),
                Argument::Buffer(&b.parameters, 4 * self.decoder_bias_at()),
                self.penalty_norms(),
                all(activations),
                all(&b.g),
                all(&b.results),
                count(features),
                count(rows),
                count(plan.width),
                count(stride),
                count(line),
                Argument::U32(mse_kind(self.spec.loss.mse)),
                Argument::U32(penalty_kind(self.spec.loss.penalty)),
                all(&b.scalars),
                all(&b.report),
            ],
        )
    }

    pub(crate) fn update_dense(&self, device: &mut D, batch: &D::Buffer) -> Result<(), DeviceError> {
        let (plan, b, dense) = (&self.plan, &self.buffers, self.dense_buffers());
        let (rows, features, stride, line) = (plan.rows, plan.features, plan.stride, plan.line);
        self.split(device, Matrix::Gradient, batch, rows)?;
        let factors = (Matrix::Gradient, Matrix::Decoder);
        self.product_over_width(device, batch, (rows, features), factors, &dense.by_value)?;
        let [high, low] = self.written_halves(Matrix::ByValue);
        let parts = rows.div_ceil(SLOPE_ROWS);
        let arguments = [
            all(&dense.activations),
            all(&dense.by_value),
            self.penalty_norms(),
            all(&b.slopes),
            all(&dense.bias_parts),
            all(&dense.norm_parts),
            high,
            low,
            count(features),
            count(rows),
            count(line),
            Argument::U32(penalty_kind(self.spec.loss.penalty)),
            all(&b.scalars),
            all(&b.report),
        ];
        launch(device, ("dense", "dense_slopes"), (features.div_ceil(256), parts), 256, &arguments)?;

        let (sizes, transposed) = ((features, rows), true);
        let encoder = (Matrix::ByValue, transposed);
        self.product_to_width(device, batch, sizes, encoder, Matrix::X, &dense.encoder_gradient)?;
        let decoder = (Matrix::Activations, transposed);
        self.product_to_width(device, batch, sizes, decoder, Matrix::Gradient, &dense.decoder_gradient)?;

        let update =
            per_chunks(["update_dense_1", "update_dense_2", "update_dense_4", "update_dense_8"], plan.chunks);
        let gradients = [
            all(&dense.encoder_gradient),
            all(&dense.decoder_gradient),
            all(&dense.bias_parts),
            all(&dense.norm_parts),
            count(parts),
            maybe(b.pre_bias.as_ref().map(|(parts, _)| parts)),
            count(features),
            count(stride),
            Argument::U32(u32::from(self.spec.loss.weight_by_decoder_norm)),
            Argument::U32(norm_kind(self.spec.decoder_norm)),
            all(&b.scalars),
            all(&b.report),
        ];
        let arguments: Vec<_> = self.derived().into_iter().chain(gradients).collect();
        launch(device, ("update", update), (update_blocks(plan), 1), plan.row_threads, &arguments)
    }
}
