//! What memory this machine has. The system hands out more than there is and ends a process that then uses it, so what cannot fit is
//! refused beforehand.

use std::fs;

use anyhow::{Result, ensure};
use human_units::format_bytes;

/// Bytes of memory and swap that this process may use at most, None where the system does not say.
pub(crate) fn host_memory() -> Option<u64> {
    let of_machine = in_all(&fs::read_to_string("/proc/meminfo").ok()?)?;
    // Of a container.
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|limit| limit.trim().parse().ok()).unwrap_or(u64::MAX);
    Some(of_machine.min(limit))
}

/// Memory and swap, in bytes.
fn in_all(meminfo: &str) -> Option<u64> {
    let kilobytes = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some((kilobytes("MemTotal:")? + kilobytes("SwapTotal:").unwrap_or(0)) * 1024)
}

/// Refuses what takes more than the machine has: `lasting` bytes that a rank of `ranks` cannot do without.
pub(crate) fn check(lasting: u64, ranks: usize, has: Option<u64>) -> Result<()> {
    let has = has.unwrap_or(u64::MAX);
    let of_rank = if ranks > 1 { " of each rank" } else { "" };
    ensure!(
        lasting <= has,
        "weights and moments{of_rank} alone take {}, and this machine has {} of memory: ask for fewer --features, or divide them \
         over more machines (docs/scaling.md)",
        format_bytes(lasting),
        format_bytes(has)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_swap_are_read() {
        let meminfo =
            "MemTotal:       24105000 kB\nMemFree:         1900000 kB\nSwapTotal:       1000000 kB\n";
        assert_eq!(in_all(meminfo), Some(25_105_000 * 1024));
        assert_eq!(in_all("MemTotal: 10 kB"), Some(10_240));
        assert_eq!(in_all("nothing"), None);
    }

    #[test]
    fn what_cannot_fit_is_refused_with_what_to_do() {
        assert!(check(1 << 30, 1, None).is_ok());
        assert!(check(1 << 30, 1, Some(1 << 30)).is_ok());
        let told = check(3 << 30, 2, Some(1 << 30)).unwrap_err().to_string();
        assert!(told.contains("of each rank alone take 3 GiB") && told.contains("has 1 GiB"), "{told}");
    }
}
