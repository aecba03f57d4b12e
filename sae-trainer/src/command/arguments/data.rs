//! Flags that say which rows are trained on, and how they are scaled.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use human_units::parse_count;
use serde::{Deserialize, Serialize};

use super::numbers::{is_false, parse_below_one, parse_positive};

#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Data")]
pub(crate) struct DataArguments {
    /// Folder of an activation store, or one in a bucket as s3://BUCKET/FOLDER (gs://, az://), with --cache; repeatable: several
    /// stores of the same width are read as one [default: the only complete store under stores/]
    #[arg(long, value_name = "FOLDER")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) store: Vec<PathBuf>,
    /// Rows per batch [default: 4096]
    #[arg(long, value_name = "ROWS", value_parser = parse_count)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) batch: Option<u64>,
    /// Leave out the rows of BOS tokens, in training and in evaluation
    #[arg(long)]
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) drop_bos: bool,
    /// Chunks of the store whose rows are shuffled together [default: enough to mix well]
    #[arg(long, value_name = "CHUNKS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mixing_chunks: Option<usize>,
    /// Scale rows before the autoencoder sees them: by one factor, so that their mean norm is the root of their width
    /// (mean-norm) or their mean squared norm is 1 (mean-square), each to the root of their width (row-norm), or not at all
    /// (none) [default: none]
    #[arg(long, value_enum, value_name = "KIND", hide_possible_values = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) input_scale: Option<InputScaleChoice>,
    /// Seed of the initial weights and of the order of the rows [default: 0]
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<u64>,
}

/// Which rows of the stores are read.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Data")]
pub(crate) struct RowArguments {
    /// Never train on this fraction of the contexts of each store, and evaluate on them; the same contexts for
    /// all runs on a store. With 0, evaluate on rows that training saw [default: 0.01; 0 with --eval-store]
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true, value_parser = parse_below_one)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) held_out: Option<f64>,
    /// Evaluate on all rows of this store instead; repeatable
    #[arg(long, value_name = "FOLDER")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) eval_store: Vec<PathBuf>,
    /// Leave out the rows of these tokens, in training and in evaluation; a store records no special token but
    /// BOS, so name EOS and others by id
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) drop_tokens: Vec<u32>,
    /// Train a transcoder: read the rows of --store and reconstruct those of this store, which holds another
    /// hook of the same dump; repeatable, one for each --store in the same order
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["pre_bias", "eval_store"])]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) target: Vec<PathBuf>,
    /// Give the transcoder a skip connection: a matrix, zeros at first, whose product with the row read is part of
    /// the reconstruction
    #[arg(long)]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) skip: bool,
    /// Leave out rows whose norm is over TIMES the median norm, in training and in evaluation. Reads every
    /// store once before the first step
    #[arg(long, value_name = "TIMES", allow_negative_numbers = true, value_parser = parse_positive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_norm: Option<f64>,
}

/// How rows are scaled before the autoencoder sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum InputScaleChoice {
    #[default]
    None,
    MeanNorm,
    MeanSquare,
    RowNorm,
}
