//! What both programs make from the definition of their command line: completions of shells, and man pages.

use std::io;
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Flags of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Flags of `man-pages`.
#[derive(Debug, Args)]
pub struct ManPagesArguments {
    /// Folder for the pages, which is made if it is not there
    folder: PathBuf,
}

impl CompletionsArguments {
    /// Prints the completions of `Line`, a whole command line.
    pub fn print<Line: CommandFactory>(&self) {
        let mut command = Line::command();
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        // clap_complete 4.6 calls a program with a hyphen in its name by two names in bash: no branch after the subcommand's is
        // ever taken.
        let (wrong, right) =
            (command.get_name().replace('-', "__subcmd__"), command.get_name().replace('-', "__"));
        let script = String::from_utf8_lossy(&script).replace(&wrong, &right);
        terminal::report!("{}", script.trim_end());
    }
}

impl ManPagesArguments {
    /// Writes a page for `Line`, and one for each of its subcommands.
    ///
    /// # Errors
    /// The system's.
    pub fn write<Line: CommandFactory>(&self) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        clap_mangen::generate_to(Line::command(), &self.folder)
    }
}
