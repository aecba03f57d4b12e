//! circuit-tracer's folder of a transcoder set: `config.yaml`, and for each block N `layer_N.safetensors` with `W_enc` [F,d],
//! `W_dec` [F,d], `b_enc` [F], `b_dec` [d], with thresholds `activation_function.threshold` [F], with a skip connection `W_skip`
//! [d,d]. Its `load_transcoder_set` (circuit_tracer/transcoder/single_layer_transcoder.py) reads it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sae::{Config, Sae, write_tensors};
use serde_json::Value;
use terminal::foreign_path;

use crate::autoencoder::load;

/// What all transcoders of a set have in common.
#[derive(Debug, Clone, PartialEq)]
struct Set {
    model: String,
    /// The hooks without their block.
    input_hook: String,
    output_hook: String,
    features: usize,
    width: usize,
    activation: String,
    k: Option<usize>,
    skip: bool,
}

/// Writes the transcoders in `folders` as one set.
pub(super) fn export(folders: &[PathBuf], out: &Path) -> Result<()> {
    let mut layers: BTreeMap<usize, &PathBuf> = BTreeMap::new();
    let mut set: Option<Set> = None;
    for folder in folders {
        let refused = || format!("cannot write {} for circuit-tracer", foreign_path(folder));
        let config = load(folder)?.config;
        let (layer, found) = describe(&config).with_context(refused)?;
        if config.metadata.further.get("residual_centered") == Some(&Value::Bool(true)) {
            terminal::say!(
                "{} was trained on centred rows, and circuit-tracer does not centre a model's weights: dump with --center off",
                foreign_path(folder)
            );
        }
        let other = layers.insert(layer, folder);
        ensure!(
            other.is_none(),
            "{} and {} are both of block {layer}; give one of them",
            foreign_path(other.unwrap_or(folder)),
            foreign_path(folder)
        );
        let first = set.get_or_insert_with(|| found.clone());
        ensure!(
            *first == found,
            "{} and {} are not of one set: {found:?}, {first:?}",
            foreign_path(folder),
            foreign_path(&folders[0])
        );
    }
    let set = set.context("there is no transcoder to write")?;
    durable_files::create_folder(out, |new| -> Result<()> {
        for (layer, folder) in &layers {
            write_layer(&new.join(format!("layer_{layer}.safetensors")), &load(folder)?.folded())?;
        }
        let config = new.join("config.yaml");
        fs::write(&config, yaml(&set)).with_context(|| format!("cannot write {}", foreign_path(&config)))
    })?;
    let count = layers.len();
    terminal::say!("{count} transcoders for circuit-tracer: {}", foreign_path(out));
    if !layers.keys().copied().eq(0..count) {
        terminal::say!("circuit-tracer reads a set that has a transcoder for each block from 0 on");
    }
    if set.k.is_some() {
        terminal::say!(
            "circuit-tracer knows TopK since the version after 0.5.0, which takes these transcoders for ReLU"
        );
    }
    Ok(())
}

/// The block of a transcoder, and the set that it can be part of.
fn describe(config: &Config) -> Result<(usize, Set)> {
    ensure!(
        config.is_transcoder(),
        "it is no transcoder, but of the architecture \"{}\"",
        config.architecture
    );
    ensure!(
        config.normalize_activations == "none",
        "it scales what it reads ({}), which circuit-tracer does not",
        config.normalize_activations
    );
    let metadata = &config.metadata;
    let input = metadata.hook_name.as_deref();
    let output = metadata.further.get("hook_name_out").and_then(Value::as_str);
    let (input, output) = input.zip(output).context("its cfg.json does not name both hooks")?;
    let blocks = in_block(input).zip(in_block(output));
    let ((layer, input_hook), (of_output, output_hook)) =
        blocks.with_context(|| format!("the hooks {input} and {output} are not both those of a block"))?;
    ensure!(layer == of_output, "it goes from {input} to {output}, but circuit-tracer's stay within a block");
    let set = Set {
        model: metadata.model_name.clone().context("its cfg.json does not name the model")?,
        input_hook: input_hook.to_owned(),
        output_hook: output_hook.to_owned(),
        features: config.d_sae,
        width: config.d_in,
        activation: config.activation().to_owned(),
        k: config.largest(),
        skip: config.has_skip(),
    };
    Ok((layer, set))
}

