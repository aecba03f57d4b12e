//! Plain-text tables.

/// Rows of cells in columns two spaces apart, the first column to the left, the others to the right.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &Vec<String>, i: usize| row.get(i).cloned().unwrap_or_default();
    let widths: Vec<usize> =
        (0..count).map(|i| rows.iter().map(|row| cell(row, i).chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = (0..count).map(|i| match i {
            0 => format!("{:<width$}", cell(row, i), width = widths[i]),
            _ => format!("{:>width$}", cell(row, i), width = widths[i]),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A name and a value on each line.
pub(crate) fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("  {name:<width$}  {value}\n")).collect()
}

/// For a metric whose divisor is 0, such as the explained variance of rows that are all equal.
const UNDEFINED: &str = "undefined";

/// A share of one with four decimals: `0.9439`.
pub(crate) fn share(value: f64) -> String {
    if value.is_nan() { UNDEFINED.into() } else { format!("{value:.4}") }
}

/// A small number with three significant digits: `7.12e-4`, `0.0557`, `88.6`.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        v if v.is_nan() => UNDEFINED.into(),
        0.0 => "0".into(),
        v if v < 0.01 => format!("{value:.2e}"),
        v if v < 1.0 => format!("{value:.4}"),
        v if v < 10.0 => format!("{value:.2}"),
        v if v < 100.0 => format!("{value:.1}"),
        v if v < 1e6 => format!("{value:.0}"),
        _ => format!("{value:.2e}"),
    }
}

/// A whole number in groups of three digits: `24,576`.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["run".into(), "L0".into()], vec!["a longer name".into(), "8.1".into()]];
        assert_eq!(columns(&rows), "run             L0\na longer name  8.1\n");
    }

    #[test]
    fn numbers_keep_three_digits_or_so() {
        let texts = [0.000_712, 0.0557, 0.944, 7.125, 88.61, 1234.5].map(number);
        assert_eq!(texts, ["7.12e-4", "0.0557", "0.9440", "7.12", "88.6", "1234"]);
        assert_eq!(
            (number(f64::NAN), share(f64::NAN), share(0.5)),
            ("undefined".into(), "undefined".into(), "0.5000".into())
        );
        assert_eq!(grouped(24_576), "24,576");
        assert_eq!(
            (grouped(7), grouped(123), grouped(1_000_000)),
            ("7".into(), "123".into(), "1,000,000".into())
        );
    }
}
