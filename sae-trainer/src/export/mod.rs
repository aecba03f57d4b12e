//! `sae-trainer export`: writes trained autoencoders as other programs read them.

use anyhow::Result;

use crate::command::arguments::{ExportArguments, ExportFormat};

mod circuit_tracer;

/// Writes the folder asked for, whole or not at all.
pub(crate) fn export(arguments: &ExportArguments) -> Result<()> {
    match arguments.to {
        ExportFormat::CircuitTracer => circuit_tracer::export(&arguments.saes, &arguments.out),
    }
}
