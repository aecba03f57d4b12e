//! Flags of `bench`.

use std::path::PathBuf;

use clap::Args;
use human_units::parse_count;

use super::model::ActivationChoice;

/// Sizes and data of a benchmark. Without `--store` and `--from`, rows and weights are synthetic.
#[derive(Debug, Args)]
pub(crate) struct BenchArguments {
    /// Row width of synthetic data
    #[arg(long, value_name = "D", default_value_t = 768, conflicts_with = "from")]
    pub(crate) width: usize,
    /// Number of features of synthetic weights
    #[arg(long, value_name = "F", default_value = "24576", value_parser = parse_count, conflicts_with = "from")]
    pub(crate) features: u64,
    /// Active features per row of synthetic data
    #[arg(long, value_name = "N", default_value_t = 20.0, conflicts_with = "from")]
    pub(crate) l0: f64,
    /// Rows per batch
    #[arg(long, value_name = "ROWS", default_value = "4096", value_parser = parse_count)]
    pub(crate) batch: u64,
    /// Take the batch from this store
    #[arg(long, value_name = "FOLDER", requires = "from")]
    pub(crate) store: Option<PathBuf>,
    /// Take the weights, and so the density, from a run's sae/, one of its checkpoints, or another program's autoencoder
    #[arg(long, value_name = "PATH", requires = "store")]
    pub(crate) from: Option<PathBuf>,
    /// The activation: relu, topk, batch-topk or jump-relu, whose k or thresholds follow from --l0
    #[arg(
        long,
        value_enum,
        value_name = "KIND",
        hide_possible_values = true,
        default_value = "relu",
        conflicts_with = "from"
    )]
    pub(crate) activation: ActivationChoice,
    /// Timings of each part, of which the median is reported
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) repeats: u16,
    /// CPU threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}
