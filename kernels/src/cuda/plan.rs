//! What can be decided without a device: sizes of buffers, grids and blocks, memory, and the choice between
//! the sparse and the dense path.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::step::{SpecError, StepSpec};

use super::device::Properties;

// The sizes that kernels/cuda/types.cuh has too.
pub(crate) const SUMMED_ROWS: usize = 64;
pub(crate) const SEGMENT: usize = 64;
pub(crate) const FEATURES_OF_BLOCK: usize = 8;
pub(crate) const SLOPE_ROWS: usize = 128;

/// Rows of matrices are padded to a multiple of this many numbers.
const STRIDE_GROUP: usize = 64;
/// The most threads of a block that holds a row in registers, and the most components a thread can own.
const ROW_THREADS: usize = 256;
const LARGEST_CHUNKS: usize = 8;
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
    /// Groups of 4 components that a thread owns in the backward and update kernels: 1, 2, 4 or 8.
    pub chunks: usize,
    /// Threads of those kernels' blocks.
    pub row_threads: u32,
    /// Threads of a decode's block.
    pub decode_threads: u32,
    /// Blocks of the segments' kernel: as many as the device runs at once, more wait their turn in a loop.
    pub segment_blocks: u32,
    /// n.
    pub window: usize,
    /// Whether the encoder reads x − b_dec.
    pub pre_bias: bool,
}

fn at_most(name: &'static str, value: usize, most: usize) -> Result<(), PlanError> {
    if value <= most { Ok(()) } else { Err(PlanError::TooLarge { name, value, most }) }
}

impl Plan {
    /// The plan for a step.
    ///
    /// # Errors
    /// A spec out of range, or sizes that the kernels are not written for.
    pub fn new(spec: &StepSpec, options: &Options, properties: &Properties) -> Result<Plan, PlanError> {
        spec.validate()?;
        at_most("width", spec.width, ROW_THREADS * LARGEST_CHUNKS * 4)?;
        // Words of the mask are a dimension of a grid.
        at_most("batch", spec.batch, LARGEST_GRID_Y / 4 * 4 * 32)?;
        at_most("features", spec.features, LARGEST_GRID_Y * 64)?;
        at_most("sparsity_window", spec.sparsity_window, i32::MAX as usize)?;

        let stride = spec.width.next_multiple_of(STRIDE_GROUP);
        let fours = stride / 4;
        let chunks = fours.div_ceil(ROW_THREADS).next_power_of_two();
        let row_threads = fours.div_ceil(chunks).next_multiple_of(32) as u32;
        let cells = spec.batch as f64 * spec.features as f64;
        let share = options.sparse_density.clamp(0.0, 1.0);
        let pairs = (cells * share).min(f64::from(u32::MAX / 2)) as usize;
        // A feature is cut only if it has more than SEGMENT pairs: its last segment may be short.
        let segments = (2 * pairs).div_ceil(SEGMENT).min(spec.features * spec.batch.div_ceil(SEGMENT));
        Ok(Plan {
            rows: spec.batch,
            width: spec.width,
            stride,
            features: spec.features,
            words: spec.batch.div_ceil(32).next_multiple_of(4),
            row_words: spec.features.div_ceil(32),
            line: spec.features.next_multiple_of(64),
            pairs,
            segments,
            chunks,
            row_threads,
            decode_threads: (fours.next_multiple_of(32) as u32).min(256),
            segment_blocks: (properties.multiprocessors * (2048 / row_threads)).max(1),
            window: spec.sparsity_window,
            pre_bias: spec.pre_bias,
        })
    }

    /// Numbers in one copy of the parameters: encoder, decoder, encoder bias, decoder bias, each padded.
    pub fn parameters(&self) -> usize {
        2 * self.features * self.stride + self.features.next_multiple_of(64) + self.stride
    }

    /// Bytes of device memory that training always takes, the batch itself apart.
    pub fn bytes(&self, options: &Options) -> usize {
        let copies = match options.precision {
            Precision::Exact => 1,
            Precision::Bf16 => 2,
            Precision::Fp32 => 0,
        };
        let padded = usize::from(self.width != self.stride);
        let pre_bias = usize::from(self.pre_bias);
        let parts = |lines: usize| 8 * lines.div_ceil(SUMMED_ROWS) * self.stride;
        let blocks = self.features.div_ceil(FEATURES_OF_BLOCK);

        let weights = 3 * 4 * self.parameters() + copies * 2 * self.features * self.stride;
        let masks = 4 * (self.features * self.words + self.rows * self.row_words);
        let lists =
            self.rows.max(self.features) / 4 + 20 * self.pairs + 4 * self.segments * (2 * self.stride + 5);
        // Per row: five norms, three numbers of its list, the decode's result.
        let rows = self.rows * (8 * 4 + 32);
        let batch = self.rows * self.stride * (4 * padded + 4 * pre_bias + 2 + 4) + parts(self.rows);
        // Per feature: eleven numbers of 4 bytes, its steps since it fired, its lines of the window.
        let features = self.features * (11 * 4 + 8 + 4 * self.window) + 16 * (self.window + blocks);
        let bias = pre_bias * (4 * blocks * self.stride + parts(blocks));
        weights + masks + lists + rows + batch + features + bias + 12 * self.stride + 4096
    }

