//! `sae-trainer import`: turns an autoencoder of another program into the folder that a run leaves.

use anyhow::{Context, Result};
use sae::{Config, Given, open};
use terminal::foreign_path;

use crate::autoencoder::{autoencoder_of, tell};
use crate::command::arguments::ImportArguments;

/// Writes the folder, whole or not at all.
pub(crate) fn import(arguments: &ImportArguments) -> Result<()> {
    let given = Given { k: arguments.k, pre_bias: arguments.pre_bias };
    let opened = open(&autoencoder_of(&arguments.source)?, &given)?;
    tell(&arguments.source, &opened);
    let (sae, out) = (&opened.sae, &arguments.out);
    durable_files::create_folder(out, |new| -> Result<(), sae::Error> {
        sae.write_into(new)?;
        Ok(durable_files::write_sums(new)?)
    })
    .with_context(|| format!("cannot write the autoencoder to {}", foreign_path(out)))?;
    terminal::say!("{}: {}", foreign_path(out), described(&sae.config));
    Ok(())
}

/// The kind of an autoencoder and its sizes.
fn described(config: &Config) -> String {
    let k = config.largest().map_or(String::new(), |k| format!(" with k {k}"));
    let bias = if config.apply_b_dec_to_input { ", b_dec subtracted from the input" } else { "" };
    let Config { architecture, d_in, d_sae, .. } = config;
    format!("{}{k}, {d_sae} features of rows of {d_in}{bias}", terminal::foreign(architecture))
}
