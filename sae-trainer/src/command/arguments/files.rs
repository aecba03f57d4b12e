//! Flags of `verify`, `import` and `export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::neuronpedia::NeuronpediaArguments;

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
