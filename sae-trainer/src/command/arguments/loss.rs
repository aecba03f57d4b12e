//! Flags of the loss.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::length::{Span, parse_span};
use super::numbers::{is_false, parse_coefficient, parse_fraction, parse_positive};

#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Loss")]
pub(crate) struct LossArguments {
    /// Sparsity penalty: approx-l0, l1, tanh, log, or none; with jump-relu also the true L0 (step), its squared distance from
    /// --target-l0 in each row (quadratic), or that of its mean, relative to --target-l0 (mean-quadratic) [default: approx-l0 with relu, step with jump-relu, none with topk and batch-topk]
    #[arg(long, value_enum, value_name = "PENALTY", hide_possible_values = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss: Option<PenaltyChoice>,
    /// Coefficient of approx-l0, step, quadratic and mean-quadratic [default: 7e-5]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_coefficient)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) l0_coefficient: Option<f64>,
    /// Coefficient of l1 [default: 8e-5]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_coefficient)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) l1_coefficient: Option<f64>,
    /// Coefficient of tanh [default: 7e-5]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_coefficient)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tanh_coefficient: Option<f64>,
    /// Coefficient of log [default: 7e-5]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_coefficient)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) log_coefficient: Option<f64>,
    /// The k of tanh(k a) [default: 5, the slope at zero of approx-l0 with its default epsilon]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_positive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tanh_scale: Option<f64>,
    /// The L0 that quadratic and mean-quadratic aim at
    #[arg(long, value_name = "L0", allow_negative_numbers = true, value_parser = parse_positive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) target_l0: Option<f64>,
    /// The epsilon of a/(a+epsilon), of log(1+a/epsilon) and of the frequency penalties' gradient. Several
    /// values, as in 0.2,0.1,0.05, apply to equal parts of the run in turn [default: 0.2]
    #[arg(long, value_name = "X,…", value_delimiter = ',', allow_negative_numbers = true, value_parser = parse_positive)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) epsilon: Vec<f64>,
    /// Raise the penalty's coefficient linearly from 0 over the first STEPS steps, or a share of the run: 100% [default: 0]
    #[arg(long, value_name = "STEPS", value_parser = parse_span)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) coefficient_warmup_steps: Option<Span>,
    /// Begin that rise at 0, as SAELens and dictionary_learning do, instead of one step above it
    #[arg(long)]
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) coefficient_warmup_from_zero: bool,
    /// Multiply each activation by the norm of its decoder row inside the penalty
    #[arg(long)]
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) weight_by_decoder_norm: bool,
    /// Reconstruction error: the squared error divided by the row's distance from the batch mean (centered),
    /// divided by the row's norm (uncentered), or summed (sum) [default: centered]
    #[arg(long, value_enum, value_name = "KIND", hide_possible_values = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mse: Option<MseChoice>,
    /// Coefficient of the penalty on features that fire too rarely; 0 turns it off
    /// [default: 1e-6 with approx-l0, tanh and log; 0 with l1 and none]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_coefficient)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) min_sparsity_coefficient: Option<f64>,
    /// Fraction of rows below which a feature fires too rarely [default: 1e-5]
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true, value_parser = parse_fraction)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) min_sparsity_target: Option<f64>,
    /// Coefficient of the penalty on features that fire too often; 0 turns it off [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_coefficient)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_sparsity_coefficient: Option<f64>,
    /// Fraction of rows above which a feature fires too often [default: 0.1]
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true, value_parser = parse_fraction)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_sparsity_target: Option<f64>,
    /// Coefficient of the mean firing frequency [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_coefficient)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mean_density_coefficient: Option<f64>,
    /// Coefficient of the mean of the firing frequencies' logarithms to base 10 [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_coefficient)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) log_density_coefficient: Option<f64>,
    /// Number of batches over which a feature's running frequency is averaged [default: 300]
    #[arg(long, value_name = "BATCHES")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sparsity_window: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PenaltyChoice {
    #[value(name = "approx-l0")]
    #[serde(rename = "approx-l0")]
    ApproxL0,
    L1,
    Tanh,
    Log,
    Step,
    Quadratic,
    MeanQuadratic,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MseChoice {
    Sum,
    Centered,
    Uncentered,
}
