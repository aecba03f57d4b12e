//! What can be decided without a device: the sizes of a step, and the choice between the sparse and the dense path.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::step::{SpecError, StepSpec};

use super::launch::lists::most_segments;
use super::launch::{RowBlock, dense_line, mask_words, parameters_length, row_mask_words, stride_of};

/// The largest grid in y and z.
const LARGEST_GRID_Y: usize = 65_535;

/// How the encode and the products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// A bfloat16 product on tensor cores screens, float32 decides and computes: the active set and the
    /// activations are those of [`Precision::Fp32`], bit for bit. Dense products are split into three
    /// bfloat16 ones, which is float32 within rounding.
    Exact,
    /// The bfloat16 product decides, activations come from bfloat16 operands, decode and dense products too.
    Bf16,
    /// Plain float32 everywhere: the definition.
    Fp32,
}

/// Which way a step is computed. Both give the same numbers within rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Path {
    /// Dense products.
    Dense,
    /// Only the active pairs (row, feature) are touched after the encode.
    Sparse,
}

/// How a step runs. Nothing but [`Precision::Bf16`] changes results beyond rounding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// How products are computed.
    pub precision: Precision,
    /// The lists hold this share of the B·F pairs; batches with more take the dense path. 0 or less: always dense; 1: never.
    /// A run is not bound to it: one that goes on with other lists takes the dense path first and finds its way back, its
    /// steps the same within rounding.
    pub sparse_density: f64,
}

impl Options {
    /// Lists for the share of the pairs up to which gathering rows takes less time than the dense products: 1.5 %, or 0.6 %
    /// where those are one product of bfloat16 numbers instead of three. Reckoned, not measured (`docs/benchmarks/cuda.md`).
    pub fn for_precision(precision: Precision) -> Options {
        let sparse_density = match precision {
            // Float32's dense products take longer still: the definition, for checks, is given what the others need.
            Precision::Exact | Precision::Fp32 => 0.015,
            Precision::Bf16 => 0.006,
        };
        Options { precision, sparse_density }
    }
}

impl Default for Options {
    /// [`Options::for_precision`] of [`Precision::Exact`].
    fn default() -> Options {
        Options::for_precision(Precision::Exact)
    }
}

/// A step that the kernels cannot do.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum PlanError {
    /// The spec is out of range.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A size is beyond what the kernels are written for.
    #[error("{name} is {value}, but the CUDA kernels take at most {most}")]
    TooLarge {
        /// Which size.
        name: &'static str,
        /// What it is.
        value: usize,
        /// The largest one possible.
        most: usize,
    },
}

/// The sizes of a step on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// B.
    pub rows: usize,
    /// d.
    pub width: usize,
    /// d rounded up to a multiple of 64.
    pub stride: usize,
    /// F.
    pub features: usize,
    /// Words in a line of the mask [F,words].
    pub words: usize,
    /// Words in a line of the transposed mask [B,row_words].
    pub row_words: usize,
    /// Numbers in a line of dense activations: F rounded up to a multiple of 64.
    pub line: usize,
    /// Pairs that the lists hold.
    pub pairs: usize,
    /// Segments that those pairs can make.
    pub segments: usize,
    /// n.
    pub window: usize,
    /// Whether the encoder reads x − b_dec.
    pub pre_bias: bool,
    /// How products are computed.
    pub precision: Precision,
}

fn at_most(name: &'static str, value: usize, most: usize) -> Result<(), PlanError> {
    if value <= most { Ok(()) } else { Err(PlanError::TooLarge { name, value, most }) }
}

impl Plan {
    /// The plan for a step.
    ///
    /// # Errors
    /// A spec out of range, or sizes that the kernels are not written for.
    pub fn new(spec: &StepSpec, options: &Options) -> Result<Plan, PlanError> {
        spec.validate()?;
        at_most("width", spec.width, RowBlock::LONGEST)?;
        // Words of the mask are a dimension of a grid.
        at_most("batch", spec.batch, LARGEST_GRID_Y / 4 * 4 * 32)?;
        at_most("features", spec.features, LARGEST_GRID_Y * 64)?;
        at_most("sparsity_window", spec.sparsity_window, i32::MAX as usize)?;

        let cells = spec.batch as f64 * spec.features as f64;
        let share = options.sparse_density.clamp(0.0, 1.0);
        let pairs = (cells * share).min(f64::from(u32::MAX / 2)) as usize;
        Ok(Plan {
            rows: spec.batch,
            width: spec.width,
            stride: stride_of(spec.width),
            features: spec.features,
            words: mask_words(spec.batch),
            row_words: row_mask_words(spec.features),
            line: dense_line(spec.features),
            pairs,
            segments: most_segments(pairs, spec.features, spec.batch),
            window: spec.sparsity_window,
            pre_bias: spec.pre_bias,
            precision: options.precision,
        })
    }

