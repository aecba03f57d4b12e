//! Flags that concern features that have stopped firing.

use clap::{Args, ValueEnum};
use human_units::parse_count;
use serde::{Deserialize, Serialize};

use super::numbers::parse_coefficient;

/// What trains features that have stopped firing.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Dead features")]
pub(crate) struct DeadArguments {
    /// Let the K dead features with the largest pre-activations reconstruct the error (AuxK); "half" is half the row width
    #[arg(long, value_name = "K", value_parser = parse_aux_k)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) aux_k: Option<AuxK>,
    /// Coefficient of that loss [default: 1/32 for normalised, 1 for sum]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_coefficient)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) aux_coefficient: Option<f64>,
    /// That loss: the squared error divided by the error's variance, of activations above 0 (normalised: Gao et al. and
    /// dictionary_learning), or the squared error of pre-activations (sum: SAELens) [default: normalised]
    #[arg(long, value_enum, value_name = "KIND", hide_possible_values = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) aux_loss: Option<AuxLossChoice>,
    /// With jump-relu: coefficient of a loss that brings the pre-activations of dead features up to their thresholds; 0
    /// turns it off [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_coefficient)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pre_activation_coefficient: Option<f64>,
}

/// Which loss AuxK is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AuxLossChoice {
    Normalised,
    Sum,
}

/// How many dead features AuxK takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AuxK {
    /// d/2.
    Half,
    /// This many.
    #[serde(untagged)]
    Count(u64),
}

fn parse_aux_k(text: &str) -> Result<AuxK, String> {
    match text {
        "half" => Ok(AuxK::Half),
        count => parse_count(count).map(AuxK::Count).map_err(|error| format!("{error}, or half")),
    }
}

/// What happens to dead features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReviveChoice {
    None,
    Resample,
    Ghost,
}
