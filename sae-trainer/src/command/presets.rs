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
pub(crate) const PRESETS: [Preset; 11] = [
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
    Preset {
        name: "anthropic-2025",
        about: "JumpReLU with a tanh penalty: T. Conerly et al., \"Dictionary Learning Optimization Techniques\" (Circuits \
                Updates, January 2025)",
        flags: ANTHROPIC_2025,
    },
    Preset {
        name: "gemma-scope-2",
        about: "JumpReLU with a quadratic L0 penalty: C. McDougall et al., \"Gemma Scope 2 - Technical Paper\" (2025)",
        flags: GEMMA_SCOPE_2,
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
    Preset {
        name: "dictionary-learning-jump-relu",
        about: "the defaults of dictionary_learning's JumpReLU trainer",
        flags: DICTIONARY_LEARNING_JUMP_RELU,
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

/// transformer-circuits.pub/2025/january-update. Where it leaves a choice, or its page could not be compared, the value is that of
/// the public implementations that name it, and says so. Three things differ: the threshold itself is trained and not its
/// logarithm, the pre-activation loss is one of features that are dead, as in SAELens, and the decoder is drawn by Kaiming's rule and
/// then given the norm that U(-1/sqrt(d), 1/sqrt(d)) has on average.
const ANTHROPIC_2025: &str = r#"
activation = "jump-relu"
bandwidth = 2                   # epsilon
threshold-init = 0.1            # two implementations start its logarithm at 0.1, so theta at 1.105
jump-to-input = true            # the estimator's gradient reaches all parameters
loss = "tanh"                   # lambda_S sum tanh(c |f| norm of W_d)
tanh-scale = 4                  # c
weight-by-decoder-norm = true
tanh-coefficient = 20           # lambda_S; implementations take 10 to 20
coefficient-warmup-steps = "100%"
coefficient-warmup-from-zero = true
pre-activation-coefficient = 3e-6
dead-rows = 4_096_000           # ours: SAELens' 1,000 steps of 4,096 rows
mse = "sum"
input-scale = "mean-norm"       # mean norm sqrt(d)
decoder-norm = "free"
decoder-init-norm = 0.577       # sqrt(1/3)
expansion = 32                  # ours
encoder-init = "transpose"
encoder-init-scale = 0.03125    # d / features: to be changed with the features
b-enc-init = 10_000             # each feature fires on 10,000 / features of the rows
batch = 4096                    # ours; one implementation takes 32,768
lr = 2e-4                       # as implementations have it
lr-decay-steps = "20%"
clip-gradient = 1               # as implementations have it
"#;

/// The report's sections 2.3, 3.1 and 3.2. It tells neither the coefficient nor the prefixes, and of a second penalty, on features that
/// fire often, neither form nor coefficient: that one is left out, and `max-sparsity-coefficient` is the like of it. Its learning
/// rate warms up along a cosine from a tenth; here it rises in a line.
const GEMMA_SCOPE_2: &str = r#"
activation = "jump-relu"
bandwidth = 0.001
threshold-init = 0.001
loss = "quadratic"              # lambda (2 / L0*) (L0 - L0*)^2
target-l0 = 50                  # they sweep 10, 50, 100 and 150
l0-coefficient = 1e-3           # ours
coefficient-warmup-steps = 50_000
coefficient-warmup-from-zero = true
matryoshka = ["0.0625", "0.125", "0.25", "0.5"] # ours
matryoshka-weight = 0.2         # ours: the mean of the five errors, so that the coefficient keeps its meaning
mse = "sum"
input-scale = "mean-square"     # unit mean squared norm
pre-bias = true
decoder-norm = "unit"
decoder-init-norm = 1
encoder-init = "transpose"
features = 16_384               # their narrowest
batch = 4096
lr = 7e-5
warmup-steps = 1000
beta1 = 0
"#;

/// sae-lens 6.54: saes/topk_sae.py, saes/sae.py, config.py, training/sae_trainer.py.
const SAE_LENS_TOPK: &str = r#"
activation = "topk"
k = 100                         # TopKTrainingSAEConfig
mse = "sum"                     # mse_loss.sum(dim=-1).mean()
pre-bias = true                 # apply_b_dec_to_input
rank-by-decoder-norm = true     # rescale_acts_by_decoder_norm
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
rank-by-decoder-norm = true
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

/// As DICTIONARY_LEARNING_TOPK, and trainers/jumprelu.py, JumpReluAutoEncoder in dictionary.py. One thing differs: a threshold is
/// never under 0.
const DICTIONARY_LEARNING_JUMP_RELU: &str = r#"
activation = "jump-relu"
bandwidth = 0.001               # bandwidth
threshold-init = 0.001          # self.threshold
loss = "mean-quadratic"         # ((l0 / self.target_l0) - 1).pow(2)
target-l0 = 20                  # target_l0
l0-coefficient = 1              # sparsity_penalty
coefficient-warmup-steps = 2000 # sparsity_warmup_steps
coefficient-warmup-from-zero = true
mse = "sum"
decoder-norm = "unit"
decoder-init-norm = 1
encoder-init = "transpose"
features = 16_384               # left to its user
lr = 7e-5
beta1 = 0                       # betas=(0.0, 0.999)
warmup-steps = 1000
warmup-from-zero = true
clip-gradient = 1
dead-rows = "10M"
"#;
