//! Flags of `push`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct PushArguments {
    /// Repository on the Hugging Face hub, OWNER/NAME
    #[arg(value_name = "REPOSITORY")]
    pub(crate) repository: String,
    /// Runs, sweeps, or autoencoders in SAELens' folders
    #[arg(required = true, value_name = "SAE")]
    pub(crate) saes: Vec<PathBuf>,
    /// Folders of the repository that they go into, which are their SAELens ids, one for each [default: the runs' names]
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    pub(crate) id: Vec<String>,
    /// Branch that is committed to
    #[arg(long, value_name = "BRANCH", default_value = "main")]
    pub(crate) revision: String,
    /// Create the repository and the branch where they are missing
    #[arg(long)]
    pub(crate) create: bool,
    /// Create it private, whatever its owner's settings say
    #[arg(long, requires = "create")]
    pub(crate) private: bool,
    /// Replace README.md if the repository has one
    #[arg(long)]
    pub(crate) replace_card: bool,
    /// First line of the commit [default: what is uploaded]
    #[arg(long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// Print the model card on standard output and what would be sent; ask nobody, send nothing
    #[arg(long, conflicts_with = "json")]
    pub(crate) dry_run: bool,
    /// Print one JSON object about the commit
    #[arg(long)]
    pub(crate) json: bool,
}