    /// Numbers in one copy of the parameters: encoder, decoder, encoder bias, decoder bias, each padded.
    pub fn parameters(&self) -> usize {
        parameters_length(self.features, self.stride)
    }

    /// Where the decoder begins in one copy of the parameters; the encoder begins at 0.
    pub(crate) fn decoder_at(&self) -> usize {
        self.features * self.stride
    }

    /// Where b_enc begins in one copy of the parameters.
    pub(crate) fn encoder_bias_at(&self) -> usize {
        2 * self.decoder_at()
    }

    /// Where b_dec begins in one copy of the parameters.
    pub(crate) fn decoder_bias_at(&self) -> usize {
        self.parameters() - self.stride
    }
}

/// Decides which path a step takes, from what the steps before it found.
///
/// The sparse path cannot know beforehand whether a batch fits its lists; one that does not is refused by the
/// device and done again on the dense path. So the sparse path is tried when the dense one has found clearly
/// fewer active pairs than the lists hold, and after a refusal not before that number has fallen, or after a while.
///
/// The two paths round differently, so the choice is part of a run's state, and it does not depend on how far ahead of the
/// device steps are queued: step n knows what the steps up to n − 2 have found, also where n − 1 is finished already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathChoice {
    capacity: u64,
    /// The sparse path is tried once a dense step finds at most this many active pairs.
    limit: u64,
    next: Path,
    /// Dense steps since the last refusal.
    waited: u32,
    refused: bool,
    /// Dense steps that nobody was to know of yet, by their numbers, with their active pairs.
    found: Vec<(u64, u64)>,
}

/// Dense steps after a refusal, after which the sparse path is tried again though the batch has not become sparser.
const PATIENCE: u32 = 200;

impl PathChoice {
    /// For lists of `capacity` pairs and batches of `cells` = B·F. A run begins dense, as about half of all
    /// pairs are active at first, unless every pair fits.
    pub fn new(capacity: usize, cells: u64) -> PathChoice {
        let capacity = capacity as u64;
        let next = if capacity > 0 && capacity >= cells { Path::Sparse } else { Path::Dense };
        PathChoice { capacity, limit: capacity / 5 * 4, next, waited: 0, refused: false, found: Vec::new() }
    }

    /// The pairs that the lists hold.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The path that an evaluation takes now.
    pub fn next(&self) -> Path {
        self.next
    }

    /// The path that step number `step` takes. Nothing changes before that step is done: one that fails leaves no trace.
    pub fn of_step(&self, step: u64) -> Path {
        let mut then = self.clone();
        then.learn_before(step);
        then.next
    }

    /// Step number `step` was done; `active` pairs were found, if it was a dense one.
    pub fn done(&mut self, step: u64, active: Option<u64>) {
        self.learn_before(step);
        self.found.extend(active.map(|active| (step, active)));
    }

    /// Takes into account what step number `step` is to know.
    fn learn_before(&mut self, step: u64) {
        self.learn(self.found.iter().take_while(|(found, _)| found + 2 <= step).count());
    }

    /// Takes the first `count` of what dense steps found into account.
    fn learn(&mut self, count: usize) {
        for (_, active) in self.found.drain(..count).collect::<Vec<_>>() {
            self.after_dense(active);
        }
    }

    fn after_dense(&mut self, active: u64) {
        if self.refused {
            self.refused = false;
            self.waited = 0;
            // Why it was refused is known now: there were this many.
            self.limit = self.limit.min(active / 5 * 4);
        }
        self.waited += 1;
        let patient = self.waited <= PATIENCE;
        let limit = if patient { self.limit } else { self.capacity / 5 * 4 };
        if self.capacity > 0 && active <= limit {
            self.next = Path::Sparse;
        }
    }

