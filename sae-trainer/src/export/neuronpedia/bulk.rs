//! Neuronpedia's bulk folder of a source, which its import reads (apps/webapp/app/api/admin/import/route.ts) and
//! convert-saedashboard-to-neuronpedia-export.py writes of batch files:
//!
//! ```text
//! MODEL/SOURCE/
//!     release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl     a line each
//!     features/batch-N.jsonl.gz                                     lines of its table Neuron
//!     activations/batch-N.jsonl.gz                                  lines of its table Activation
//! ```
//!
//! Keys are columns of its data base. Those are left out that get the right value there by themselves: dates, for instance.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;
use serde_json::{Value, json};
use terminal::foreign_path;

use super::dashboard::{Activation, Feature};
use super::names::Names;

/// The user that Neuronpedia's own tools give what they export to; every instance has it.
const CREATOR: &str = "clkht01d40000jv08hvalcvly";

/// What the files say of the autoencoder.
pub(super) struct Source<'a> {
    pub(super) names: &'a Names,
    pub(super) release: &'a str,
    pub(super) creator: &'a str,
    pub(super) description: String,
    pub(super) hook: &'a str,
    pub(super) dataset: &'a str,
    pub(super) contexts: usize,
    pub(super) context_length: usize,
    /// d of the language model and its blocks, if known.
    pub(super) model_size: Option<(usize, usize)>,
    /// Of the decoder.
    pub(super) crc32c: u32,
}

/// A line of its table Neuron.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Neuron<'a> {
    model_id: &'a str,
    layer: &'a str,
    index: String,
    source_set_name: &'a str,
    creator_id: &'a str,
    max_act_approx: f64,
    has_vector: bool,
    vector: [f64; 0],
    vector_label: Option<&'a str>,
    vector_default_steer_strength: f64,
    hook_name: &'a str,
    topk_cos_sim_indices: [u32; 0],
    topk_cos_sim_values: [f64; 0],
    #[serde(flatten)]
    of: Columns<'a>,
}

/// The columns that are called as in a batch file.
#[derive(Serialize)]
struct Columns<'a> {
    neuron_alignment_indices: &'a [usize],
    neuron_alignment_values: &'a [f64],
    neuron_alignment_l1: &'a [f64],
    correlated_neurons_indices: &'a [u32],
    correlated_neurons_pearson: &'a [f64],
    correlated_neurons_l1: &'a [f64],
    correlated_features_indices: &'a [u32],
    correlated_features_pearson: &'a [f64],
    correlated_features_l1: &'a [f64],
    neg_str: &'a [&'a str],
    neg_values: &'a [f64],
    pos_str: &'a [&'a str],
    pos_values: &'a [f64],
    frac_nonzero: f64,
    freq_hist_data_bar_heights: &'a [u64],
    freq_hist_data_bar_values: &'a [f64],
    logits_hist_data_bar_heights: &'a [u64],
    logits_hist_data_bar_values: &'a [f64],
    decoder_weights_dist: [f64; 0],
}

/// A line of its table Activation.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    id: String,
    tokens: &'a [&'a str],
    index: String,
    layer: &'a str,
    model_id: &'a str,
    max_value: f64,
    max_value_token_index: usize,
    min_value: f64,
    values: &'a [f64],
    creator_id: &'a str,
    data_source: Option<&'a str>,
    data_index: Option<&'a str>,
    dfa_values: [f64; 0],
    dfa_target_index: Option<u32>,
    dfa_max_value: Option<f64>,
    loss_values: [f64; 0],
    logit_contributions: Option<&'a str>,
    bin_min: f64,
    bin_max: f64,
    bin_contains: f64,
    qualifying_token_index: usize,
}

/// The folder, open.
pub(super) struct Bulk<'a> {
    folder: PathBuf,
    source: Source<'a>,
    id: String,
}

