//! Recipes by name: the flags of published configurations, where every value comes from.

/// A recipe.
#[derive(Debug)]
pub(crate) struct Preset {
    /// What `--preset` calls it.
    pub(crate) name: &'static str,
    /// For `--help`.
    pub(crate) about: &'static str,
    /// Its flags, as a `--config` file has them.
    pub(crate) flags: &'static str,
}

/// All of them.
pub(crate) const PRESETS: [Preset; 2] = [
    Preset {
        name: "post",
        about: "approx-l0 with min-sparsity: E. Farrell, \"Experiments with an alternative method to promote sparsity in \
                sparse autoencoders\" (2024)",
        flags: POST,
    },
    Preset {
        name: "l1-reference",
        about: "the L1 model that the post compares with: J. Bloom's autoencoders for GPT-2-small (2024), without ghost \
                gradients",
        flags: L1_REFERENCE,
    },
];

/// The preset called `name`.
pub(crate) fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

/// The post's section on its setup, unless noted otherwise. The author's code is efarrell1/train_sparse_autoencoder.
const POST: &str = r#"
expansion = 32                  # 24,576 features for GPT-2-small
batch = 4096
tokens = "300M"                 # about 80,000 steps
lr = 4e-4                       # constant
loss = "approx-l0"
epsilon = 0.2
l0-coefficient = 7e-5           # the middle of those in the author's template: 3e-5, 5e-5, 7e-5, 9e-5
mse = "centered"
min-sparsity-coefficient = 1e-6
min-sparsity-target = 1e-5
sparsity-window = 300
decoder-norm = "unit"
decoder-init-norm = "free"      # the author's code normalises decoder rows only after a step
b-dec-init = "zeros"
"#;

/// The post's table names coefficient, warm-up and decoder bias. The rest is what the trainer of that time did:
/// sae_training/sparse_autoencoder.py of jbloomAus/mats_sae_training.
const L1_REFERENCE: &str = r#"
expansion = 32
batch = 4096
tokens = "300M"
lr = 4e-4
warmup-steps = 5000             # the post's table
loss = "l1"
l1-coefficient = 8e-5           # the post's table
mse = "centered"                # pow(sae_out - x, 2) / norm of x - x.mean(dim=0)
pre-bias = true                 # x - b_dec
b-dec-init = "geometric-median" # the post's table; compute_geometric_median
decoder-norm = "unit"           # set_decoder_norm_to_unit_norm
decoder-init-norm = 1           # W_dec /= norm(W_dec)
"#;
