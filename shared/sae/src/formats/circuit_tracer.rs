//! circuit-tracer's transcoder set: `config.yaml`, and for each block N `layer_N.safetensors` with `W_enc` [F,d], `W_dec` [F,d],
//! `b_enc`, `b_dec`, and where they apply `activation_function.threshold` [F], `W_skip` [d,d] and `k`.
//!
//! Its `load_transcoder_set` (circuit_tracer/transcoder/single_layer_transcoder.py) goes by `activation` in `config.yaml`: "topk"
//! with `k`, "relu", else thresholds if the file has them.

use std::fs;
use std::path::Path;

use super::opened::{Format, Opened, config_of, read, with_k};
use super::tensors::{Matrix, Names, Tensors};
use crate::{Error, Metadata};

pub(super) const CONFIG: &str = "config.yaml";
const THRESHOLD: &str = "activation_function.threshold";

const NAMES: Names = Names {
    w_enc: Matrix::Transposed("W_enc"),
    b_enc: "b_enc",
    w_dec: Matrix::AsIs("W_dec"),
    b_dec: "b_dec",
};

/// The block that a file is the transcoder of, by its name.
pub(super) fn block_of(file: &Path) -> Option<usize> {
    file.file_name()?.to_str()?.strip_prefix("layer_")?.strip_suffix(".safetensors")?.parse().ok()
}

/// Reads the one transcoder of a set.
pub(super) fn read_folder(folder: &Path) -> Result<Opened, Error> {
    let mut blocks = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        blocks.extend(block_of(&entry.map_err(Error::io("read", folder))?.path()));
    }
    blocks.sort_unstable();
    match *blocks {
        [block] => read_file(&folder.join(format!("layer_{block}.safetensors"))),
        _ => Err(Error::Refused {
            path: folder.into(),
            reason: format!(
                "it is a set of {} transcoders: name the file of one, layer_N.safetensors",
                blocks.len()
            ),
        }),
    }
}

/// Reads `layer_N.safetensors` and the `config.yaml` beside it.
pub(super) fn read_file(file: &Path) -> Result<Opened, Error> {
    let config_file = file.with_file_name(CONFIG);
    let text = fs::read_to_string(&config_file).map_err(Error::io("read", &config_file))?;
    let said = |key: &str| top_level(&text, key);
    let bytes = read(file)?;
    let mut tensors = Tensors::safetensors(file, &bytes)?;
    tensors.only(&["W_enc", "W_dec", "b_enc", "b_dec", "W_skip", "k", THRESHOLD])?;
    let mut weights = tensors.weights(NAMES)?;
    let (d, f) = (weights.d_in(), weights.d_sae());
    let skip = tensors.has("W_skip");
    if skip {
        weights.skip = Some(tensors.matrix(Matrix::AsIs("W_skip"), d, d)?);
    }
    let activation = said("activation");
    let mut k = None;
    match activation.as_deref() {
        Some("topk") => {
            let of_set = said("k").and_then(|k| k.parse().ok());
            k = match of_set {
                None if tensors.has("k") => Some(tensors.scalar("k")? as usize),
                None => return Err(tensors.refused("config.yaml says topk, but no k")),
                k => k,
            };
        }
        Some("relu") => {}
        None | Some("jumprelu" | "jump_relu") => {
            if tensors.has(THRESHOLD) {
                let threshold = tensors.vector(THRESHOLD, f)?;
                // It has no ReLU after the threshold.
                if let Some(below) = threshold.iter().position(|threshold| *threshold < 0.0) {
                    return Err(tensors.refused(format!(
                        "the threshold of feature {below} is negative: its activations can be, too, which those of this program cannot"
                    )));
                }
                weights.threshold = Some(threshold);
            }
        }
        Some(other) => {
            return Err(tensors.refused(format!(
                "config.yaml says `activation: {other}`, which this program does not know"
            )));
        }
    }
    let metadata = metadata(block_of(file), &said);
    let mut own = config_of(&weights, false, metadata);
    if let Some(k) = k {
        own = with_k(own, k, file)?;
    }
    let opened = Opened::new(weights, own.transcoder(skip), Format::CircuitTracer);
    Ok(match k {
        None => opened,
        Some(_) => opened.note(
            "circuit-tracer has no ReLU after its TopK: of rows with fewer than k positive z it also keeps negative ones, which \
             this program does not",
        ),
    })
}

fn metadata(block: Option<usize>, said: &dyn Fn(&str) -> Option<String>) -> Metadata {
    let hook = |key| Some(format!("blocks.{}.{}", block?, said(key)?));
    let mut metadata = Metadata {
        model_name: said("model_name"),
        hook_name: hook("feature_input_hook"),
        ..Metadata::default()
    };
    metadata.further.extend(hook("feature_output_hook").map(|hook| ("hook_name_out".into(), hook.into())));
    metadata
}

/// The value of a key at the outermost level of a YAML text, if it stands on the key's line.
fn top_level(text: &str, key: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?.trim();
    if let Some(Ok(quoted)) = value.starts_with('"').then(|| serde_json::from_str(value)) {
        return Some(quoted);
    }
    if let Some(quoted) = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')) {
        return Some(quoted.replace("''", "'"));
    }
    let plain = value.split(" #").next().unwrap_or_default().trim();
    (!plain.is_empty() && plain != "null" && plain != "~").then(|| plain.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_of_yaml_are_read_however_they_are_quoted() {
        let text =
            "model_name: \"a/b\"\nk: 7  # few\nactivation: 'topk'\nscan: null\ntranscoders:\n  k: 9\n- x\n";
        let of = |key: &str| top_level(text, key);
        assert_eq!(of("model_name").unwrap(), "a/b");
        assert_eq!((of("k").unwrap(), of("activation").unwrap()), ("7".into(), "topk".into()));
        assert_eq!((of("scan"), of("transcoders"), of("model")), (None, None, None));
    }

    #[test]
    fn the_block_is_in_the_name_of_the_file() {
        assert_eq!(block_of(Path::new("set/layer_11.safetensors")), Some(11));
        assert_eq!(block_of(Path::new("set/layer_x.safetensors")), None);
    }
}
