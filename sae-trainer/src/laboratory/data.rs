//! The rows and contexts that autoencoders are asked about.

use std::path::PathBuf;

use activation_store::{Part, Store};
use anyhow::{Result, ensure};

use crate::command::arguments::EvalArguments;
use crate::command::default_store::default_store;

/// What is evaluated on.
pub(super) struct Data {
    pub(super) stores: Vec<Store>,
    /// Of a transcoder; else none.
    pub(super) targets: Vec<Store>,
    pub(super) part: Part,
}

impl Data {
    /// Opens what the flags name.
    pub(super) fn open(arguments: &EvalArguments) -> Result<Data> {
        let open = |folder: &PathBuf| arguments.cache.open(folder);
        let stores = match &arguments.store[..] {
            [] => vec![open(&default_store()?)?],
            folders => folders.iter().map(open).collect::<Result<_>>()?,
        };
        let targets: Vec<Store> = arguments.target.iter().map(open).collect::<Result<_>>()?;
        ensure!(
            targets.is_empty() || targets.len() == stores.len(),
            "there are {} stores and {} targets: each --store needs its --target",
            stores.len(),
            targets.len()
        );
        for (store, target) in stores.iter().zip(&targets) {
            store.check_aligned(target)?;
        }
        let part = match arguments.held_out {
            0.0 => Part::All,
            held_out => Part::HeldOut { held_out },
        };
        Ok(Data { stores, targets, part })
    }
}
