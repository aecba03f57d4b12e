//! How numbers are read.

pub(super) fn parse_coefficient(text: &str) -> Result<f64, String> {
    parse_number(text, |x| x >= 0.0, "it must be a number of at least 0")
}

pub(super) fn parse_positive(text: &str) -> Result<f64, String> {
    // The engine computes in float32.
    parse_number(text, |x| x as f32 > 0.0, "it must be a number above 0")
}

pub(super) fn parse_fraction(text: &str) -> Result<f64, String> {
    parse_number(text, |x| x > 0.0 && x <= 1.0, "it must be above 0 and at most 1")
}

pub(super) fn parse_below_one(text: &str) -> Result<f64, String> {
    parse_number(text, |x| (0.0..1.0).contains(&x), "it must be at least 0 and below 1")
}

pub(super) fn parse_number(text: &str, fits: impl Fn(f64) -> bool, rule: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|x| (*x as f32).is_finite() && fits(*x));
    number.ok_or_else(|| format!("{rule}, as in 0.2 or 7e-5"))
}

pub(super) fn is_false(flag: &bool) -> bool {
    !flag
}
