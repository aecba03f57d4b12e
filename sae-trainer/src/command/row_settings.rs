//! Which rows of its stores a run trains and is evaluated on.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::command::arguments::RowArguments;

/// The fraction of the contexts that a run holds out unless told otherwise: 100k rows of 10M.
const HELD_OUT: f64 = 0.01;

/// The rows that a run leaves out, BOS rows apart. The defaults are what versions without these settings did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RowSettings {
    /// Fraction of each store's contexts that training never sees.
    pub(crate) held_out: f64,
    /// Rows of these tokens are left out, in training and in evaluation.
    pub(crate) drop_tokens: Vec<u32>,
    /// Rows with a norm of more than so many times the median are left out, in training and in evaluation.
    pub(crate) max_norm: Option<f64>,
    /// What that is in this run's stores.
    pub(crate) largest_norm: Option<f64>,
}

impl RowSettings {
    /// What `arguments` ask for; the norm is not known without the stores. A run that is evaluated on other stores needs to
    /// hold nothing out.
    pub(crate) fn resolve(arguments: &RowArguments) -> RowSettings {
        let default = if arguments.eval_store.is_empty() { HELD_OUT } else { 0.0 };
        let mut drop_tokens = arguments.drop_tokens.clone();
        drop_tokens.sort_unstable();
        drop_tokens.dedup();
        RowSettings {
            held_out: arguments.held_out.unwrap_or(default),
            drop_tokens,
            max_norm: arguments.max_norm,
            largest_norm: None,
        }
    }

    /// Flags are checked where they are parsed; these may come from an edited file.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(
            (0.0..1.0).contains(&self.held_out),
            "held_out is {}, but it must be at least 0 and below 1",
            self.held_out
        );
        for norm in [self.max_norm, self.largest_norm].into_iter().flatten() {
            ensure!(norm > 0.0 && norm.is_finite(), "a largest norm is {norm}, but it must be above 0");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::line::CommandLine;

    fn resolve(words: &[&str]) -> RowSettings {
        let line = ["sae-trainer", "--store", "s"].iter().chain(words);
        RowSettings::resolve(&CommandLine::try_parse_from(line).unwrap().train.settings.rows)
    }

    #[test]
    fn rows_are_held_out_unless_other_stores_are_evaluated_on() {
        assert_eq!(resolve(&[]), RowSettings { held_out: 0.01, ..RowSettings::default() });
        assert_eq!(resolve(&["--eval-store", "e"]).held_out, 0.0);
        assert_eq!(resolve(&["--eval-store", "e", "--held-out", "0.2"]).held_out, 0.2);
        assert_eq!(resolve(&["--held-out", "0"]).held_out, 0.0);
        let given = resolve(&["--drop-tokens", "7,3", "--drop-tokens", "7", "--max-norm", "10"]);
        assert_eq!((given.drop_tokens, given.max_norm, given.largest_norm), (vec![3, 7], Some(10.0), None));
    }

    #[test]
    fn settings_of_older_versions_hold_nothing_out() {
        let older: RowSettings = serde_json::from_str("{}").unwrap();
        assert_eq!(older.held_out, 0.0);
    }

    #[test]
    fn values_that_no_flag_can_give_are_refused() {
        for (held_out, largest_norm) in [(1.0, None), (-0.5, None), (f64::NAN, None), (0.1, Some(-1.0))] {
            let settings = RowSettings { held_out, largest_norm, ..RowSettings::default() };
            assert!(settings.check().is_err(), "{settings:?}");
        }
    }
}
