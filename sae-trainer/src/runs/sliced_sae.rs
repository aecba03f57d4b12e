//! `sae/` of a run whose features are divided into panels. All weights are in one file, as SAELens has them: each rank writes those
//! of its own features to where they belong, a panel at a time. No rank needs the weights of all features.

use std::path::Path;

use anyhow::Result;
use sae::{Config, Optional, Sae, WeightSlices};

use crate::engine::Engine;
use crate::runs::together::Others;

/// An autoencoder that all ranks write.
pub(crate) struct SlicedSae<'a> {
    /// Has the weights of this rank's features, for rows as it gets them.
    pub(crate) engine: &'a dyn Engine,
    /// Of these weights.
    pub(crate) config: Config,
    /// What is written: that of the weights for rows as they are in the store.
    pub(crate) written: Config,
    /// Of all features.
    pub(crate) log_sparsity: Vec<f32>,
}

impl SlicedSae<'_> {
    /// Writes `folder`, whole or not at all, together with the `others`, who [`help`](SlicedSae::help).
    ///
    /// # Errors
    /// Those of any rank.
    pub(crate) fn save(&self, folder: &Path, others: &Others<'_>) -> Result<()> {
        durable_files::replace_folder(folder, |new| {
            let Config { d_in, d_sae, .. } = self.config;
            let file = WeightSlices::create(new, d_in, d_sae, self.optional())?;
            others.fill(new, |_| self.write(file))?;
            sae::write_config(new, &self.written)?;
            sae::write_log_sparsity(new, &self.log_sparsity)?;
            // Also reads the weights, once all are there: their checksum runs through the slices of all ranks.
            Ok(durable_files::write_sums(new)?)
        })
    }

    /// Writes this rank's weights into the folder `new` of the first rank.
    ///
    /// # Errors
    /// Those of the disk and of a device.
    pub(crate) fn help(&self, new: &Path) -> Result<String> {
        let Config { d_in, d_sae, .. } = self.config;
        self.write(WeightSlices::open(new, d_in, d_sae, self.optional())?)
    }

    fn optional(&self) -> Optional {
        Optional { thresholds: self.config.has_thresholds(), skip: self.config.has_skip() }
    }

    fn write(&self, file: WeightSlices) -> Result<String> {
        for number in self.engine.own_panels() {
            let (first, weights) = self.engine.panel_weights(number)?;
            let panel = Sae { weights, config: self.config.clone(), log_sparsity: None };
            file.write(first, &panel.folded().weights)?;
        }
        file.finish()?;
        Ok(String::new())
    }
}
