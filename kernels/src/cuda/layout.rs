//! The structures that host and kernels share, as `kernels/cuda/types.cuh` and `window.cuh` declare them.

use bytemuck::{Pod, Zeroable};

use crate::loss::{LossSpec, Mse, Penalty};
use crate::spec::{Adam, AdamStep, DecoderNorm, Schedule};

/// What changes from step to step.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub(crate) struct Scalars {
    pub(crate) step: u64,
    pub(crate) coefficient: f64,
    pub(crate) penalty_coefficient: f32,
    pub(crate) penalty_parameter: f32,
    pub(crate) frequency_epsilon: f32,
    pub(crate) rate: f32,
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) rest1: f32,
    pub(crate) rest2: f32,
    pub(crate) root_correction: f32,
    pub(crate) epsilon: f32,
}

/// Why a penalty has no number here.
const REFUSED: &str = "a plan refuses the mean quadratic penalty";

impl Scalars {
    /// Those of step number `step`, counted from 1, on batches of `rows`; as the CPU forms them in
    /// `cpu::update` and `cpu::sparsity`.
    pub(crate) fn new(loss: &LossSpec, adam: &Adam, schedule: &Schedule, rows: usize, step: u64) -> Scalars {
        let adam = AdamStep::new(adam, schedule.lr, step);
        let coefficient = loss.coefficient * schedule.coefficient_scale;
        let scale = schedule.epsilon_scale as f32;
        let penalty_parameter = match loss.penalty.with_epsilon_scaled(scale) {
            Penalty::ApproxL0 { epsilon } | Penalty::Log { epsilon } => epsilon,
            Penalty::Tanh { scale } => scale,
            Penalty::Quadratic { target } => target,
            Penalty::None | Penalty::L1 | Penalty::Step => 0.0,
            Penalty::MeanQuadratic { .. } => unreachable!("{REFUSED}"),
        };
        Scalars {
            step,
            coefficient,
            penalty_coefficient: (coefficient / rows as f64) as f32,
            penalty_parameter,
            frequency_epsilon: loss.frequency_epsilon * scale,
            rate: adam.rate,
            beta1: adam.beta1,
            beta2: adam.beta2,
            rest1: adam.rest1,
            rest2: adam.rest2,
            root_correction: adam.root_correction,
            epsilon: adam.epsilon,
        }
    }
}

/// What a step reports.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub(crate) struct Report {
    pub(crate) status: u32,
    pub(crate) row: u32,
    pub(crate) step: u64,
    pub(crate) loss: f64,
    pub(crate) mse: f64,
    pub(crate) penalty_term: f64,
    pub(crate) min_sparsity: f64,
    pub(crate) max_sparsity: f64,
    pub(crate) squared_error: f64,
    pub(crate) centered_error: f64,
    pub(crate) uncentered_error: f64,
    pub(crate) squared_norm: f64,
    pub(crate) deviation: f64,
    pub(crate) cosine: f64,
    pub(crate) norm_ratio: f64,
    pub(crate) l1: f64,
    pub(crate) penalty: f64,
    pub(crate) density: f64,
    pub(crate) active: u64,
    pub(crate) active_squared: u64,
    pub(crate) rows_off_mean: u64,
    pub(crate) rows_off_zero: u64,
    pub(crate) candidates: u64,
    pub(crate) below_target: u32,
    pub(crate) diverged: u32,
    pub(crate) non_finite_row: u32,
    pub(crate) zero_row: u32,
    pub(crate) dead: f64,
    pub(crate) prefixes: f64,
    pub(crate) smallest: u32,
    pub(crate) dense: u32,
}

/// `Report::status`.
pub(crate) mod status {
    pub(crate) const RUNNING: u32 = 0;
    pub(crate) const NON_FINITE_ROW: u32 = 1;
    pub(crate) const ZERO_NORM: u32 = 2;
    pub(crate) const NON_FINITE_LOSS: u32 = 3;
    pub(crate) const OVERFLOW_OF_PAIRS: u32 = 4;
    pub(crate) const REFUSED_BY_OTHERS: u32 = 5;
}

