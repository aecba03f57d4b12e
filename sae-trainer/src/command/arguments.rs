//! The flags.
//!
//! Flags that define a run ([`SettingArguments`]) are recorded in its `config.json`. Flags that only say where and how
//! it is carried out ([`RunArguments`]) are not.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, ValueEnum};
use human_units::parse_count;
use kernels::precision::Precision;
use serde::{Deserialize, Serialize};

use crate::command::neuronpedia_arguments::NeuronpediaArguments;
use crate::command::presets::PRESETS;

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// Folders of runs, of sweeps, or of autoencoders: a run's sae/ or one of its checkpoints
    #[arg(required = true, value_name = "FOLDER")]
    pub(crate) folders: Vec<PathBuf>,
    /// Print one JSON object instead of the list
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArguments {
    /// Runs, or autoencoders of SAELens, dictionary_learning, sparsify and others (see import)
    #[arg(required = true, value_name = "SAE")]
    pub(crate) saes: Vec<PathBuf>,
    /// Folder of an activation store; repeatable [default: the only complete store under stores/]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) store: Vec<PathBuf>,
    /// Of a transcoder, the store of what it reconstructs; one for each --store
    #[arg(long, value_name = "FOLDER")]
    pub(crate) target: Vec<PathBuf>,
    /// Evaluate on the contexts that runs with this --held-out hold out; with 0, on all
    #[arg(long, value_name = "FRACTION", default_value = "0.01", allow_negative_numbers = true, value_parser = parse_below_one)]
    pub(crate) held_out: f64,
    /// Rows of the store to evaluate on, at most one pass over them
    #[arg(long, value_name = "ROWS", default_value = "1M", value_parser = parse_count)]
    pub(crate) rows: u64,
    /// Leave out the rows of BOS tokens
    #[arg(long)]
    pub(crate) drop_bos: bool,
    /// Leave out the rows of these tokens
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    pub(crate) drop_tokens: Vec<u32>,
    /// Language model that made the store, a hub id or a folder: also measure what it predicts through each autoencoder
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Contexts on which it predicts
    #[arg(long, value_name = "N", default_value = "256", value_parser = parse_count, requires = "model")]
    pub(crate) contexts: u64,
    /// At BOS and --drop-tokens, put the reconstruction into the model too (reconstruct), or leave the model's own row (keep)
    /// [default: keep for autoencoders that were trained without these rows]
    #[arg(long, value_enum, value_name = "WHAT", requires = "model")]
    pub(crate) special_tokens: Option<SpecialTokens>,
    /// Also measure how sparse the activations are by the sixteen measures of Hurley and Rickard, and say which criteria each meets
    #[arg(long)]
    pub(crate) sparsity_measures: bool,
    /// CPU threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Print one JSON array, an object for each autoencoder, instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}

/// What stands at special tokens while a model predicts through an autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SpecialTokens {
    /// What the autoencoder makes of them.
    Reconstruct,
    /// The model's own rows.
    Keep,
}

