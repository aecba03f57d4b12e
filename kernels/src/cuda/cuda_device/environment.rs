//! What the environment asks of every device, of programs and tests alike: for checks on a machine where a kernel is suspected.

use std::ffi::OsString;

use super::screen_kernel::ScreenKernel;
use super::unavailable::Unavailable;

/// Which kernel finds the candidates: `plain`, `mma` or `wgmma`; the best for the device where it is not set.
pub(super) const SCREEN: &str = "SAE_TRAINER_CUDA_SCREEN";
/// `1`: a kernel or the host that waits for too long gives up with an error that says for what.
pub(super) const BOUNDED_WAITS: &str = "SAE_TRAINER_CUDA_BOUNDED_WAITS";

/// What the environment asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Environment {
    pub(super) screen: Option<ScreenKernel>,
    pub(super) bounded_waits: bool,
}

impl Environment {
    /// Reads the variables. One that is empty counts as not set.
    pub(super) fn read() -> Result<Environment, Unavailable> {
        Environment::from(std::env::var_os)
    }

    fn from(variable: impl Fn(&'static str) -> Option<OsString>) -> Result<Environment, Unavailable> {
        let value = |name| variable(name).filter(|value| !value.is_empty());
        let wrong = |variable, value: OsString, takes| {
            Err(Unavailable::Setting { variable, value: value.to_string_lossy().into_owned(), takes })
        };
        let screen = match value(SCREEN) {
            None => None,
            Some(value) => match ScreenKernel::ALL.into_iter().find(|kernel| value == kernel.name()) {
                None => return wrong(SCREEN, value, "plain, mma or wgmma"),
                found => found,
            },
        };
        let bounded_waits = match value(BOUNDED_WAITS) {
            None => false,
            Some(value) if value == "0" || value == "1" => value == "1",
            Some(value) => return wrong(BOUNDED_WAITS, value, "0 or 1"),
        };
        Ok(Environment { screen, bounded_waits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(screen: &str, bounded_waits: &str) -> Result<Environment, String> {
        let variable = |name| Some(if name == SCREEN { screen } else { bounded_waits }.into());
        Environment::from(variable).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_set_asks_for_nothing_and_every_screen_has_a_name() {
        let nothing = Environment { screen: None, bounded_waits: false };
        assert_eq!(Environment::from(|_| None), Ok(nothing));
        assert_eq!(read("", ""), Ok(nothing));
        for (name, kernel) in
            [("plain", ScreenKernel::Plain), ("mma", ScreenKernel::Mma), ("wgmma", ScreenKernel::Wgmma)]
        {
            assert_eq!(read(name, "1"), Ok(Environment { screen: Some(kernel), bounded_waits: true }));
        }
    }

    #[test]
    fn a_wrong_value_is_named_with_its_variable_and_what_it_takes() {
        for (screen, waits, parts) in [
            ("tensor", "", ["SAE_TRAINER_CUDA_SCREEN", "\"tensor\"", "plain, mma or wgmma"]),
            ("mma", "yes", ["SAE_TRAINER_CUDA_BOUNDED_WAITS", "\"yes\"", "0 or 1"]),
        ] {
            let error = read(screen, waits).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
