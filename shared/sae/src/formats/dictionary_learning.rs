//! dictionary_learning's `trainer_N/ae.pt`, a state dict of torch, and `config.json` beside it.
//!
//! Its classes (dictionary_learning/dictionary.py, trainers/*.py of version 0.1.0), with ours in their place:
//!
//! | class | encode | ours |
//! |---|---|---|
//! | `AutoEncoder` | ReLU of W(x - bias) + b, decoder rows scaled to norm 1 on loading | standard, pre-bias |
//! | `AutoEncoderNew` | ReLU of Wx + b | standard |
//! | `AutoEncoderTopK` | the k largest of a row, of x - b_dec | topk, pre-bias |
//! | `BatchTopKSAE`, `MatryoshkaBatchTopKSAE` | those above one threshold, of x - b_dec | jumprelu, pre-bias |
//! | `JumpReluAutoEncoder` | those above their thresholds | jumprelu |

use std::fs;
use std::path::Path;

use ndarray::{Array1, aview0};
use serde_json::{Value, json};

use super::opened::{Format, Given, Opened, config_of, count_at, read, read_json, text_at, with_k};
use super::tensors::{Matrix, Names, Tensors};
use super::torch::{self, Content};
use crate::{Error, Metadata, Sae, Weights};

pub(super) const WEIGHTS: &str = "ae.pt";
const CONFIG: &str = "config.json";

/// The names that the modules of torch give.
const LINEAR: Names = Names {
    w_enc: Matrix::Transposed("encoder.weight"),
    b_enc: "encoder.bias",
    w_dec: Matrix::Transposed("decoder.weight"),
    b_dec: "b_dec",
};
/// The names of parameters that are matrices.
const PLAIN: Names =
    Names { w_enc: Matrix::AsIs("W_enc"), b_enc: "b_enc", w_dec: Matrix::AsIs("W_dec"), b_dec: "b_dec" };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    AutoEncoder,
    AutoEncoderNew,
    TopK,
    BatchTopK,
    Matryoshka,
    JumpRelu,
}

impl Class {
    const ALL: [Class; 6] = [
        Class::AutoEncoder,
        Class::AutoEncoderNew,
        Class::TopK,
        Class::BatchTopK,
        Class::Matryoshka,
        Class::JumpRelu,
    ];

    fn name(self) -> &'static str {
        match self {
            Class::AutoEncoder => "AutoEncoder",
            Class::AutoEncoderNew => "AutoEncoderNew",
            Class::TopK => "AutoEncoderTopK",
            Class::BatchTopK => "BatchTopKSAE",
            Class::Matryoshka => "MatryoshkaBatchTopKSAE",
            Class::JumpRelu => "JumpReluAutoEncoder",
        }
    }

    fn trainer(self) -> &'static str {
        match self {
            Class::AutoEncoder => "StandardTrainer",
            Class::AutoEncoderNew => "StandardTrainerAprilUpdate",
            Class::TopK => "TopKTrainer",
            Class::BatchTopK => "BatchTopKTrainer",
            Class::Matryoshka => "MatryoshkaBatchTopKTrainer",
            Class::JumpRelu => "JumpReluTrainer",
        }
    }

    fn names(self) -> Names {
        match self {
            Class::AutoEncoder => Names { b_dec: "bias", ..LINEAR },
            Class::AutoEncoderNew => Names { b_dec: "decoder.bias", ..LINEAR },
            Class::TopK | Class::BatchTopK => LINEAR,
            Class::Matryoshka | Class::JumpRelu => PLAIN,
        }
    }
}

