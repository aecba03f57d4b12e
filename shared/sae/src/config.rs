//! `cfg.json`: how the weights are applied and where they come from, in SAELens' terms.

use std::collections::BTreeMap;

use ndarray::ArrayView1;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Optional;

/// SAELens' configuration of an autoencoder, the keys of its version 6.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Input width d.
    pub d_in: usize,
    /// Number of features F.
    pub d_sae: usize,
    /// Width of what a transcoder reconstructs; only that of the input is supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_out: Option<usize>,
    /// Type of the tensors; "float32".
    #[serde(default = "float32")]
    pub dtype: String,
    /// Where SAELens puts the weights unless told otherwise; "cpu".
    #[serde(default = "cpu")]
    pub device: String,
    /// Whether b_dec is subtracted from the input (the pre-bias). SAELens' default is true.
    #[serde(default = "yes")]
    pub apply_b_dec_to_input: bool,
    /// Scaling of the input: "none"; "constant_norm_rescale", each row to the norm √d; or "expected_average_only_in", all rows
    /// by one factor, which stands in `metadata` as [`INPUT_SCALE`].
    #[serde(default = "none")]
    pub normalize_activations: String,
    /// Whether the input is the heads of an attention layer side by side; "none".
    #[serde(default = "none")]
    pub reshape_activations: String,
    /// The kind of autoencoder: "standard" is encode, ReLU, decode; "topk" keeps the k largest z of a row before the ReLU;
    /// "jumprelu" keeps z where it is above its feature's threshold. Those of transcoders are "transcoder",
    /// "topk_transcoder" (which SAELens has not) and "jumprelu_transcoder", with a skip connection "skip_transcoder" and so on.
    #[serde(default = "standard")]
    pub architecture: String,
    /// With "topk": how many features of a row can be active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
    /// With "topk": whether z is multiplied by the norm of its decoder row, and divided by it before the decode.
    #[serde(default, skip_serializing_if = "is_false")]
    pub rescale_acts_by_decoder_norm: bool,
    /// Where the training data came from.
    #[serde(default)]
    pub metadata: Metadata,
}

/// Where the training data came from. SAELens keeps whatever keys it finds here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// Which SAELens can read the folder: its loader treats a version under 6 as the old format.
    #[serde(default = "sae_lens_version")]
    pub sae_lens_version: String,
    /// Which SAELens trained it; none did.
    pub sae_lens_training_version: Option<String>,
    /// TransformerLens' or the hub's name of the language model.
    pub model_name: Option<String>,
    /// TransformerLens' name of the hook point, "blocks.1.hook_resid_pre".
    pub hook_name: Option<String>,
    /// The attention head, where the hook point has several.
    pub hook_head_index: Option<usize>,
    /// Tokens in a context, its BOS included.
    pub context_size: Option<usize>,
    /// Whether a context starts with the BOS token.
    pub prepend_bos: Option<bool>,
    /// The positions used, where not all were.
    pub seqpos_slice: Option<Vec<Option<i64>>>,
    /// What TransformerLens' `from_pretrained` must be given so that its activations are those trained on.
    pub model_from_pretrained_kwargs: Option<BTreeMap<String, Value>>,
    /// The text: a hub id or a path.
    pub dataset_path: Option<String>,
    /// Where Neuronpedia shows it.
    pub neuronpedia_id: Option<String>,
    /// Whether rows of special tokens were left out of the training data.
    pub exclude_special_tokens: Option<bool>,
    /// Further keys, kept as they are.
    #[serde(flatten)]
    pub further: BTreeMap<String, Value>,
}

impl Config {
    /// The configuration of an autoencoder of this project: float32, ReLU, input not scaled.
    pub fn standard(d_in: usize, d_sae: usize, pre_bias: bool, metadata: Metadata) -> Config {
        Config {
            d_in,
            d_sae,
            d_out: None,
            dtype: float32(),
            device: cpu(),
            apply_b_dec_to_input: pre_bias,
            normalize_activations: none(),
            reshape_activations: none(),
            architecture: standard(),
            k: None,
            rescale_acts_by_decoder_norm: false,
            metadata,
        }
    }

    /// What the architecture's name says of the activation: "standard", "topk", "jumprelu", or what this program does not know.
    pub fn activation(&self) -> &str {
        let Some(kind) = self.architecture.strip_suffix("transcoder") else { return &self.architecture };
        match kind.strip_suffix("skip_").unwrap_or(kind) {
            "" => "standard",
            activation => activation.strip_suffix('_').unwrap_or(activation),
        }
    }

    /// Whether other rows are reconstructed than are read.
    pub fn is_transcoder(&self) -> bool {
        self.architecture.ends_with("transcoder")
    }

