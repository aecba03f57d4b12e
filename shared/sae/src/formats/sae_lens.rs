//! SAELens' folders of every version, in every float type.
//!
//! Since version 6 they are what [`Sae::load`](crate::Sae::load) reads, in float32. Older ones have all keys at the outermost level
//! and other names for some; `handle_pre_6_0_config` in sae_lens/loading/pretrained_sae_loaders.py translates them so. What a trainer
//! of SAELens saves on its way (`TrainingSAE.save_model`) has the architecture that is trained: BatchTopK is turned into thresholds
//! here as `save_inference_model` does there.

use std::path::Path;

use durable_files::CheckedFolder;
use ndarray::Array1;
use serde_json::{Map, Value, json};

use super::opened::{Format, Opened, count_at, text_at};
use super::tensors::{Matrix, Names, Tensors};
use crate::files::{CONFIG_FILE, SPARSITY_FILE, WEIGHTS_FILE, check_config};
use crate::{Config, Error, Metadata};

const NAMES: Names =
    Names { w_enc: Matrix::AsIs("W_enc"), b_enc: "b_enc", w_dec: Matrix::AsIs("W_dec"), b_dec: "b_dec" };

/// Keys of old configurations that stand in `metadata` now.
const OF_METADATA: [&str; 10] = [
    "model_name",
    "hook_name",
    "hook_head_index",
    "model_from_pretrained_kwargs",
    "prepend_bos",
    "exclude_special_tokens",
    "neuronpedia_id",
    "context_size",
    "seqpos_slice",
    "dataset_path",
];

/// Names that keys had.
const RENAMED: [(&str, &str); 3] = [
    ("hook_point", "hook_name"),
    ("hook_point_head_index", "hook_head_index"),
    ("activation_fn_str", "activation_fn"),
];

/// Reads the folder.
pub(super) fn read_folder(folder: &Path) -> Result<Opened, Error> {
    let files = CheckedFolder::open(folder)?;
    let path = folder.join(CONFIG_FILE);
    let json = |source| Error::Json { path: path.clone(), source };
    let said: Value = serde_json::from_slice(&files.read(CONFIG_FILE)?).map_err(json)?;
    let old = !is_of_version_6(&said);
    let mut value = if old { translated(&path, said)? } else { said };
    let trained = text_at(&value, &["architecture"]).filter(|name| name.ends_with("batchtopk"));
    if let Some(trained) = &trained {
        value["metadata"]["training_architecture"] = trained.as_str().into();
        value["metadata"]["training_architecture_details"] = json!({ "k": value.get("k") });
        value["architecture"] = "jumprelu".into();
        // It may be a fraction there.
        value.as_object_mut().and_then(|value| value.remove("k"));
    }
    let ranked = value.get("rescale_acts_by_decoder_norm") == Some(&Value::Bool(true)) && trained.is_some();
    if ranked {
        value["rescale_acts_by_decoder_norm"] = false.into();
    }
    value["dtype"] = "float32".into();
    value["device"] = "cpu".into();
    let config: Config = serde_json::from_value(value).map_err(json)?;
    check_config(&path, &config)?;

    let weights_file = folder.join(WEIGHTS_FILE);
    let bytes = files.read(WEIGHTS_FILE)?;
    let mut tensors = Tensors::safetensors(&weights_file, &bytes)?;
    refuse_scaling_factor(&mut tensors)?;
    let (d, f) = (config.d_in, config.d_sae);
    let mut weights = tensors.weights_of(NAMES, d, f)?;
    if trained.is_some() {
        let threshold = tensors.scalar("topk_threshold")?.max(0.0);
        if ranked {
            weights.fold_decoder_norms();
        }
        weights.threshold = Some(Array1::from_elem(f, threshold));
    } else if config.has_thresholds() {
        weights.threshold = Some(match tensors.has("log_threshold") {
            true => tensors.vector("log_threshold", f)?.mapv_into(f32::exp),
            false => tensors.vector("threshold", f)?,
        });
    }
    if config.has_skip() {
        weights.skip = Some(tensors.matrix(Matrix::AsIs("W_skip"), d, d)?);
    }
    let mut opened = Opened::new(weights, config, Format::SaeLens);
    if files.has(SPARSITY_FILE) {
        let bytes = files.read(SPARSITY_FILE)?;
        let sparsity = Tensors::safetensors(&folder.join(SPARSITY_FILE), &bytes)?.vector("sparsity", f)?;
        opened.sae.log_sparsity = Some(sparsity.to_vec());
    }
    let note = "its configuration is that of SAELens before version 6, read as SAELens translates it";
    Ok(if old { opened.note(note) } else { opened })
}