    /// Bytes of device memory that dense steps, early in training, take in addition.
    pub fn dense_bytes(&self, options: &Options) -> usize {
        let activations = self.rows * self.line;
        let matrices = 2 * self.features * self.stride;
        // Float32 activations and their gradients; weight gradients; bfloat16 halves: of activations and their
        // gradients two arrays, of the other factors three numbers side by side.
        let (apart, beside) = match options.precision {
            Precision::Exact => (2, 3),
            Precision::Bf16 => (1, 1),
            Precision::Fp32 => (0, 0),
        };
        let halves = apart * 2 * activations + beside * (matrices + 2 * self.rows * self.stride);
        let parts = 2 * self.rows.div_ceil(SLOPE_ROWS) * self.features;
        4 * (2 * activations + matrices + parts) + 2 * halves
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

    fn h200() -> Properties {
        Properties {
            name: "NVIDIA H200".into(),
            compute_capability: (9, 0),
            multiprocessors: 132,
            shared_memory_per_block: 232_448,
            l2_bytes: 60 << 20,
            memory_bytes: 150_000_000_000,
        }
    }

    #[test]
    fn the_reference_size_has_the_sizes_that_the_kernels_are_laid_out_for() {
        let plan = Plan::new(&spec(768, 24_576, 4096), &Options::default(), &h200()).unwrap();
        assert_eq!((plan.stride, plan.words, plan.row_words, plan.line), (768, 128, 768, 24_576));
        assert_eq!((plan.chunks, plan.row_threads, plan.decode_threads), (1, 192, 192));
        assert_eq!(plan.pairs, 1_509_949);
        assert!(plan.segments * SEGMENT >= 2 * plan.pairs);
        let gigabytes = |bytes: usize| bytes as f64 / 1e9;
        let always = gigabytes(plan.bytes(&Options::default()));
        assert!((0.8..1.0).contains(&always), "{always}");
        let dense = gigabytes(plan.dense_bytes(&Options::default()));
        assert!((1.5..2.5).contains(&dense), "{dense}");
    }

    #[test]
    fn every_component_of_every_width_has_a_thread_and_blocks_stay_within_their_bounds() {
        for width in [1, 35, 64, 65, 1000, 1024, 1025, 2048, 2049, 4096, 5000, 8192] {
            let plan = Plan::new(&spec(width, 10, 10), &Options::default(), &h200()).unwrap();
            assert!(plan.stride >= width && plan.stride.is_multiple_of(64) && plan.stride < width + 64);
            assert!(plan.row_threads as usize * plan.chunks * 4 >= plan.stride, "{width}");
            assert!(plan.row_threads <= 256 && plan.row_threads.is_multiple_of(32), "{width}");
            assert!([1, 2, 4, 8].contains(&plan.chunks), "{width}");
            assert!(plan.decode_threads <= 256 && plan.segment_blocks > 0);
        }
    }

    #[test]
    fn odd_sizes_are_rounded_up_and_too_large_ones_refused_with_the_limit() {
        let plan = Plan::new(&spec(3, 33, 129), &Options::default(), &h200()).unwrap();
        assert_eq!((plan.words, plan.row_words, plan.line, plan.pairs), (8, 2, 64, 63));
        let error = Plan::new(&spec(8_193, 33, 1), &Options::default(), &h200()).unwrap_err().to_string();
        assert!(error.contains("8193") && error.contains("8192"), "{error}");
        assert!(Plan::new(&spec(0, 33, 1), &Options::default(), &h200()).is_err());
    }

    #[test]
    fn lists_hold_the_share_asked_for_and_never_more_than_32_bits_can_count() {
        let pairs = |density, features, batch| {
            let options = Options { sparse_density: density, ..Options::default() };
            Plan::new(&spec(8, features, batch), &options, &h200()).unwrap().pairs
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
