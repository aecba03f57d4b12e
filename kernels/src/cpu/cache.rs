//! How large the caches are that blocks of work should fit. No result depends on it.

use std::sync::OnceLock;

/// What most processors have at least, where nothing is known.
const USUAL_SECOND_LEVEL: usize = 512 * 1024;

/// Bytes that a core can read again and again from its second cache level while others pass through: half of it.
pub(crate) fn working_set() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| second_level().unwrap_or(USUAL_SECOND_LEVEL).clamp(1 << 18, 1 << 22) / 2)
}

/// Bytes of a core's second cache level, as Linux tells it.
fn second_level() -> Option<usize> {
    let folder = std::path::Path::new("/sys/devices/system/cpu/cpu0/cache");
    let read = |index: usize, file: &str| {
        std::fs::read_to_string(folder.join(format!("index{index}/{file}")))
            .ok()
            .map(|text| text.trim().to_owned())
    };
    let index = (0..8).find(|index| read(*index, "level").as_deref() == Some("2"))?;
    let kib: usize = read(index, "size")?.strip_suffix('K')?.parse().ok()?;
    kib.checked_mul(1024)
}