/// Whether the configuration has the layout of version 6.
fn is_of_version_6(config: &Value) -> bool {
    let version =
        text_at(config, &["sae_lens_version"]).or_else(|| text_at(config, &["metadata", "sae_lens_version"]));
    let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    major.is_some_and(|major| major >= 6)
}

/// The configuration as SAELens 6 has it.
fn translated(path: &Path, config: Value) -> Result<Value, Error> {
    let refused = |reason: String| Error::Refused { path: path.into(), reason };
    let Value::Object(config) = config else {
        return Err(refused("it is not a JSON object".into()));
    };
    let renamed = config.into_iter().map(|(key, value)| {
        let new = RENAMED.into_iter().find(|(old, _)| *old == key);
        (new.map_or(key, |(_, new)| new.to_owned()), value)
    });
    let old: Map<String, Value> = renamed.collect();
    let said = Value::Object(old.clone());
    let hook = text_at(&said, &["hook_name"]).unwrap_or_default();
    let activation = text_at(&said, &["activation_fn"]).unwrap_or_else(|| "relu".into());
    let architecture = text_at(&said, &["architecture"]).unwrap_or_else(|| "standard".into());
    let mut new = json!({ "architecture": architecture });
    match &*activation {
        "relu" => {}
        "topk" => {
            new["architecture"] = "topk".into();
            new["k"] = count_at(&said, &["activation_fn_kwargs", "k"]).or(count_at(&said, &["k"])).into();
        }
        other => {
            return Err(refused(format!(
                "its activation function is {other}, which this program does not compute"
            )));
        }
    }
    for key in ["d_in", "d_sae", "d_out", "k", "apply_b_dec_to_input", "rescale_acts_by_decoder_norm"] {
        if let Some(value) = old.get(key)
            && new.get(key).is_none()
        {
            new[key] = value.clone();
        }
    }
    new["normalize_activations"] = match old.get("normalize_activations") {
        None | Some(Value::Null | Value::Bool(false)) => "none".into(),
        Some(Value::Bool(true)) => "expected_average_only_in".into(),
        Some(other) => other.clone(),
    };
    let of_heads = if hook.contains("hook_z") { "hook_z" } else { "none" };
    new["reshape_activations"] = old.get("reshape_activations").cloned().unwrap_or_else(|| of_heads.into());
    let mut metadata: Map<String, Value> =
        OF_METADATA.iter().filter_map(|key| Some(((*key).to_owned(), old.get(*key)?.clone()))).collect();
    metadata.entry("prepend_bos").or_insert(Value::Bool(true));
    // The version that reads the folder from now on; that of the file is one that trained.
    metadata.insert("sae_lens_version".into(), Metadata::default().sae_lens_version.into());
    metadata.extend(
        old.get("sae_lens_version").map(|version| ("sae_lens_training_version".into(), version.clone())),
    );
    new["metadata"] = metadata.into();
    Ok(new)
}

/// A factor for each feature that early versions trained after the rest; SAELens itself ignores it where it is 1.
fn refuse_scaling_factor(tensors: &mut Tensors<'_>) -> Result<(), Error> {
    for name in ["scaling_factor", "finetuning_scaling_factor"] {
        let Some(shape) = tensors.shape(name) else { continue };
        let factors = tensors.vector(name, shape.iter().product())?;
        if factors.iter().any(|factor| (factor - 1.0).abs() > 1e-5) {
            return Err(tensors.refused(format!(
                "its features have scaling factors (`{name}`), which this program does not apply"
            )));
        }
    }
    Ok(())
}
