//! Flags of `eval`, `features`, `report` and `compare`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use human_units::parse_count;
use serde::{Deserialize, Serialize};

use super::cache::CacheArguments;
use super::numbers::parse_below_one;

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
    #[command(flatten)]
    pub(crate) cache: CacheArguments,
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
    #[command(flatten)]
    pub(crate) cache: CacheArguments,
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
