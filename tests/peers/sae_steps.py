"""The training step in plain PyTorch, gradients by autograd: what the engines are held against.

Nothing here follows the way the engines compute: one dense formula after the other, and a
straight-through estimator written as such (value of the running frequency, gradient of the surrogate).
"""

import math

import numpy
import torch

NAMES = ["W_enc", "b_enc", "W_dec", "b_dec"]


def make_spec(
    width,
    features,
    batch,
    mse="centered",
    penalty=None,
    coefficient=0.0,
    min_sparsity=None,
    max_sparsity=None,
    frequency_epsilon=0.2,
    weight_by_decoder_norm=False,
    decoder_norm="unit",
    pre_bias=False,
    window=5,
    k=None,
):
    """A step's description in the engines' own JSON form."""
    return {
        "width": width,
        "features": features,
        "batch": batch,
        "pre_bias": pre_bias,
        "activation": {"topk": {"k": k}} if k else "relu",
        "loss": {
            "mse": mse,
            "penalty": penalty or {"kind": "none"},
            "coefficient": coefficient,
            "min_sparsity": min_sparsity,
            "max_sparsity": max_sparsity,
            "frequency_epsilon": frequency_epsilon,
            "weight_by_decoder_norm": weight_by_decoder_norm,
        },
        "decoder_norm": decoder_norm,
        "adam": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
        "sparsity_window": window,
    }


def make_schedule(steps, lr, warmup=1, epsilon_scale=1.0):
    """(lr, coefficient scale, epsilon scale) of each step, with a linear warm-up of both lr and coefficient."""
    return [
        [lr * min(1.0, (t + 1) / warmup), min(1.0, (t + 1) / warmup), epsilon_scale]
        for t in range(steps)
    ]


def mse_loss(kind, x, xhat):
    squared = (xhat - x) ** 2
    if kind == "sum":
        return squared.sum(-1).mean()
    shifted = x - x.mean(0) if kind == "centered" else x
    return (squared / shifted.norm(dim=-1, keepdim=True).detach()).mean()


def penalties(penalty, a, epsilon_scale):
    """The value that is differentiated and the value that is logged, elementwise."""
    kind = penalty["kind"]
    if kind == "none":
        return torch.zeros_like(a), torch.zeros_like(a)
    if kind == "approx-l0":
        return a / (a + penalty["epsilon"] * epsilon_scale), (a > 0).to(a.dtype)
    if kind == "l1":
        return a, a
    if kind == "tanh":
        value = torch.tanh(penalty["scale"] * a)
    elif kind == "log":
        value = torch.log(1 + a / (penalty["epsilon"] * epsilon_scale))
    else:
        raise ValueError(kind)
    return value, value


class Window:
    """The running frequency of each feature over the last batches, outlier batches left out."""

    def __init__(self, length):
        self.length, self.fractions = length, []

    def push(self, a):
        now = (a > 0).double().mean(0)
        self.fractions = [*self.fractions, now][-self.length :]
        near = [
            f
            for f in self.fractions
            if f is now or abs(math.log10(f.mean()) - math.log10(now.mean())) < 0.5
        ]
        return torch.stack(near).mean(0)


def preactivations(spec, weights, x):
    w_enc, b_enc, _, b_dec = weights
    return (x - b_dec if spec["pre_bias"] else x) @ w_enc + b_enc


def activate(spec, z):
    """ReLU of z, or of its k largest in each row."""
    if spec["activation"] == "relu":
        return torch.relu(z)
    values, indices = torch.topk(z, spec["activation"]["topk"]["k"], dim=1)
    return torch.zeros_like(z).scatter(1, indices, torch.relu(values))


# Float32 makes an error of about 1e-6 of what activations are before the ReLU.
MARGIN = 1e-4


