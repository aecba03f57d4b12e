//! `cfg.json` of a trained autoencoder: the provenance of its data, as the store records it.

use std::collections::BTreeMap;

use activation_store::Store;
use sae::{Config, InputScale, Metadata};
use serde_json::json;

use crate::command::settings::Settings;
use crate::engine::Activation;
use crate::runs::folder::program;

/// The configuration of an autoencoder trained with `settings` on `tokens` rows of `stores`, scaled by `scale`, or of a
/// transcoder to the rows of `target`.
pub(crate) fn config(
    settings: &Settings,
    stores: &[Store],
    target: Option<&Store>,
    scale: InputScale,
    tokens: u64,
) -> Config {
    let spec = stores[0].spec();
    let provenance = &spec.provenance;
    let mut datasets: Vec<&str> =
        stores.iter().flat_map(|store| &store.provenance().dataset).map(String::as_str).collect();
    datasets.dedup();
    let mut from_pretrained = BTreeMap::new();
    if provenance.centered {
        // SAELens passes these to TransformerLens' `from_pretrained_no_processing`, which centres nothing
        // unless told to.
        from_pretrained.insert("center_writing_weights".to_owned(), true.into());
    }
    let mut further = BTreeMap::from([
        ("trained_with".to_owned(), program().into()),
        ("training_tokens".to_owned(), tokens.into()),
        ("loss".to_owned(), settings.loss_name().into()),
        ("coefficient".to_owned(), settings.step.loss.coefficient.into()),
        ("residual_centered".to_owned(), provenance.centered.into()),
        ("model".to_owned(), provenance.model.as_str().into()),
        ("model_hash".to_owned(), provenance.model_hash.as_str().into()),
    ]);
    let (architecture, details) = training_architecture(settings);
    further.insert("training_architecture".to_owned(), architecture.into());
    further.insert("training_architecture_details".to_owned(), details);
    if let Some(target) = target {
        further.insert("hook_name_out".to_owned(), target.provenance().hook.as_str().into());
    }
    let metadata = Metadata {
        model_name: Some(transformer_lens_name(&provenance.model).to_owned()),
        hook_name: Some(provenance.hook.clone()),
        context_size: Some(spec.context_length),
        prepend_bos: (!spec.unknown.bos_token).then_some(true),
        model_from_pretrained_kwargs: Some(from_pretrained),
        dataset_path: Some(datasets.join(", ")),
        exclude_special_tokens: Some(spec.drop_bos || settings.drop_bos),
        further,
        ..Metadata::default()
    };
    let step = &settings.step;
    let config = Config::standard(step.width, step.features, step.pre_bias, metadata).scaled(scale);
    let config = match step.activation {
        Activation::Relu => config,
        Activation::TopK { k } => config.topk(k).ranked_by_decoder_norm(step.rank_by_decoder_norm),
        // A row is not encoded together with the rows of a batch: one threshold stands for the k largest.
        Activation::BatchTopK { .. } | Activation::JumpRelu { .. } => config.jumprelu(),
    };
    if target.is_some() { config.transcoder(step.skip) } else { config }
}

/// SAELens' name of the kind that was trained, where that is not what the autoencoder is used as, and its numbers under SAELens'
/// names.
fn training_architecture(settings: &Settings) -> (&'static str, serde_json::Value) {
    let step = &settings.step;
    let widths: Vec<usize> = match step.prefixes.is_empty() {
        true => Vec::new(),
        false => step.prefixes.ends(step.features).collect(),
    };
    let mut details = match step.activation {
        Activation::Relu => json!({}),
        Activation::TopK { k } => json!({ "k": k }),
        Activation::BatchTopK { k, threshold } => json!({ "k": k, "topk_threshold_lr": threshold.rate }),
        Activation::JumpRelu { bandwidth, to_input } => {
            json!({ "jumprelu_bandwidth": bandwidth, "jumprelu_ste_to_input": to_input })
        }
    };
    if step.rank_by_decoder_norm {
        details["rescale_acts_by_decoder_norm"] = true.into();
    }
    if !widths.is_empty() {
        details["matryoshka_widths"] = json!(widths);
    }
    let name = match step.activation {
        Activation::Relu => "standard",
        Activation::TopK { .. } => "topk",
        Activation::BatchTopK { .. } if widths.is_empty() => "batchtopk",
        Activation::BatchTopK { .. } => "matryoshka_batchtopk",
        Activation::JumpRelu { .. } => "jumprelu",
    };
    (name, details)
}

/// TransformerLens uses the names that the GPT-2 models had before the hub sorted models by owner.
fn transformer_lens_name(model: &str) -> &str {
    match model.split_once('/') {
        Some(("openai-community", name)) if name.starts_with("gpt2") => name,
        Some(("distilbert", "distilgpt2")) => "distilgpt2",
        _ => model,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpt2_has_its_short_name_and_other_models_the_one_they_have() {
        assert_eq!(transformer_lens_name("openai-community/gpt2"), "gpt2");
        assert_eq!(transformer_lens_name("openai-community/gpt2-xl"), "gpt2-xl");
        assert_eq!(transformer_lens_name("meta-llama/Llama-3.2-1B"), "meta-llama/Llama-3.2-1B");
        assert_eq!(transformer_lens_name("models/smollm2-135m"), "models/smollm2-135m");
    }
}