/// Reads the state dict `file`, and what `config.json` says of it: beside it, or beside the folder of checkpoints that it is in.
pub(super) fn read_file(file: &Path, given: &Given) -> Result<Opened, Error> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let config = [folder.join(CONFIG), folder.join("..").join(CONFIG)].into_iter().find(|path| path.exists());
    let config = config.map(|path| read_json(&path)).transpose()?;
    let bytes = read(file)?;
    let mut tensors = Tensors::torch(file, &bytes)?;
    let class = class(&tensors, config.as_ref(), given)?;
    let config = config.unwrap_or_default();
    let mut weights = tensors.weights(class.names())?;
    check_sizes(&tensors, &weights, &config)?;
    let mut notes = Vec::new();
    match class {
        Class::AutoEncoder if !has_unit_rows(&weights) => {
            weights.fold_decoder_norms();
            notes.push("decoder rows are scaled to norm 1 and activations by their norms, as dictionary_learning does on loading");
        }
        Class::BatchTopK | Class::Matryoshka => {
            let threshold = tensors.scalar("threshold")?;
            if threshold < 0.0 {
                notes.push(
                    "it was saved before its threshold was first set: every positive activation is kept",
                );
            }
            weights.threshold = Some(Array1::from_elem(weights.d_sae(), threshold.max(0.0)));
        }
        Class::JumpRelu => {
            let threshold = tensors.vector("threshold", weights.d_sae())?;
            // A ReLU comes after the threshold.
            weights.threshold = Some(threshold.mapv_into(|threshold| threshold.max(0.0)));
        }
        Class::AutoEncoder | Class::AutoEncoderNew | Class::TopK => {}
    }
    let mut own = config_of(&weights, subtracts_bias(class), metadata(&config));
    let recorded = count_at(&config, &["trainer", "k"]);
    let k = match recorded.or(given.k) {
        Some(k) => Some(k),
        None if tensors.has("k") => Some(tensors.scalar("k")? as usize),
        None => None,
    };
    match (class, k) {
        (Class::TopK, Some(k)) => own = with_k(own, k, file)?,
        (Class::TopK, None) => return Err(tensors.refused("it does not say its k: give it with --k")),
        (Class::BatchTopK | Class::Matryoshka, k) => {
            let further = &mut own.metadata.further;
            let kind = if class == Class::Matryoshka { "matryoshka_batchtopk" } else { "batchtopk" };
            further.insert("training_architecture".into(), kind.into());
            let mut details = json!({ "k": k });
            if let Some(sizes) = config.pointer("/trainer/group_sizes").and_then(Value::as_array) {
                details["matryoshka_widths"] = widths(sizes);
            }
            further.insert("training_architecture_details".into(), details);
        }
        _ => {}
    }
    let opened = Opened::new(weights, own, Format::DictionaryLearning);
    Ok(notes.into_iter().fold(opened, Opened::note))
}

/// The class that the configuration names, or that has these tensors.
fn class(tensors: &Tensors<'_>, config: Option<&Value>, given: &Given) -> Result<Class, Error> {
    let recorded = config.and_then(|config| text_at(config, &["trainer", "dict_class"]));
    if let Some(recorded) = recorded {
        let known = Class::ALL.into_iter().find(|class| class.name() == recorded);
        return known.ok_or_else(|| {
            let known: Vec<_> = Class::ALL.into_iter().map(Class::name).collect();
            let known = known.join(", ");
            tensors.refused(format!(
                "it is a {recorded} of dictionary_learning; those that can be read are {known}"
            ))
        });
    }
    if tensors.has("gate_bias") {
        return Err(tensors.refused(
            "it is a GatedAutoEncoder of dictionary_learning, a kind that this program does not compute",
        ));
    }
    match ["group_sizes", "bias", "decoder.bias", "W_enc", "k"].map(|name| tensors.has(name)) {
        [true, ..] => Ok(Class::Matryoshka),
        [_, true, ..] => Ok(Class::AutoEncoder),
        [_, _, true, ..] => Ok(Class::AutoEncoderNew),
        [_, _, _, true, _] => Ok(Class::JumpRelu),
        _ if given.k.is_some() => Ok(Class::TopK),
        [.., true] => Err(tensors.refused(
            "it can be an AutoEncoderTopK or a BatchTopKSAE, and no config.json beside it says which: put that of its run there, \
             or import it as TopK with --k",
        )),
        _ => Err(tensors.refused(format!(
            "its tensors are none of an autoencoder of dictionary_learning (it has: {})",
            tensors.names().join(", ")
        ))),
    }
}

