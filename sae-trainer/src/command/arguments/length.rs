//! Flags that say how long a run is, and how its rates change.

use clap::{Args, ValueEnum};
use human_units::parse_count;
use kernels::precision::Precision;
use serde::{Deserialize, Serialize};

use super::dead::ReviveChoice;
use super::numbers::{is_false, parse_below_one, parse_coefficient, parse_number, parse_positive};

#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Training")]
pub(crate) struct LengthArguments {
    /// Rows to train on, rounded up to whole batches. If the store has fewer, it is read again in another
    /// order [default: 300M]
    #[arg(long, value_name = "ROWS", value_parser = parse_count, conflicts_with = "steps")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tokens: Option<u64>,
    /// Optimizer steps, instead of --tokens
    #[arg(long, value_name = "STEPS", value_parser = parse_count)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) steps: Option<u64>,
    /// Learning rate of Adam [default: 4e-4]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_positive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lr: Option<f64>,
    /// Adam's beta1, the decay of its first moments [default: 0.9]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_below_one)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) beta1: Option<f64>,
    /// Adam's beta2, the decay of its second moments [default: 0.999]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_below_one)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) beta2: Option<f64>,
    /// Raise the learning rate linearly over the first STEPS steps, or a share of the run, as in 5% [default: 0]
    #[arg(long, value_name = "STEPS", value_parser = parse_span)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warmup_steps: Option<Span>,
    /// Begin the warm-up of the learning rate at 0, as dictionary_learning does, instead of one step above it
    #[arg(long)]
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) warmup_from_zero: bool,
    /// How the learning rate falls after the warm-up: only at the end, over --lr-decay-steps (linear), or along half a cosine
    /// to --lr-end, as SAELens' cosineannealing does, before --lr-decay-steps (cosine) [default: linear]
    #[arg(long, value_enum, value_name = "KIND", hide_possible_values = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lr_decay: Option<DecayChoice>,
    /// Lower the learning rate linearly to 0 over the last STEPS steps, or a share of the run, as in 20% [default: 0]
    #[arg(long, value_name = "STEPS", value_parser = parse_span)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lr_decay_steps: Option<Span>,
    /// The learning rate at the end of the cosine [default: a tenth of --lr]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_coefficient)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lr_end: Option<f64>,
    /// Equal parts of the run that each follow the cosine from --lr to --lr-end, as in SAELens' cosineannealingwarmrestarts
    /// [default: 1]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lr_cycles: Option<u64>,
    /// Precision of products. fp32 forms the float32 product; exact finds the same active features and values faster, by
    /// first ruling most pairs out in fewer bits; bf16 rounds both factors to bfloat16, which saves time only on a GPU
    /// [default: exact]
    #[arg(long, value_enum, value_name = "KIND", hide_possible_values = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) precision: Option<PrecisionChoice>,
    /// Divide the features into N panels, a power of two, each summed by itself before the sums are added. Any number of ranks
    /// that divides N trains the same autoencoder, bit for bit [default: the number of ranks that the run starts with, so 1
    /// without mpirun or srun]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) panels: Option<u64>,
    /// Scale the gradient of all weights together down to this norm where it is longer
    #[arg(long, value_name = "NORM", allow_negative_numbers = true, value_parser = parse_positive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clip_gradient: Option<f64>,
    /// What happens to dead features: nothing (none), new weights from badly reconstructed rows (resample), or gradients
    /// towards the error in every step (ghost) [default: none]
    #[arg(long, value_enum, value_name = "KIND", hide_possible_values = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revive: Option<ReviveChoice>,
    /// Steps between revivals of dead features [default: 25k]
    #[arg(long, value_name = "STEPS", value_parser = parse_count)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revive_every: Option<u64>,
    /// A feature that has not fired in the last ROWS rows counts as dead [default: 1M]
    #[arg(long, value_name = "ROWS", value_parser = parse_count)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dead_rows: Option<u64>,
    /// Rows to evaluate on at the end, at most one pass over those that were held out [default: 1M]
    #[arg(long, value_name = "ROWS", value_parser = parse_count)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) eval_rows: Option<u64>,
}

/// A part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "SpanText", into = "SpanText")]
pub(crate) enum Span {
    /// So many steps.
    Steps(u64),
    /// So many hundredths of its steps.
    Percent(f64),
}

/// A span as files have it: a number of steps, or `"20%"`.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum SpanText {
    Steps(u64),
    Percent(String),
}

impl From<Span> for SpanText {
    fn from(span: Span) -> SpanText {
        match span {
            Span::Steps(steps) => SpanText::Steps(steps),
            Span::Percent(percent) => SpanText::Percent(format!("{percent}%")),
        }
    }
}

impl TryFrom<SpanText> for Span {
    type Error = String;

    fn try_from(text: SpanText) -> Result<Span, String> {
        match text {
            SpanText::Steps(steps) => Ok(Span::Steps(steps)),
            SpanText::Percent(text) => parse_span(&text),
        }
    }
}

impl Span {
    /// In steps of a run of `steps`.
    pub(crate) fn of(self, steps: u64) -> u64 {
        match self {
            Span::Steps(steps) => steps,
            Span::Percent(100.0) => steps,
            Span::Percent(percent) => (steps as f64 * percent / 100.0).round() as u64,
        }
    }
}

pub(super) fn parse_span(text: &str) -> Result<Span, String> {
    let Some(number) = text.strip_suffix('%') else {
        return parse_count(text).map(Span::Steps).map_err(|error| format!("{error}, or a share, as in 20%"));
    };
    parse_number(number, |x| (0.0..=100.0).contains(&x), "a share must be at least 0% and at most 100%")
        .map(Span::Percent)
}

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DecayChoice {
    Linear,
    Cosine,
}

/// The precision of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PrecisionChoice {
    #[default]
    Exact,
    Bf16,
    Fp32,
}

impl From<PrecisionChoice> for Precision {
    fn from(choice: PrecisionChoice) -> Precision {
        match choice {
            PrecisionChoice::Exact => Precision::Exact,
            PrecisionChoice::Bf16 => Precision::Bf16,
            PrecisionChoice::Fp32 => Precision::Fp32,
        }
    }
}
