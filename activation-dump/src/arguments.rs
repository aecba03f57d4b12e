//! The command line.

use std::path::PathBuf;

use activation_store::RowType;
use clap::{Args, Parser, Subcommand, ValueEnum};
use human_units::{parse_bytes, parse_count};
use language_model::{Device, HookPoint, NormKind};

/// Runs a language model over text and writes the activations at a hook point to a compressed,
/// memory-mapped store, from which `sae-trainer` trains any number of sparse autoencoders.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  activation-dump --layer 1 --tokens 300M
      GPT-2-small and OpenWebText from the Hugging Face hub: the reference configuration
  activation-dump --model models/smollm2-135m --dataset tests/data --tokens 500k --out stores/smollm2
      a model folder and local text
  activation-dump --model models/gpt2 --dataset 'text/*.jsonl.zst' --hook blocks.6.hook_mlp_out
      another hook point
  activation-dump info stores/smollm2
      what a store holds

A model folder holds config.json, model.safetensors (or its shards) and tokenizer.json, as on the
hub. An interrupted dump goes on where it stopped when the same command is given again."
)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) dump: DumpArguments,
}

/// What one asks a finished store.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Says what a store holds: rows, sizes, provenance, statistics
    Info(InfoArguments),
    /// Reads every byte of a store and names every damaged file and chunk
    Verify(VerifyArguments),
    /// Writes a store's rows in another tool's format
    Export(ExportArguments),
}

