//! SAEDashboard's batch files, `batch-N.json`: what `NeuronpediaConverter` of version 0.8.0 writes
//! (sae_dashboard/neuronpedia/neuronpedia_converter.py), with its names, its rounding and the defaults of `NeuronpediaRunnerConfig`.
//!
//! It differs in what a list may hold. Token texts are decoded, where SAEDashboard replaces some signs of GPT-2's vocabulary. A feature
//! correlates with all others, not only with those of its batch. Correlations that are not above 0, and contexts in which a feature does
//! not fire, are left out. Rows of BOS are left out of correlations too.

use std::ops::Range;

use anyhow::Result;
use language_model::Unembedding;
use ndarray::{Array2, ArrayView1, s};
use rayon::prelude::*;
use serde::Serialize;

use super::choice::{Choice, Group};
use super::names::Names;
use super::numbers::{Histogram, printed, rounded, share};
use crate::laboratory::features::{Correlated, Correlation, Index, Unmasked};

/// Features of a batch, at most.
pub(super) const BATCH: usize = 128;
/// Components listed of a decoder row.
const ALIGNED: usize = 3;
/// Tokens listed at each end of the logits.
const LOGITS: usize = 10;
/// What SAEDashboard calls a token that the tokenizer has no text for.
const OUT_OF_RANGE: &str = "<|outofrange|>";

/// What dashboards are made of.
pub(super) struct Material<'a> {
    pub(super) index: &'a Index,
    pub(super) unmasked: Unmasked<'a>,
    /// By token.
    pub(super) texts: Vec<String>,
    /// With rows of norm 1, [F, d].
    pub(super) decoder: Array2<f32>,
    /// What the rows' norms were: activations are given for the rows of norm 1.
    pub(super) norms: Vec<f32>,
    pub(super) unembedding: Option<Unembedding>,
    pub(super) correlated: Vec<Correlated>,
    pub(super) choice: Choice,
    pub(super) dataset: String,
}

/// A batch file.
#[derive(Debug, Serialize)]
pub(super) struct Batch<'a> {
    model_id: &'a str,
    layer: usize,
    sae_set: &'a str,
    sae_id_suffix: Option<&'a str>,
    pub(super) features: Vec<Feature<'a>>,
}

/// A feature in the order of `NeuronpediaDashboardFeature.to_dict`.
#[derive(Debug, Serialize)]
pub(super) struct Feature<'a> {
    pub(super) feature_index: usize,
    pub(super) neuron_alignment_indices: Vec<usize>,
    pub(super) neuron_alignment_values: Vec<f64>,
    pub(super) neuron_alignment_l1: Vec<f64>,
    pub(super) correlated_neurons_indices: Vec<u32>,
    pub(super) correlated_neurons_l1: Vec<f64>,
    pub(super) correlated_neurons_pearson: Vec<f64>,
    pub(super) correlated_features_indices: Vec<u32>,
    pub(super) correlated_features_l1: Vec<f64>,
    pub(super) correlated_features_pearson: Vec<f64>,
    pub(super) neg_str: Vec<&'a str>,
    pub(super) neg_values: Vec<f64>,
    pub(super) pos_str: Vec<&'a str>,
    pub(super) pos_values: Vec<f64>,
    pub(super) frac_nonzero: f64,
    pub(super) freq_hist_data_bar_values: Vec<f64>,
    pub(super) freq_hist_data_bar_heights: Vec<u64>,
    pub(super) logits_hist_data_bar_heights: Vec<u64>,
    pub(super) logits_hist_data_bar_values: Vec<f64>,
    n_prompts_total: usize,
    n_tokens_in_prompt: usize,
    dataset: &'a str,
    /// Of heads, for attention alone, and only if direct attribution is asked for.
    pub(super) decoder_weights_dist: [f64; 0],
    pub(super) activations: Vec<Activation<'a>>,
    /// Of vectors that are not an autoencoder's.
    vector: [f64; 0],
}