    /// Whether the reconstruction has a part that is linear in the row.
    pub fn has_skip(&self) -> bool {
        self.architecture.ends_with("skip_transcoder")
    }

    /// The tensors that the architecture asks for beyond those that all have.
    pub fn optional(&self) -> Optional {
        Optional { thresholds: self.has_thresholds(), skip: self.has_skip() }
    }

    /// That of [`Sae::folded`](crate::Sae::folded).
    pub fn folded(self) -> Config {
        let config = match self.rescale_acts_by_decoder_norm {
            true => self.ranked_by_decoder_norm(false),
            false => self,
        };
        match config.input_scale() {
            Some(InputScale::Factor(_)) => config.scaled(InputScale::None),
            _ => config,
        }
    }

    /// A transcoder in place of the autoencoder.
    pub fn transcoder(self, skip: bool) -> Config {
        let activation = match self.activation() {
            "standard" => String::new(),
            activation => format!("{activation}_"),
        };
        let architecture = format!("{activation}{}transcoder", if skip { "skip_" } else { "" });
        Config { architecture, d_out: Some(self.d_in), ..self }
    }

    /// How many features of a row can be active, with "topk"; a `k` beside another architecture means nothing.
    pub fn largest(&self) -> Option<usize> {
        self.k.filter(|_| self.activation() == "topk")
    }

    /// Whether there is a threshold for each feature.
    pub fn has_thresholds(&self) -> bool {
        self.activation() == "jumprelu"
    }

    /// The same with a threshold for each feature.
    pub fn jumprelu(self) -> Config {
        Config { architecture: "jumprelu".into(), k: None, ..self }
    }

    /// The same with features that are ranked by z times the norm of their decoder row.
    pub fn ranked_by_decoder_norm(self, ranked: bool) -> Config {
        Config { rescale_acts_by_decoder_norm: ranked, ..self }
    }

    /// The same with only the `k` largest z of a row.
    pub fn topk(self, k: usize) -> Config {
        Config { architecture: "topk".into(), k: Some(k), ..self }
    }
}

/// The key of `metadata` for the factor of "expected_average_only_in". It also says what was folded into weights that are to be
/// used without it.
pub const INPUT_SCALE: &str = "input_scale";

/// What rows are multiplied by before the autoencoder reads them; what it gives back is divided by the same.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum InputScale {
    /// Nothing.
    #[default]
    None,
    /// One factor for all rows.
    Factor(f64),
    /// √d / ‖x‖ for the row x.
    RowNorm,
}

impl InputScale {
    /// The factor for `row` [d]. A row of zeros stays one.
    pub fn of_row(self, row: ArrayView1<'_, f32>) -> f32 {
        match self {
            InputScale::None => 1.0,
            InputScale::Factor(factor) => factor as f32,
            InputScale::RowNorm => {
                let squared: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
                if squared > 0.0 { (row.len() as f64 / squared).sqrt() as f32 } else { 1.0 }
            }
        }
    }
}

impl Config {
    /// How rows are scaled; `None` for a scaling that this program does not know.
    pub fn input_scale(&self) -> Option<InputScale> {
        let factor = || self.metadata.further.get(INPUT_SCALE)?.as_f64().filter(|factor| *factor > 0.0);
        match self.normalize_activations.as_str() {
            "none" => Some(InputScale::None),
            "constant_norm_rescale" => Some(InputScale::RowNorm),
            "expected_average_only_in" => factor().map(InputScale::Factor),
            _ => None,
        }
    }

    /// The same for rows that are scaled.
    pub fn scaled(mut self, scale: InputScale) -> Config {
        self.normalize_activations = match scale {
            InputScale::None => none(),
            InputScale::RowNorm => "constant_norm_rescale".into(),
            InputScale::Factor(factor) => {
                self.metadata.further.insert(INPUT_SCALE.into(), factor.into());
                "expected_average_only_in".into()
            }
        };
        self
    }
}

impl Default for Metadata {
    fn default() -> Metadata {
        Metadata {
            sae_lens_version: sae_lens_version(),
            sae_lens_training_version: None,
            model_name: None,
            hook_name: None,
            hook_head_index: None,
            context_size: None,
            prepend_bos: None,
            seqpos_slice: None,
            model_from_pretrained_kwargs: None,
            dataset_path: None,
            neuronpedia_id: None,
            exclude_special_tokens: None,
            further: BTreeMap::new(),
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn float32() -> String {
    "float32".into()
}

fn cpu() -> String {
    "cpu".into()
}

fn yes() -> bool {
    true
}

fn none() -> String {
    "none".into()
}

fn standard() -> String {
    "standard".into()
}

fn sae_lens_version() -> String {
    "6.0.0".into()
}
