"""Linear layers, and a gated pair of them, as fast as a CPU has them.

N rows, I inputs, O outputs.

On CPU torch hands float32 products to MKL, which does not use what is widest in processors of other makers than
Intel. oneDNN, which torch brings too, does: on an AMD EPYC with AVX512 it multiplies 2.4 times as many numbers a
second, in float32 all the same, and may go on to a SiLU or a product with other numbers before it writes the result.
But it compiles code for each size that it meets, .8 ms, and keeps it (some .6 MiB). So it is for passes whose sizes are
few (`few_sizes`) and where nothing is differentiated; its results differ from MKL's by the rounding of sums.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS = 1024
"""With fewer rows what is compiled does not pay."""
_few: ContextVar[bool] = ContextVar("few_sizes", default=False)


@contextmanager
def few_sizes() -> Iterator[None]:
    """In this thread and block, layers meet few numbers of rows, again and again: oneDNN may compile code for each."""
    before = _few.set(True)
    try:
        yield
    finally:
        _few.reset(before)


def _onednn(x: Tensor) -> torch.dtype | None:
    """The type that oneDNN's products of x [..., I] (and what may follow them) are called in, or None: torch's own."""
    if not _few.get() or torch.is_grad_enabled() or x.device.type != "cpu" or x.numel() < _ROWS * x.shape[-1]:
        return None
    if not torch.backends.mkldnn.enabled:  # switched off by the caller
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype if dtype in _types() else None


@functools.cache
def _types() -> tuple[torch.dtype, ...]:
    """What this machine's oneDNN multiplies. Its name is the one that torch.compile calls; torch promises none."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return ()
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if bf16 else (torch.float32,)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product x W' + b: [..., I] -> [..., O], as `torch.nn.functional.linear`.

    Args:
        x: [..., I].
        weight: [O, I].
        bias: [O] or None.
    """
    if _onednn(x) == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def swiglu(x: Tensor, up: Tensor) -> Tensor:
    """SiLU(x A') * (x B') (Shazeer 2020, SwiGLU without biases): [..., I] -> [..., O].

    Args:
        x: [..., I].
        up: A over B, [2 O, I].
    """
    dtype = _onednn(x)
    if dtype is None:
        gate, value = F.linear(x, up).chunk(2, -1)
        return F.silu(gate) * value
    x, (a, b) = x.to(dtype), up.to(dtype).chunk(2)
    gate = torch.ops.mkldnn._linear_pointwise(x, a, None, "swish", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, gate, b, None, "mul")


class Linear(nn.Linear):
    """`torch.nn.Linear`, its products by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return linear(input, self.weight, self.bias)
