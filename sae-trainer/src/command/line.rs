//! The whole command line: the subcommands, and what `--help` says of them.

use clap::{Parser, Subcommand};
use command_line::{CompletionsArguments, ManPagesArguments};

use super::arguments::{
    BenchArguments, CompareArguments, EvalArguments, ExportArguments, FeaturesArguments, ImportArguments,
    PushArguments, ReportArguments, TrainArguments, VerifyArguments,
};
use crate::sweep::SweepArguments;

/// Trains a sparse autoencoder from an activation store that `activation-dump` wrote.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  sae-trainer --loss approx-l0
      the reference configuration on the only store under stores/: 32x features, batches of 4096 rows, 300M tokens
  sae-trainer --store stores/gpt2 --loss l1 --l1-coefficient 8e-5 --tokens 50M --out runs/l1
      an L1 penalty, a shorter run, a folder of your choice
  sae-trainer --preset l1-reference --store stores/gpt2 --tokens 50M
      a published recipe, shorter; --config FILE.toml takes flags from a file of your own
  sae-trainer --store s3://bucket/acts --cache /scratch/acts --cache-size 200GiB
      a store in a bucket, with room for a part of it
  sae-trainer --resume --out runs/l1
      continues an interrupted run from its last checkpoint
  sae-trainer sweep --store stores/gpt2 --l0-coefficient 5e-5,7e-5,1.4e-4
      three runs at once that read the store once; sae-trainer sweep --help says more
  sae-trainer compare runs/* --plot runs.svg
      a table of several runs, and a picture: L0 against error, firing frequencies, the course of training
  sae-trainer eval runs/l0 --store stores/gpt2 --model openai-community/gpt2
      how well the language model predicts through an autoencoder
  sae-trainer features runs/l0 --store stores/gpt2
      what each feature responds to; --id 8684 then prints one
  sae-trainer report runs/l0 runs/l1
      pages for a browser about all of this
  sae-trainer verify runs/l1 runs/front
      checks every file of these runs and sweeps and lists the damaged ones
  sae-trainer import trainer_0 --out imported
      turns an autoencoder of another program into SAELens' folder; eval and features read it as it is, too
  sae-trainer export runs/mlp/sae --to circuit-tracer --out transcoders
      writes a transcoder as another program reads it
  sae-trainer export runs/l0 --to neuronpedia --store stores/gpt2 --model openai-community/gpt2 --out neuronpedia
      what every feature responds to, for Neuronpedia
  sae-trainer push me/gpt2-saes runs/l0 --create
      uploads it to the Hugging Face hub, where SAELens finds it; hf://me/gpt2-saes/l0 is then its path
  sae-trainer bench --features 24576 --batch 4096
      times each part of a training step on this machine

Counts take the suffixes k, M and G: --tokens 300M. A row of the store is one token."
)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) train: TrainArguments,
}

const SWEEP_HELP: &str = "\
The flags for the autoencoder, the loss and the training take several values, separated by commas; each combination of \
values is a point of the sweep. (Repeat --epsilon and --init-from instead.) All points share the flags that the batches \
depend on: --store, --batch, --seed, --drop-bos, --input-scale, --mixing-chunks, --tokens or --steps, --eval-rows.

Examples:
  sae-trainer sweep --store stores/gpt2 --l0-coefficient 5e-5,7e-5,1.4e-4 --lr 4e-4 --out runs/l0
      three points: runs/l0/l0-coefficient-5e-5, ...; each is a run like any other
  sae-trainer sweep --store stores/gpt2 --loss approx-l0,l1 --l0-coefficient 5e-5,7e-5
      three points, one of them l1: a coefficient applies only to its own loss
  sae-trainer sweep --resume --out runs/l0
      continues all points of an interrupted sweep from their last checkpoints
  sae-trainer compare runs/l0 --plot front.svg
      the table once more, and a picture of it

All points are in memory at the same time; the program prints how much they take before it starts. If the loss or weights \
of a point become infinite or NaN, that point ends and the others go on; the exit code is then 1.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Trains several autoencoders at once on one stream of batches: flags take lists of values
    #[command(after_help = SWEEP_HELP)]
    Sweep(SweepArguments),
    /// Compares runs in a table (L0, errors, dead features, speed) and, if asked to, in a plot
    Compare(CompareArguments),
    /// Evaluates autoencoders on rows that training has not seen and, with --model, the language model's predictions with their
    /// reconstructions in place
    #[command(after_help = EVAL_HELP)]
    Eval(EvalArguments),
    /// Finds what the features of an autoencoder respond to: an index of their activations over a store, and what it tells of each
    #[command(after_help = FEATURES_HELP)]
    Features(FeaturesArguments),
    /// Writes pages for a browser: runs side by side, every feature with its contexts, which features fire at a token
    #[command(after_help = REPORT_HELP)]
    Report(ReportArguments),
    /// Checks the files of runs, sweeps and autoencoders against their checksums; exits with 1 if any is damaged
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArguments),
    /// Turns an autoencoder of another program into this program's folder, which is SAELens'
    #[command(after_help = IMPORT_HELP)]
    Import(ImportArguments),
    /// Writes trained autoencoders in the file format of another program
    #[command(after_help = EXPORT_HELP)]
    Export(Box<ExportArguments>),
    /// Uploads autoencoders to a repository of the Hugging Face hub, where SAELens' SAE.from_pretrained finds them
    #[command(after_help = PUSH_HELP)]
    Push(PushArguments),
    /// Prints the completions of a shell
    #[command(after_help = COMPLETIONS_HELP)]
    Completions(CompletionsArguments),
    /// Writes a man page for every command into a folder
    #[command(hide = true)]
    ManPages(ManPagesArguments),
    /// Times each part of a training step and compares it with the hardware's limit
    Bench(BenchArguments),
}

const EVAL_HELP: &str = "\
With --model, all autoencoders go into the same contexts: the cross-entropy of the next token is taken of the model itself, with each \
reconstruction at the hook, with zeros there, and with the store's mean row. The CE score is (zeros - reconstruction) / (zeros - \
model). Means are over tokens that are not special (BOS, --drop-tokens), standard errors over contexts. --json has every metric, and \
those of SAEBench's core evaluation under its names.

Examples:
  sae-trainer eval runs/l0 runs/l1 --store stores/gpt2
      a line for each on the contexts of the store that no run trains on
  sae-trainer eval runs/l0 --store stores/gpt2 --model openai-community/gpt2 --contexts 1000 --json
      what GPT-2 predicts through it";

const FEATURES_HELP: &str = "\
With --store, every row is encoded once, and the index is written to features/ in the autoencoder's folder: the figures of each \
feature in features.jsonl, and all activations in latents/, where delphi's automatic interpretation reads them. The memory and disk \
that this takes are said first. Activations are kept in float16. Without --store, that index is read.

Examples:
  sae-trainer features runs/l0 --store stores/gpt2 --tokens 3M
      makes the index and counts the features of each kind
  sae-trainer features runs/l0 --list positional
      a line for each feature that follows the position
  sae-trainer features runs/l0 --id 8684
      one feature: how often and how strongly it fires, where, and with which others
  sae-trainer features runs/l0 --id 8684 --model openai-community/gpt2
      the same with the text of its contexts, and the tokens that it makes more and less likely";

const REPORT_HELP: &str = "\
The pages open from disk or from any server of files, and fetch nothing from elsewhere. Features are shown of autoencoders that have an \
activation index, which sae-trainer features makes. Nothing is left of a report that was interrupted.

Examples:
  sae-trainer report runs/l0 runs/l1 --model openai-community/gpt2
      report/index.html, with token texts and what each feature does to the logits
  sae-trainer eval runs/* --store stores/gpt2 --model openai-community/gpt2 --json > eval.json
  sae-trainer report runs/* --eval eval.json --out pages
      the same with cross-entropies
  sae-trainer report runs/l0 --features 200 --single-file --out l0.html
      one file to send: the first 200 features";

const IMPORT_HELP: &str = "\
Which program wrote the files follows from what is there:
  SAELens               a folder with cfg.json and sae_weights.safetensors, also of versions before 6
  dictionary_learning   trainer_N/ with ae.pt and config.json, or a checkpoint ae_N.pt
  sparsify              a hook's folder with cfg.json and sae.safetensors
  circuit-tracer        layer_N.safetensors beside the config.yaml of its set
  safetensors           one file with W_enc, b_enc, W_dec, b_dec or encoder.weight, ...; threshold and W_skip if it has them
ae.pt is read without executing anything. A kind that this program does not compute exactly is refused by its name. eval, features, compare \
--features, bench --from, export and --init-from read all of these as they are.

Examples:
  sae-trainer import dictionaries/trainer_0 --out imported
      an autoencoder of dictionary_learning
  sae-trainer import weights.safetensors --k 32 --pre-bias --out imported
      tensors alone, of a TopK autoencoder whose input has b_dec subtracted
  sae-trainer eval imported runs/l0 --store stores/gpt2
      how it does next to a run";

const EXPORT_HELP: &str = "\
sae-lens: SAELens' folder. dictionary-learning: ae.pt and config.json. sparsify: cfg.json and sae.safetensors, of TopK alone. safetensors: \
one file with W_enc [d, F], b_enc, W_dec [F, d], b_dec, threshold. The autoencoder may be any that import reads. Input scales are folded into the \
weights; BatchTopK and Matryoshka autoencoders keep their one threshold. What a program cannot hold is refused with the reason.

circuit-tracer: a folder with config.yaml and layer_N.safetensors for every transcoder given; N is the block of its hooks. \
circuit-tracer reads a folder that has a transcoder for each block from 0 on, all of one kind and between the same hooks.

neuronpedia: a folder that describes every feature from its activation index (see features), which is made of --store if there is none.
  dashboard/batch-N.json       SAEDashboard's batch files, with the fields and the rounding of version 0.8.0
  bulk/MODEL/LAYER-SET/        Neuronpedia's bulk folder, which an instance of its own imports
  requests/request-N.json      bodies for POST /api/feature/upload-batch, at most 128 features and 4 MB each
Tokens are texts, so --model or --tokenizer is needed unless the store's model is on this machine. With --model there are effects on logits \
too. Activations at BOS count as 0, and contexts are shown without their first token, as SAEDashboard does.

--upload sends the requests. The source set must exist on Neuronpedia and be yours. The key is read from NEURONPEDIA_API_KEY and written \
nowhere. What has been sent is noted in uploaded.jsonl, so that the same command goes on after an error or Ctrl-C.

Examples:
  sae-trainer export runs/l0/sae --to dictionary-learning --out trainer_0
      an autoencoder that dictionary_learning's load_dictionary reads
  sae-trainer export trainer_0 --to safetensors --out sae.safetensors
      dictionary_learning's as plain tensors
  sae-trainer export runs/mlp-0/sae runs/mlp-1/sae --to circuit-tracer --out transcoders
      the transcoders of blocks 0 and 1 as one set
  sae-trainer export runs/l0 --to neuronpedia --store stores/gpt2 --model openai-community/gpt2 --out neuronpedia
      every feature of a run, for SAEDashboard's readers and for Neuronpedia
  NEURONPEDIA_API_KEY=... sae-trainer export runs/l0 --to neuronpedia --model openai-community/gpt2 --set res-mine --out neuronpedia --upload
      the same under the name of your source set, and sent; the same command again goes on where it ended";

const PUSH_HELP: &str = "\
Each autoencoder gets a folder of the repository, with cfg.json, sae_weights.safetensors and sparsity.safetensors; its name is the SAELens \
id. README.md becomes a model card with the figures of the runs' evaluations. All of it appears in one commit. A file that is there already \
is not sent again, so that the same command goes on after an error or Ctrl-C.

The token is HF_TOKEN, or what `hf auth login` saved; the hub is HF_ENDPOINT or huggingface.co.

What is on the hub is read as hf://OWNER/REPOSITORY/FOLDER, with @REVISION at its end where it is not main: by eval, compare --features, \
export, import, bench --from and --init-from.

Examples:
  sae-trainer push me/gpt2-saes runs/l0 --create --private
      the run's autoencoder as SAE.from_pretrained(\"me/gpt2-saes\", \"l0\")
  sae-trainer push me/gpt2-saes runs/front --dry-run
      a sweep's points: what would be sent, and the model card
  sae-trainer eval hf://me/gpt2-saes/l0 --store stores/gpt2
      how good it is on a store";

const COMPLETIONS_HELP: &str = "\
Examples:
  source <(sae-trainer completions bash)
      in ~/.bashrc
  sae-trainer completions zsh > ~/.zfunc/_sae-trainer
      in a folder of fpath
  sae-trainer completions fish > ~/.config/fish/completions/sae-trainer.fish";

const VERIFY_HELP: &str = "\
Every file is listed as sound, damaged or unchecked. An unchecked file has no checksum: an older version or another program \
wrote it, or a person edited it. The folder of an autoencoder or checkpoint has a file SHA256SUMS, which sha256sum -c also reads. A JSON \
object has its CRC-32C as its last key, \"crc32c\". Damaged files are never used: a resumed run skips a damaged checkpoint, \
continues from the one before it, and says so.";
