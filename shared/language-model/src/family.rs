//! The model families.

/// A line of models that share one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// GPT-2 in all sizes, distilgpt2: learned positions, LayerNorm, fused QKV.
    Gpt2,
    /// Pythia and GPT-NeoX: rotary positions on a part of each head, LayerNorm, attention and MLP in
    /// parallel.
    GptNeox,
    /// Llama 1 to 3, SmolLM2, TinyLlama, Mistral, Qwen2: rotary positions, RMSNorm, grouped-query attention,
    /// SwiGLU.
    Llama,
}

/// What `config.json` calls a model, and its family.
pub(crate) const MODEL_TYPES: [(&str, Family); 5] = [
    ("gpt2", Family::Gpt2),
    ("gpt_neox", Family::GptNeox),
    ("llama", Family::Llama),
    ("mistral", Family::Llama),
    ("qwen2", Family::Llama),
];

impl Family {
    /// The family of a `model_type`.
    pub(crate) fn of(model_type: &str) -> Option<Family> {
        MODEL_TYPES.into_iter().find(|(name, _)| *name == model_type).map(|(_, family)| family)
    }
}
