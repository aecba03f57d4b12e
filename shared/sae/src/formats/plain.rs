//! One safetensors file, known by the names and shapes of its tensors.

use std::fmt::Write;
use std::path::Path;

use ndarray::Array1;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::opened::{Format, Given, Opened, config_of, read, with_k};
use super::tensors::{Matrix, Names, Tensors};
use crate::{Error, Metadata, Sae};

/// Names of each tensor in use: as parameters, as modules of torch.
const B_ENC: [&str; 2] = ["b_enc", "encoder.bias"];
const B_DEC: [&str; 3] = ["b_dec", "decoder.bias", "bias"];
/// Of which the encoder is [d, F] or [F, d], by its shape.
const W_ENC: [&str; 2] = ["W_enc", "encoder.weight"];
const W_DEC: [&str; 2] = ["W_dec", "decoder.weight"];

/// Reads the file.
pub(super) fn read_file(file: &Path, given: &Given) -> Result<Opened, Error> {
    let bytes = read(file)?;
    let mut tensors = Tensors::safetensors(file, &bytes)?;
    let (b_enc, b_dec) = (one_of(&tensors, &B_ENC)?, one_of(&tensors, &B_DEC)?);
    let (w_enc, w_dec) = (one_of(&tensors, &W_ENC)?, one_of(&tensors, &W_DEC)?);
    tensors.only(&[b_enc, b_dec, w_enc, w_dec, "threshold", "W_skip"])?;
    let (d, f) = (tensors.length(b_dec)?, tensors.length(b_enc)?);
    // A module of torch has [outputs, inputs].
    let w_enc = oriented(&tensors, w_enc, [d, f], w_enc == "encoder.weight");
    let w_dec = oriented(&tensors, w_dec, [f, d], w_dec == "decoder.weight");
    let mut weights = tensors.weights(Names { w_enc, b_enc, w_dec, b_dec })?;
    if let Some(shape) = tensors.shape("threshold") {
        weights.threshold = Some(match shape.len() {
            0 => Array1::from_elem(f, tensors.scalar("threshold")?),
            _ => tensors.vector("threshold", f)?,
        });
    }
    let skip = tensors.has("W_skip");
    if skip {
        weights.skip = Some(tensors.matrix(Matrix::AsIs("W_skip"), d, d)?);
    }
    let said = |key: &str| tensors.metadata.get(key).map(String::as_str);
    let transcoder = skip || said("architecture").is_some_and(|name| name.ends_with("transcoder"));
    let pre_bias = given.pre_bias || said("apply_b_dec_to_input") == Some("true") || b_dec == "bias";
    if pre_bias && transcoder {
        return Err(tensors
            .refused("it is a transcoder, whose b_dec is one of what it reconstructs and not of its input"));
    }
    let k = given.k.or(said("k").and_then(|k| k.parse().ok()));
    if k.is_some() && weights.threshold.is_some() {
        return Err(tensors.refused("it has thresholds, and so no k"));
    }
    let mut own = config_of(&weights, pre_bias, metadata(&tensors));
    if let Some(k) = k {
        own = with_k(own, k, file)?;
    }
    if transcoder {
        own = own.transcoder(skip);
    }
    let mut told = match (k, &weights.threshold) {
        (Some(k), _) => format!("read as TopK with k {k}"),
        (None, Some(_)) => "read as JumpReLU".to_owned(),
        (None, None) => "read as ReLU, for want of thresholds or a k (--k of import)".to_owned(),
    };
    let _ = match pre_bias {
        true => write!(told, "; b_dec is subtracted from the input"),
        false => write!(told, "; b_dec is not subtracted from the input (--pre-bias of import)"),
    };
    Ok(Opened::new(weights, own, Format::Safetensors).note(told))
}

fn one_of(tensors: &Tensors<'_>, names: &[&'static str]) -> Result<&'static str, Error> {
    names.iter().copied().find(|name| tensors.has(name)).ok_or_else(|| {
        tensors.refused(format!(
            "it is not one of an autoencoder: it has no tensor {} (it has: {})",
            names.join(" or "),
            tensors.names().join(", ")
        ))
    })
}

/// Whether the matrix is turned round, where its shape tells; where it is square, what its name says.
fn oriented(tensors: &Tensors<'_>, name: &'static str, shape: [usize; 2], by_name: bool) -> Matrix {
    let turned = tensors.shape(name).is_some_and(|found| match shape[0] == shape[1] {
        true => by_name,
        false => found == [shape[1], shape[0]],
    });
    if turned { Matrix::Transposed(name) } else { Matrix::AsIs(name) }
}

fn metadata(tensors: &Tensors<'_>) -> Metadata {
    let said = |key: &str| tensors.metadata.get(key).cloned();
    Metadata { model_name: said("model_name"), hook_name: said("hook_name"), ..Metadata::default() }
}

/// The bytes of a file of SAELens' tensors. What they do not say stands in its metadata, for this program.
pub(super) fn file(sae: &Sae, path: &Path) -> Result<Vec<u8>, Error> {
    let config = &sae.config;
    if config.normalize_activations != "none" {
        let reason = "it scales each row to the same norm, which tensors alone do not say".into();
        return Err(Error::NotHeld { program: "a safetensors file", reason });
    }
    let error = |source| Error::Safetensors { path: path.into(), source };
    let named = [
        ("architecture", Some(config.architecture.clone())),
        ("apply_b_dec_to_input", Some(config.apply_b_dec_to_input.to_string())),
        ("k", config.largest().map(|k| k.to_string())),
        ("model_name", config.metadata.model_name.clone()),
        ("hook_name", config.metadata.hook_name.clone()),
    ];
    let metadata = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
    let tensors = sae.weights.tensors();
    let row_major: Vec<_> =
        tensors.iter().map(|(name, tensor)| (*name, tensor.as_standard_layout())).collect();
    let mut views = Vec::new();
    for (name, tensor) in &row_major {
        let numbers = tensor.as_slice().expect("the layout is row-major");
        let view = TensorView::new(Dtype::F32, tensor.shape().to_vec(), bytemuck::cast_slice(numbers));
        views.push((*name, view.map_err(error)?));
    }
    safetensors::serialize(views, Some(metadata)).map_err(error)
}