@torch.no_grad()
def decided(spec, weights, rows):
    """The first B of more rows of which it does not depend on rounding which features are active in them: none is
    so near to 0, or to the k-th largest, that float32 could put it on the other side, from where training takes another course."""
    if len(rows) == spec["batch"]:
        return rows
    z = preactivations(spec, weights, rows)
    margin = MARGIN * z.abs().median()
    apart = (z.abs() > margin).all(1)
    if spec["activation"] != "relu":
        # The last one that is kept and the first one that is not.
        k = spec["activation"]["topk"]["k"]
        largest = z.topk(k + 1, dim=1).values
        apart &= (largest[:, k - 1] - largest[:, k] > margin) | (largest[:, k] < 0)
    chosen = rows[apart][: spec["batch"]]
    assert len(chosen) == spec["batch"], "too few rows to choose from"
    return chosen


def loss_terms(spec, schedule, weights, x, window):
    """The loss to differentiate, the terms to log, the activations and the reconstruction."""
    _, coefficient_scale, epsilon_scale = schedule
    loss = spec["loss"]
    _, _, w_dec, b_dec = weights
    a = activate(spec, preactivations(spec, weights, x))
    xhat = a @ w_dec + b_dec
    mse = mse_loss(loss["mse"], x, xhat)
    inside = a * w_dec.norm(dim=1) if loss["weight_by_decoder_norm"] else a
    value, logged = penalties(loss["penalty"], inside, epsilon_scale)
    coefficient = loss["coefficient"] * coefficient_scale
    trained = mse + coefficient * value.sum(1).mean()
    penalty = coefficient * logged.sum(1).mean()
    total = mse + penalty
    minimum = torch.zeros(())

    s = window.push(a.detach()).to(a.dtype)
    surrogate = (a / (a + loss["frequency_epsilon"] * epsilon_scale)).mean(0)
    straight_through = surrogate + (s - surrogate).detach()
    log_s = torch.log10(straight_through + 1e-10)
    if loss["min_sparsity"]:
        low = loss["min_sparsity"]
        term = low["coefficient"] * torch.relu(math.log10(low["target"]) - log_s).sum()
        trained, total, minimum = trained + term, total + term, term
    if loss["max_sparsity"]:
        high = loss["max_sparsity"]
        term = high["coefficient"] * torch.relu(log_s - math.log10(high["target"])).sum()
        trained, total = trained + term, total + term
    terms = {"loss": total, "mse": mse, "penalty": penalty, "min_sparsity": minimum}
    return trained, terms, a, xhat


@torch.no_grad()
def metrics(x, a, xhat):
    """What a step logs besides the terms of its loss."""
    active = (a > 0).sum(1).double()
    error = ((xhat - x) ** 2).sum()
    return {
        "l0": active.mean(),
        "l0_std": active.std(unbiased=False),
        "l1": a.sum(1).mean(),
        "mse_sum": mse_loss("sum", x, xhat),
        "mse_centered": mse_loss("centered", x, xhat),
        "mse_uncentered": mse_loss("uncentered", x, xhat),
        "explained_variance": 1 - error / ((x - x.mean(0)) ** 2).sum(),
        "explained_variance_uncentered": 1 - error / (x**2).sum(),
        "cosine_similarity": torch.cosine_similarity(x, xhat, dim=1).mean(),
        "l2_ratio": (xhat.norm(dim=1) / x.norm(dim=1)).mean(),
    }


def project(spec, weights):
    """Removes the component of the decoder's gradient along the decoder."""
    if spec["decoder_norm"] != "free":
        w_dec = weights[2]
        direction = w_dec.detach() / w_dec.detach().norm(dim=1, keepdim=True)
        w_dec.grad -= (w_dec.grad * direction).sum(1, keepdim=True) * direction


@torch.no_grad()
def normalise(spec, weights):
    w_enc, b_enc, w_dec, _ = weights
    norm = w_dec.norm(dim=1)
    if spec["decoder_norm"] != "free":
        w_dec /= norm[:, None]
    if spec["decoder_norm"] == "tied":
        w_enc *= norm
        b_enc *= norm