/// Whether b_dec is subtracted from the input.
fn subtracts_bias(class: Class) -> bool {
    !matches!(class, Class::AutoEncoderNew | Class::JumpRelu)
}

/// As the class itself checks: all norms within 1e-5 of 1.
fn has_unit_rows(weights: &Weights) -> bool {
    let squared = |row: ndarray::ArrayView1<'_, f32>| row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
    weights.w_dec.rows().into_iter().all(|row| (squared(row).sqrt() - 1.0).abs() <= 1e-5)
}

fn check_sizes(tensors: &Tensors<'_>, weights: &Weights, config: &Value) -> Result<(), Error> {
    for (key, found) in [("activation_dim", weights.d_in()), ("dict_size", weights.d_sae())] {
        if let Some(said) = count_at(config, &["trainer", key]).filter(|said| *said != found) {
            return Err(
                tensors.refused(format!("its config.json says {key} {said}, but its tensors {found}"))
            );
        }
    }
    Ok(())
}

fn metadata(config: &Value) -> Metadata {
    let module = text_at(config, &["trainer", "submodule_name"]);
    let layer = module.as_deref().and_then(|module| module.strip_prefix("resid_post_layer_"));
    let mut metadata = Metadata {
        model_name: text_at(config, &["trainer", "lm_name"]),
        hook_name: layer.map(|layer| format!("blocks.{layer}.hook_resid_post")),
        context_size: count_at(config, &["buffer", "ctx_len"]),
        ..Metadata::default()
    };
    metadata.further.extend(module.map(|module| ("submodule_name".into(), module.into())));
    metadata
}

/// Sizes of groups → where each ends.
fn widths(sizes: &[Value]) -> Value {
    let mut end = 0_u64;
    let ends = sizes.iter().filter_map(Value::as_u64).map(|size| {
        end = end.saturating_add(size);
        end
    });
    ends.collect::<Vec<_>>().into()
}

/// Writes `ae.pt` and `config.json` into `folder`.
pub(super) fn write_into(sae: &Sae, folder: &Path) -> Result<Vec<String>, Error> {
    let program = Format::DictionaryLearning.name();
    let refused = |reason: &str| Error::NotHeld { program, reason: reason.into() };
    if sae.config.is_transcoder() {
        return Err(refused("it is a transcoder, and dictionary_learning has none"));
    }
    if sae.config.normalize_activations != "none" {
        return Err(refused("it scales each row to the same norm, which dictionary_learning does not"));
    }
    let (class, k, ends) = class_of(sae);
    let mut notes = Vec::new();
    let mut sae = sae.clone();
    let subtracts = subtracts_bias(class);
    if sae.config.apply_b_dec_to_input != subtracts {
        sae = sae.with_pre_bias(subtracts);
        notes.push("b_enc is changed so that b_dec is taken into account as this class does".into());
    }
    let path = folder.join(WEIGHTS);
    fs::write(&path, torch::write(&entries(&sae, class, k, &ends))).map_err(Error::io("write", &path))?;
    let path = folder.join(CONFIG);
    let config = serde_json::to_vec_pretty(&recorded(&sae, class, k, &ends)).expect("it is plain data");
    fs::write(&path, config).map_err(Error::io("write", &path))?;
    Ok(notes)
}

