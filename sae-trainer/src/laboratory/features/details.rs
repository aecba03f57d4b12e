//! The details of all features of an index, some at a time: what takes a pass over all activations is made once.

use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use language_model::Unembedding;
use ndarray::{Array2, s};
use rayon::prelude::*;

use super::detail::{Detail, Ground, LISTED, Logits};
use super::index::Index;
use super::rows::Rows;
use super::weights::{decoder, unembedding};
use crate::laboratory::similarity::{nearest, unit_rows};

/// What the details are made of.
pub(crate) struct Details<'a> {
    index: &'a Index,
    tokens: Vec<u32>,
    decoder: Array2<f32>,
    /// Its rows scaled to norm 1, [F, d].
    directions: Array2<f32>,
    unembedding: Option<Unembedding>,
    rows: Rows,
}

impl Details<'_> {
    /// Of the index in `folder`, which is of the autoencoder in `sae`; with effects on the logits of the model in a folder.
    ///
    /// # Errors
    /// If the index is of other weights or damaged, or the model is another.
    pub(crate) fn new<'a>(
        index: &'a Index,
        folder: &Path,
        sae: &Path,
        model: Option<&Path>,
    ) -> Result<Details<'a>> {
        let decoder = decoder(index, folder, sae)?;
        let unembedding = model.map(|model| unembedding(index, model, decoder.ncols())).transpose()?;
        Ok(Details {
            index,
            tokens: index.tokens()?,
            directions: unit_rows(decoder.clone()),
            decoder,
            unembedding,
            rows: Rows::of(index)?,
        })
    }

    /// Of these features. Token texts are left out.
    pub(crate) fn of(&self, features: Range<usize>) -> Result<Vec<Detail>> {
        let neighbours = nearest(self.directions.view(), features.clone(), LISTED);
        let effects = self
            .unembedding
            .as_ref()
            .map(|unembedding| self.decoder.slice(s![features.clone(), ..]).dot(&unembedding.weights.t()));
        let ground = Ground { index: self.index, tokens: &self.tokens, texts: None };
        let start = features.start;
        let detail = |counts: &mut _, feature: usize| {
            let firings = self.index.firings(feature)?;
            let mut relations = self.rows.relations(feature, &firings, counts);
            relations.neighbours.clone_from(&neighbours[feature - start]);
            relations.logits = effects.as_ref().map(|effects| Logits::of(effects.row(feature - start), None));
            Ok(Detail::new(&ground, feature, &firings, relations))
        };
        features.into_par_iter().map_init(|| self.rows.counts(), detail).collect()
    }
}