#[cfg(test)]
impl<'a> Feature<'a> {
    /// A feature of which nothing but these contexts is known.
    pub(super) fn with(feature_index: usize, activations: Vec<Activation<'a>>) -> Feature<'a> {
        Feature {
            feature_index,
            neuron_alignment_indices: Vec::new(),
            neuron_alignment_values: Vec::new(),
            neuron_alignment_l1: Vec::new(),
            correlated_neurons_indices: Vec::new(),
            correlated_neurons_l1: Vec::new(),
            correlated_neurons_pearson: Vec::new(),
            correlated_features_indices: Vec::new(),
            correlated_features_l1: Vec::new(),
            correlated_features_pearson: Vec::new(),
            neg_str: Vec::new(),
            neg_values: Vec::new(),
            pos_str: Vec::new(),
            pos_values: Vec::new(),
            frac_nonzero: 0.5,
            freq_hist_data_bar_values: Vec::new(),
            freq_hist_data_bar_heights: Vec::new(),
            logits_hist_data_bar_heights: Vec::new(),
            logits_hist_data_bar_values: Vec::new(),
            n_prompts_total: 1,
            n_tokens_in_prompt: 1,
            dataset: "",
            decoder_weights_dist: [],
            activations,
            vector: [],
        }
    }
}

/// A context.
#[derive(Debug, Serialize)]
pub(super) struct Activation<'a> {
    pub(super) bin_min: f64,
    pub(super) bin_max: f64,
    pub(super) bin_contains: f64,
    /// Without the first of the context.
    pub(super) tokens: Vec<&'a str>,
    pub(super) values: Vec<f64>,
    /// Which of `tokens` it was chosen for.
    pub(super) qualifying_token_index: usize,
    /// Whether it is of the largest.
    #[serde(skip)]
    pub(super) top: bool,
}

/// The batches of `features` features, as `numpy.array_split` makes them.
pub(super) fn batches(features: usize) -> Vec<Range<usize>> {
    let count = features.div_ceil(BATCH);
    let size = |at: usize| features / count + usize::from(at < features % count);
    let next = |start: &mut usize, at: usize| {
        let range = *start..*start + size(at);
        *start = range.end;
        Some(range)
    };
    (0..count).scan(0, next).collect()
}

/// Token texts without what Neuronpedia's upload or data base refuses: none, and the character 0.
pub(super) fn token_texts(texts: &[String]) -> Vec<String> {
    let fit = |text: &String| match text.is_empty() {
        true => OUT_OF_RANGE.to_owned(),
        false => text.replace('\0', " "),
    };
    texts.iter().map(fit).collect()
}

impl Material<'_> {
    /// The dashboards of some features.
    pub(super) fn batch<'a>(&'a self, names: &'a Names, features: Range<usize>) -> Result<Batch<'a>> {
        let start = features.start;
        let effects = self.effects(features.clone());
        let feature = |feature: usize| {
            self.feature(feature, effects.as_ref().map(|effects| effects.row(feature - start)))
        };
        Ok(Batch {
            model_id: &names.model_id,
            layer: names.layer,
            sae_set: &names.set,
            sae_id_suffix: names.suffix.as_deref(),
            features: features.into_par_iter().map(feature).collect::<Result<_>>()?,
        })
    }

    /// What features add to the logits, [features, vocabulary], less the mean over the vocabulary: TransformerLens, from which
    /// SAEDashboard has the unembedding, takes that away (`center_unembed`).
    fn effects(&self, features: Range<usize>) -> Option<Array2<f32>> {
        let unembedding = self.unembedding.as_ref()?;
        let mut effects = self.decoder.slice(s![features, ..]).dot(&unembedding.weights.t());
        for mut row in effects.rows_mut() {
            let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / row.len() as f64;
            row.mapv_inplace(|x| (f64::from(x) - mean) as f32);
        }
        Some(effects)
    }

    fn feature(&self, feature: usize, logits: Option<ArrayView1<'_, f32>>) -> Result<Feature<'_>> {
        let record = &self.index.record;
        let length = record.context_length;
        let all = (record.contexts * length) as u64;
        let activations: Vec<(u32, f32)> = self
            .index
            .firings(feature)?
            .into_iter()
            .filter(|firing| self.unmasked.has(firing.place() as usize))
            .map(|firing| (firing.place(), firing.activation() * self.norms[feature]))
            .collect();
        let histogram = Histogram::of(activations.iter().map(|(_, a)| *a));
        let chosen = self.choice.of(&activations, length, all);
        let row = self.decoder.row(feature);
        let aligned = largest(row, 1.0, ALIGNED);
        let l1: f64 = row.iter().map(|x| f64::from(x.abs())).sum::<f64>().max(f64::MIN_POSITIVE);
        let Correlated { neurons, features } = &self.correlated[feature];
        let (of_logits, top, bottom) = match logits {
            Some(logits) => (
                Histogram::of(logits.iter().copied()),
                largest(logits, 1.0, LOGITS),
                largest(logits, -1.0, LOGITS),
            ),
            None => Default::default(),
        };
        let values = |of: &[(usize, f32)]| of.iter().map(|(_, x)| rounded(f64::from(*x))).collect::<Vec<_>>();
        Ok(Feature {
            feature_index: feature,
            neuron_alignment_indices: aligned.iter().map(|(at, _)| *at).collect(),
            neuron_alignment_values: values(&aligned),
            neuron_alignment_l1: aligned.iter().map(|(_, x)| rounded(f64::from(x.abs()) / l1)).collect(),
            correlated_neurons_indices: numbers(neurons),
            correlated_neurons_l1: cosines(neurons),
            correlated_neurons_pearson: pearsons(neurons),
            correlated_features_indices: numbers(features),
            correlated_features_l1: cosines(features),
            correlated_features_pearson: pearsons(features),
            neg_str: bottom.iter().map(|(token, _)| self.text(*token as u32)).collect(),
            neg_values: values(&bottom),
            pos_str: top.iter().map(|(token, _)| self.text(*token as u32)).collect(),
            pos_values: values(&top),
            frac_nonzero: share(activations.len() as f64 / all as f64),
            freq_hist_data_bar_values: histogram.values,
            freq_hist_data_bar_heights: histogram.heights,
            logits_hist_data_bar_heights: of_logits.heights,
            logits_hist_data_bar_values: of_logits.values,
            n_prompts_total: record.contexts,
            n_tokens_in_prompt: length,
            dataset: &self.dataset,
            decoder_weights_dist: [],
            activations: chosen.iter().map(|chosen| self.context(*chosen, &activations, length)).collect(),
            vector: [],
        })
    }

    /// A context, shown for the activation at a place.
    fn context(
        &self,
        (group, place): (Group, u32),
        activations: &[(u32, f32)],
        length: usize,
    ) -> Activation<'_> {
        let position = place as usize % length;
        let first = place as usize - position + 1;
        let places = first..first + length - 1;
        let mut values = vec![0.0; length - 1];
        let from = activations.partition_point(|(place, _)| (*place as usize) < places.start);
        for (place, a) in &activations[from..] {
            let Some(value) = values.get_mut(*place as usize - places.start) else { break };
            *value = rounded(printed(f64::from(*a), 4));
        }
        Activation {
            bin_min: group.min,
            bin_max: group.max,
            bin_contains: group.contains,
            tokens: places.map(|place| self.text(self.unmasked.tokens[place])).collect(),
            values,
            qualifying_token_index: position - 1,
            top: group.is_top(),
        }
    }

    fn text(&self, token: u32) -> &str {
        self.texts.get(token as usize).map_or(OUT_OF_RANGE, String::as_str)
    }
}

