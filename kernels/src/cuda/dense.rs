//! The dense path: products of whole matrices, and the kernels between them.

use super::buffers::{DenseBuffers, Halves, all, count, launch, maybe, update_blocks};
use super::device::{Argument, Device, DeviceError, Element, Factor, Gemm};
use super::forward::mask_words;
use super::layout::{mse_kind, norm_kind, penalty_kind};
use super::plan::SLOPE_ROWS;
use super::step::CudaStep;
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

    /// Makes the halves of a matrix, if products are formed from halves.
    fn split(
        &self,
        device: &mut D,
        matrix: Matrix,
        batch: &D::Buffer,
        lines: usize,
    ) -> Result<(), DeviceError> {
        let Some(halves) = &self.dense_buffers().halves else { return Ok(()) };
        let Halves { high, low } = &halves[matrix as usize];
        let (buffer, offset, stride) = self.numbers(matrix, batch);
        let numbers = lines * stride;
        let arguments = [
            Argument::Buffer(buffer, offset),
            all(high),
            maybe(low.as_ref()),
            Argument::U64(numbers as u64),
            all(&self.buffers.report),
        ];
        launch(device, ("dense", "split"), (numbers.div_ceil(4 * 256), 1), 256, &arguments)
    }

    /// out [m,n] = a · b, each transposed or not, from float32 numbers or from halves: high·high alone, or
    /// the three largest of the four products of halves, the small ones first.
    fn product(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        sizes: (usize, usize, usize),
        (a, a_transposed): (Matrix, bool),
        (b, b_transposed): (Matrix, bool),
        (out, out_stride): (&D::Buffer, usize),
    ) -> Result<(), DeviceError> {
        let (a_numbers, a_offset, a_stride) = self.numbers(a, batch);
        let (b_numbers, b_offset, b_stride) = self.numbers(b, batch);
        let mut multiply = |element, (a, a_offset), (b, b_offset), accumulate| {
            device.gemm(&Gemm {
                sizes,
                element,
                a: Factor { buffer: a, offset: a_offset, stride: a_stride, transposed: a_transposed },
                b: Factor { buffer: b, offset: b_offset, stride: b_stride, transposed: b_transposed },
                out,
                out_offset: 0,
                out_stride,
                accumulate,
            })
        };
        let Some(halves) = &self.dense_buffers().halves else {
            return multiply(Element::F32, (a_numbers, a_offset), (b_numbers, b_offset), false);
        };
        let (a, b) = (&halves[a as usize], &halves[b as usize]);
        let split = match (&a.low, &b.low) {
            (Some(a_low), Some(b_low)) => {
                multiply(Element::Bf16, (a_low, 0), (&b.high, 0), false)?;
                multiply(Element::Bf16, (&a.high, 0), (b_low, 0), true)?;
                true
            }
            _ => false,
        };
        multiply(Element::Bf16, (&a.high, 0), (&b.high, 0), split)
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
        let sizes = (rows, features, stride);
        self.product(device, batch, sizes, (Matrix::X, false), (Matrix::Encoder, true), (activations, line))?;
        let arguments = [
            all(activations),
            Argument::Buffer(&b.parameters, 4 * self.encoder_bias_at()),
            all(&b.mask),
            count(features),
            count(rows),
            count(line),
            count(words),
            all(&b.report),
        ];
        launch(device, ("dense", "activate"), (features.div_ceil(256), words), 256, &arguments)?;
        self.count_bits(device, (&b.mask, features, words), &b.counts)?;

        self.split(device, Matrix::Activations, batch, rows)?;
        self.split(device, Matrix::Decoder, batch, features)?;
        let sizes = (rows, stride, features);
        let factors = ((Matrix::Activations, false), (Matrix::Decoder, false));
        self.product(device, batch, sizes, factors.0, factors.1, (&b.g, stride))?;
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
        let sizes = (rows, features, stride);
        let factors = ((Matrix::Gradient, false), (Matrix::Decoder, true));
        self.product(device, batch, sizes, factors.0, factors.1, (&dense.by_value, line))?;
        let parts = rows.div_ceil(SLOPE_ROWS);
        let arguments = [
            all(&dense.activations),
            all(&dense.by_value),
            self.penalty_norms(),
            all(&b.slopes),
            all(&dense.bias_parts),
            all(&dense.norm_parts),
            count(features),
            count(rows),
            count(line),
            Argument::U32(penalty_kind(self.spec.loss.penalty)),
            all(&b.scalars),
            all(&b.report),
        ];
        launch(device, ("dense", "dense_slopes"), (features.div_ceil(256), parts), 256, &arguments)?;

        self.split(device, Matrix::ByValue, batch, rows)?;
        let sizes = (features, stride, rows);
        let factors = ((Matrix::ByValue, true), (Matrix::X, false));
        self.product(device, batch, sizes, factors.0, factors.1, (&dense.encoder_gradient, stride))?;
        let factors = ((Matrix::Activations, true), (Matrix::Gradient, false));
        self.product(device, batch, sizes, factors.0, factors.1, (&dense.decoder_gradient, stride))?;

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
