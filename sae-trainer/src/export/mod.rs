//! `sae-trainer export`: writes trained autoencoders as other programs read them.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use sae::{Format, export_file, export_into};
use terminal::foreign_path;

use crate::autoencoder::load_and_tell;
use crate::command::arguments::NeuronpediaArguments;
use crate::command::arguments::{ExportArguments, ExportFormat};

mod circuit_tracer;
mod neuronpedia;

const ONE: &str = "one autoencoder is exported at a time; only circuit-tracer's sets have several";

/// Writes the folder or file asked for, whole or not at all. Returns the process' exit code.
pub(crate) fn export(arguments: &ExportArguments) -> Result<u8> {
    let (saes, out) = (&arguments.saes, &arguments.out);
    let of_neuronpedia = arguments.to == ExportFormat::Neuronpedia;
    ensure!(
        of_neuronpedia || arguments.neuronpedia == NeuronpediaArguments::default(),
        "an export for another program than Neuronpedia is of weights alone: only SAE, --to and --out have an effect on it"
    );
    let format = match arguments.to {
        ExportFormat::CircuitTracer => return circuit_tracer::export(saes, out).map(|()| 0),
        ExportFormat::Neuronpedia => {
            let [sae] = &saes[..] else { bail!(ONE) };
            return neuronpedia::export(sae, out, &arguments.neuronpedia);
        }
        ExportFormat::SaeLens => Format::SaeLens,
        ExportFormat::DictionaryLearning => Format::DictionaryLearning,
        ExportFormat::Sparsify => Format::Sparsify,
        ExportFormat::Safetensors => Format::Safetensors,
    };
    let [sae] = &saes[..] else { bail!(ONE) };
    one(sae, format, out).map(|()| 0)
}

fn one(path: &Path, format: Format, out: &Path) -> Result<()> {
    let sae = load_and_tell(path)?;
    let mut notes = Vec::new();
    let written = match format {
        Format::Safetensors => {
            ensure!(out.symlink_metadata().is_err(), "{} exists; name a new file", foreign_path(out));
            export_file(&sae, out)
        }
        format => durable_files::create_folder(out, |new| {
            notes = export_into(&sae, format, new)?;
            Ok(())
        }),
    };
    written.with_context(|| format!("cannot write {} for {}", foreign_path(path), format.name()))?;
    notes.iter().for_each(|note| terminal::say!("{note}"));
    terminal::say!("{} for {}: {}", foreign_path(path), format.name(), foreign_path(out));
    Ok(())
}