    /// The device refused a sparse step because its candidates did not fit.
    pub fn after_refusal(&mut self) {
        // All before that step is known by now, however early it was finished.
        self.learn(self.found.len());
        self.refused = true;
        self.next = Path::Dense;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::{LossSpec, Mse};
    use crate::step::{Adam, DecoderNorm};

    fn spec(width: usize, features: usize, batch: usize) -> StepSpec {
        StepSpec {
            width,
            features,
            batch,
            pre_bias: false,
            loss: LossSpec::reconstruction(Mse::Sum),
            decoder_norm: DecoderNorm::Unit,
            adam: Adam::default(),
            sparsity_window: 300,
        }
    }

    #[test]
    fn the_reference_size_has_the_sizes_that_the_kernels_are_laid_out_for() {
        let plan = Plan::new(&spec(768, 24_576, 4096), &Options::default()).unwrap();
        assert_eq!((plan.stride, plan.words, plan.row_words, plan.line), (768, 128, 768, 24_576));
        assert_eq!(plan.pairs, 1_509_949);
        assert!(plan.segments * 64 >= 2 * plan.pairs);
        let gigabytes = |bytes: usize| bytes as f64 / 1e9;
        let always = gigabytes(plan.bytes());
        assert!((0.8..1.0).contains(&always), "{always}");
        let dense = gigabytes(plan.dense_bytes());
        assert!((1.5..2.5).contains(&dense), "{dense}");
    }

    #[test]
    fn odd_sizes_are_rounded_up_and_too_large_ones_refused_with_the_limit() {
        let plan = Plan::new(&spec(3, 33, 129), &Options::default()).unwrap();
        assert_eq!((plan.words, plan.row_words, plan.line, plan.pairs), (8, 2, 64, 63));
        let error = Plan::new(&spec(8_193, 33, 1), &Options::default()).unwrap_err().to_string();
        assert!(error.contains("8193") && error.contains("8192"), "{error}");
        assert!(Plan::new(&spec(0, 33, 1), &Options::default()).is_err());
    }

    #[test]
    fn lists_hold_the_share_asked_for_and_never_more_than_32_bits_can_count() {
        let pairs = |density, features, batch| {
            let options = Options { sparse_density: density, ..Options::default() };
            Plan::new(&spec(8, features, batch), &options).unwrap().pairs
        };
        assert_eq!(pairs(-1.0, 100, 100), 0);
        assert_eq!(pairs(0.5, 100, 100), 5000);
        assert_eq!(pairs(7.0, 100, 100), 10_000);
        assert_eq!(pairs(1.0, 1 << 20, 1 << 13), (u32::MAX / 2) as usize);
    }

    #[test]
    fn a_run_turns_sparse_when_the_pairs_fit_with_room_and_back_when_the_device_refuses() {
        let mut choice = PathChoice::new(1000, 100_000);
        assert_eq!(choice.next(), Path::Dense);
        choice.after_dense(900);
        assert_eq!(choice.next(), Path::Dense);
        choice.after_dense(800);
        assert_eq!(choice.next(), Path::Sparse);
        // 780 were active, but more than 1000 passed the screen: wait for clearly fewer.
        choice.after_refusal();
        assert_eq!(choice.next(), Path::Dense);
        choice.after_dense(780);
        choice.after_dense(700);
        assert_eq!(choice.next(), Path::Dense);
        choice.after_dense(620);
        assert_eq!(choice.next(), Path::Sparse);
    }

    #[test]
    fn the_choice_does_not_depend_on_how_early_steps_are_finished() {
        // What dense steps find, and the sparse ones that are refused: also right after a dense one.
        let active = |step: u64| if step < 30 { 1200 - 100 * step.min(11) } else { 70 - step / 8 };
        let overflows = |step: u64| [6, 7, 12, 31, 60].contains(&step);
        let paths = |ahead: usize| {
            let (mut choice, mut paths) = (PathChoice::new(1000, 100_000), vec![Path::Dense; 400]);
            let mut begun = std::collections::VecDeque::new();
            for step in 1..400 {
                begun.push_back((step, choice.of_step(step)));
                while begun.len() > ahead {
                    let (first, path) = begun.pop_front().unwrap();
                    if path == Path::Sparse && overflows(first) {
                        choice.after_refusal();
                        // It and those behind it begin anew.
                        begun.push_front((first, path));
                        begun.iter_mut().for_each(|(step, path)| *path = choice.of_step(*step));
                        continue;
                    }
                    choice.done(first, (path == Path::Dense).then(|| active(first)));
                    paths[first as usize] = path;
                }
            }
            paths[..398].to_vec()
        };
        let alone = paths(0);
        assert_eq!(alone, paths(1));
        let changes = alone.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(changes >= 5, "{changes}");
    }

    #[test]
    fn a_refused_sparse_path_is_tried_again_after_a_while() {
        let mut choice = PathChoice::new(1000, 100_000);
        choice.after_dense(100);
        choice.after_refusal();
        let waits = (0..).take_while(|_| {
            choice.after_dense(750);
            choice.next() == Path::Dense
        });
        assert_eq!(waits.count() as u32, PATIENCE);
    }

    #[test]
    fn lists_for_nothing_or_everything_leave_no_choice() {
        let mut never = PathChoice::new(0, 100);
        never.after_dense(0);
        assert_eq!(never.next(), Path::Dense);
        assert_eq!(PathChoice::new(100, 100).next(), Path::Sparse);
    }
}
