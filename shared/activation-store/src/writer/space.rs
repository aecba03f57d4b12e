//! How much space a store will take, and whether the disk has it.

use std::path::Path;

use crate::{Result, StoreError, StoreSpec};

/// Refuses a dump whose estimated size, less what is `kept` on disk already, is more than the file system has free.
pub(super) fn check_space(dir: &Path, spec: &StoreSpec, rows: Option<u64>, kept: u64) -> Result<()> {
    let rows = rows.map_or_else(|| tokens(spec), |rows| rows as f64);
    let needed = bytes(spec, rows).saturating_sub(kept);
    let available = durable_files::available_space(dir)?;
    if needed > available {
        return Err(StoreError::NoSpace { dir: dir.to_path_buf(), needed, available });
    }
    Ok(())
}

/// Estimated bytes of a finished store: of each element the sign, the kept mantissa bits and about three bits of
/// exponent remain (measured on residuals); of each origin and each token about three quarters.
pub fn estimated_bytes(spec: &StoreSpec) -> u64 {
    bytes(spec, tokens(spec))
}

fn tokens(spec: &StoreSpec) -> f64 {
    spec.contexts as f64 * spec.context_length as f64
}

fn bytes(spec: &StoreSpec, rows: f64) -> u64 {
    let bits = f64::from(spec.mantissa_bits.unwrap_or(spec.row_type.mantissa_bits())) + 4.0;
    let per_row = spec.width as f64 * bits / 8.0 + 0.75 * (spec.origin_bytes() + spec.token_bytes()) as f64;
    (rows * per_row) as u64
}