/// The clipping of a gradient's norm.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub(crate) struct Clip {
    pub(crate) most: f64,
    pub(crate) scale: f32,
    pub(crate) unused: u32,
}

/// What a step finds of its dead features.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub(crate) struct Dead {
    pub(crate) coefficient: f64,
    pub(crate) scale: f64,
    pub(crate) count: u32,
    pub(crate) unused: u32,
}

/// What the search for the largest z of a batch has found.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub(crate) struct BatchCut {
    pub(crate) above: [u64; 2],
    pub(crate) equal: u64,
    pub(crate) limit: [u32; 2],
    pub(crate) few: [u32; 2],
    pub(crate) smallest: u32,
    pub(crate) unused: u32,
}

/// [`BatchCut::smallest`] and [`Report::smallest`] where there is no activation.
pub(crate) const NOTHING: u32 = u32::MAX;

/// Where a step's report lies in its mailbox; its scalars are at the beginning.
pub(crate) const REPLY: usize = 64;
const _: () = assert!(size_of::<Scalars>() <= REPLY);
/// The size of a step's mailbox, with a report of each panel.
pub(crate) fn mailbox_bytes(panels: usize) -> usize {
    REPLY + panels * size_of::<Report>()
}

/// The size of a row's result of the decode.
pub(crate) const ROW_RESULT_BYTES: usize = 32;

/// The size of what a panel knows of a row.
pub(crate) const ROW_PART_BYTES: usize = 24;

/// The frequency window's bookkeeping on the device.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub(crate) struct Window {
    pub(crate) filled: u32,
    pub(crate) newest: u32,
    pub(crate) counted: u32,
    pub(crate) evicted: u32,
    pub(crate) changes: u32,
    pub(crate) unused: u32,
}

/// The number of a penalty in `sparsity.cuh`.
pub(crate) fn penalty_kind(penalty: Penalty) -> u32 {
    match penalty {
        Penalty::None => 0,
        Penalty::ApproxL0 { .. } => 1,
        Penalty::L1 => 2,
        Penalty::Tanh { .. } => 3,
        Penalty::Log { .. } => 4,
        Penalty::Step => 5,
        Penalty::Quadratic { .. } => 6,
        Penalty::MeanQuadratic { .. } => unreachable!("{REFUSED}"),
    }
}

/// The number of an MSE in `decode.cuh`.
pub(crate) fn mse_kind(mse: Mse) -> u32 {
    match mse {
        Mse::Sum => 0,
        Mse::Centered => 1,
        Mse::Uncentered => 2,
    }
}

/// The number of a decoder norm in `feature.cuh`.
pub(crate) fn norm_kind(norm: DecoderNorm) -> u32 {
    match norm {
        DecoderNorm::Unit => 0,
        DecoderNorm::Tied => 1,
        DecoderNorm::Free => 2,
    }
}

/// The frequency terms as `window_features` takes them: coefficient and target of min- and of max-sparsity,
/// then whether there is a min- and a max-sparsity term, then the coefficients of the mean densities over F.
pub(crate) fn frequency_targets(loss: &LossSpec, features: usize) -> [f64; 8] {
    let numbers = |penalty: Option<crate::loss::FrequencyPenalty>| {
        penalty.map_or((0.0, 1.0, 0.0), |penalty| (penalty.coefficient, penalty.target, 1.0))
    };
    let (min, max) = (numbers(loss.min_sparsity), numbers(loss.max_sparsity));
    let of_feature = [loss.mean_density, loss.log_density].map(|coefficient| coefficient / features as f64);
    [min.0, min.1, max.0, max.1, min.2, max.2, of_feature[0], of_feature[1]]
}
