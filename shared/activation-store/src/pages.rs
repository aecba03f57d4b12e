//! Large buffers in huge pages where the system has them.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use crate::{Result, StoreError};

/// Bytes in huge pages where the system has them. Rows are read from all over a window or a mixing block; with small pages
/// most of them would need a new entry of the address cache, and the first use of each page an interruption.
#[derive(Debug, Default)]
pub(crate) struct Planes(Option<MmapMut>);

/// `length` bytes of zeros for `what`.
pub(crate) fn map(length: usize, what: &str) -> Result<MmapMut> {
    let map = MmapMut::map_anon(length)
        .map_err(|error| StoreError::Memory(format!("{what} of {length} bytes ({error})")))?;
    #[cfg(target_os = "linux")]
    {
        // Advice that is not taken does no harm.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Ok(map)
}

impl Planes {
    /// Makes it `length` bytes long, of whatever content.
    pub(crate) fn resize(&mut self, length: usize) -> Result<()> {
        if self.len() != length {
            self.0 = Some(map(length, "a chunk")?);
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
