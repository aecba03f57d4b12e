//! The command line.

use std::path::PathBuf;

use activation_store::RowType;
use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use command_line::{CompletionsArguments, ManPagesArguments};
use human_units::{parse_bytes, parse_count};
use language_model::{Device, HookPoint, NormKind};

use crate::documents::InputFormat;
use crate::import::kind::Kind;
use crate::share::PartChoice;

/// Runs a language model over text and writes the activations at a hook point to a compressed store. `sae-trainer` trains any number of sparse autoencoders from it.
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
  activation-dump --layer 1,6,11 --hook resid_pre,mlp_out --tokens 300M --out stores/gpt2
      six hook points in one pass, one store each: stores/gpt2/blocks.1.hook_resid_pre, ...
  activation-dump --layer 1 --tokens 300M --dry-run
      estimates rows, bytes on disk, memory and time; writes nothing
  zcat news.jsonl.gz | activation-dump --model models/gpt2 --dataset - --column body
      JSON lines (or plain text) from standard input
  activation-dump --model models/gpt2 --dataset train.bin
      tokens instead of text: u16 or u32, as nanoGPT and llm.c write them, or .npy
  activation-dump --onnx model.onnx --tensor /h.5/Add_1_output_0 --tokenizer tokenizer.json --dataset text
      any ONNX file, run up to one of its tensors
  srun -n 4 activation-dump --layer 1 --tokens 300M --out stores/gpt2
      a quarter of the text on each of four machines (or by hand: --part 1/4 to --part 4/4);
      sae-trainer --store A --store B ... reads the four stores as one
  activation-dump import cached_activations --out stores/cached
      a store of activations that another program wrote: NumPy, vLLM, SAELens and others
  activation-dump --layer 1 --tokens 300M --out s3://bucket/acts
      writes the store into a bucket (gs:// and az:// too)
  activation-dump info stores/smollm2
      summarises a store

A model folder holds config.json, model.safetensors (or its shards) and tokenizer.json, as on the
hub. To resume an interrupted dump, run the same command again."
)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) dump: DumpArguments,
}

/// Subcommands that make a store from activations, or read a finished one.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Summarises a store: rows, sizes, provenance, statistics
    Info(InfoArguments),
    /// Checks every byte of a store and names each damaged file and chunk
    Verify(VerifyArguments),
    /// Exports a store's rows to another tool's format
    Export(ExportArguments),
    /// Makes a store from activations that another program wrote
    Import(ImportArguments),
    /// Prints the completions of a shell: source <(activation-dump completions bash)
    Completions(CompletionsArguments),
    /// Writes a man page for every command into a folder
    #[command(hide = true)]
    ManPages(ManPagesArguments),
}

#[derive(Debug, Args)]
pub(crate) struct InfoArguments {
    /// Folder of the store, or its address in a bucket (s3://BUCKET/FOLDER, gs://, az://)
    pub(crate) store: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// Folder of the store, or its address in a bucket (s3://BUCKET/FOLDER, gs://, az://)
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
    /// Folder to create for the export
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: PathBuf,
}

/// The rows are shuffled, compressed and checked as those of a dump, and the files they came from are not needed any more. To
/// resume an interrupted import, run the same command again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  activation-dump import acts.npy --tokens tokens.npy --context 128 --model gpt2 --hook blocks.6.hook_resid_pre
      NumPy files: rows [n, d] and their tokens; [contexts, positions, d] needs no --context
  activation-dump import /tmp/hidden_states --source-layer 1 --model Qwen/Qwen3-8B --hook blocks.18.hook_resid_pre
      what vLLM's extract_hidden_states wrote, a file for each request; of its layers the second
  activation-dump import cached_activations
      SAELens' cached activations; their hook is the column's name")]
pub(crate) struct ImportArguments {
    /// Folder or file to import; several .npy or .safetensors files are read as one
    #[arg(required = true, value_name = "SOURCE")]
    pub(crate) source: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) what: ImportedArguments,
    #[command(flatten)]
    pub(crate) store: StoreArguments,
    /// CPU threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Check the source and print what would be imported; write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the summary as one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a source leaves unsaid. What is not said here either is recorded as unknown.
