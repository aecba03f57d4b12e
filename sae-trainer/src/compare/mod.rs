//! `sae-trainer compare`: several finished runs side by side.

pub(crate) mod features;
mod plot;
mod table;

use std::path::Path;

use anyhow::{Context, Result, bail};
use sae::format_of;
use serde_json::json;
pub(crate) use table::table;
use terminal::foreign_path;

use crate::command::arguments::CompareArguments;
use crate::runs::folder::{RunConfig, summary};
use crate::runs::record::Summary;
use crate::sweep::{PointState, SweepRecord, points};

/// Prints the table of the runs, or their summaries as JSON; plots them and matches their features if asked to.
pub(crate) fn compare(arguments: &CompareArguments) -> Result<()> {
    let runs = points(&arguments.runs)?;
    let (mut summaries, mut autoencoders) = (Vec::new(), Vec::new());
    for run in &runs {
        match summary(run)? {
            // The name under which it was found: a run may have moved since.
            Some(found) => {
                summaries.push(Summary { run: run.clone(), ..found });
                autoencoders.push(run.clone());
            }
            None if arguments.features && is_autoencoder(run) => autoencoders.push(run.clone()),
            None if has_diverged(run)? => terminal::say!("{} diverged and is left out", foreign_path(run)),
            None if RunConfig::read(run)?.is_some() => {
                bail!("the run in {} is not finished; continue {}", foreign_path(run), how_to_go_on(run)?)
            }
            None => bail!("there is no run in {}", foreign_path(run)),
        }
    }
    if let Some(path) = &arguments.plot {
        plot::write(&summaries, path)?;
        terminal::say!("plotted in {}", foreign_path(path));
    }
    let matches = match arguments.features {
        true => features::match_features(&autoencoders)?,
        false => Vec::new(),
    };
    if let Some(path) = &arguments.matches {
        durable_files::replace_file(path, features::csv(&matches).as_bytes())
            .with_context(|| format!("cannot write {}", foreign_path(path)))?;
        terminal::say!("the best match of every feature is in {}", foreign_path(path));
    }
    match arguments.json {
        true if arguments.features => terminal::report!("{}", json!({"runs": summaries, "matches": matches})),
        true => terminal::report!("{}", serde_json::to_string(&summaries)?),
        false => {
            if !summaries.is_empty() {
                terminal::report!("{}", table(&summaries).trim_end());
            }
            for found in &matches {
                terminal::report!("\n{}", features::text(found).trim_end());
            }
        }
    }
    Ok(())
}

/// Whether there is an autoencoder, of whichever program.
fn is_autoencoder(path: &Path) -> bool {
    format_of(path).is_ok_and(|format| format.is_some())
}

/// The command that continues the run in `run`, or the sweep that it is a point of.
fn how_to_go_on(run: &Path) -> Result<String> {
    let sweep = match run.parent() {
        Some(folder) if SweepRecord::read(folder)?.is_some() => Some(folder),
        _ => None,
    };
    Ok(match sweep {
        Some(sweep) => format!("the sweep with: sae-trainer sweep --resume --out {}", foreign_path(sweep)),
        None => format!("it with: sae-trainer --resume --out {}", foreign_path(run)),
    })
}

/// Whether `run` is a point of a sweep, and the sweep knows that it diverged.
fn has_diverged(run: &Path) -> Result<bool> {
    let (Some(folder), Some(name)) = (run.parent(), run.file_name()) else { return Ok(false) };
    let sweep = SweepRecord::read(folder)?;
    Ok(sweep.is_some_and(|sweep| sweep.names(PointState::Diverged).iter().any(|point| *name == **point)))
}
