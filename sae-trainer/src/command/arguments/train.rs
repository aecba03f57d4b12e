//! Flags of a training run, and of a sweep: what they share, and where flags come from.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::cache::CacheArguments;
use super::data::{DataArguments, RowArguments};
use super::dead::DeadArguments;
use super::length::LengthArguments;
use super::loss::LossArguments;
use super::model::{ModelArguments, SelectionArguments};
use crate::command::presets::PRESETS;

#[derive(Debug, Args)]
pub(crate) struct TrainArguments {
    #[command(flatten)]
    pub(crate) settings: SettingArguments,
    #[command(flatten)]
    pub(crate) run: RunArguments,
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
}

/// Where flags come from besides the command line.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Recipe")]
pub(crate) struct RecipeArguments {
    /// Start from the flags of a published recipe. Those of --config and of the command line take the place of its own, and
    /// what has no effect next to them is dropped
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(PRESETS.iter().map(|preset| {
        PossibleValue::new(preset.name).help(preset.about)
    })))]
    pub(crate) preset: Option<String>,
    /// Take flags from a TOML file, where l1-coefficient = 8e-5 stands for --l1-coefficient 8e-5, pre-bias = false switches a
    /// preset's --pre-bias off, and for sweep an array stands for a list. Flags of the command line take their place
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) config: Option<PathBuf>,
    /// Print the flags that preset, file and command line amount to, as TOML for --config, and exit
    #[arg(long)]
    pub(crate) print_config: bool,
}

/// The flags that define a run. All are optional; [`crate::command::settings`] says what a missing flag means.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
pub(crate) struct SettingArguments {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) data: DataArguments,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) rows: RowArguments,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) model: ModelArguments,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) selection: SelectionArguments,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) loss: LossArguments,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) dead: DeadArguments,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) length: LengthArguments,
}

/// Where and how a run is carried out.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Run")]
pub(crate) struct RunArguments {
    /// Folder of the run [default: runs/STORE-LOSS-COEFFICIENT]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
    /// Continue the run in --out from its last checkpoint, or start it if there is none. Other flags may
    /// be omitted; only --steps, --tokens, --eval-rows and --eval-store may differ from the run's own
    #[arg(long)]
    pub(crate) resume: bool,
    /// Where to compute steps: on a GPU (cuda), on the CPU (cpu), or on a GPU if one can be used (auto)
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    pub(crate) device: DeviceChoice,
    #[command(flatten)]
    pub(crate) cache: CacheArguments,
    /// CPU threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// With several ranks (mpirun, srun): seconds that a rank waits for the others before it ends with an error that names who is
    /// behind
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) rank_timeout: u64,
    /// Steps between lines of metrics.jsonl
    #[arg(long, value_name = "STEPS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) log_every: u64,
    /// Steps between checkpoints
    #[arg(long, value_name = "STEPS", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) checkpoint_every: u64,
    /// How many of the newest checkpoints to keep
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) keep_checkpoints: u16,
    /// Also write what metrics.jsonl says as an event file for TensorBoard, to tensorboard/ in the run's folder
    #[arg(long)]
    pub(crate) tensorboard: bool,
    /// Print the summary as one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    Auto,
    Cpu,
    Cuda,
}
