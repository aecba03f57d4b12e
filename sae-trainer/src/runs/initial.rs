//! The weights that a run starts from, of all features or of some: a rank makes those of its own.

use std::ops::Range;

use anyhow::Result;
use ndarray::{Array1, Array2, ArrayView2};
use sae::{Sae, Weights};

use crate::command::arguments::DecoderBias;
use crate::command::settings::Settings;
use crate::engine::{PanelStates, State, layout};
use crate::runs::batches::Batches;
use crate::runs::decoder_bias;
use crate::runs::encoder_bias;
use crate::runs::input_scale::Scaler;

/// Where they come from.
pub(crate) enum Initial {
    /// Another autoencoder: its weights, for rows as the engine gets them.
    Given(Box<Weights>),
    /// Drawn as `--encoder-init` and `--decoder-init-norm` say.
    Drawn {
        /// As `--b-dec-init` says, if it is not 0.
        decoder_bias: Option<Array1<f32>>,
        /// For `--b-enc-init`: rows, and on which share of them each feature is to be active.
        active: Option<(Array2<f32>, f64)>,
    },
}

impl Initial {
    /// Those of `sae`, if there is one. Batches taken from `batches` are those of its beginning, where it is then.
    pub(crate) fn new(
        settings: &Settings,
        sae: Option<Sae>,
        batches: &mut Batches,
        scaler: &Scaler,
    ) -> Result<Initial> {
        if let Some(sae) = sae {
            return Ok(Initial::Given(Box::new(scaler.weights(sae.weights))));
        }
        let from_rows = match settings.b_dec_init {
            DecoderBias::Zeros => None,
            DecoderBias::Mean => Some(decoder_bias::mean as fn(ArrayView2<'_, f32>) -> Array1<f32>),
            DecoderBias::GeometricMedian => Some(decoder_bias::geometric_median as _),
        };
        let mut decoder_bias = None;
        if let Some(from_rows) = from_rows {
            let mut sample = batches.sample()?;
            scaler.scale_in_place(&mut sample);
            decoder_bias = Some(from_rows(sample.view()));
        }
        let mut active = None;
        if let Some(share) = settings.b_enc_init.share(settings.step.features) {
            let mut sample = batches.input_sample()?;
            scaler.scale_in_place(&mut sample);
            if let Some(bias) = decoder_bias.as_ref().filter(|_| settings.step.pre_bias) {
                sample -= bias;
            }
            active = Some((sample, share));
        }
        Ok(Initial::Drawn { decoder_bias, active })
    }

    /// Those of `features`, and of what belongs to no feature.
    pub(crate) fn weights(&self, settings: &Settings, features: Range<usize>) -> Weights {
        let (d, f, own) = (settings.step.width, settings.step.features, features.len());
        let mut weights = match self {
            Initial::Given(weights) => weights.of_features(features),
            Initial::Drawn { .. } => Weights::init_features(d, f, features, settings.seed, &settings.init),
        };
        if let Initial::Drawn { decoder_bias, active } = self {
            if let Some(bias) = decoder_bias {
                weights.b_dec.assign(bias);
            }
            if let Some((sample, share)) = active {
                let bias = encoder_bias::for_share(weights.w_enc.view(), sample.view(), *share);
                weights.b_enc = bias + settings.threshold_init as f32;
            }
        }
        weights.threshold = settings.step.activation.has_thresholds().then(|| {
            let initial = Array1::from_elem(own, settings.threshold_init as f32);
            weights.threshold.unwrap_or(initial)
        });
        weights.skip = settings.step.skip.then(|| weights.skip.unwrap_or_else(|| Array2::zeros((d, d))));
        weights
    }

    /// The state of a run that begins with them, of the panels `own` alone.
    pub(crate) fn panels(&self, settings: &Settings, own: Range<usize>) -> PanelStates {
        let panel = |number: usize| {
            let weights = self.weights(settings, settings.step.panel_features(number));
            let mut parameters = layout::parameters(&weights);
            parameters.skip = parameters.skip.filter(|_| number == own.start);
            (number, State::new(parameters))
        };
        PanelStates { panels: own.clone().map(panel).collect(), window_totals: Vec::new() }
    }
}
