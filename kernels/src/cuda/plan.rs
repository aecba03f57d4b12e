//! What can be decided without a device: the sizes of a step.

use crate::activation::Activation;
use crate::dead::DeadLossKind;
use crate::error::StepError;
use crate::loss::Penalty;
use crate::panels::Share;
use crate::path::PathChoice;
use crate::precision::Precision;
use crate::spec::StepSpec;

use super::launch::dead::DeadPairs;
use super::launch::lists::most_segments;
use super::launch::panels::MOST_PARTS;
use super::launch::{RowBlock, dense_line, mask_words, parameters_length, row_mask_words, stride_of};

/// The largest grid in y and z.
const LARGEST_GRID_Y: usize = 65_535;

/// How a step runs. Nothing but [`Precision::Bf16`] changes results beyond rounding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceOptions {
    /// How products are computed.
    pub precision: Precision,
    /// The lists hold this share of the B·F pairs; batches with more take the dense path. 0 or less: always dense; 1: never.
    /// A run is not bound to it: one that goes on with other lists takes the dense path first and finds its way back, its
    /// steps the same within rounding.
    pub sparse_density: f64,
}

impl DeviceOptions {
    /// Lists for the share of the pairs up to which gathering rows takes less time than the dense products: 1.5 %, or 0.6 %
    /// where those are one product of bfloat16 numbers instead of three. Reckoned, not measured (`docs/benchmarks/cuda.md`).
    pub fn for_precision(precision: Precision) -> DeviceOptions {
        let sparse_density = match precision {
            // Float32's dense products take longer still: the definition, for checks, is given what the others need.
            Precision::Exact | Precision::Fp32 => 0.015,
            Precision::Bf16 => 0.006,
        };
        DeviceOptions { precision, sparse_density }
    }
}

impl Default for DeviceOptions {
    /// [`DeviceOptions::for_precision`] of [`Precision::Exact`].
    fn default() -> DeviceOptions {
        DeviceOptions::for_precision(Precision::Exact)
    }
}

/// The sizes of a step on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePlan {
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
    /// Whether features have thresholds that are trained.
    pub thresholds: bool,
    /// Whether the gradient's norm is limited.
    pub clips: bool,
    /// Whether the largest z are selected: so many pairs are active that the lists are made for them, and every step takes the
    /// sparse path.
    pub selects: bool,
    /// Whether they are the largest of the whole batch. What is not trained is then computed on the dense path: it has a threshold
    /// in place of the selection, and its rows any number of active pairs.
    pub of_batch: bool,
    /// Whether features are ranked by their decoder's norms too.
    pub ranks: bool,
    /// The reconstructions of a row in training: those of the prefixes, and that of all features.
    pub groups: usize,
    /// Where the pairs of an auxiliary loss over dead features lie, if there is one.
    pub dead: Option<DeadPairs>,
    /// How products are computed.
    pub precision: Precision,
    /// Whether this is one of several panels of features, whose rows are finished elsewhere.
    pub is_panel: bool,
}

/// The first thing in a step that the kernels do not compute.
fn unsupported(spec: &StepSpec) -> Option<&'static str> {
    let dead = spec.dead.map(|dead| dead.kind);
    // What follows a selection never takes the dense path.
    let selects = spec.activation.takes_the_largest();
    let parts = [
        (spec.skip, "a skip connection"),
        (
            !spec.prefixes.is_empty() && !selects,
            "prefixes (matryoshka) of other activations than topk and batch-topk",
        ),
        (dead == Some(DeadLossKind::Ghost), "ghost gradients"),
        (matches!(dead, Some(DeadLossKind::PreActivation { .. })), "the pre-activation loss"),
        (dead.is_some() && !selects, "aux-k beside other activations than topk and batch-topk"),
        (matches!(spec.loss.penalty, Penalty::MeanQuadratic { .. }), "the mean quadratic penalty"),
    ];
    let divided = spec.panels > 1;
    let among_panels = [
        (selects, "panels of features with topk and batch-topk"),
        (dead.is_some(), "panels of features with a loss over dead features"),
        (!spec.prefixes.is_empty(), "panels of features with prefixes (matryoshka)"),
        (spec.pre_bias, "panels of features with a pre-bias"),
        (spec.gradient_clip.is_some(), "panels of features with a gradient that is clipped"),
    ];
    let among_panels = among_panels.into_iter().filter(|_| divided);
    parts.into_iter().chain(among_panels).find_map(|(asked, what)| asked.then_some(what))
}

