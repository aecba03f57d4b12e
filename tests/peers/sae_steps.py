"""The training step in plain PyTorch, gradients by autograd: what the engines are held against.

Nothing here follows the way the engines compute: one dense formula after the other, and a
straight-through estimator written as such (value of the running frequency, gradient of the surrogate).
"""

import math

import numpy
import torch

NAMES = ["W_enc", "b_enc", "W_dec", "b_dec"]


def names(spec):
    """The tensors that a step trains."""
    threshold = ["threshold"] if kind_of(spec) == "jump-relu" else []
    return [*NAMES, *threshold, *(["W_skip"] if spec.get("skip") else [])]


def kind_of(spec):
    """The activation's name."""
    activation = spec["activation"]
    return activation if isinstance(activation, str) else next(iter(activation))


def options_of(spec):
    """The activation's numbers."""
    activation = spec["activation"]
    return {} if isinstance(activation, str) else next(iter(activation.values()))


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
    activation="relu",
    mean_density=0.0,
    log_density=0.0,
    prefixes=None,
    dead=None,
    gradient_clip=None,
    skip=False,
    rank_by_decoder_norm=False,
    beta1=0.9,
):
    """A step's description in the engines' own JSON form."""
    return {
        **({"skip": True} if skip else {}),
        **({"rank_by_decoder_norm": True} if rank_by_decoder_norm else {}),
        "width": width,
        "features": features,
        "batch": batch,
        "pre_bias": pre_bias,
        "activation": activation,
        "loss": {
            "mse": mse,
            "penalty": penalty or {"kind": "none"},
            "coefficient": coefficient,
            "min_sparsity": min_sparsity,
            "max_sparsity": max_sparsity,
            "mean_density": mean_density,
            "log_density": log_density,
            "frequency_epsilon": frequency_epsilon,
            "weight_by_decoder_norm": weight_by_decoder_norm,
        },
        "decoder_norm": decoder_norm,
        "adam": {"beta1": beta1, "beta2": 0.999, "epsilon": 1e-8},
        "sparsity_window": window,
        "prefixes": prefixes or {"widths": [], "weight": 1.0},
        "dead": dead,
        "gradient_clip": gradient_clip,
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


def penalties(penalty, a, active, epsilon_scale):
    """The value that is differentiated and the value that is logged, of each row; `active` [B,F] is a > 0, and its
    derivative is the thresholds' pseudo-derivative."""
    kind = penalty["kind"]
    if kind == "none":
        return torch.zeros(len(a), dtype=a.dtype), torch.zeros(len(a), dtype=a.dtype)
    if kind == "approx-l0":
        return (a / (a + penalty["epsilon"] * epsilon_scale)).sum(1), (a > 0).to(a.dtype).sum(1)
    if kind == "l1":
        return a.sum(1), a.sum(1)
    if kind == "step":
        return active.sum(1), active.sum(1)
    if kind == "quadratic":
        target = penalty["target"]
        value = 2 / target * (active.sum(1) - target) ** 2
        return value, value
    if kind == "mean-quadratic":
        value = ((active.sum(1).mean() / penalty["target"] - 1) ** 2).expand(len(a))
        return value, value
    if kind == "tanh":
        value = torch.tanh(penalty["scale"] * a)
    elif kind == "log":
        value = torch.log(1 + a / (penalty["epsilon"] * epsilon_scale))
    else:
        raise ValueError(kind)
    return value.sum(1), value.sum(1)


class Jump(torch.autograd.Function):
    """z where it is above the threshold, with the pseudo-derivative of a rectangle (Rajamanoharan et al., 2024)."""

    @staticmethod
    def forward(context, z, threshold, width, to_input):
        context.save_for_backward(z, threshold)
        context.options = width, to_input
        return z * (z > threshold)

    @staticmethod
    def backward(context, gradient):
        z, threshold = context.saved_tensors
        width, to_input = context.options
        near = ((z - threshold).abs() < width / 2) * threshold / width * gradient
        by_z = (z > threshold) * gradient + (near if to_input else 0)
        return by_z, -near.sum(0), None, None


class Count(torch.autograd.Function):
    """1 where z is above the threshold, with the same pseudo-derivative."""

    @staticmethod
    def forward(context, z, threshold, width, to_input):
        context.save_for_backward(z, threshold)
        context.options = width, to_input
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(context, gradient):
        z, threshold = context.saved_tensors
        width, to_input = context.options
        near = ((z - threshold).abs() < width / 2) / width * gradient
        return near if to_input else None, -near.sum(0), None, None


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
    w_enc, b_enc, _, b_dec = weights[:4]
    return (x - b_dec if spec["pre_bias"] else x) @ w_enc + b_enc


def largest(z, k):
    """ReLU of the k largest of each row."""
    values, indices = torch.topk(z, k, dim=1)
    return torch.zeros_like(z).scatter(1, indices, torch.relu(values))


def activate(spec, weights, z):
    """a, and which of them are active."""
    kind, options = kind_of(spec), options_of(spec)
    if kind == "jump-relu":
        arguments = weights[4], options["bandwidth"], options["to_input"]
        a = Jump.apply(z, *arguments)
        # What the count's pseudo-derivative sees.
        seen = a.detach() if spec["loss"]["penalty"]["kind"] == "mean-quadratic" else z
        return a, Count.apply(seen, *arguments)
    norms = weights[2].norm(dim=1) if spec.get("rank_by_decoder_norm") else 1
    z = z * norms
    if kind == "relu":
        a = torch.relu(z)
    elif kind == "topk":
        a = largest(z, options["k"])
    else:
        a = largest(z.reshape(1, -1), options["k"] * len(z)).reshape(z.shape)
    a = a / norms
    return a, (a > 0).to(a.dtype)


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
    kind, options = kind_of(spec), options_of(spec)
    norms = weights[2].norm(dim=1) if spec.get("rank_by_decoder_norm") else 1
    z = z * norms
    if kind == "topk":
        # The last one that is kept and the first one that is not.
        k = options["k"]
        in_order = z.topk(k + 1, dim=1).values
        apart &= (in_order[:, k - 1] - in_order[:, k] > margin) | (in_order[:, k] < 0)
    elif kind == "jump-relu":
        # The threshold, and where its derivative begins and ends.
        for side in [-0.5, 0, 0.5]:
            apart &= ((z - weights[4] - side * options["bandwidth"]).abs() > margin).all(1)
    elif kind == "batch-topk":
        # Where the largest of the batch end depends on its rows.
        chosen = rows[apart][: spec["batch"]]
        for _ in range(len(rows)):
            z = preactivations(spec, weights, chosen) * norms
            in_order = z.flatten().topk(options["k"] * len(z) + 1).values
            if in_order[-2] - in_order[-1] > margin or in_order[-1] < 0:
                return chosen
            # Another row in place of the first one that is near the end.
            near = ((z - in_order[-1]).abs() <= margin).any(1).nonzero()[0]
            apart &= ~(rows == chosen[near]).all(1)
            chosen = rows[apart][: spec["batch"]]
            assert len(chosen) == spec["batch"], "too few rows to choose from"
    chosen = rows[apart][: spec["batch"]]
    assert len(chosen) == spec["batch"], "too few rows to choose from"
    return chosen


def dead_loss(spec, weights, x, z, a, xhat, silent):
    """The loss over features that were not active for a while; `silent` [F] counts the steps."""
    options = spec["dead"]
    kind = options["kind"] if isinstance(options["kind"], str) else next(iter(options["kind"]))
    numbers = {} if isinstance(options["kind"], str) else options["kind"][kind]
    dead = silent > options["after_steps"]
    if kind == "aux-k":
        dead &= ~(a > 0).any(0)
    if not dead.any():
        return torch.zeros((), dtype=x.dtype)
    w_dec = weights[2][dead]
    z = z[:, dead]
    norms = w_dec.norm(dim=1) if spec.get("rank_by_decoder_norm") else torch.ones(len(w_dec), dtype=x.dtype)
    residual = (x - xhat).detach()
    centered = residual - residual.mean(0)
    if kind == "pre-activation":
        missing = torch.relu(weights[4][dead] - z) * w_dec.norm(dim=1)
        return numbers["coefficient"] * missing.sum(1).mean()
    if kind == "ghost":
        ghost = torch.exp(z) @ w_dec
        scale = residual.norm(dim=1) / (1e-6 + 2 * ghost.norm(dim=1))
        ghost = ghost * scale.detach()[:, None]
        loss = (ghost - residual) ** 2 / centered.norm(dim=1, keepdim=True)
        target = x if spec["loss"]["mse"] == "uncentered" else x - x.mean(0)
        size = 1 / x.shape[1] if spec["loss"]["mse"] == "sum" else target.norm(dim=1, keepdim=True)
        own = residual**2 / size
        return (own / (loss + 1e-6)).detach().mul(loss).mean()
    k = min(numbers["k"], int(dead.sum()))
    if kind == "aux-k":
        error = (largest(z * norms, k) / norms @ w_dec - residual) ** 2
        return numbers["coefficient"] * error.sum() / (centered**2).sum()
    values, indices = (z * norms).topk(k, dim=1)
    error = (torch.zeros_like(z).scatter(1, indices, values) / norms @ w_dec - residual) ** 2
    scale = min(int(dead.sum()) / numbers["k"], 1.0)
    return numbers["coefficient"] * scale * error.sum(1).mean()


def loss_terms(spec, schedule, weights, x, y, window, silent):
    """Of rows x that y is to be made of: the loss to differentiate, the terms to log, the activations and the reconstruction."""
    _, coefficient_scale, epsilon_scale = schedule
    loss = spec["loss"]
    w_dec, b_dec = weights[2:4]
    z = preactivations(spec, weights, x)
    a, active = activate(spec, weights, z)
    skipped = x @ weights[-1].T if spec.get("skip") else 0
    xhat = a @ w_dec + b_dec + skipped
    widths = [*spec["prefixes"]["widths"], spec["features"]]
    reconstructions = [a[:, :width] @ w_dec[:width] + b_dec + skipped for width in widths]
    weight = spec["prefixes"]["weight"] if len(widths) > 1 else 1.0
    mse = weight * sum(mse_loss(loss["mse"], y, reconstruction) for reconstruction in reconstructions)
    inside = a * w_dec.norm(dim=1) if loss["weight_by_decoder_norm"] else a
    value, logged = penalties(loss["penalty"], inside, active, epsilon_scale)
    coefficient = loss["coefficient"] * coefficient_scale
    trained = mse + coefficient * value.mean()
    penalty = coefficient * logged.mean()
    total = mse + penalty
    minimum = torch.zeros(())
    if spec["dead"]:
        term = dead_loss(spec, weights, y, z, a, xhat, silent)
        trained, total = trained + term, total + term

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
    density = loss["mean_density"] * straight_through.mean() + loss["log_density"] * log_s.mean()
    trained, total = trained + density, total + density
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
    w_enc, b_enc, w_dec = weights[:3]
    norm = w_dec.norm(dim=1)
    thresholds = weights[4:5] if kind_of(spec) == "jump-relu" else []
    for threshold in thresholds:
        threshold.clamp_(min=0)
    if spec["decoder_norm"] != "free":
        w_dec /= norm[:, None]
    if spec["decoder_norm"] == "tied":
        w_enc *= norm
        b_enc *= norm
        for threshold in thresholds:
            threshold *= norm


def train(spec, schedule, initial, batches, target=lambda x: x):
    """Trains in float64 from `initial` (a dict of arrays) on `batches`, one [B, d] a step, to reconstruct `target` of them.

    Returns the trained weights, the gradients of the first step as Adam sees them, each metric's curve and the
    batches. Of a batch with rows to spare, `decided` takes as many as are needed.
    """
    weights = [torch.tensor(initial[name], dtype=torch.float64, requires_grad=True) for name in names(spec)]
    adam = spec["adam"]
    optimizer = torch.optim.Adam(
        weights, lr=1.0, betas=(adam["beta1"], adam["beta2"]), eps=adam["epsilon"]
    )
    window = Window(spec["sparsity_window"])
    silent = torch.zeros(spec["features"], dtype=torch.int64)
    curves, first_gradients, taken = {}, None, []
    for rows, now in zip(batches, schedule):
        x = decided(spec, weights, torch.tensor(rows, dtype=torch.float64))
        taken.append(x.numpy())
        y = target(x)
        trained, terms, a, xhat = loss_terms(spec, now, weights, x, y, window, silent)
        silent = torch.where((a > 0).any(0), 0, silent + 1)
        for name, value in {**terms, **metrics(y, a, xhat)}.items():
            curves.setdefault(name, []).append(value.item())
        optimizer.zero_grad()
        trained.backward()
        project(spec, weights)
        if spec["gradient_clip"]:
            torch.nn.utils.clip_grad_norm_(weights, spec["gradient_clip"])
        first_gradients = first_gradients or [w.grad.clone() for w in weights]
        optimizer.param_groups[0]["lr"] = now[0]
        optimizer.step()
        normalise(spec, weights)
    return (
        {name: w.detach().numpy() for name, w in zip(names(spec), weights)},
        {name: g.numpy() for name, g in zip(names(spec), first_gradients)},
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
    none = {"penalty": kinds["none"]}
    topk = {"topk": {"k": max(3, features // 20)}}
    few = max(2, features // 50)
    average = {"rate": 0.1, "skipped_steps": 3, "from_zero": False}
    batch_topk = {"batch-topk": {"k": max(3, features // 20), "threshold": average}}
    add("topk", activation=topk, **none)
    add("topk pre-bias", penalty=kinds["l1"], activation={"topk": {"k": few}}, pre_bias=True, decoder_norm="free")
    add("batch-topk", activation=batch_topk, mse="sum", **none)
    add("batch-topk pre-bias", activation=batch_topk, pre_bias=True, decoder_norm="free", **none)
    # Rows of different norms, which training sees to.
    by_norm = {"decoder_norm": "free", "rank_by_decoder_norm": True, "mse": "sum", **none}
    add("topk by norm", activation={"topk": {"k": few}}, pre_bias=True, **by_norm)
    add("batch-topk by norm", activation=batch_topk, **by_norm)

    def jump(to_input=False, bandwidth=0.5):
        return {"jump-relu": {"bandwidth": bandwidth, "to_input": to_input}}

    step, quadratic = {"kind": "step"}, {"kind": "quadratic", "target": features / 10}
    add("jump-relu", penalty=step, activation=jump(), mse="sum", decoder_norm="free")
    add("jump-relu to input", penalty=step, activation=jump(True), mse="sum", decoder_norm="tied")
    add("jump-relu quadratic", penalty=quadratic, activation=jump(), mse="sum", pre_bias=True)
    mean = {"kind": "mean-quadratic", "target": features / 8}
    # Of thresholds on both sides of half the bandwidth.
    add("jump-relu mean-quadratic", penalty=mean, activation=jump(bandwidth=0.25), mse="sum", beta1=0.0)
    add("jump-relu tanh by norm", penalty=kinds["tanh"], activation=jump(True), weight_by_decoder_norm=True, decoder_norm="free")
    add("jump-relu approx-l0", activation=jump(), min_sparsity=low, max_sparsity=high)

    widths = [max(1, features // 8), max(2, features // 3)]
    add("matryoshka", prefixes={"widths": widths, "weight": 1.0}, mse="sum")
    add("matryoshka batch-topk", activation=batch_topk, prefixes={"widths": widths, "weight": 1 / 9}, **none)
    add("matryoshka jump-relu", activation=jump(), penalty=step, prefixes={"widths": widths[:1], "weight": 0.5})

    def dead(kind):
        return {"after_steps": 1, "kind": kind}

    aux = {"k": max(2, features // 25), "coefficient": 0.3}
    add("aux-k", activation=topk, dead=dead({"aux-k": aux}), mse="sum", **none)
    add("aux-k-sum", activation=topk, dead=dead({"aux-k-sum": aux}), mse="sum", pre_bias=True, decoder_norm="free", **none)
    add("aux-k-sum by norm", activation=topk, dead=dead({"aux-k-sum": aux}), **by_norm)
    for mse in ["sum", "centered", "uncentered"]:
        # Where an error passes through 0 its scale has a pole that only 1e-6 rounds off: soon rounding decides.
        options = {"penalty": kinds["l1"], "dead": dead("ghost"), "mse": mse, "pre_bias": mse == "centered"}
        add(f"ghost {mse}", **options)
        found[f"ghost {mse}"]["schedule"] = found[f"ghost {mse}"]["schedule"][:5]
    pre_activation = dead({"pre-activation": {"coefficient": 1e-3}})
    add("pre-activation", activation=jump(), penalty=step, dead=pre_activation, mse="sum", decoder_norm="free")
    add("densities", mean_density=coefficient * 10, log_density=coefficient * 10)
    add("clipped", mse="sum", gradient_clip=1e-3)
    add("clipped jump-relu", mse="sum", activation=jump(), penalty=step, pre_bias=True, gradient_clip=1e-2)
    add("epsilon schedule", min_sparsity=low, epsilon_scale=0.5, frequency_epsilon=0.1)
    return found


def transcoder_cases(width, features, batch, steps, lr, coefficient):
    """Rows with a target of their own, with and without a skip connection, by name."""
    approx_l0 = {"penalty": {"kind": "approx-l0", "epsilon": 0.2}, "coefficient": coefficient}
    few = max(3, features // 20)
    jump = {"jump-relu": {"bandwidth": 0.5, "to_input": False}}
    prefixes = {"widths": [max(1, features // 8), max(2, features // 3)], "weight": 1 / 9}
    aux = {"after_steps": 1, "kind": {"aux-k-sum": {"k": max(2, features // 25), "coefficient": 0.3}}}
    options = {
        "transcoder": approx_l0,
        "skip": {**approx_l0, "skip": True},
        "skip centered free": {**approx_l0, "skip": True, "mse": "centered", "decoder_norm": "free"},
        "skip topk aux-k": {"skip": True, "activation": {"topk": {"k": few}}, "dead": aux},
        "skip jump-relu tied": {"skip": True, "activation": jump, "penalty": {"kind": "step"}, "coefficient": coefficient,
                                "decoder_norm": "tied"},
        "skip matryoshka clipped": {**approx_l0, "skip": True, "prefixes": prefixes, "gradient_clip": 1e-3},
    }  # fmt: skip
    schedule = make_schedule(steps, lr, warmup=10)
    return {
        name: {"spec": make_spec(width, features, batch, **{"mse": "sum", **case}), "schedule": schedule}
        for name, case in options.items()
    }
