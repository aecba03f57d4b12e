//! The flags of `export --to neuronpedia`.

use std::path::PathBuf;

use clap::Args;
use human_units::parse_count;

/// All are optional, so that those without effect on another format can be refused.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "With --to neuronpedia")]
pub(crate) struct NeuronpediaArguments {
    /// Activation store of the index [default: the one that the index was made of]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) store: Option<PathBuf>,
    /// Folder of the activation index, which is made of --store if it is not there [default: features in the folder of the
    /// autoencoder]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) index: Option<PathBuf>,
    /// Tokens of the store to make the index of, in whole contexts from its first on [default: all]
    #[arg(long, value_name = "TOKENS", value_parser = parse_count, requires = "store")]
    pub(crate) tokens: Option<u64>,
    /// Leave out activations at these tokens, those of padding and EOS for instance; those at BOS are left out anyway
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    pub(crate) drop_tokens: Vec<u32>,
    /// Language model that made the store, a hub id or a folder: for token texts, and what features do to its logits
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// The model's tokenizer.json, for token texts [default: the one beside the model]
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Write the first N features, or all [default: all]
    #[arg(long, value_name = "N", value_parser = parse_features)]
    pub(crate) features: Option<u64>,
    /// Contexts of the largest activations of a feature [default: 20]
    #[arg(long, value_name = "N", value_parser = parse_few)]
    pub(crate) top: Option<u64>,
    /// Equal intervals from 0 to the largest activation, of each of which contexts are shown [default: 5]
    #[arg(long, value_name = "N", value_parser = parse_few)]
    pub(crate) intervals: Option<u64>,
    /// Contexts of each interval [default: 5]
    #[arg(long, value_name = "N", value_parser = parse_few)]
    pub(crate) interval_contexts: Option<u64>,
    /// Neuronpedia's name of the language model [default: from the name in cfg.json]
    #[arg(long, value_name = "ID")]
    pub(crate) model_id: Option<String>,
    /// Number of the block [default: that of the hook]
    #[arg(long, value_name = "N")]
    pub(crate) layer: Option<usize>,
    /// Name of the source set; the source is LAYER-SET [default: from the hook and the number of features, as in res-24k]
    #[arg(long, value_name = "SET")]
    pub(crate) set: Option<String>,
    /// Tells autoencoders of one layer and set apart: the source is LAYER-SET__SUFFIX
    #[arg(long, value_name = "SUFFIX")]
    pub(crate) suffix: Option<String>,
    /// Name of the release that the set belongs to [default: the set's]
    #[arg(long, value_name = "NAME")]
    pub(crate) release: Option<String>,
    /// Who made the autoencoder [default: sae-trainer]
    #[arg(long, value_name = "NAME")]
    pub(crate) creator: Option<String>,
    /// Send the requests to Neuronpedia with the key in the environment variable NEURONPEDIA_API_KEY. If --out is there already,
    /// go on with what it holds
    #[arg(long)]
    pub(crate) upload: bool,
    /// Send them to this server [default: https://www.neuronpedia.org]
    #[arg(long, value_name = "URL", requires = "upload")]
    pub(crate) server: Option<String>,
    /// CPU threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

fn parse_features(text: &str) -> Result<u64, String> {
    match text {
        "all" => Ok(u64::MAX),
        _ => match parse_count(text).map_err(|error| error.to_string())? {
            0 => Err("it must be at least 1, or all".into()),
            count => Ok(count),
        },
    }
}

fn parse_few(text: &str) -> Result<u64, String> {
    let count = parse_count(text).map_err(|error| error.to_string())?;
    if count <= 1000 { Ok(count) } else { Err("it must be at most 1000".into()) }
}