fn at_most(name: &'static str, value: usize, most: usize) -> Result<(), StepError> {
    if value <= most { Ok(()) } else { Err(StepError::TooLarge { name, value, most }) }
}

/// From a row of a batch to the same row of the batch that lies behind it, where there are several: a number of whole words of a
/// mask, which leaves a place in the list of where rows begin between the two.
fn row_distance(rows: usize) -> usize {
    32 * mask_words(rows + 1)
}

impl DevicePlan {
    /// The plan for a step.
    ///
    /// # Errors
    /// A spec out of range, or sizes that the kernels are not written for.
    pub fn new(spec: &StepSpec, options: &DeviceOptions) -> Result<DevicePlan, StepError> {
        spec.validate()?;
        if let Some(what) = unsupported(spec) {
            return Err(StepError::Unsupported { what });
        }
        DevicePlan::of_features(spec, options)
    }

    /// The plans of a rank's panels, one after another; of one panel that of the step.
    ///
    /// # Errors
    /// As [`DevicePlan::new`], or more panels than a device adds up.
    pub fn of_panels(
        spec: &StepSpec,
        options: &DeviceOptions,
        share: &Share,
    ) -> Result<Vec<DevicePlan>, StepError> {
        if spec.panels == 1 {
            return Ok(vec![DevicePlan::new(spec, options)?]);
        }
        spec.validate()?;
        if let Some(what) = unsupported(spec) {
            return Err(StepError::Unsupported { what });
        }
        at_most("panels of a rank", share.own().len(), MOST_PARTS)?;
        at_most("ranks", spec.panels / share.own().len(), MOST_PARTS)?;
        let plan = |panel| {
            let of_panel = StepSpec { features: share.features_of(panel).len(), panels: 1, ..*spec };
            Ok(DevicePlan { is_panel: true, ..DevicePlan::of_features(&of_panel, options)? })
        };
        share.own().map(plan).collect()
    }

    fn of_features(spec: &StepSpec, options: &DeviceOptions) -> Result<DevicePlan, StepError> {
        at_most("width", spec.width, RowBlock::LONGEST)?;
        // Words of the mask are a dimension of a grid.
        at_most("batch", spec.batch, LARGEST_GRID_Y / 4 * 4 * 32)?;
        at_most("features", spec.features, LARGEST_GRID_Y * 64)?;
        at_most("sparsity_window", spec.sparsity_window, i32::MAX as usize)?;

        let cells = spec.batch as f64 * spec.features as f64;
        let share = options.sparse_density.clamp(0.0, 1.0);
        let of_share = (cells * share).min(f64::from(u32::MAX / 2)) as usize;
        let (selects, pairs) = match spec.activation {
            Activation::TopK { k } | Activation::BatchTopK { k, .. } => (true, k.saturating_mul(spec.batch)),
            _ => (false, of_share),
        };
        let dead = spec.dead.and_then(|dead| match dead.kind {
            DeadLossKind::AuxK { k, .. } | DeadLossKind::AuxKSum { k, .. } => Some(DeadPairs {
                first: pairs,
                asked: k.min(u32::MAX as usize),
                k: k.min(spec.features),
                dead_row: row_distance(spec.batch),
            }),
            DeadLossKind::Ghost | DeadLossKind::PreActivation { .. } => None,
        });
        let of_dead = dead.map_or(0, |dead| dead.k.saturating_mul(spec.batch));
        let rows = dead.map_or(spec.batch, |_| 2 * spec.batch);
        at_most("k × batch", if selects { pairs } else { 0 }, (u32::MAX / 2) as usize)?;
        at_most("(k + aux_k) × batch", pairs.saturating_add(of_dead), (u32::MAX / 2) as usize)?;
        Ok(DevicePlan {
            rows: spec.batch,
            width: spec.width,
            stride: stride_of(spec.width),
            features: spec.features,
            words: mask_words(spec.batch),
            row_words: row_mask_words(spec.features),
            line: dense_line(spec.features),
            pairs,
            segments: most_segments(pairs + of_dead, spec.features, rows),
            window: spec.sparsity_window,
            pre_bias: spec.pre_bias,
            thresholds: spec.activation.has_thresholds(),
            clips: spec.gradient_clip.is_some(),
            selects,
            of_batch: matches!(spec.activation, Activation::BatchTopK { .. }),
            ranks: spec.rank_by_decoder_norm,
            groups: spec.prefixes.widths().len() + 1,
            dead,
            precision: options.precision,
            is_panel: false,
        })
    }