impl Bulk<'_> {
    /// Begins the folder in `bulk` with what is known before any feature.
    pub(super) fn create<'a>(bulk: &Path, source: Source<'a>) -> Result<Bulk<'a>> {
        let id = source.names.source();
        let folder = bulk.join(&source.names.model_id).join(&id);
        for part in ["features", "activations"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot create {}", foreign_path(&path)))?;
        }
        for (name, line) in source.lines(&id) {
            write(&folder.join(name), format!("{line}\n").as_bytes())?;
        }
        Ok(Bulk { folder, source, id })
    }

    /// Writes the files of a batch.
    pub(super) fn add(&self, number: usize, features: &[Feature<'_>]) -> Result<()> {
        let neurons = features.iter().map(|feature| serde_json::to_string(&self.neuron(feature)));
        self.write_lines("features", number, neurons)?;
        let activations = features.iter().flat_map(|feature| {
            let mut ids = self.ids(feature.feature_index);
            feature
                .activations
                .iter()
                .map(move |of| serde_json::to_string(&self.activation(feature.feature_index, of, ids.draw())))
        });
        self.write_lines("activations", number, activations)
    }

    fn neuron<'a>(&'a self, of: &'a Feature<'_>) -> Neuron<'a> {
        let values = of.activations.iter().flat_map(|of| of.values.iter().copied());
        let maximum = values.fold(0.0, f64::max);
        let names = self.source.names;
        Neuron {
            model_id: &names.model_id,
            layer: &self.id,
            index: of.feature_index.to_string(),
            source_set_name: &names.set,
            creator_id: CREATOR,
            max_act_approx: maximum,
            has_vector: false,
            vector: [],
            vector_label: None,
            vector_default_steer_strength: maximum,
            hook_name: self.source.hook,
            topk_cos_sim_indices: [],
            topk_cos_sim_values: [],
            of: Columns {
                neuron_alignment_indices: &of.neuron_alignment_indices,
                neuron_alignment_values: &of.neuron_alignment_values,
                neuron_alignment_l1: &of.neuron_alignment_l1,
                correlated_neurons_indices: &of.correlated_neurons_indices,
                correlated_neurons_pearson: &of.correlated_neurons_pearson,
                correlated_neurons_l1: &of.correlated_neurons_l1,
                correlated_features_indices: &of.correlated_features_indices,
                correlated_features_pearson: &of.correlated_features_pearson,
                correlated_features_l1: &of.correlated_features_l1,
                neg_str: &of.neg_str,
                neg_values: &of.neg_values,
                pos_str: &of.pos_str,
                pos_values: &of.pos_values,
                frac_nonzero: of.frac_nonzero,
                freq_hist_data_bar_heights: &of.freq_hist_data_bar_heights,
                freq_hist_data_bar_values: &of.freq_hist_data_bar_values,
                logits_hist_data_bar_heights: &of.logits_hist_data_bar_heights,
                logits_hist_data_bar_values: &of.logits_hist_data_bar_values,
                decoder_weights_dist: of.decoder_weights_dist,
            },
        }
    }

    fn activation<'a>(&'a self, feature: usize, of: &'a Activation<'_>, id: String) -> Line<'a> {
        let mut at = 0;
        for (position, value) in of.values.iter().enumerate() {
            if *value > of.values[at] {
                at = position;
            }
        }
        Line {
            id,
            tokens: &of.tokens,
            index: feature.to_string(),
            layer: &self.id,
            model_id: &self.source.names.model_id,
            max_value: of.values[at],
            max_value_token_index: at,
            min_value: of.values.iter().copied().fold(f64::INFINITY, f64::min),
            values: &of.values,
            creator_id: CREATOR,
            data_source: None,
            data_index: None,
            dfa_values: [],
            dfa_target_index: None,
            dfa_max_value: None,
            loss_values: [],
            logit_contributions: None,
            bin_min: of.bin_min,
            bin_max: of.bin_max,
            bin_contains: of.bin_contains,
            qualifying_token_index: of.qualifying_token_index,
        }
    }

    /// Ids of the contexts of a feature. They are keys of a table that all sources share, and rows whose key is there already are
    /// dropped: so they follow from everything that tells sources and autoencoders apart.
    fn ids(&self, feature: usize) -> Ids {
        let mut seed = [0; 32];
        let parts = [
            crc32c::crc32c(self.source.names.model_id.as_bytes()),
            crc32c::crc32c(self.id.as_bytes()),
            self.source.crc32c,
            self.source.contexts as u32,
            self.source.context_length as u32,
            crc32c::crc32c(self.source.dataset.as_bytes()),
            feature as u32,
        ];
        for (bytes, part) in seed.chunks_exact_mut(4).zip(parts) {
            bytes.copy_from_slice(&part.to_le_bytes());
        }
        Ids(ChaCha8Rng::from_seed(seed))
    }

    fn write_lines(
        &self,
        part: &str,
        number: usize,
        lines: impl Iterator<Item = serde_json::Result<String>>,
    ) -> Result<()> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        for line in lines {
            packed.write_all(line?.as_bytes())?;
            packed.write_all(b"\n")?;
        }
        write(&self.folder.join(part).join(format!("batch-{number}.jsonl.gz")), &packed.finish()?)
    }
}