#[derive(Debug, Args)]
pub(crate) struct FeaturesArguments {
    /// A run, or an autoencoder of SAELens, dictionary_learning, sparsify and others (see import)
    #[arg(value_name = "SAE")]
    pub(crate) sae: PathBuf,
    /// Make the index from the rows of this activation store; without it, an index that is there is read
    #[arg(long, value_name = "FOLDER")]
    pub(crate) store: Option<PathBuf>,
    /// Folder of the index [default: features in the folder of the autoencoder]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
    /// Tokens of the store to read, in whole contexts from its first on [default: all]
    #[arg(long, value_name = "TOKENS", value_parser = parse_count, requires = "store")]
    pub(crate) tokens: Option<u64>,
    /// Leave out the rows of BOS tokens
    #[arg(long, requires = "store")]
    pub(crate) drop_bos: bool,
    /// Leave out the rows of these tokens
    #[arg(long, value_name = "ID,…", value_delimiter = ',', requires = "store")]
    pub(crate) drop_tokens: Vec<u32>,
    /// Print this feature
    #[arg(long, value_name = "FEATURE", conflicts_with = "list")]
    pub(crate) id: Option<u32>,
    /// Print a line for each feature of this kind
    #[arg(long, value_enum, value_name = "KIND")]
    pub(crate) list: Option<FeatureKind>,
    /// Language model that made the store, a hub id or a folder: for token texts and, with --id, effects on its logits
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// The model's tokenizer.json, for token texts [default: the one beside --model]
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// CPU threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Print JSON: one object, or for --list an array
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArguments {
    /// Folders of runs, of sweeps, or of autoencoders in SAELens' format
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// Folder of the pages, or with --single-file their file
    #[arg(long, value_name = "FOLDER", default_value = "report")]
    pub(crate) out: PathBuf,
    /// Language model that made the stores, a hub id or a folder: for token texts, and what features do to its logits
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// The model's tokenizer.json, for token texts [default: the one beside the model]
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// What sae-trainer eval --json printed of these autoencoders: cross-entropies and more
    #[arg(long, value_name = "FILE.json")]
    pub(crate) eval: Option<PathBuf>,
    /// Show the first so many features of each autoencoder [default: all]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) features: Option<u64>,
    /// Contexts of the store that can be looked at token by token
    #[arg(long, value_name = "N", default_value = "200", value_parser = parse_count)]
    pub(crate) contexts: u64,
    /// Write one file with everything in it
    #[arg(long)]
    pub(crate) single_file: bool,
    /// CPU threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

/// What a feature is called for what it responds to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FeatureKind {
    /// Every feature
    All,
    /// Never fires
    Dead,
    /// Fires in more than 10 % of the rows
    Dense,
    /// Fires in more than 20 % of the rows
    VeryDense,
    /// The position in the context explains more than half the variance of its activations
    Positional,
    /// More than half its activation is at newlines and punctuation
    Punctuation,
    /// Another decoder row has a cosine above 0.9 with its own
    Twin,
}

impl FeatureKind {
    /// Those that not every feature is of.
    pub(crate) const KINDS: [FeatureKind; 6] = [
        FeatureKind::Dead,
        FeatureKind::Dense,
        FeatureKind::VeryDense,
        FeatureKind::Positional,
        FeatureKind::Punctuation,
        FeatureKind::Twin,
    ];

    /// As it is written on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            FeatureKind::All => "all",
            FeatureKind::Dead => "dead",
            FeatureKind::Dense => "dense",
            FeatureKind::VeryDense => "very-dense",
            FeatureKind::Positional => "positional",
            FeatureKind::Punctuation => "punctuation",
            FeatureKind::Twin => "twin",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// The other program's folder or file
    #[arg(value_name = "SOURCE")]
    pub(crate) source: PathBuf,
    /// Folder to write; it must not exist
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: PathBuf,
    /// Of a file that does not say it: only the k largest features of a row are active
    #[arg(long, value_name = "N")]
    pub(crate) k: Option<usize>,
    /// Of a file that does not say it: b_dec is subtracted from the input
    #[arg(long)]
    pub(crate) pre_bias: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// Runs, or autoencoders of this program or another; several for circuit-tracer alone
    #[arg(required = true, value_name = "SAE")]
    pub(crate) saes: Vec<PathBuf>,
    /// The program that is to read them
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) to: ExportFormat,
    /// Folder to write, of safetensors the file; it must not exist
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) neuronpedia: NeuronpediaArguments,
}

/// A program whose files can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// SAELens' folder
    SaeLens,
    /// A trainer's folder of dictionary_learning
    DictionaryLearning,
    /// A hook's folder of sparsify (EleutherAI)
    Sparsify,
    /// One file of tensors
    Safetensors,
    /// A set of transcoders, one for each block (safety-research/circuit-tracer)
    CircuitTracer,
    /// SAEDashboard's batch files, Neuronpedia's folder and the requests of its upload
    Neuronpedia,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArguments {
    /// Folders of runs or of sweeps
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// Print one JSON array, an object for each run, instead of the table. With --features an object of two arrays, "runs" and
    /// "matches"
    #[arg(long)]
    pub(crate) json: bool,
    /// Also draw the runs as SVG: L0 against error, how often features fire, L0 and error over training
    #[arg(long, value_name = "FILE.svg", value_parser = parse_svg)]
    pub(crate) plot: Option<PathBuf>,
    /// Also match the features of the first run with those of each other, by the cosine similarity of their decoder rows and of
    /// their encoder columns. Autoencoders (a run's sae/, a checkpoint, those of other programs) can then be named too
    #[arg(long)]
    pub(crate) features: bool,
    /// Write the best match of every feature as CSV
    #[arg(long, value_name = "FILE.csv", requires = "features")]
    pub(crate) matches: Option<PathBuf>,
}