    /// The choice of a run that begins.
    pub(crate) fn path_choice(&self) -> PathChoice {
        let cells = self.rows as u64 * self.features as u64;
        // A selection always fits.
        let capacity = if self.selects { self.rows * self.features } else { self.pairs };
        PathChoice::new(capacity, cells)
    }

    /// The rows that the lists of the backward pass are of: with an auxiliary loss those of a batch that is twice as long.
    pub(crate) fn listed_rows(&self) -> usize {
        self.dead.map_or(self.rows, |dead| dead.dead_row + self.rows)
    }

    /// From a row to the same row of the next reconstruction, or of an auxiliary loss.
    pub(crate) fn row_distance(&self) -> usize {
        row_distance(self.rows)
    }

    /// How often a batch lies behind itself in the backward pass: for each reconstruction, and for an auxiliary loss.
    pub(crate) fn copies(&self) -> usize {
        self.groups + usize::from(self.dead.is_some())
    }

    /// The rows of g, of all copies.
    pub(crate) fn backward_rows(&self) -> usize {
        (self.copies() - 1) * self.row_distance() + self.rows
    }

    /// The pairs that those lists hold.
    pub(crate) fn listed_pairs(&self) -> usize {
        self.pairs + self.dead.map_or(0, |dead| dead.k * self.rows)
    }

    /// Numbers in one copy of the parameters: encoder, decoder, encoder bias, decoder bias, each padded.
    pub fn parameters(&self) -> usize {
        parameters_length(self.features, self.stride)
    }

