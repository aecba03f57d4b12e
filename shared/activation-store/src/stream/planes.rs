//! Buffers for decoded chunks.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use crate::{Result, StoreError};

/// The byte planes of a decoded chunk, in huge pages where the system has them: rows are read from all over a mixing
/// block, and with small pages most of them would need a new entry of the address cache.
#[derive(Debug, Default)]
pub(super) struct Planes(Option<MmapMut>);

impl Planes {
    /// Makes it `length` bytes long, of whatever content.
    pub(super) fn resize(&mut self, length: usize) -> Result<()> {
        if self.len() != length {
            let map = MmapMut::map_anon(length).map_err(|error| {
                StoreError::Memory(format!("a decoded chunk of {length} bytes ({error})"))
            })?;
            #[cfg(target_os = "linux")]
            {
                // Advice that is not taken does no harm.
                let _ = map.advise(memmap2::Advice::HugePage);
            }
            self.0 = Some(map);
        }
        Ok(())
    }
}

impl Deref for Planes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Planes {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}