fn parse_svg(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("svg")) {
        true => Ok(path),
        false => Err("plots are written as SVG; give the file a name that ends in .svg".into()),
    }
}

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

#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Data")]
pub(crate) struct DataArguments {
    /// Folder of an activation store; repeatable: several stores of the same width are read as one [default: the
    /// only complete store under stores/]
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
    /// CPU threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
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

fn parse_span(text: &str) -> Result<Span, String> {
    let Some(number) = text.strip_suffix('%') else {
        return parse_count(text).map(Span::Steps).map_err(|error| format!("{error}, or a share, as in 20%"));
    };
    parse_number(number, |x| (0.0..=100.0).contains(&x), "a share must be at least 0% and at most 100%")
        .map(Span::Percent)
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DecoderNormChoice {
    Unit,
    Tied,
    Free,
}

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DecayChoice {
    Linear,
    Cosine,
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

/// What happens to dead features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReviveChoice {
    None,
    Resample,
    Ghost,
}

/// The decoder bias before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DecoderBias {
    Zeros,
    Mean,
    GeometricMedian,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    Auto,
    Cpu,
    Cuda,
}

fn parse_coefficient(text: &str) -> Result<f64, String> {
    parse_number(text, |x| x >= 0.0, "it must be a number of at least 0")
}

fn parse_positive(text: &str) -> Result<f64, String> {
    // The engine computes in float32.
    parse_number(text, |x| x as f32 > 0.0, "it must be a number above 0")
}

fn parse_fraction(text: &str) -> Result<f64, String> {
    parse_number(text, |x| x > 0.0 && x <= 1.0, "it must be above 0 and at most 1")
}

fn parse_below_one(text: &str) -> Result<f64, String> {
    parse_number(text, |x| (0.0..1.0).contains(&x), "it must be at least 0 and below 1")
}

fn parse_number(text: &str, fits: impl Fn(f64) -> bool, rule: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|x| (*x as f32).is_finite() && fits(*x));
    number.ok_or_else(|| format!("{rule}, as in 0.2 or 7e-5"))
}

fn is_false(flag: &bool) -> bool {
    !flag
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::command::line::{Command, CommandLine};

    fn parse(words: &[&str]) -> Result<CommandLine, clap::Error> {
        CommandLine::try_parse_from(["sae-trainer"].iter().chain(words))
    }

    #[test]
    fn the_definition_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn flags_without_a_subcommand_mean_training() {
        let line = parse(&["--store", "a", "--store", "b", "--tokens", "300M", "--features", "24k"]).unwrap();
        assert!(line.command.is_none());
        let settings = &line.train.settings;
        assert_eq!(settings.data.store, [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!((settings.length.tokens, settings.model.features), (Some(300_000_000), Some(24_000)));
        assert!(matches!(parse(&["compare", "x", "y"]).unwrap().command, Some(Command::Compare(_))));
        assert!(parse(&["--store", "a", "compare", "x"]).is_err());
        assert!(parse(&["compare", "x", "--plot", "a.svg"]).is_ok());
        assert!(parse(&["compare", "x", "--plot", "a.png"]).unwrap_err().to_string().contains("a.png"));
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_flag() {
        for (flag, value) in [
            ("--lr", "0"),
            ("--lr", "-1"),
            ("--lr", "nan"),
            ("--lr", "inf"),
            ("--beta1", "1"),
            ("--decoder-init-norm", "0"),
            ("--encoder-init-scale", "-1"),
            ("--beta2", "-0.1"),
            ("--l0-coefficient", "-1"),
            ("--epsilon", "0.2,-1"),
            ("--tanh-scale", "1e-300"),
            ("--min-sparsity-target", "7"),
            ("--held-out", "1"),
            ("--held-out", "-0.1"),
            ("--max-norm", "0"),
        ] {
            let error = parse(&[flag, value]).unwrap_err().to_string();
            assert!(error.contains(flag) && error.contains("it must be"), "{flag} {value}: {error}");
        }
    }

    #[test]
    fn flags_that_exclude_each_other_are_refused() {
        assert!(parse(&["--tokens", "1M", "--steps", "5"]).is_err());
        assert!(parse(&["--features", "64", "--expansion", "8"]).is_err());
        assert!(parse(&["--init-from", "x", "--expansion", "8"]).is_err());
    }
}
