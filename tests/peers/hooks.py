"""Every hook of every block of a `transformers` model, with TransformerLens' names."""

import sys

import torch


def hook_outputs(model, ids, center=False, given=None):
    """name -> [contexts * length, d_model] in the model's own dtype.

    `given` holds such values of another run. Every attention and every MLP then reads the residual stream
    that is in there instead of its own, and what it computes is free of what went wrong before it.
    """
    out = {}

    def keep(name, x):
        x = x[0] if isinstance(x, tuple) else x
        out[name] = x.detach().reshape(-1, x.shape[-1]).clone()

    def read(name, x):
        keep(name, x)
        return x if given is None else given[name].to(x.dtype).reshape(x.shape)

    def read_block_input(name, args, kwargs):
        if args:
            return (read(name, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": read(name, kwargs["hidden_states"])}

    handles = []
    core = model.base_model
    for layer, block in enumerate(getattr(core, "h", None) or core.layers):
        name = f"blocks.{layer}.hook_"
        attention = next(getattr(block, key) for key in ("attn", "attention", "self_attn") if hasattr(block, key))
        second_norm = block.ln_2 if hasattr(block, "ln_2") else block.post_attention_layernorm
        handles += [
            block.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: read_block_input(name + "resid_pre", args, kwargs), with_kwargs=True
            ),
            attention.register_forward_hook(lambda _, args, x, name=name: keep(name + "attn_out", x)),
            block.mlp.register_forward_hook(lambda _, args, x, name=name: keep(name + "mlp_out", x)),
            block.register_forward_hook(lambda _, args, x, name=name: keep(name + "resid_post", x)),
        ]
        if not getattr(block, "use_parallel_residual", False):
            handles.append(
                second_norm.register_forward_pre_hook(
                    lambda _, args, name=name: (read(name + "resid_mid", args[0]), *args[1:])
                )
            )
    try:
        with torch.no_grad(), float64_all_through(model):
            core(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if center:
        out = {name: x - x.mean(-1, keepdim=True) for name, x in out.items()}
    return out


def spliced_logits(model, ids, hook=None, value=None):
    """Logits [contexts * length, vocabulary] in the model's own dtype, with `value` [contexts * length, d_model] at `hook`."""
    core, handles = model.base_model, []
    if hook is not None:
        layer, site = hook.removeprefix("blocks.").split(".hook_")
        block = (getattr(core, "h", None) or core.layers)[int(layer)]
        handles = splice(block, site, value.reshape(*ids.shape, -1))
    try:
        with torch.no_grad(), float64_all_through(model):
            hidden = core(ids, use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    unembedding = model.get_output_embeddings() or core.get_input_embeddings()
    return (hidden @ unembedding.weight.T).reshape(-1, unembedding.weight.shape[0]).detach()


def splice(block, site, value):
    attention = next(getattr(block, key) for key in ("attn", "attention", "self_attn") if hasattr(block, key))
    entered = []

    def enter(_, args, kwargs):
        x = args[0] if args else kwargs["hidden_states"]
        entered.append(x)
        x = value if site == "resid_pre" else x
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def put(x, new):
        return (new, *x[1:]) if isinstance(x, tuple) else new

    def after_attention(_, args, x):
        # The stream between attention and MLP is the sum of what entered and this.
        return {"attn_out": put(x, value), "resid_mid": put(x, value - entered[0])}.get(site, x)

    return [
        block.register_forward_pre_hook(enter, with_kwargs=True),
        attention.register_forward_hook(after_attention),
        block.mlp.register_forward_hook(lambda _, args, x: put(x, value) if site == "mlp_out" else x),
        block.register_forward_hook(lambda _, args, x: put(x, value) if site == "resid_post" else x),
    ]


def next_token_loss(logits, ids):
    """Cross-entropy of the next token in nats, [contexts, length - 1]."""
    logits = logits.reshape(*ids.shape, -1)[:, :-1]
    return -logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


def divergence(logits, others, ids):
    """KL(logits ‖ others) of each position in nats, [contexts, length]."""
    log_p, log_q = logits.log_softmax(-1), others.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).reshape(ids.shape)


class float64_all_through:
    """Makes a float64 model compute its RMS norms and rotations in float64; `transformers` uses float32.

    The rotary frequencies stay the float32 numbers that they are in every float32 run: they are part of
    the model.
    """

    def __init__(self, model):
        active = next(model.parameters()).dtype == torch.float64
        kinds = vars(sys.modules[type(model).__module__]).items() if active else ()
        ours = {"RMSNorm": rms_norm, "RotaryEmbedding": rotary}
        self.patches = [
            (kind, forward) for name, kind in kinds for end, forward in ours.items() if name.endswith(end)
        ]

    def __enter__(self):
        self.saved = [kind.forward for kind, _ in self.patches]
        for kind, forward in self.patches:
            kind.forward = forward

    def __exit__(self, *_):
        for (kind, _), forward in zip(self.patches, self.saved):
            kind.forward = forward


def rms_norm(self, x):
    return self.weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def rotary(self, x, position_ids):
    angles = position_ids[..., None].double() * self.inv_freq.double()
    angles = torch.cat([angles, angles], -1)
    return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
