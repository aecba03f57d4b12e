"""The CPU engine against the trainers of sae-lens and dictionary_learning themselves: the same weights, the same batches, the
same settings, 50 steps."""

import numpy
import pytest
import sae_steps
import torch
from dictionary_learning.trainers import top_k
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from test_gradients import engine, relative

WIDTH, FEATURES, BATCH, STEPS, K, LR = 32, 160, 96, 50, 8, 1e-3
SILENT = 3  # steps after which a feature is dead


def start():
    """Weights with decoder rows of norm 1 and some features that never fire, and rows made of few directions."""
    random = numpy.random.default_rng(11)
    w_dec = random.normal(size=(FEATURES, WIDTH))
    w_dec /= numpy.linalg.norm(w_dec, axis=1, keepdims=True)
    b_enc = random.normal(size=FEATURES) * 0.02
    b_enc[:9] = -2.5
    codes = random.exponential(size=(STEPS, BATCH, FEATURES)) * (random.random(size=(STEPS, BATCH, FEATURES)) < 0.05)
    batches = codes @ w_dec + 0.05 * random.normal(size=(STEPS, BATCH, WIDTH))
    weights = {
        "W_enc": w_dec.T.copy(),
        "b_enc": b_enc,
        "W_dec": w_dec,
        "b_dec": random.normal(size=WIDTH) * 0.05,
        "threshold": numpy.full(FEATURES, 0.05),
    }
    return {name: array.astype("float32") for name, array in weights.items()}, batches.astype("float32")


def sae_lens(kind, config, options, weights, batches):
    """The losses and the trained weights of sae-lens' own trainer, in float64, where rounding decides nothing."""
    sae = kind(config(d_in=WIDTH, d_sae=FEATURES, dtype="float64", apply_b_dec_to_input=True,
                      normalize_activations="none", **options))  # fmt: skip
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            # The thresholds are float32 whatever the rest is.
            parameter.copy_(torch.tensor(weights[name], dtype=parameter.dtype))
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
            total_training_samples=BATCH * STEPS,
            device="cpu",
            autocast=False,
            lr=LR,
            lr_end=LR,
            lr_scheduler_name="constant",
            lr_warm_up_steps=0,
            adam_beta1=0.9,
            adam_beta2=0.999,
            lr_decay_steps=0,
            n_restart_cycles=1,
            train_batch_size_samples=BATCH,
            dead_feature_window=SILENT,
            feature_sampling_window=10**6,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=iter([]),
    )
    losses, dead = [], []
    for batch in batches:
        dead.append(int(trainer.dead_neurons.sum()))
        losses.append(trainer.step(torch.tensor(batch, dtype=torch.float64)).loss.item())
        trainer.n_training_steps += 1
    trained = {name: parameter.detach().numpy() for name, parameter in sae.named_parameters()}
    average = getattr(sae, "topk_threshold", None)
    return losses, trained, None if average is None else float(average), dead


def dictionary_learning(kind, options, weights, batches):
    """The same of dictionary_learning's trainers."""
    jump = kind is JumpReluTrainer
    trainer = kind(steps=STEPS, activation_dim=WIDTH, dict_size=FEATURES, layer=0, lm_name="", lr=LR,
                   warmup_steps=0, device="cpu", **({} if jump else {"k": K}), **options)  # fmt: skip
    trainer.dead_feature_threshold = SILENT * BATCH
    # It sets the decoder bias to the first batch's geometric median: here it is given.
    bias = torch.tensor(weights["b_dec"], dtype=torch.float64)
    trainer.geometric_median = lambda points: bias.clone()
    top_k.geometric_median = trainer.geometric_median
    ae = trainer.ae.double()
    shapes = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "b_dec"}
    if kind in (MatryoshkaBatchTopKTrainer, JumpReluTrainer):
        shapes = {name: name for name in [*shapes, *(["threshold"] if jump else [])]}
    parameters = dict(ae.named_parameters())
    turned = {name for name, key in shapes.items() if key.endswith(".weight")}
    with torch.no_grad():
        for name, key in shapes.items():
            array = weights[name].T if name in turned else weights[name]
            parameters[key].copy_(torch.tensor(array.copy(), dtype=torch.float64))
    losses, dead = [], []
    for step, batch in enumerate(batches):
        losses.append(trainer.update(step, torch.tensor(batch, dtype=torch.float64)))
        dead.append(int(trainer.dead_features))
    trained = {name: parameters[key].detach().numpy() for name, key in shapes.items()}
    trained |= {name: trained[name].T for name in turned}
    average = float(ae.threshold) if hasattr(ae, "threshold") and not jump else None
    return losses, trained, average, dead


