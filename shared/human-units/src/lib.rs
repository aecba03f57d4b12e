//! Counts, bytes and durations as people write and read them: `300M`, `8GiB`, `2m05s`.
//!
//! Both programs accept these forms on their command lines and print them.

use std::time::Duration;

/// Parses a count: digits, optionally with `_` or a decimal point, and a decimal suffix `k`, `M`, `G`
/// (or `B`, a billion) or `T`. `300M` is 300,000,000; `1.5k` is 1,500.
///
/// The signature is the one that clap's `value_parser` takes.
pub fn parse_count(text: &str) -> Result<u64, String> {
    let scales = [("k", 1e3), ("m", 1e6), ("g", 1e9), ("b", 1e9), ("t", 1e12), ("", 1.0)];
    parse_scaled(text, &scales).ok_or_else(|| {
        format!("`{text}` is not a count; write digits and a suffix k, M, G or T, as in 300M or 500k")
    })
}

/// Parses an amount of memory: a number and a suffix `B`, `kB`, `MB`, `GB`, `TB` (powers of 1000) or
/// `KiB`, `MiB`, `GiB`, `TiB` (powers of 1024). Bare `K`, `M`, `G`, `T` mean powers of 1024.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    const KIB: f64 = 1024.0;
    let scales = [
        ("kib", KIB),
        ("mib", KIB * KIB),
        ("gib", KIB * KIB * KIB),
        ("tib", KIB * KIB * KIB * KIB),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
        ("tb", 1e12),
        ("k", KIB),
        ("m", KIB * KIB),
        ("g", KIB * KIB * KIB),
        ("t", KIB * KIB * KIB * KIB),
        ("b", 1.0),
        ("", 1.0),
    ];
    parse_scaled(text, &scales).ok_or_else(|| {
        format!("`{text}` is not an amount of memory; write a number and a unit, as in 2GiB or 500MB")
    })
}

/// The first suffix that fits decides, so longer ones come before their tails.
fn parse_scaled(text: &str, scales: &[(&str, f64)]) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, scale) =
        scales.iter().find_map(|(suffix, scale)| Some((lower.strip_suffix(suffix)?, *scale)))?;
    let number = number.trim().replace('_', "");
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    // Whole numbers stay exact beyond 2^53.
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale as u64);
    }
    let value = number.parse::<f64>().ok()? * scale;
    (value.fract() == 0.0 && value < u64::MAX as f64).then_some(value as u64)
}

/// A count with three significant digits and a suffix: `300M`, `1.05M`, `88.6k`, `412`.
pub fn format_count(count: f64) -> String {
    for (scale, suffix) in [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")] {
        // 999.7 thousand reads as a million once rounded to three digits.
        if count >= 0.9995 * scale {
            return format!("{}{suffix}", three_digits(count / scale));
        }
    }
    if count.fract() == 0.0 { format!("{count}") } else { three_digits(count) }
}

/// An amount of memory with three significant digits and a binary unit: `1.21 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1023.5 {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{} {unit}", three_digits(value))
            };
        }
        value /= 1024.0;
    }
    format!("{} TiB", three_digits(value))
}

/// A duration at the precision that a waiting person needs: `0.42s`, `17s`, `2m05s`, `3h07m`, `2d04h`.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.2}s", duration.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn three_digits(value: f64) -> String {
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// The examples of the README, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_as_people_write_them() {
        for (text, count) in [
            ("300M", 300_000_000),
            ("500k", 500_000),
            ("1.5k", 1500),
            ("2G", 2_000_000_000),
            ("1_000", 1000),
            ("7", 7),
        ] {
            assert_eq!(parse_count(text), Ok(count), "{text}");
        }
        assert_eq!(parse_count("18446744073709551615"), Ok(u64::MAX));
    }

    #[test]
    fn memory_is_read_in_both_kinds_of_units() {
        for (text, bytes) in [
            ("2GiB", 2 << 30),
            ("512M", 512 << 20),
            ("500MB", 500_000_000),
            ("1.5GiB", 3 << 29),
            ("64 KiB", 65536),
            ("9B", 9),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn nonsense_and_overflow_are_refused_with_an_example() {
        for text in ["", "M", "-1", "1e6", "12Q", "nan", "0.5", "99999999999T"] {
            assert!(parse_count(text).unwrap_err().contains("300M"), "{text}");
        }
        assert!(parse_bytes("lots").unwrap_err().contains("2GiB"));
    }

    #[test]
    fn what_is_printed_keeps_three_digits() {
        let counts =
            [(300e6, "300M"), (1_048_576.0, "1.05M"), (88_600.0, "88.6k"), (999_900.0, "1M"), (412.0, "412")];
        for (count, text) in counts {
            assert_eq!(format_count(count), text);
        }
        assert_eq!(format_bytes(1_300_000_000), "1.21 GiB");
        assert_eq!(format_bytes(1023), "1023 B");
        assert_eq!(format_duration(Duration::from_secs(125)), "2m05s");
        assert_eq!(format_duration(Duration::from_millis(420)), "0.42s");
    }
}
