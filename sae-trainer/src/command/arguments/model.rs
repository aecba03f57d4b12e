//! Flags that say what an autoencoder is and where it starts.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use human_units::parse_count;
use serde::{Deserialize, Serialize};

use super::numbers::{is_false, parse_coefficient, parse_fraction, parse_positive};

#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Autoencoder")]
pub(crate) struct ModelArguments {
    /// Number of features
    #[arg(long, value_name = "F", value_parser = parse_count, conflicts_with = "expansion")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) features: Option<u64>,
    /// Number of features as a multiple of the row width [default: 32]
    #[arg(long, value_name = "TIMES")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expansion: Option<u64>,
    /// Which features of a row are active: those above 0 (relu), of these the k largest of a row (topk) or the k x rows
    /// largest of a batch (batch-topk), or those above a trained threshold (jump-relu) [default: relu]
    #[arg(long, value_enum, value_name = "KIND", hide_possible_values = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) activation: Option<ActivationChoice>,
    /// The k of topk and of batch-topk [default: 100]
    #[arg(long, value_name = "K", value_parser = parse_count)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) k: Option<u64>,
    /// Subtract the decoder bias from the encoder's input
    #[arg(long)]
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) pre_bias: bool,
    /// After every step, scale decoder rows to norm 1 (unit), do the same and undo it in the encoder (tied),
    /// or leave them as they are (free) [default: unit]
    #[arg(long, value_enum, value_name = "KIND", hide_possible_values = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) decoder_norm: Option<DecoderNormChoice>,
    /// Initial encoder: drawn (kaiming), or the decoder transposed (transpose) [default: kaiming]
    #[arg(long, value_enum, value_name = "KIND", hide_possible_values = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) encoder_init: Option<EncoderInitChoice>,
    /// Multiply the transposed decoder by X [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_positive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) encoder_init_scale: Option<f64>,
    /// Scale the initial decoder rows to norm X, or leave them as they are drawn (free). With --decoder-norm unit or tied
    /// they have norm 1 from the first step on [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_initial_norm)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) decoder_init_norm: Option<InitialNorm>,
    /// Initial decoder bias: zeros, or the mean or the geometric median of 32,768 rows of the store
    /// (zeros, mean, geometric-median) [default: zeros]
    #[arg(long, value_enum, value_name = "KIND", hide_possible_values = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) b_dec_init: Option<DecoderBias>,
    /// Initial encoder bias: zeros, or with relu and jump-relu what lets each feature fire on a share X of 32,768 rows of the
    /// store, as in 0.1; from 1 on, X is how many features are active in a row on average [default: zeros]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_encoder_bias)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) b_enc_init: Option<EncoderBias>,
    /// Start from an autoencoder (a run's sae/, one of its checkpoints, or another program's, see import) instead of
    /// random weights
    #[arg(long, value_name = "PATH", conflicts_with_all = ["features", "expansion", "encoder_init", "encoder_init_scale", "decoder_init_norm", "b_dec_init", "b_enc_init"])]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) init_from: Option<PathBuf>,
}

/// How active features are selected, beyond the activation's name.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Selection of active features")]
pub(crate) struct SelectionArguments {
    /// Width of the rectangle through which jump-relu's thresholds get a gradient, in units of pre-activations
    /// [default: 0.05]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_positive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bandwidth: Option<f64>,
    /// jump-relu's thresholds at the start [default: 0.01]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_coefficient)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) threshold_init: Option<f64>,
    /// Let jump-relu's pseudo-gradient reach the encoder too, as Anthropic does, and not the thresholds alone
    #[arg(long)]
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) jump_to_input: bool,
    /// How fast batch-topk's threshold, with which the autoencoder is used, follows the smallest activation of each batch
    /// [default: 0.01]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_fraction)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) threshold_rate: Option<f64>,
    /// Steps before that threshold begins [default: 0]
    #[arg(long, value_name = "STEPS", value_parser = parse_count)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) threshold_after: Option<u64>,
    /// Let that threshold begin as 0, as SAELens does, and not as the first smallest activation
    #[arg(long)]
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) threshold_from_zero: bool,
    /// Let topk and batch-topk rank features by pre-activation times the norm of the decoder row, as SAELens does
    /// (rescale_acts_by_decoder_norm), where --decoder-norm free lets norms differ
    #[arg(long)]
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) rank_by_decoder_norm: bool,
    /// Let prefixes of the features reconstruct by themselves too (Matryoshka): their widths, or their shares of all
    /// features, as in 0.0625,0.125,0.25,0.5
    #[arg(long, value_name = "WIDTH,…", value_delimiter = ',', value_parser = parse_width)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) matryoshka: Vec<Width>,
    /// Factor of the sum of all reconstruction errors, those of the prefixes and of all features [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_positive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) matryoshka_weight: Option<f64>,
}

/// Which features of a row are active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ActivationChoice {
    Relu,
    #[value(name = "topk")]
    #[serde(rename = "topk")]
    TopK,
    #[value(name = "batch-topk")]
    #[serde(rename = "batch-topk")]
    BatchTopK,
    #[value(name = "jump-relu")]
    #[serde(rename = "jump-relu")]
    JumpRelu,
}

/// The width of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Width {
    /// So many features.
    Features(u64),
    /// This share of all.
    Share(f64),
}

fn parse_width(text: &str) -> Result<Width, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(Width::Share(share)),
        _ => parse_count(text)
            .map(Width::Features)
            .map_err(|_| "it must be a number of features or a share of them, as in 512 or 0.125".to_owned()),
    }
}

/// The encoder bias before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EncoderBias {
    #[default]
    Zeros,
    /// Each feature fires on this share of the rows; from 1 on it is the mean number of features that fire on a row.
    #[serde(untagged)]
    Firing(f64),
}

impl EncoderBias {
    /// On which share of the rows each of so many features fires, if that is settled.
    pub(crate) fn share(self, features: usize) -> Option<f64> {
        match self {
            EncoderBias::Zeros => None,
            EncoderBias::Firing(share) if share < 1.0 => Some(share),
            EncoderBias::Firing(active) => Some(active / features as f64),
        }
    }
}

fn parse_encoder_bias(text: &str) -> Result<EncoderBias, String> {
    if text == "zeros" {
        return Ok(EncoderBias::Zeros);
    }
    // A count may have a suffix.
    let number =
        parse_positive(text).or_else(|rule| parse_count(text).map(|count| count as f64).map_err(|_| rule));
    number.map(EncoderBias::Firing).map_err(|rule| format!("{rule}, or zeros"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DecoderNormChoice {
    Unit,
    Tied,
    Free,
}

/// The encoder before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EncoderInitChoice {
    Kaiming,
    Transpose,
}

/// The norm of the decoder's rows before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum InitialNorm {
    /// As they are drawn.
    Free,
    #[serde(untagged)]
    Norm(f64),
}

fn parse_initial_norm(text: &str) -> Result<InitialNorm, String> {
    match text {
        "free" => Ok(InitialNorm::Free),
        _ => parse_positive(text).map(InitialNorm::Norm).map_err(|rule| format!("{rule}, or free")),
    }
}

/// The decoder bias before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DecoderBias {
    Zeros,
    Mean,
    GeometricMedian,
}
