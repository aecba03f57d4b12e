"""How far from float64 a computation in float32 or float16 may end: measured on float64 itself.

Two libraries round differently, and which one comes nearer to float64 depends on the processor. So none is
the yardstick here. A float64 run is: one in which every product is as inexact as the narrower type makes it.
However ill-conditioned the computation, it carries such errors on as it does a library's.
"""

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {getattr(torch.ops.aten, name) for name in ("mm", "bmm", "addmm", "baddbmm")}
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
WAVES = {torch.ops.aten.cos, torch.ops.aten.sin}
FLOAT32 = 2.0**-24  # what rounding to float32 changes a number by, at most and relatively


class Float32Products(TorchDispatchMode):
    """Disturbs each matrix product of float64 numbers, backward passes included, by what float32 may do to it.

    A sum of k terms t that are added one by one rounds k partial sums. With terms of either sign the j-th
    is about sqrt(j/k)·‖t‖, and rounding changes it by 0.4·2^-24 of that on average, all of them together by
    0.3·sqrt(k)·2^-24·‖t‖. No order does worse: lanes, blocks and trees round fewer or smaller sums, a fused
    multiply-add half as often. Here the elements of one factor change by a normal sqrt(k)·2^-24, which moves
    the sum by sqrt(k)·2^-24·‖t‖, three times the worst. An angle, whose digits in front of the point cost
    its sine as many behind it, changes by 2^-24.
    """

    def __init__(self, seed):
        super().__init__()
        self.random = torch.Generator().manual_seed(seed)

    def disturb(self, x, terms):
        return x * (1 + FLOAT32 * math.sqrt(terms) * torch.randn(x.shape, generator=self.random, dtype=x.dtype))

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        kind, arguments = operator.overloadpacket, list(arguments)
        if kind in PRODUCTS:
            arguments[-2] = self.disturb(arguments[-2], arguments[-2].shape[-1])
        elif kind is ATTENTION:
            query, _, value = arguments[:3]
            arguments[0] = self.disturb(query, query.shape[-1])
            arguments[2] = self.disturb(value, value.shape[-2])
        elif kind in WAVES:
            arguments[0] = self.disturb(arguments[0], 1)
        return operator(*arguments, **(keywords or {}))


class Float16Products(TorchDispatchMode):
    """Rounds the factors and results of each product to float16, as `language_model::Precision::Half` says;
    with `stream`, what it must not round as well: the residual stream."""

    def __init__(self, stream=False):
        super().__init__()
        self.rounded = PRODUCTS | WAVES | {ATTENTION} | ({torch.ops.aten.add} if stream else set())

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        kind = operator.overloadpacket
        if kind not in self.rounded:
            return operator(*arguments, **(keywords or {}))
        if kind not in WAVES:
            arguments = [to_float16(x) for x in arguments]
        out = operator(*arguments, **(keywords or {}))
        return (to_float16(out[0]), *out[1:]) if isinstance(out, tuple) else to_float16(out)


def to_float16(x):
    return x.half().double() if isinstance(x, torch.Tensor) and x.dtype == torch.float64 else x


def bound(x, weights, bias):
    """The farthest that x·weights + bias in float32 can be from float64, whatever the order of its additions: no term
    goes through more than k + 2 roundings, of x, its product and k sums, and none changes it by more than 2^-24."""
    return 1.01 * (len(weights) + 2) * FLOAT32 * (x.abs() @ weights.abs() + bias.abs())