def of_unequal_norms(weights, batches):
    """The same start with decoder rows of different norms, and activations that make up for them."""
    norms = numpy.exp(numpy.random.default_rng(12).normal(size=FEATURES) * 0.3).astype("float32")
    made = {"W_enc": weights["W_enc"] / norms, "b_enc": weights["b_enc"] / norms, "W_dec": weights["W_dec"] * norms[:, None]}
    return {**weights, **made}, batches


def spec(activation, pre_bias=True, **options):
    return sae_steps.make_spec(WIDTH, FEATURES, BATCH, mse="sum", pre_bias=pre_bias, activation=activation,
                               gradient_clip=1.0, **options)  # fmt: skip


NO_SCALE = {"rescale_acts_by_decoder_norm": False, "decoder_init_norm": None}
SCALE = {"rescale_acts_by_decoder_norm": True, "decoder_init_norm": None}
TOPK = {"topk": {"k": K}}
WIDTHS = [20, 80]


def batch_topk(rate, skipped, from_zero):
    return {"batch-topk": {"k": K, "threshold": {"rate": rate, "skipped_steps": skipped, "from_zero": from_zero}}}


def aux_sum(coefficient=1.0):
    return {"after_steps": SILENT, "kind": {"aux-k-sum": {"k": WIDTH // 2, "coefficient": coefficient}}}


# dictionary_learning counts the batch itself: SILENT·B tokens are reached one step earlier, and are enough.
AUX = {"after_steps": SILENT - 2, "kind": {"aux-k": {"k": WIDTH // 2, "coefficient": 1 / 32}}}
FREE = {"decoder_norm": "free", "dead": aux_sum()}
JUMP = {"jump-relu": {"bandwidth": 0.05, "to_input": False}}
JUMP_TO_INPUT = {"jump-relu": {"bandwidth": 0.1, "to_input": True}}
JUMP_OPTIONS = {"jumprelu_bandwidth": 0.05, "l0_coefficient": 2e-3, "decoder_init_norm": None}


def jump(activation, penalty, coefficient, **options):
    return spec(activation, decoder_norm="free", penalty=penalty, coefficient=coefficient, **options)


CASES = {
    "sae-lens topk": (
        lambda *data: sae_lens(TopKTrainingSAE, TopKTrainingSAEConfig, {"k": K, **NO_SCALE}, *data),
        spec(TOPK, **FREE),
    ),
    "sae-lens batch-topk": (
        lambda *data: sae_lens(BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": K, **NO_SCALE}, *data),
        spec(batch_topk(0.01, 0, True), **FREE),
    ),
    "sae-lens topk by norm": (
        lambda *data: sae_lens(TopKTrainingSAE, TopKTrainingSAEConfig, {"k": K, **SCALE}, *data),
        spec(TOPK, rank_by_decoder_norm=True, **FREE),
    ),
    "sae-lens batch-topk by norm": (
        lambda *data: sae_lens(BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": K, **SCALE}, *data),
        spec(batch_topk(0.01, 0, True), rank_by_decoder_norm=True, **FREE),
    ),
    "sae-lens matryoshka": (
        lambda *data: sae_lens(
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
            {"k": K, "matryoshka_widths": [*WIDTHS, FEATURES], **NO_SCALE},
            *data,
        ),
        spec(batch_topk(0.01, 0, True), prefixes={"widths": WIDTHS, "weight": 1.0}, **FREE),
    ),
    "sae-lens jump-relu": (
        lambda *data: sae_lens(JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, JUMP_OPTIONS, *data),
        jump(JUMP, {"kind": "step"}, 2e-3),
    ),
    "sae-lens jump-relu tanh": (
        lambda *data: sae_lens(
            JumpReLUTrainingSAE,
            JumpReLUTrainingSAEConfig,
            {
                "jumprelu_bandwidth": 0.1,
                "jumprelu_sparsity_loss_mode": "tanh",
                "jumprelu_ste_to_input": True,
                "l0_coefficient": 2e-3,
                "pre_act_loss_coefficient": 1e-3,
                "decoder_init_norm": None,
            },
            *data,
        ),
        jump(
            JUMP_TO_INPUT,
            {"kind": "tanh", "scale": 4.0},
            2e-3,
            weight_by_decoder_norm=True,
            dead={"after_steps": SILENT, "kind": {"pre-activation": {"coefficient": 1e-3}}},
        ),
    ),
    "sae-lens jump-relu quadratic": (
        lambda *data: sae_lens(
            JumpReLUTrainingSAE,
            JumpReLUTrainingSAEConfig,
            {**JUMP_OPTIONS, "jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 12, "l0_coefficient": 1e-4},
            *data,
        ),
        jump(JUMP, {"kind": "quadratic", "target": 12}, 1e-4),
    ),
    "dictionary_learning topk": (
        lambda *data: dictionary_learning(top_k.TopKTrainer, {"threshold_start_step": 10**6}, *data),
        spec(TOPK, dead=AUX),
    ),
    "dictionary_learning batch-topk": (
        lambda *data: dictionary_learning(BatchTopKTrainer, {"threshold_start_step": 4}, *data),
        spec(batch_topk(1 - 0.999, 5, False), dead=AUX),
    ),
    "dictionary_learning matryoshka": (
        lambda *data: dictionary_learning(
            MatryoshkaBatchTopKTrainer,
            {"threshold_start_step": 4, "group_fractions": [0.125, 0.375, 0.5]},
            *data,
        ),
        spec(batch_topk(1 - 0.999, 5, False), dead=AUX, prefixes={"widths": WIDTHS, "weight": 1 / 9}),
    ),
    # Of half the thresholds' bandwidth some are above and some below, where its step function sees the silent features.
    "dictionary_learning jump-relu": (
        lambda *data: dictionary_learning(
            JumpReluTrainer,
            {"bandwidth": 0.1, "target_l0": 12.0, "sparsity_penalty": 0.5, "sparsity_warmup_steps": 0},
            *data,
        ),
        spec(
            {"jump-relu": {"bandwidth": 0.1, "to_input": False}},
            pre_bias=False,
            penalty={"kind": "mean-quadratic", "target": 12},
            coefficient=0.5,
            beta1=0.0,
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_fifty_steps_equal_those_of_the_peers_own_trainers(example, tmp_path, name):
    train, spec = CASES[name]
    weights, batches = start()
    if "by norm" in name:
        weights, batches = of_unequal_norms(weights, batches)
    losses, trained, average, dead = train(weights, batches)
    assert "jump-relu" in name or max(dead) >= 5, "features die, and their loss takes part"
    case = {"spec": spec, "schedule": sae_steps.make_schedule(STEPS, LR)}
    got = engine(example, tmp_path, case, weights, batches, 1)
    assert losses[-1] < 0.9 * losses[0], "it learns"
    assert relative(got["loss"], numpy.array(losses)) < 1e-5
    for key in sae_steps.names(spec):
        assert relative(got[key], trained[key]) < 1e-4, key
    if average is not None and average > 0:
        # Theirs is one of what features are ranked by.
        ranks = numpy.linalg.norm(got["W_dec"], axis=1) if spec.get("rank_by_decoder_norm") else 1
        assert got["threshold"] * ranks == pytest.approx(average, rel=1e-5)