#[derive(Debug, Args)]
#[command(next_help_heading = "What is imported")]
pub(crate) struct ImportedArguments {
    /// Format of the source [default: what the files show]
    #[arg(long, value_enum)]
    pub(crate) from: Option<Kind>,
    /// Language model that the activations are of
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Hook point that they were taken at, as in blocks.6.hook_resid_pre; of several columns (sae-lens), the one to import
    #[arg(long, value_name = "HOOK")]
    pub(crate) hook: Option<String>,
    /// Text that they were computed on
    #[arg(long, value_name = "NAME")]
    pub(crate) dataset: Vec<String>,
    /// Tokens of the rows, in the same order, as .npy of whole numbers. Without tokens, rows cannot be left out by token, and
    /// features cannot be shown with their text
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens: Option<PathBuf>,
    /// Rows of a context, where the source does not say: those that are held out together [default: 128]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) context: Option<u32>,
    /// Token that begins contexts (BOS), by its id
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u32).range(..=0xffff_fffe))]
    pub(crate) bos: Option<u32>,
    /// Do not store the rows of BOS tokens
    #[arg(long, requires = "bos")]
    pub(crate) drop_bos: bool,
    /// Size of the model's vocabulary [default: the largest token and one]; the id after it fills up short contexts
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=0xffff_fffe))]
    pub(crate) vocabulary: Option<u64>,
    /// Number of the layer among those of the source (vllm, saev), from 0
    #[arg(long, value_name = "N")]
    pub(crate) source_layer: Option<usize>,
    /// Record that each row had its mean over its components subtracted, as TransformerLens' centred weights do
    #[arg(long)]
    pub(crate) centered: bool,
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
    /// Language model: a Hugging Face hub id, or a folder with config.json, *.safetensors and tokenizer.json
    #[arg(long, value_name = "ID|FOLDER", default_value = "openai-community/gpt2")]
    pub(crate) model: String,
    /// Use this ONNX file instead of --model. Its input is token ids; --tensor says where to cut it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "layer", "hook"], requires = "tensor")]
    pub(crate) onnx: Option<PathBuf>,
    /// The model's tokenizer.json [default: the one next to the model]
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Token that begins every context and document (BOS), by id or by text [default: bos_token_id of config.json]
    #[arg(long, value_name = "TOKEN")]
    pub(crate) bos: Option<String>,
    /// Text: a hub id, file, folder or glob (.txt, .jsonl, .ndjson, also .gz and .zst; .parquet), or - for
    /// standard input. Or tokens: in .bin (u16 or u32) and .npy [n] each BOS begins a document; the contexts of .npy
    /// [contexts, T] are used as they are. A JSON line or a text in parquet may be up to 256 MiB long. Plain text may
    /// have any length, as long as the tokenizer can split it at least every 8 MiB. Longer documents are skipped and
    /// counted, and so are unreadable ones. Repeatable
    #[arg(long, value_name = "ID|PATH|GLOB|-", default_value = "Skylion007/openwebtext")]
    pub(crate) dataset: Vec<String>,
    /// Key (JSON lines) or column (parquet) that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub(crate) column: String,
    /// Format of standard input [default: detected from its first character] and of .bin files [default: u16
    /// for vocabularies of up to 65,536 tokens, else u32]
    #[arg(long, value_enum)]
    pub(crate) format: Option<InputFormat>,
    /// Start this many tokens into the text, rounded up to whole contexts; what comes before is tokenized but not run
    #[arg(long, value_name = "COUNT", default_value = "0", value_parser = parse_count)]
    pub(crate) skip_tokens: u64,
    /// Run every N-th context, starting with the I-th (1/4 to 4/4): one machine's share when several run the
    /// same command; off: run all contexts [default: from RANK, OMPI_COMM_WORLD_RANK or SLURM_PROCID and the
    /// matching size]
    #[arg(long, value_name = "I/N|off")]
    pub(crate) part: Option<PartChoice>,
    /// Stop at the first empty or unreadable document, instead of skipping and counting it
    #[arg(long)]
    pub(crate) strict: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What to dump")]