    /// Where a tensor begins in one copy of the parameters.
    pub(crate) fn tensor_at(&self, name: &str) -> usize {
        match name {
            "encoder" => 0,
            "decoder" => self.decoder_at(),
            "encoder_bias" => self.encoder_bias_at(),
            "decoder_bias" => self.decoder_bias_at(),
            other => unreachable!("no tensor is called {other}"),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead::DeadLoss;
    use crate::loss::{LossSpec, Mse};
    use crate::prefixes::Prefixes;

    fn spec(width: usize, features: usize, batch: usize) -> StepSpec {
        StepSpec::new(width, features, batch, LossSpec::reconstruction(Mse::Sum))
    }

    #[test]
    fn the_reference_size_has_the_sizes_that_the_kernels_are_laid_out_for() {
        let plan = DevicePlan::new(&spec(768, 24_576, 4096), &DeviceOptions::default()).unwrap();
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
        let plan = DevicePlan::new(&spec(3, 33, 129), &DeviceOptions::default()).unwrap();
        assert_eq!((plan.words, plan.row_words, plan.line, plan.pairs), (8, 2, 64, 63));
        let error = DevicePlan::new(&spec(8_193, 33, 1), &DeviceOptions::default()).unwrap_err().to_string();
        assert!(error.contains("8193") && error.contains("8192"), "{error}");
        assert!(DevicePlan::new(&spec(0, 33, 1), &DeviceOptions::default()).is_err());
    }

    #[test]
    fn what_the_kernels_do_not_compute_is_refused_with_the_way_out() {
        let plain = spec(8, 33, 4);
        let dead = |kind| Some(DeadLoss { after_steps: 1, kind });
        let aux_k = dead(DeadLossKind::AuxK { k: 2, coefficient: 1.0 });
        let (ghost, pre) =
            (dead(DeadLossKind::Ghost), dead(DeadLossKind::PreActivation { coefficient: 1.0 }));
        let thresholds = Activation::JumpRelu { bandwidth: 0.5, to_input: false };
        let squared = LossSpec { penalty: Penalty::MeanQuadratic { target: 3.0 }, ..plain.loss };
        for (spec, what) in [
            (StepSpec { activation: thresholds, loss: squared, ..plain }, "the mean quadratic penalty"),
            (StepSpec { skip: true, ..plain }, "a skip connection"),
            (StepSpec { dead: ghost, ..plain }, "ghost gradients"),
            (StepSpec { activation: thresholds, dead: pre, ..plain }, "the pre-activation loss"),
            (StepSpec { dead: aux_k, ..plain }, "aux-k beside other activations than topk and batch-topk"),
            (
                StepSpec { prefixes: Prefixes::new(&[4], 1.0).unwrap(), ..plain },
                "prefixes (matryoshka) of other activations than topk and batch-topk",
            ),
        ] {
            let error = DevicePlan::new(&spec, &DeviceOptions::default()).unwrap_err().to_string();
            let expected = format!("the CUDA kernels do not compute {what} yet: train with --device cpu");
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn batches_behind_a_batch_have_rows_and_pairs_of_their_own() {
        let kind = DeadLossKind::AuxK { k: 500, coefficient: 1.0 };
        let dead = Some(DeadLoss { after_steps: 1, kind });
        let prefixes = Prefixes::new(&[4, 9], 1.0).unwrap();
        let of =
            |batch| StepSpec { activation: Activation::TopK { k: 3 }, dead, prefixes, ..spec(8, 33, batch) };
        for batch in [1, 127, 128, 300] {
            let plan = DevicePlan::new(&of(batch), &DeviceOptions::default()).unwrap();
            let distance = plan.row_distance();
            assert!(distance > batch && distance.is_multiple_of(128), "{distance}");
            assert_eq!((plan.listed_rows(), plan.backward_rows()), (distance + batch, 3 * distance + batch));
            // No row selects more features than there are.
            assert_eq!((plan.pairs, plan.listed_pairs()), (3 * batch, (3 + 33) * batch));
        }
        let plain = DevicePlan::new(&spec(8, 33, 300), &DeviceOptions::default()).unwrap();
        assert_eq!((plain.copies(), plain.listed_rows(), plain.backward_rows()), (1, 300, 300));
        assert_eq!(plain.listed_pairs(), plain.pairs);
        let large = StepSpec {
            features: 1 << 12,
            activation: Activation::TopK { k: 4000 },
            dead: None,
            ..of(1 << 20)
        };
        let error = DevicePlan::new(&large, &DeviceOptions::default()).unwrap_err().to_string();
        assert!(error.starts_with("k × batch is 4194304000"), "{error}");
    }

    #[test]
    fn lists_hold_the_share_asked_for_and_never_more_than_32_bits_can_count() {
        let pairs = |density, features, batch| {
            let options = DeviceOptions { sparse_density: density, ..DeviceOptions::default() };
            DevicePlan::new(&spec(8, features, batch), &options).unwrap().pairs
        };
        assert_eq!(pairs(-1.0, 100, 100), 0);
        assert_eq!(pairs(0.5, 100, 100), 5000);
        assert_eq!(pairs(7.0, 100, 100), 10_000);
        assert_eq!(pairs(1.0, 1 << 20, 1 << 13), (u32::MAX / 2) as usize);
    }
}
