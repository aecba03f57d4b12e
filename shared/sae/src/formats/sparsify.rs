//! sparsify's folder of a hook: `cfg.json` and `sae.safetensors` (its `SparseCoder`, eai-sparsify 1.3).
//!
//! Its features are the k largest of ReLU(W(x - b_dec) + b). A transcoder (`transcode`) does not subtract b_dec. `skip_connection`
//! adds x W_skipᵀ. `multi_topk` is a matter of its training alone.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::opened::{Format, Opened, config_of, count_at, read, read_json, text_at, with_k};
use super::tensors::{Matrix, Names, Tensors};
use crate::files::{CONFIG_FILE, write_tensors};
use crate::{Error, Metadata, Sae};

pub(super) const WEIGHTS: &str = "sae.safetensors";

const NAMES: Names = Names {
    w_enc: Matrix::Transposed("encoder.weight"),
    b_enc: "encoder.bias",
    w_dec: Matrix::AsIs("W_dec"),
    b_dec: "b_dec",
};

/// Reads the folder of a hook.
pub(super) fn read_folder(folder: &Path) -> Result<Opened, Error> {
    let path = folder.join(CONFIG_FILE);
    let config = read_json(&path)?;
    let refused = |reason: String| Error::Refused { path: path.clone(), reason };
    let flag = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
    let activation = text_at(&config, &["activation"]).unwrap_or_else(|| "topk".into());
    if activation != "topk" {
        return Err(refused(format!(
            "`activation` is \"{activation}\", and of sparsify's this program computes topk alone"
        )));
    }
    if flag("signed") {
        return Err(refused(
            "`signed` is true: its activations can be negative, which those of this program cannot".into(),
        ));
    }
    let (transcode, skip) = (flag("transcode"), flag("skip_connection"));
    if skip && !transcode {
        return Err(refused(
            "`skip_connection` is true without `transcode`: only transcoders can have one in this program"
                .into(),
        ));
    }
    let k = count_at(&config, &["k"]).ok_or_else(|| refused("it has no `k`".into()))?;
    let file = folder.join(WEIGHTS);
    let bytes = read(&file)?;
    let mut tensors = Tensors::safetensors(&file, &bytes)?;
    tensors.only(&["encoder.weight", "encoder.bias", "W_dec", "b_dec", "W_skip"])?;
    let mut weights = tensors.weights(NAMES)?;
    let d = weights.d_in();
    if let Some(said) = count_at(&config, &["d_in"]).filter(|said| *said != d) {
        return Err(refused(format!(
            "`d_in` is {said}, but the tensors of {WEIGHTS} are for rows of {d} numbers"
        )));
    }
    if skip {
        weights.skip = Some(tensors.matrix(Matrix::AsIs("W_skip"), d, d)?);
    } else if tensors.has("W_skip") {
        return Err(tensors.refused("it has a tensor `W_skip`, and its cfg.json no `skip_connection`"));
    }
    let mut metadata = Metadata::default();
    metadata.further.extend(folder.file_name().map(|name| {
        let hook = name.to_string_lossy().into_owned();
        ("hookpoint".to_owned(), Value::from(hook))
    }));
    let own = with_k(config_of(&weights, !transcode, metadata), k, &path)?;
    let own = if transcode { own.transcoder(skip) } else { own };
    Ok(Opened::new(weights, own, Format::Sparsify))
}

/// Writes `cfg.json` and `sae.safetensors` into `folder`.
pub(super) fn write_into(sae: &Sae, folder: &Path) -> Result<Vec<String>, Error> {
    let refused = |reason: String| Error::NotHeld { program: Format::Sparsify.name(), reason };
    let Some(k) = sae.config.largest() else {
        let kind = &sae.config.architecture;
        return Err(refused(format!(
            "it is of the architecture \"{kind}\", and sparsify has TopK autoencoders and transcoders alone"
        )));
    };
    if sae.config.normalize_activations != "none" {
        return Err(refused("it scales each row to the same norm, which sparsify does not".into()));
    }
    let transcode = sae.config.is_transcoder();
    let mut notes = Vec::new();
    let mut sae = sae.clone();
    if sae.config.apply_b_dec_to_input == transcode {
        sae = sae.with_pre_bias(!transcode);
        notes
            .push("b_enc is changed so that b_dec can be subtracted from the input, as sparsify does".into());
    }
    let weights = &sae.weights;
    let mut tensors = vec![
        ("encoder.weight", weights.w_enc.t().into_dyn()),
        ("encoder.bias", weights.b_enc.view().into_dyn()),
        ("W_dec", weights.w_dec.view().into_dyn()),
        ("b_dec", weights.b_dec.view().into_dyn()),
    ];
    tensors.extend(weights.skip.as_ref().map(|skip| ("W_skip", skip.view().into_dyn())));
    write_tensors(&folder.join(WEIGHTS), &tensors)?;
    let config = json!({
        "activation": "topk", "expansion_factor": sae.config.d_sae.div_ceil(sae.config.d_in), "normalize_decoder": false,
        "num_latents": sae.config.d_sae, "k": k, "multi_topk": false, "skip_connection": weights.skip.is_some(),
        "transcode": transcode, "d_in": sae.config.d_in,
    });
    let path = folder.join(CONFIG_FILE);
    fs::write(&path, config.to_string()).map_err(Error::io("write", &path))?;
    Ok(notes)
}