struct Ids(ChaCha8Rng);

impl Ids {
    /// `c` and 24 characters of base 36, as a cuid has.
    fn draw(&mut self) -> String {
        let digit = |_| char::from_digit(self.0.next_u32() % 36, 36).expect("a digit of base 36");
        let digits: String = (0..24).map(digit).collect();
        format!("c{digits}")
    }
}

impl Source<'_> {
    /// Files of one line.
    fn lines(&self, id: &str) -> [(&'static str, Value); 4] {
        let Names { model_id, set, .. } = self.names;
        let (width, blocks) = self.model_size.unzip();
        let release = json!({
            "name": self.release, "visibility": "PUBLIC", "isNewUi": false, "featured": false,
            "description": self.description, "descriptionShort": self.description, "urls": [],
            "creatorEmail": null, "creatorName": self.creator, "creatorNameShort": self.creator, "creatorId": CREATOR,
            "defaultSourceSetName": set, "defaultSourceId": id, "defaultUmapSourceIds": [],
        });
        let model = json!({
            "id": model_id, "displayNameShort": model_id, "displayName": model_id, "creatorId": CREATOR,
            "tlensId": null, "dimension": width, "visibility": "PUBLIC", "defaultSourceSetName": null,
            "defaultSourceId": null, "inferenceEnabled": false, "instruct": model_id.ends_with("-it"),
            "layers": blocks.unwrap_or(0), "neuronsPerLayer": 0, "owner": "", "website": null,
        });
        let source_set = json!({
            "modelId": model_id, "name": set, "hasDashboards": true, "visibility": "PUBLIC",
            "description": self.description, "type": "", "creatorName": self.creator, "urls": [],
            "creatorEmail": null, "creatorId": CREATOR, "releaseName": self.release, "defaultOfModelId": null,
            "defaultRange": 1, "defaultShowBreaks": true, "showDfa": false, "showCorrelated": true,
            "showHeadAttribution": false, "showUmap": false,
        });
        let source = json!({
            "id": id, "modelId": model_id, "setName": set, "hasDashboards": true, "inferenceEnabled": false,
            "inferenceHosts": [], "saelensRelease": null, "saelensSaeId": null, "hfRepoId": null, "hfFolderId": null,
            "visibility": "PUBLIC", "defaultOfModelId": null, "creatorId": CREATOR, "hasUmap": false,
            "hasUmapLogSparsity": false, "hasUmapClusters": false, "num_prompts": self.contexts,
            "num_tokens_in_prompt": self.context_length, "dataset": self.dataset, "notes": null,
        });
        [
            ("release.jsonl", release),
            ("model.jsonl", model),
            ("sourceset.jsonl", source_set),
            ("source.jsonl", source),
        ]
    }
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", foreign_path(path)))
}