pub(crate) struct WhatArguments {
    /// Block whose input is dumped or, with --hook, the hook's block; several as in 1,6 [default: 1]
    #[arg(long, value_name = "L", value_delimiter = ',')]
    pub(crate) layer: Vec<usize>,
    /// Hook point, by its TransformerLens name: hook_resid_pre, hook_resid_mid, hook_resid_post,
    /// hook_attn_out or hook_mlp_out, taken at each --layer; or in full, as in blocks.6.hook_mlp_out.
    /// Several are separated by commas [default: hook_resid_pre]
    #[arg(long, value_name = "HOOK", value_delimiter = ',')]
    pub(crate) hook: Vec<String>,
    /// Tensor of the --onnx file to dump; repeatable
    #[arg(long, value_name = "NAME", requires = "onnx")]
    pub(crate) tensor: Vec<String>,
    /// Tokens to run the model on, including BOS; rounded up to whole contexts
    #[arg(long, value_name = "COUNT", default_value = "300M", value_parser = parse_count)]
    pub(crate) tokens: u64,
    /// Tokens per context
    #[arg(long, value_name = "COUNT", default_value_t = 128)]
    pub(crate) context: usize,
    /// Subtract each row's mean over its components, as TransformerLens' centred weights do;
    /// auto: only for models with LayerNorm
    #[arg(long, value_enum, default_value_t = Switch::Auto)]
    pub(crate) center: Switch,
    /// Do not store the rows of BOS tokens
    #[arg(long)]
    pub(crate) drop_bos: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct StoreArguments {
    /// Folder of the store [default: stores/MODEL-HOOK], or one in a bucket as s3://BUCKET/FOLDER (gs://, az://). With several
    /// hooks, the folder that holds one store per hook, named after it. With --part, the part's number is appended
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
    /// Number type of the stored rows
    #[arg(long, value_enum, default_value_t = Dtype::F16)]
    pub(crate) dtype: Dtype,
    /// Keep N mantissa bits of each number, rounded to nearest even (float16 has 10); fewer bits compress better
    #[arg(long, value_name = "N")]
    pub(crate) mantissa_bits: Option<u8>,
    /// Clip numbers beyond float16's range to its largest one and count them, instead of stopping
    #[arg(long)]
    pub(crate) clip: bool,
    /// Memory per hook for the window in which rows are shuffled before they are stored
    #[arg(long, value_name = "BYTES", default_value = "2GiB", value_parser = parse_bytes)]
    pub(crate) shuffle_memory: u64,
    /// Seed of the shuffle
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub(crate) struct MachineArguments {
    /// Where the model runs; auto: on CUDA if there is a device, else on the CPU
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    pub(crate) device: DeviceChoice,
    /// Also run the first contexts on the CPU, in float32, and stop if the results differ by more than rounding;
    /// auto: only if the model runs on another device
    #[arg(long, value_enum, default_value_t = Switch::Auto)]
    pub(crate) self_check: Switch,
    /// Compute the products with the model's weights in plain float32, bit for bit as on any CPU, where the default takes
    /// matrix units (AMX): sums of three products of bfloat16 numbers, some 1e-6 of the largest activation off and twice as
    /// fast. Without effect on other machines, on CUDA and for --onnx. A store is of one kind
    #[arg(long)]
    pub(crate) exact_products: bool,
    /// CPU threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Contexts per run of the model [default: 8 on the CPU, with matrix units 128 tokens a core; on CUDA, as many as free memory allows]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) batch: Option<u16>,
    /// ONNX Runtime's library [default: ORT_DYLIB_PATH, else that of the Python environment this is installed in, else the one in
    /// the workspace's onnxruntime folder]
    #[arg(long, value_name = "FILE")]
    pub(crate) onnxruntime: Option<PathBuf>,
    /// Print the inputs and an estimate (rows, bytes on disk, memory, and time from a short probe of the model on the
    /// text); write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the summary (with --dry-run, the estimate) as one JSON object on standard output
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
    /// Whether to centre the rows of a model with this kind of norm, which is unknown for an ONNX file.
    pub(crate) fn centers(self, norm: Option<NormKind>) -> bool {
        match self {
            Switch::Auto => norm == Some(NormKind::LayerNorm),
            Switch::On => true,
            Switch::Off => false,
        }
    }

    /// Whether to compare a model on this ONNX Runtime provider with the CPU.
    pub(crate) fn checks(self, provider: &str) -> bool {
        match self {
            Switch::Auto => provider != "CPUExecutionProvider",
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
    /// The hook points that `--layer` and `--hook` name together, without duplicates. A name without a block applies to
    /// every layer.
    pub(crate) fn hook_points(&self) -> Result<Vec<HookPoint>> {
        let layers = if self.layer.is_empty() { &[1][..] } else { &self.layer[..] };
        let mut points = Vec::new();
        let mut add = |name: String| -> Result<HookPoint> {
            let point: HookPoint = name.parse()?;
            if !points.contains(&point) {
                points.push(point);
            }
            Ok(point)
        };
        let (full, short): (Vec<&String>, Vec<&String>) =
            self.hook.iter().partition(|hook| hook.starts_with("blocks."));
        for hook in &full {
            let layer = add((*hook).clone())?.layer;
            if !self.layer.is_empty() && (short.is_empty() || !layers.contains(&layer)) {
                bail!(
                    "--hook {hook} is in block {layer} whatever --layer says; leave --layer out, or the block's name"
                );
            }
        }
        for &layer in layers {
            if self.hook.is_empty() {
                add(HookPoint::resid_pre(layer).to_string())?;
            }
            for hook in &short {
                add(format!("blocks.{layer}.hook_{}", hook.trim_start_matches("hook_")))?;
            }
        }
        Ok(points)
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
        assert_eq!(arguments.what.hook_points().unwrap(), [HookPoint::resid_pre(1)]);
        assert_eq!((arguments.what.tokens, arguments.what.context), (300_000_000, 128));
        assert!(!arguments.what.drop_bos);
        assert!(
            arguments.what.center.centers(Some(NormKind::LayerNorm))
                && !arguments.what.center.centers(Some(NormKind::RmsNorm))
                && !arguments.what.center.centers(None)
        );
        assert_eq!(RowType::from(arguments.store.dtype), RowType::F16);
    }

    #[test]
    fn layers_and_hooks_go_together() {
        let points = |words: &[&str]| -> Result<Vec<String>> {
            let points = parse(words)?.what.hook_points()?;
            Ok(points.iter().map(|point| point.to_string()).collect())
        };
        assert_eq!(points(&["--layer", "3"]).unwrap(), ["blocks.3.hook_resid_pre"]);
        assert_eq!(points(&["--layer", "3", "--hook", "hook_mlp_out"]).unwrap(), ["blocks.3.hook_mlp_out"]);
        assert_eq!(points(&["--hook", "blocks.6.hook_attn_out"]).unwrap(), ["blocks.6.hook_attn_out"]);
        let several =
            points(&["--layer", "1,6", "--layer", "1", "--hook", "resid_pre,hook_mlp_out"]).unwrap();
        let expected = ["1.hook_resid_pre", "1.hook_mlp_out", "6.hook_resid_pre", "6.hook_mlp_out"];
        assert_eq!(several, expected.map(|name| format!("blocks.{name}")));
        let mixed = points(&["--hook", "blocks.6.hook_attn_out,resid_mid"]).unwrap();
        assert_eq!(mixed, ["blocks.6.hook_attn_out", "blocks.1.hook_resid_mid"]);
        assert!(points(&["--layer", "3", "--hook", "blocks.6.hook_attn_out"]).is_err());
        let error = points(&["--hook", "hook_q"]).unwrap_err().to_string();
        assert!(error.contains("hook_q"), "{error}");
    }

    #[test]
    fn an_onnx_file_comes_with_a_tensor_and_without_hooks() {
        assert!(parse(&["--onnx", "a.onnx", "--tensor", "/h.1/Add_output_0"]).is_ok());
        for words in
            [&["--onnx", "a.onnx"][..], &["--tensor", "x"], &["--onnx", "a", "--tensor", "x", "--layer", "1"]]
        {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn counts_take_human_units_and_reject_nonsense() {
        assert_eq!(parse(&["--tokens", "500k"]).unwrap().what.tokens, 500_000);
        assert_eq!(parse(&["--shuffle-memory", "512MiB"]).unwrap().store.shuffle_memory, 512 << 20);
        assert!(parse(&["--tokens", "many"]).unwrap_err().to_string().contains("300M"));
    }
}
