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
pub(crate) const PRESETS: [Preset; 8] = [
    Preset {
        name: "post",
        about: "approx-l0 with min-sparsity: E. Farrell, \"Experiments with an alternative method to promote sparsity in \
                sparse autoencoders\" (2024)",
        flags: POST,
    },
    Preset {
        name: "l1-reference",
        about: "the L1 model that the post compares with: J. Bloom's autoencoders for GPT-2-small (2024)",
        flags: L1_REFERENCE,
    },
    Preset { name: "sae-lens-topk", about: "the defaults of SAELens' TopK trainer", flags: SAE_LENS_TOPK },
    Preset {
        name: "sae-lens-batch-topk",
        about: "the defaults of SAELens' BatchTopK trainer",
        flags: SAE_LENS_BATCH_TOPK,
    },
    Preset {
        name: "sae-lens-jump-relu",
        about: "the defaults of SAELens' JumpReLU trainer",
        flags: SAE_LENS_JUMP_RELU,
    },
    Preset {
        name: "dictionary-learning-topk",
        about: "the defaults of dictionary_learning's TopK trainer",
        flags: DICTIONARY_LEARNING_TOPK,
    },
    Preset {
        name: "dictionary-learning-batch-topk",
        about: "the defaults of dictionary_learning's BatchTopK trainer",
        flags: DICTIONARY_LEARNING_BATCH_TOPK,
    },
    Preset {
        name: "dictionary-learning-matryoshka",
        about: "the defaults of dictionary_learning's Matryoshka trainer",
        flags: DICTIONARY_LEARNING_MATRYOSHKA,
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
revive = "ghost"                # the post's table
dead-rows = 20_480_000          # 5,000 steps: dead_feature_window
"#;

/// sae-lens 6.54: saes/topk_sae.py, saes/sae.py, config.py, training/sae_trainer.py. One thing differs: z is not multiplied by the
/// norm of its decoder row (`rescale_acts_by_decoder_norm`).
const SAE_LENS_TOPK: &str = r#"
activation = "topk"
k = 100                         # TopKTrainingSAEConfig
mse = "sum"                     # mse_loss.sum(dim=-1).mean()
pre-bias = true                 # apply_b_dec_to_input
decoder-norm = "free"
decoder-init-norm = 0.1         # decoder_init_norm
encoder-init = "transpose"
batch = 4096                    # train_batch_size_tokens
lr = 3e-4
clip-gradient = 1               # clip_grad_norm_(sae.parameters(), 1.0)
aux-k = "half"                  # calculate_topk_aux_loss
aux-loss = "sum"
aux-coefficient = 1             # aux_loss_coefficient
dead-rows = 4_096_000           # dead_feature_window: 1,000 steps
"#;

/// As SAE_LENS_TOPK, and saes/batchtopk_sae.py.
const SAE_LENS_BATCH_TOPK: &str = r#"
activation = "batch-topk"
k = 100                         # BatchTopKTrainingSAEConfig
threshold-rate = 0.01           # topk_threshold_lr
threshold-from-zero = true      # topk_threshold
mse = "sum"
pre-bias = true
decoder-norm = "free"
decoder-init-norm = 0.1
encoder-init = "transpose"
batch = 4096
lr = 3e-4
clip-gradient = 1
aux-k = "half"
aux-loss = "sum"
aux-coefficient = 1
dead-rows = 4_096_000
"#;

/// As SAE_LENS_TOPK, and saes/jumprelu_sae.py.
const SAE_LENS_JUMP_RELU: &str = r#"
activation = "jump-relu"
bandwidth = 0.05                # jumprelu_bandwidth
threshold-init = 0.01           # jumprelu_init_threshold
loss = "step"                   # jumprelu_sparsity_loss_mode
l0-coefficient = 1              # l0_coefficient
mse = "sum"
pre-bias = true
decoder-norm = "free"
decoder-init-norm = 0.1
encoder-init = "transpose"
batch = 4096
lr = 3e-4
clip-gradient = 1
"#;

/// dictionary_learning 0.1.0: trainers/top_k.py. Two things differ: the decoder bias starts at the geometric median of 32,768 rows
/// instead of a batch's, and a feature among the k largest of a row that is not above 0 does not count as firing.
const DICTIONARY_LEARNING_TOPK: &str = r#"
activation = "topk"
k = 100                         # left to its user
mse = "sum"                     # e.pow(2).sum(dim=-1).mean()
pre-bias = true                 # encoder(x - b_dec)
decoder-norm = "unit"           # set_decoder_norm_to_unit_norm
decoder-init-norm = 1
encoder-init = "transpose"      # encoder.weight.data = decoder.weight.T.clone()
b-dec-init = "geometric-median"
features = 16_384
lr = 2e-4                       # 2e-4 / sqrt(features / 2**14): to be changed with the features
warmup-steps = 1000             # warmup_steps
warmup-from-zero = true         # get_lr_schedule
clip-gradient = 1               # clip_grad_norm_(self.ae.parameters(), 1.0)
aux-k = "half"                  # top_k_aux = activation_dim // 2
aux-loss = "normalised"         # get_auxiliary_loss
aux-coefficient = 0.03125       # auxk_alpha
dead-rows = "10M"               # dead_feature_threshold
"#;

/// As DICTIONARY_LEARNING_TOPK, and trainers/batch_top_k.py.
const DICTIONARY_LEARNING_BATCH_TOPK: &str = r#"
activation = "batch-topk"
k = 100
threshold-rate = 0.001          # 1 - threshold_beta
threshold-after = 1001          # threshold_start_step
mse = "sum"
pre-bias = true
decoder-norm = "unit"
decoder-init-norm = 1
encoder-init = "transpose"
b-dec-init = "geometric-median"
features = 16_384
lr = 2e-4
warmup-steps = 1000
warmup-from-zero = true
clip-gradient = 1
aux-k = "half"
aux-loss = "normalised"
aux-coefficient = 0.03125
dead-rows = "10M"
"#;

/// As DICTIONARY_LEARNING_BATCH_TOPK, and trainers/matryoshka_batch_top_k.py.
const DICTIONARY_LEARNING_MATRYOSHKA: &str = r#"
activation = "batch-topk"
k = 100
threshold-rate = 0.001
threshold-after = 1001
# Groups of 1/32, 1/16, 1/8, 1/4 and the rest, as in its demo; where each of them ends.
matryoshka = ["0.03125", "0.09375", "0.21875", "0.46875"]
matryoshka-weight = 0.04        # group_weights of 1/5, and the mean over the 5 groups
mse = "sum"
pre-bias = true
decoder-norm = "unit"
decoder-init-norm = 1
encoder-init = "transpose"
b-dec-init = "geometric-median"
features = 16_384
lr = 2e-4
warmup-steps = 1000
warmup-from-zero = true
clip-gradient = 1
aux-k = "half"
aux-loss = "normalised"
aux-coefficient = 0.03125
dead-rows = "10M"
"#;
