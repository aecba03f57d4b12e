//! The second part of a forward pass: what the activations of a panel add to x̂.

use std::ops::Range;

use crate::parameters::numbers;
use crate::path::Path;

use super::decode::{
    Decode, Onto, RowActivity, decode_sparse, decode_sparse_group, decode_sparse_onto, sparse_activity,
};
use super::dense::{add_skip, decode_dense, decode_dense_group, dense_activity};
use super::forward::{Buffers, Forward};

impl Forward<'_> {
    /// Calls `work` with what the decode's first half reads. The first panel's sums begin with the bias, the others' with 0.
    fn with_decode<R>(&mut self, work: impl FnOnce(Decode<'_>, &mut Buffers) -> R) -> R {
        let (spec, weights) = (self.spec, self.weights);
        if spec.loss.weight_by_decoder_norm {
            self.measure_decoder();
        }
        let decoder_norms = std::mem::take(&mut self.buffers.decoder_norms);
        let no_bias = vec![0.0; if self.is_first { 0 } else { spec.width }];
        let decode = Decode {
            weights: numbers(&weights.decoder),
            bias: if self.is_first { numbers(&weights.decoder_bias) } else { &no_bias },
            decoder_norms: spec.loss.weight_by_decoder_norm.then_some(&decoder_norms[..]),
            sparsity: self.sparsity,
        };
        let result = work(decode, self.buffers);
        self.buffers.decoder_norms = decoder_norms;
        result
    }

    /// x̂ [B,d] of the rows `input` [B,d] from the panel's activations, and what is active in each row, [B].
    pub(super) fn decode(
        &mut self,
        path: Path,
        input: &[f32],
        reconstruction: &mut Vec<f32>,
        activity: &mut Vec<RowActivity>,
    ) {
        let isa = self.options.isa;
        let products = self.options.products(self.purpose);
        reconstruction.resize(input.len(), 0.0);
        activity.resize(input.len() / self.spec.width, RowActivity::default());
        self.with_decode(|decode, buffers| {
            let Buffers { selected, activations, sums, packed, .. } = buffers;
            match path {
                Path::Sparse => decode_sparse(isa, decode, &selected.kept, reconstruction, activity),
                Path::Dense => {
                    decode_dense(products, decode, activations, &sums.rows, packed, reconstruction, activity)
                }
            }
        });
        self.skip(input, reconstruction);
    }

    /// As [`Forward::decode`], added to sums of panels before this one; `values` is memory.
    pub(super) fn decode_onto(
        &mut self,
        path: Path,
        input: &[f32],
        onto: Onto<'_>,
        values: &mut Vec<f32>,
        activity: &mut Vec<RowActivity>,
    ) {
        let (isa, width) = (self.options.isa, self.spec.width);
        if path == Path::Sparse && !self.is_first {
            activity.resize(input.len() / width, RowActivity::default());
            self.with_decode(|decode, buffers| {
                decode_sparse_onto(isa, decode, &buffers.selected.kept, onto, values, activity);
            });
            return;
        }
        self.decode(path, input, values, activity);
        onto.add(isa, values, width);
    }

    /// Adds to x̂ what a skip connection makes of `input` [B,d].
    fn skip(&mut self, input: &[f32], reconstruction: &mut [f32]) {
        if let Some(skip) = self.weights.skip.as_ref().filter(|_| self.is_first) {
            let products = self.options.products(self.purpose);
            let packed = &mut self.buffers.packed;
            add_skip(products, input, numbers(skip), self.spec.width, packed, reconstruction);
        }
    }

    /// The same for groups of neighbouring features, one after another: hands x̂ of the groups so far to `each`.
    pub(super) fn decode_groups(
        &mut self,
        path: Path,
        input: &[f32],
        groups: &[Range<usize>],
        reconstruction: &mut Vec<f32>,
        activity: &mut Vec<RowActivity>,
        mut each: impl FnMut(usize, &[f32]),
    ) {
        let (isa, rows) = (self.options.isa, input.len() / self.spec.width);
        reconstruction.clear();
        match self.is_first {
            true => reconstruction.extend((0..rows).flat_map(|_| &self.weights.decoder_bias)),
            false => reconstruction.resize(input.len(), 0.0),
        }
        self.skip(input, reconstruction);
        let products = self.options.products(self.purpose);
        activity.resize(rows, RowActivity::default());
        self.with_decode(|decode, buffers| {
            let Buffers { selected, activations, sums, packed, .. } = buffers;
            match path {
                Path::Sparse => sparse_activity(decode, &selected.kept, activity),
                Path::Dense => dense_activity(decode, activations, &sums.rows, activity),
            }
            for (at, group) in groups.iter().enumerate() {
                match path {
                    _ if group.is_empty() => {}
                    Path::Sparse => {
                        decode_sparse_group(isa, decode, &selected.kept, group.clone(), reconstruction)
                    }
                    Path::Dense => {
                        let group = group.clone();
                        decode_dense_group(products, decode, activations, group, packed, reconstruction)
                    }
                }
                each(at, reconstruction);
            }
        });
    }
}
