//! A trained autoencoder, from disk, ready to be asked what it makes of rows.

use std::path::{Path, PathBuf};

use activation_store::Store;
use anyhow::{Result, bail, ensure};
use ndarray::{Array2, ArrayView2, CowArray, Ix2};
use sae::{Config, InputScale, Sae};
use terminal::{foreign, foreign_path};

use crate::autoencoder::load_and_tell;
use crate::engine::{
    Activation, Batch, CpuEngine, CpuOptions, CpuThreads, DecoderNorm, Evaluation, Forward, LossSpec, Mse,
    SparseActivations, StepSpec,
};

/// An autoencoder for rows as they are in the model, however it was trained.
pub(super) struct Trained {
    pub(super) folder: PathBuf,
    pub(super) config: Config,
    pub(super) decoder_norm_mean: f64,
    /// Of each row; a factor for all of them is in the weights.
    scale: InputScale,
    engine: CpuEngine,
}

impl Trained {
    /// Reads the autoencoder of a run or in a folder of its own, to be asked about up to `batch` rows at once.
    pub(super) fn load(folder: &Path, threads: &CpuThreads, batch: usize) -> Result<Trained> {
        let Sae { weights, config, .. } = load_and_tell(folder)?.folded();
        let activation = match (config.largest(), config.has_thresholds()) {
            (Some(k), _) => Activation::TopK { k },
            // The rectangle matters to training alone.
            (None, true) => Activation::JumpRelu { bandwidth: 1.0, to_input: false },
            (None, false) => Activation::Relu,
        };
        let loss = LossSpec::reconstruction(Mse::Centered);
        let spec = StepSpec {
            pre_bias: config.apply_b_dec_to_input,
            skip: config.has_skip(),
            activation,
            decoder_norm: DecoderNorm::Free,
            sparsity_window: 1,
            ..StepSpec::new(config.d_in, config.d_sae, batch, loss)
        };
        let norms = weights
            .w_dec
            .rows()
            .into_iter()
            .map(|row| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>());
        Ok(Trained {
            folder: folder.to_owned(),
            decoder_norm_mean: norms.map(f64::sqrt).sum::<f64>() / config.d_sae as f64,
            scale: config.input_scale().unwrap_or_default(),
            engine: CpuEngine::on(threads, spec, &weights, CpuOptions::default())?,
            config,
        })
    }

    /// d and F.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.config.d_in, self.config.d_sae)
    }

    /// Whether it was trained without the rows of special tokens.
    pub(super) fn excludes_special_tokens(&self) -> bool {
        self.config.metadata.exclude_special_tokens == Some(true)
    }

    /// Refuses rows that it cannot read, and says if a store has other rows than it was trained on.
    pub(super) fn check(&self, store: &Store, target: Option<&Store>) -> Result<()> {
        let folder = foreign_path(&self.folder);
        match (target, self.config.is_transcoder()) {
            (None, true) => {
                bail!("{folder} holds a transcoder: --target names the store of what it reconstructs")
            }
            (Some(_), false) => {
                bail!("{folder} holds an autoencoder, which reconstructs what it reads: leave --target out")
            }
            _ => {}
        }
        self.check_input(store)?;
        let out = self.config.metadata.further.get("hook_name_out").and_then(|hook| hook.as_str());
        self.tell_other_hook(out, target);
        Ok(())
    }

    /// Refuses rows that its encoder cannot read, and says if a store has other rows than it was trained on.
    pub(super) fn check_input(&self, store: &Store) -> Result<()> {
        let (folder, path) = (foreign_path(&self.folder), foreign_path(store.path()));
        ensure!(
            store.width() == self.config.d_in,
            "the rows of {path} have {} numbers, and the autoencoder in {folder} takes {}",
            store.width(),
            self.config.d_in
        );
        self.tell_other_hook(self.config.metadata.hook_name.as_deref(), Some(store));
        Ok(())
    }

    fn tell_other_hook(&self, own: Option<&str>, store: Option<&Store>) {
        if let (Some(own), Some(store)) = (own, store)
            && own != store.provenance().hook
        {
            let (path, other) = (foreign_path(store.path()), foreign(&store.provenance().hook));
            let folder = foreign_path(&self.folder);
            terminal::say!("what is in {folder} was trained at {}, and {path} holds {other}", foreign(own));
        }
    }

    /// The sums over a batch, from which the metrics follow: of rows scaled as in training, where each row is scaled by its own norm.
    pub(super) fn evaluate(&mut self, batch: Batch<'_>) -> Result<Evaluation> {
        match self.scale {
            InputScale::None => Ok(self.engine.evaluate(batch)?),
            _ => {
                let rows = scaled(self.scale, batch.input);
                Ok(self.engine.evaluate(rows.view().into())?)
            }
        }
    }

    /// The active features of each row of `rows` [n, d].
    pub(super) fn encode(&mut self, rows: ArrayView2<'_, f32>) -> Result<SparseActivations> {
        let rows = scaled(self.scale, rows);
        Ok(self.engine.encode(rows.view())?)
    }

    /// x̂ of each row of `rows` [n, d].
    pub(super) fn reconstruct(&mut self, rows: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        let mut reconstruction = self.engine.reconstruct(scaled(self.scale, rows).view())?;
        if self.scale != InputScale::None {
            for (row, mut xhat) in rows.rows().into_iter().zip(reconstruction.rows_mut()) {
                let factor = self.scale.of_row(row);
                if factor != 0.0 {
                    xhat /= factor;
                }
            }
        }
        Ok(reconstruction)
    }
}

fn scaled(scale: InputScale, rows: ArrayView2<'_, f32>) -> CowArray<'_, f32, Ix2> {
    if scale == InputScale::None {
        return rows.into();
    }
    let mut scaled = rows.to_owned();
    for mut row in scaled.rows_mut() {
        let factor = scale.of_row(row.view());
        row *= factor;
    }
    scaled.into()
}