/// `blocks.3.hook_mlp_out` → 3 and `hook_mlp_out`.
fn in_block(hook: &str) -> Option<(usize, &str)> {
    let (layer, hook) = hook.strip_prefix("blocks.")?.split_once('.')?;
    Some((layer.parse().ok()?, hook))
}

fn write_layer(path: &Path, sae: &Sae) -> Result<()> {
    let weights = &sae.weights;
    let mut tensors = vec![
        ("W_enc", weights.w_enc.t().into_dyn()),
        ("W_dec", weights.w_dec.view().into_dyn()),
        ("b_enc", weights.b_enc.view().into_dyn()),
        ("b_dec", weights.b_dec.view().into_dyn()),
    ];
    let threshold = weights.threshold.as_ref();
    tensors.extend(threshold.map(|tensor| ("activation_function.threshold", tensor.view().into_dyn())));
    tensors.extend(weights.skip.as_ref().map(|skip| ("W_skip", skip.view().into_dyn())));
    Ok(write_tensors(path, &tensors)?)
}

/// `config.yaml`. A string of JSON is one of YAML.
fn yaml(set: &Set) -> String {
    let quoted = |text: &str| Value::from(text).to_string();
    let mut lines = vec![
        format!("model_name: {}", quoted(&set.model)),
        "model_kind: transcoder_set".to_owned(),
        format!("feature_input_hook: {}", quoted(&set.input_hook)),
        format!("feature_output_hook: {}", quoted(&set.output_hook)),
    ];
    // Thresholds speak for themselves.
    match (&*set.activation, set.k) {
        (_, Some(k)) => lines.extend(["activation: topk".to_owned(), format!("k: {k}")]),
        ("standard", None) => lines.push("activation: relu".to_owned()),
        _ => {}
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use sae::Metadata;

    use super::*;

    fn config(from: &str, to: &str) -> Config {
        let metadata = Metadata {
            model_name: Some("gpt2".into()),
            hook_name: Some(from.into()),
            further: BTreeMap::from([("hook_name_out".into(), to.into())]),
            ..Metadata::default()
        };
        Config::standard(4, 9, false, metadata)
    }

    #[test]
    fn a_set_is_described_by_its_hooks_and_activation() {
        let plain = config("blocks.11.ln2.hook_normalized", "blocks.11.hook_mlp_out");
        let (layer, set) = describe(&plain.clone().topk(3).transcoder(true)).unwrap();
        assert_eq!((layer, set.skip, set.features), (11, true, 9));
        assert_eq!(
            yaml(&set),
            "model_name: \"gpt2\"\nmodel_kind: transcoder_set\nfeature_input_hook: \"ln2.hook_normalized\"\n\
             feature_output_hook: \"hook_mlp_out\"\nactivation: topk\nk: 3\n"
        );
        let (_, set) = describe(&plain.clone().jumprelu().transcoder(false)).unwrap();
        assert!(!yaml(&set).contains("activation"));
        let (_, set) = describe(&plain.transcoder(false)).unwrap();
        assert!(yaml(&set).ends_with("activation: relu\n"));
    }

    #[test]
    fn what_circuit_tracer_cannot_use_is_refused() {
        let told = |config: Config| describe(&config).unwrap_err().to_string();
        assert!(told(config("blocks.1.a", "blocks.1.b")).contains("no transcoder"));
        assert!(told(config("blocks.1.a", "blocks.2.b").transcoder(false)).contains("within a block"));
        assert!(told(config("hook_embed", "blocks.2.b").transcoder(false)).contains("not both"));
    }
}