#[derive(Debug, Args)]
pub(crate) struct InfoArguments {
    /// Folder of the store
    pub(crate) store: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// Folder of the store
    pub(crate) store: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// Folder of the store
    pub(crate) store: PathBuf,
    /// sae-lens: SAELens' cached activations (a Hugging Face datasets folder); npy: plain NumPy files
    #[arg(long, value_enum)]
    pub(crate) format: ExportChoice,
    /// New folder for the export
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportChoice {
    SaeLens,
    Npy,
}

#[derive(Debug, Args)]
pub(crate) struct DumpArguments {
    #[command(flatten)]
    pub(crate) source: SourceArguments,
    #[command(flatten)]
    pub(crate) what: WhatArguments,
    #[command(flatten)]
    pub(crate) store: StoreArguments,
    #[command(flatten)]
    pub(crate) machine: MachineArguments,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Model and text")]
pub(crate) struct SourceArguments {
    /// Language model: a hub id or a folder with config.json, *.safetensors and tokenizer.json
    #[arg(long, value_name = "ID|FOLDER", default_value = "openai-community/gpt2")]
    pub(crate) model: String,
    /// Text: a hub id, file, folder or glob (.txt, .jsonl, .ndjson, also .gz and .zst; .parquet); repeatable
    #[arg(long, value_name = "ID|PATH|GLOB", default_value = "Skylion007/openwebtext")]
    pub(crate) dataset: Vec<String>,
    /// Name of the text in JSON lines and parquet
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub(crate) column: String,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What to dump")]
pub(crate) struct WhatArguments {
    /// Block whose input is dumped; with --hook, the block of the hook [default: 1]
    #[arg(long, value_name = "L")]
    pub(crate) layer: Option<usize>,
    /// Hook point in TransformerLens' names: hook_resid_pre, hook_resid_mid, hook_resid_post,
    /// hook_attn_out, hook_mlp_out, or in full, as in blocks.6.hook_mlp_out [default: hook_resid_pre]
    #[arg(long, value_name = "HOOK")]
    pub(crate) hook: Option<String>,
    /// Tokens to run the model on, BOS included; rounded up to whole contexts
    #[arg(long, value_name = "COUNT", default_value = "300M", value_parser = parse_count)]
    pub(crate) tokens: u64,
    /// Tokens of a context
    #[arg(long, value_name = "COUNT", default_value_t = 128)]
    pub(crate) context: usize,
    /// Subtract from each row its mean over the components, as TransformerLens' centred weights do;
    /// auto: for models with LayerNorm
    #[arg(long, value_enum, default_value_t = Switch::Auto)]
    pub(crate) center: Switch,
    /// Leave out the rows of BOS tokens
    #[arg(long)]
    pub(crate) drop_bos: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct StoreArguments {
    /// Folder of the store [default: stores/MODEL-HOOK]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
    /// Type of the stored numbers
    #[arg(long, value_enum, default_value_t = Dtype::F16)]
    pub(crate) dtype: Dtype,
    /// Keep N mantissa bits of each number, rounded to nearest-even (float16 has 10); fewer compress better
    #[arg(long, value_name = "N")]
    pub(crate) mantissa_bits: Option<u8>,
    /// Store numbers beyond float16 as its largest one, counted, instead of stopping at them
    #[arg(long)]
    pub(crate) clip: bool,
    /// Memory for the window in which rows are shuffled before they are stored
    #[arg(long, value_name = "BYTES", default_value = "2GiB", value_parser = parse_bytes)]
    pub(crate) shuffle_memory: u64,
    /// Seed of the shuffling
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub(crate) struct MachineArguments {
    /// Where the model runs; auto: on CUDA where there is a device, else on the CPU
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    pub(crate) device: DeviceChoice,
    /// CPU threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Contexts the model runs on at once
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) batch: u16,
    /// ONNX Runtime's library [default: ORT_DYLIB_PATH, else the onnxruntime folder of the workspace]
    #[arg(long, value_name = "FILE")]
    pub(crate) onnxruntime: Option<PathBuf>,
    /// Print the summary as one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    Auto,
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    F16,
    F32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    Auto,
    Cpu,
    Cuda,
}

impl Switch {
    /// The decision for a model with norms of this kind.
    pub(crate) fn centers(self, norm: NormKind) -> bool {
        match self {
            Switch::Auto => norm == NormKind::LayerNorm,
            Switch::On => true,
            Switch::Off => false,
        }
    }
}

impl From<Dtype> for RowType {
    fn from(dtype: Dtype) -> RowType {
        match dtype {
            Dtype::F16 => RowType::F16,
            Dtype::F32 => RowType::F32,
        }
    }
}

impl From<DeviceChoice> for Device {
    fn from(choice: DeviceChoice) -> Device {
        match choice {
            DeviceChoice::Auto => Device::Auto,
            DeviceChoice::Cpu => Device::Cpu,
            DeviceChoice::Cuda => Device::Cuda,
        }
    }
}

impl WhatArguments {
    /// The hook point that `--layer` and `--hook` name together.
    pub(crate) fn hook_point(&self) -> anyhow::Result<HookPoint> {
        let Some(hook) = &self.hook else {
            return Ok(HookPoint::resid_pre(self.layer.unwrap_or(1)));
        };
        let name = match hook.strip_prefix("blocks.") {
            Some(_) => hook.clone(),
            None => format!("blocks.{}.hook_{}", self.layer.unwrap_or(1), hook.trim_start_matches("hook_")),
        };
        let point: HookPoint = name.parse()?;
        if let Some(layer) = self.layer.filter(|&layer| layer != point.layer) {
            anyhow::bail!(
                "--hook {hook} is in block {}, but --layer says {layer}; leave one out",
                point.layer
            );
        }
        Ok(point)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(words: &[&str]) -> Result<DumpArguments, clap::Error> {
        let words = std::iter::once("activation-dump").chain(words.iter().copied());
        CommandLine::try_parse_from(words).map(|line| line.dump)
    }

    #[test]
    fn the_definition_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn without_flags_it_is_the_reference_configuration() {
        let arguments = parse(&[]).unwrap();
        assert_eq!(arguments.source.model, "openai-community/gpt2");
        assert_eq!(arguments.source.dataset, ["Skylion007/openwebtext"]);
        assert_eq!(arguments.what.hook_point().unwrap().to_string(), "blocks.1.hook_resid_pre");
        assert_eq!((arguments.what.tokens, arguments.what.context), (300_000_000, 128));
        assert!(!arguments.what.drop_bos);
        assert!(
            arguments.what.center.centers(NormKind::LayerNorm)
                && !arguments.what.center.centers(NormKind::RmsNorm)
        );
        assert_eq!(RowType::from(arguments.store.dtype), RowType::F16);
    }

    #[test]
    fn layer_and_hook_go_together() {
        let point = |words: &[&str]| parse(words).unwrap().what.hook_point().map(|point| point.to_string());
        assert_eq!(point(&["--layer", "3"]).unwrap(), "blocks.3.hook_resid_pre");
        assert_eq!(point(&["--layer", "3", "--hook", "hook_mlp_out"]).unwrap(), "blocks.3.hook_mlp_out");
        assert_eq!(point(&["--hook", "blocks.6.hook_attn_out"]).unwrap(), "blocks.6.hook_attn_out");
        assert!(point(&["--layer", "3", "--hook", "blocks.6.hook_attn_out"]).is_err());
        let error = point(&["--hook", "hook_q"]).unwrap_err().to_string();
        assert!(error.contains("hook_q"), "{error}");
    }

    #[test]
    fn counts_take_human_units_and_reject_nonsense() {
        assert_eq!(parse(&["--tokens", "500k"]).unwrap().what.tokens, 500_000);
        assert_eq!(parse(&["--shuffle-memory", "512MiB"]).unwrap().store.shuffle_memory, 512 << 20);
        assert!(parse(&["--tokens", "many"]).unwrap_err().to_string().contains("300M"));
    }
}
