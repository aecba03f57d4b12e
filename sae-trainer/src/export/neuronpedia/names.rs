//! What Neuronpedia calls the model, the source set and the source.

use anyhow::{Context, Result, ensure};
use sae::Config;
use serde::{Deserialize, Serialize};

use crate::command::arguments::NeuronpediaArguments;

/// Names of an autoencoder's features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Names {
    pub(super) model_id: String,
    pub(super) layer: usize,
    pub(super) set: String,
    pub(super) suffix: Option<String>,
}

/// What there is to take names from.
pub(super) struct Known<'a> {
    pub(super) config: &'a Config,
    /// Hub id or folder of the language model that made the store.
    pub(super) model: &'a str,
    pub(super) hook: &'a str,
}

impl Names {
    /// Those asked for, and defaults in place of others.
    pub(super) fn new(arguments: &NeuronpediaArguments, known: &Known<'_>) -> Result<Names> {
        let own = known.config.metadata.model_name.as_deref().filter(|name| !name.is_empty());
        let names = Names {
            model_id: arguments.model_id.clone().unwrap_or_else(|| model_id(own.unwrap_or(known.model))),
            layer: arguments
                .layer
                .or_else(|| layer(known.hook))
                .with_context(|| format!("the hook {:?} names no block; give --layer N", known.hook))?,
            set: arguments.set.clone().unwrap_or_else(|| set(known)),
            suffix: arguments.suffix.clone(),
        };
        names.check()?;
        Ok(names)
    }

    /// `LAYER-SET` or `LAYER-SET__SUFFIX`.
    pub(super) fn source(&self) -> String {
        let suffix = self.suffix.iter().map(|suffix| format!("__{suffix}"));
        format!("{}-{}{}", self.layer, self.set, suffix.collect::<String>())
    }

    /// The rules are those of Neuronpedia's api/source-set/new, and of its schema for a model; its upload turns names into lower case.
    fn check(&self) -> Result<()> {
        let only = |text: &str, others: &[u8]| {
            let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || others.contains(&b);
            !text.is_empty() && text.len() <= 128 && text.bytes().all(legal)
        };
        let id = &self.model_id;
        ensure!(
            only(id, b"-_.") && !id.starts_with('.'),
            "{id:?} cannot be the name of a model on Neuronpedia: a --model-id has lower-case letters, digits, -, _ and dots"
        );
        let set = &self.set;
        ensure!(
            only(set, b"-")
                && set.starts_with(|c: char| c.is_ascii_lowercase())
                && !set.ends_with('-')
                && !set.contains("--")
                && set != "neurons",
            "{set:?} cannot be a source set of Neuronpedia: a --set has lower-case letters, digits and single hyphens, begins with a \
             letter and does not end with a hyphen"
        );
        ensure!(
            self.suffix.as_ref().is_none_or(|suffix| only(suffix, b"-_.")),
            "a --suffix has lower-case letters, digits, -, _ and dots"
        );
        Ok(())
    }
}

/// Neuronpedia's name of a model from its name elsewhere.
fn model_id(name: &str) -> String {
    let last = name.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_lowercase();
    match &*last {
        // TransformerLens' name.
        "gpt2" => "gpt2-small".to_owned(),
        _ => last.replace(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c), "-"),
    }
}

/// `blocks.3.hook_resid_pre` → 3.
fn layer(hook: &str) -> Option<usize> {
    hook.strip_prefix("blocks.")?.split('.').next()?.parse().ok()
}

/// `res-24k`, and likewise of other hooks.
fn set(known: &Known<'_>) -> String {
    let kinds = [("resid", "res"), ("mlp", "mlp"), ("attn", "att"), ("hook_z", "att")];
    let of_hook = kinds.iter().find(|(part, _)| known.hook.contains(part)).map_or("sae", |(_, name)| name);
    let kind = if known.config.is_transcoder() { "transcoder" } else { of_hook };
    let features = known.config.d_sae;
    match features.is_multiple_of(1024) {
        true => format!("{kind}-{}k", features / 1024),
        false => format!("{kind}-{features}"),
    }
}

#[cfg(test)]
mod tests {
    use sae::Metadata;

    use super::*;

    fn names(arguments: &NeuronpediaArguments, model: &str, hook: &str) -> Result<Names> {
        let config = Config::standard(768, 24_576, false, Metadata::default());
        Names::new(arguments, &Known { config: &config, model, hook })
    }

    #[test]
    fn names_follow_from_model_hook_and_size() {
        let none = NeuronpediaArguments::default();
        let found = names(&none, "openai-community/gpt2", "blocks.8.hook_resid_pre").unwrap();
        assert_eq!((&*found.model_id, &*found.source()), ("gpt2-small", "8-res-24k"));
        let found = names(&none, "/models/SmolLM2 135M/", "blocks.3.attn.hook_z").unwrap();
        assert_eq!((&*found.model_id, &*found.source()), ("smollm2-135m", "3-att-24k"));
        let given = NeuronpediaArguments {
            model_id: Some("gemma-2-2b".into()),
            layer: Some(20),
            set: Some("mine-16k".into()),
            suffix: Some("l0-71".into()),
            ..none
        };
        let found = names(&given, "x", "hook_embed").unwrap();
        assert_eq!((&*found.model_id, &*found.source()), ("gemma-2-2b", "20-mine-16k__l0-71"));
    }

    #[test]
    fn names_that_neuronpedia_refuses_are_refused() {
        let told = |given: NeuronpediaArguments| {
            names(&given, "m", "blocks.1.hook_mlp_out").unwrap_err().to_string()
        };
        for set in ["Mine", "a--b", "a-", "-a", "neurons", "a/b", ""] {
            let given = NeuronpediaArguments { set: Some(set.into()), ..Default::default() };
            assert!(told(given).contains("source set"), "{set}");
        }
        let given = NeuronpediaArguments { model_id: Some("../m".into()), ..Default::default() };
        assert!(told(given).contains("--model-id"));
        let given = NeuronpediaArguments { suffix: Some("A".into()), ..Default::default() };
        assert!(told(given).contains("--suffix"));
        assert!(names(&Default::default(), "m", "hook_embed").unwrap_err().to_string().contains("--layer"));
    }
}
