//! The store of a run whose command line names none: the only complete store under `stores/`, where `activation-dump`
//! writes its stores.

use std::path::{Path, PathBuf};

use activation_store::{Found, StoreError, find};
use anyhow::{Result, bail};
use human_units::format_count;
use terminal::{foreign, foreign_path};

const FOLDER: &str = "stores";

/// The only complete store under `stores/`, which is named; an error that lists what is there if there are none or several.
pub(crate) fn default_store() -> Result<PathBuf> {
    let found = find(Path::new(FOLDER))?;
    let complete: Vec<&Found> = found.iter().filter(|found| found.store.is_ok()).collect();
    let why = match complete[..] {
        [one] => {
            terminal::say!("--store is {}, the only complete store under {FOLDER}/", foreign_path(&one.path));
            return Ok(one.path.clone());
        }
        [] if found.is_empty() => {
            bail!(
                "--store is missing, and there is no store under {FOLDER}/; activation-dump --layer 1 --tokens 300M \
                 writes one, or name one that lies elsewhere: --store FOLDER"
            )
        }
        [] => "none",
        _ => "more than one",
    };
    let list: Vec<String> = found.iter().map(|found| format!("\n  {}", describe(found))).collect();
    bail!(
        "--store is missing, and {why} of the stores under {FOLDER}/ is complete; name one with --store FOLDER:{}",
        list.concat()
    )
}

/// `stores/gpt2: 300M rows of blocks.1.hook_resid_pre of gpt2`
fn describe(found: &Found) -> String {
    let path = foreign_path(&found.path);
    match &found.store {
        Ok(store) => {
            let (rows, from) = (format_count(store.rows() as f64), store.provenance());
            format!("{path}: {rows} rows of {} of {}", foreign(&from.hook), foreign(&from.model))
        }
        Err(StoreError::Incomplete { contexts_done, .. }) => format!(
            "{path}: unfinished, {} contexts are safe; run the command that began it again to continue",
            format_count(*contexts_done as f64)
        ),
        Err(error) => format!("{path}: {}", foreign(&error.to_string())),
    }
}