/// The class of an autoencoder, its k, and where the groups of features end.
fn class_of(sae: &Sae) -> (Class, usize, Vec<usize>) {
    if let Some(k) = sae.config.largest() {
        return (Class::TopK, k, Vec::new());
    }
    let Some(threshold) = &sae.weights.threshold else {
        // An AutoEncoder would be loaded with its decoder rows scaled to norm 1, and so with other activations.
        let plain = sae.config.apply_b_dec_to_input && has_unit_rows(&sae.weights);
        return (if plain { Class::AutoEncoder } else { Class::AutoEncoderNew }, 0, Vec::new());
    };
    let further = &sae.config.metadata.further;
    let details = further.get("training_architecture_details").unwrap_or(&Value::Null);
    let constant = threshold.iter().all(|of| *of == threshold[0]);
    let k = count_at(details, &["k"]).filter(|k| (1..=sae.config.d_sae).contains(k) && constant);
    let ends = details.get("matryoshka_widths").and_then(Value::as_array);
    let ends =
        ends.map(|ends| ends.iter().filter_map(|end| end.as_u64()?.try_into().ok()).collect::<Vec<usize>>());
    let ends = ends.filter(|ends| {
        ends.last() == Some(&sae.config.d_sae) && ends[0] > 0 && ends.windows(2).all(|pair| pair[0] < pair[1])
    });
    match (further.get("training_architecture").and_then(Value::as_str), k, ends) {
        (Some("matryoshka_batchtopk"), Some(k), Some(ends)) => (Class::Matryoshka, k, ends),
        (Some("batchtopk" | "matryoshka_batchtopk"), Some(k), _) => (Class::BatchTopK, k, Vec::new()),
        _ => (Class::JumpRelu, 0, Vec::new()),
    }
}

fn sizes(ends: &[usize]) -> Vec<i64> {
    let starts = std::iter::once(&0).chain(ends);
    starts.zip(ends).map(|(start, end)| (end - start) as i64).collect()
}

fn entries<'a>(sae: &'a Sae, class: Class, k: usize, ends: &[usize]) -> Vec<(&'static str, Content<'a>)> {
    let weights = &sae.weights;
    let names = class.names();
    let floats = Content::Floats;
    let mut entries = Vec::new();
    for (matrix, tensor) in [(names.w_enc, &weights.w_enc), (names.w_dec, &weights.w_dec)] {
        entries.push(match matrix {
            Matrix::AsIs(name) => (name, floats(tensor.view().into_dyn())),
            Matrix::Transposed(name) => (name, floats(tensor.t().into_dyn())),
        });
    }
    entries.push((names.b_enc, floats(weights.b_enc.view().into_dyn())));
    entries.push((names.b_dec, floats(weights.b_dec.view().into_dyn())));
    if class == Class::JumpRelu {
        let threshold = weights.threshold.as_ref().expect("the class has thresholds");
        entries.push(("threshold", floats(threshold.view().into_dyn())));
    }
    if matches!(class, Class::TopK | Class::BatchTopK | Class::Matryoshka) {
        entries.push(("k", Content::Integer(k.try_into().unwrap_or(i32::MAX))));
        // With TopK it is an average that encoding does not use.
        let threshold = weights.threshold.as_ref().map_or(&-1.0, |threshold| &threshold[0]);
        entries.push(("threshold", floats(aview0(threshold).into_dyn())));
    }
    if class == Class::Matryoshka {
        entries.push(("group_sizes", Content::Longs(sizes(ends))));
    }
    entries
}

fn recorded(sae: &Sae, class: Class, k: usize, ends: &[usize]) -> Value {
    let metadata = &sae.config.metadata;
    let hook = metadata.hook_name.as_deref();
    let layer = hook.and_then(|hook| hook.strip_prefix("blocks.")?.split('.').next()?.parse::<usize>().ok());
    let module = match (hook, layer) {
        (Some(hook), Some(layer)) if hook.ends_with(".hook_resid_post") => {
            Some(format!("resid_post_layer_{layer}"))
        }
        _ => hook.map(str::to_owned),
    };
    let mut config = json!({
        "trainer": {
            "trainer_class": class.trainer(), "dict_class": class.name(), "activation_dim": sae.config.d_in,
            "dict_size": sae.config.d_sae, "device": "cpu", "layer": layer, "lm_name": metadata.model_name,
            "submodule_name": metadata.further.get("submodule_name").cloned().or(module.map(Value::from)),
        },
        "buffer": { "d_submodule": sae.config.d_in, "ctx_len": metadata.context_size },
    });
    if k > 0 {
        config["trainer"]["k"] = k.into();
    }
    if !ends.is_empty() {
        config["trainer"]["group_sizes"] = sizes(ends).into();
    }
    config
}