/// The `count` largest of `sign` times the numbers, with their places; the first of equals first.
fn largest(numbers: ArrayView1<'_, f32>, sign: f32, count: usize) -> Vec<(usize, f32)> {
    let by = |a: &usize, b: &usize| (sign * numbers[*b]).total_cmp(&(sign * numbers[*a])).then(a.cmp(b));
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    if order.len() > count {
        order.select_nth_unstable_by(count, by);
        order.truncate(count);
    }
    order.sort_by(by);
    order.into_iter().map(|at| (at, numbers[at])).collect()
}

fn numbers(of: &[Correlation]) -> Vec<u32> {
    of.iter().map(|of| of.of).collect()
}

fn pearsons(of: &[Correlation]) -> Vec<f64> {
    of.iter().map(|of| rounded(of.pearson)).collect()
}

fn cosines(of: &[Correlation]) -> Vec<f64> {
    of.iter().map(|of| rounded(of.cosine)).collect()
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn batches_are_even() {
        assert_eq!(batches(300), [0..100, 100..200, 200..300]);
        assert_eq!(batches(257), [0..86, 86..172, 172..257]);
        assert_eq!((batches(1)[0].clone(), batches(1).len(), batches(256).len()), (0..1, 1, 2));
    }

    #[test]
    fn the_largest_are_found_at_either_end() {
        let numbers = array![0.5, -2.0, 3.0, 0.5, 1.0];
        assert_eq!(largest(numbers.view(), 1.0, 3), [(2, 3.0), (4, 1.0), (0, 0.5)]);
        assert_eq!(largest(numbers.view(), -1.0, 2), [(1, -2.0), (0, 0.5)]);
        assert_eq!(largest(numbers.view(), 1.0, 9).len(), 5);
    }

    #[test]
    fn texts_that_neuronpedia_refuses_are_replaced() {
        let texts = ["", "a\0b", " the"].map(str::to_owned);
        assert_eq!(token_texts(&texts), [OUT_OF_RANGE, "a b", " the"]);
    }
}
