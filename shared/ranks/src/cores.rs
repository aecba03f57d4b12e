//! Which cores processes may use. Launchers bind some processes to cores of their own and let others share a machine's, and not all
//! of them say which: the operating system knows.

use std::fs;

/// The machine that this process is on and the cores that it may use there, in one line for the other ranks.
pub fn usable_cores() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:")).unwrap_or_default();
    format!("{} {}", host.split_whitespace().collect::<String>(), cores.trim())
}

/// How many of `all` processes may use a core that `own` may use, itself among them.
pub fn sharers(own: &str, all: &[String]) -> usize {
    all.iter().filter(|other| share(own, other)).count().max(1)
}

/// Whether two processes may use one core. Those that do not say which may use all.
fn share(one: &str, other: &str) -> bool {
    let ((host, cores), (other_host, other_cores)) = (parts(one), parts(other));
    // The last number has the first 32 cores.
    let mut pairs = cores.rsplit(',').zip(other_cores.rsplit(','));
    let overlap = pairs.any(|(cores, others)| {
        let mask = |text| u32::from_str_radix(text, 16).unwrap_or(u32::MAX);
        mask(cores) & mask(others) != 0
    });
    host == other_host && overlap
}

fn parts(line: &str) -> (&str, &str) {
    line.split_once(' ').unwrap_or((line, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_share_what_they_may_use_on_one_machine() {
        let all =
            ["left ff", "left f0", "left 0f", "right ff", "left ff,00000000", "left "].map(str::to_owned);
        let of = |at: usize| sharers(&all[at], &all);
        assert_eq!([of(0), of(1), of(2)], [4, 3, 3]);
        assert_eq!(of(3), 1, "another machine has cores of its own");
        assert_eq!(of(4), 1, "the second 32 cores are others");
        assert_eq!(of(5), 4, "without a mask, all of the first");
        assert_eq!(sharers("alone 1", &[]), 1);
    }

    #[test]
    fn this_process_shares_with_itself() {
        let own = usable_cores();
        assert!(!parts(&own).1.is_empty(), "{own}");
        assert_eq!(sharers(&own, &[own.clone(), own.clone()]), 2);
    }
}