def train(spec, schedule, initial, batches):
    """Trains in float64 from `initial` (a dict of arrays) on `batches`, one [B, d] a step.

    Returns the trained weights, the gradients of the first step as Adam sees them, each metric's curve and the
    batches. Of a batch with rows to spare, `decided` takes as many as are needed.
    """
    weights = [torch.tensor(initial[name], dtype=torch.float64, requires_grad=True) for name in NAMES]
    adam = spec["adam"]
    optimizer = torch.optim.Adam(
        weights, lr=1.0, betas=(adam["beta1"], adam["beta2"]), eps=adam["epsilon"]
    )
    window = Window(spec["sparsity_window"])
    curves, first_gradients, taken = {}, None, []
    for rows, now in zip(batches, schedule):
        x = decided(spec, weights, torch.tensor(rows, dtype=torch.float64))
        taken.append(x.numpy())
        trained, terms, a, xhat = loss_terms(spec, now, weights, x, window)
        for name, value in {**terms, **metrics(x, a, xhat)}.items():
            curves.setdefault(name, []).append(value.item())
        optimizer.zero_grad()
        trained.backward()
        project(spec, weights)
        first_gradients = first_gradients or [w.grad.clone() for w in weights]
        optimizer.param_groups[0]["lr"] = now[0]
        optimizer.step()
        normalise(spec, weights)
    return (
        {name: w.detach().numpy() for name, w in zip(NAMES, weights)},
        {name: g.numpy() for name, g in zip(NAMES, first_gradients)},
        {name: numpy.array(curve) for name, curve in curves.items()},
        numpy.array(taken, dtype="float32"),
    )


def cases(width, features, batch, steps, lr, coefficient):
    """Every MSE, penalty, decoder norm, pre-bias on and off, min- and max-sparsity on and off, by name."""
    approx_l0 = {"kind": "approx-l0", "epsilon": 0.2}
    kinds = {
        "none": {"kind": "none"},
        "approx-l0": approx_l0,
        "l1": {"kind": "l1"},
        "tanh": {"kind": "tanh", "scale": 1.5},
        "log": {"kind": "log", "epsilon": 0.3},
    }
    low = {"coefficient": coefficient / 4, "target": 0.3}
    high = {"coefficient": coefficient / 4, "target": 0.5}
    found = {}

    def add(name, epsilon_scale=1.0, **options):
        options = {"penalty": approx_l0, "coefficient": coefficient, **options}
        spec = make_spec(width, features, batch, **options)
        schedule = make_schedule(steps, lr, warmup=10, epsilon_scale=epsilon_scale)
        found[name] = {"spec": spec, "schedule": schedule}

    for mse in ["sum", "centered", "uncentered"]:
        add(f"mse {mse}", mse=mse)
    for name, penalty in kinds.items():
        add(f"penalty {name}", penalty=penalty)
        add(f"penalty {name} by norm", penalty=penalty, weight_by_decoder_norm=True, decoder_norm="free")
    for norm in ["unit", "tied", "free"]:
        add(f"norm {norm}", decoder_norm=norm, mse="sum")
        add(f"norm {norm} pre-bias", decoder_norm=norm, pre_bias=True)
    add("tied by norm", decoder_norm="tied", weight_by_decoder_norm=True)
    add("min-sparsity", min_sparsity=low)
    add("max-sparsity", max_sparsity=high, penalty=kinds["l1"])
    add("both frequencies", min_sparsity=low, max_sparsity=high, penalty=kinds["none"], pre_bias=True)
    add("topk", penalty=kinds["none"], k=max(1, features // 20))
    add("topk pre-bias", penalty=kinds["l1"], k=max(1, features // 50), pre_bias=True, decoder_norm="free")
    add("epsilon schedule", min_sparsity=low, epsilon_scale=0.5, frequency_epsilon=0.1)
    return found
