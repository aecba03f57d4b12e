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
