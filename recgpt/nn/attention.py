"""Softmax self-attention behind one function.

`attend(q, k, v)` takes queries of the last Tq of Tk positions: query i sees keys up to Tk - Tq + i. With Tq = Tk it is
plain causal attention; with Tq < Tk it continues cached keys and values. Options: an additive bias of the scores, a
mask of the keys that are padding, and keys on both sides. A query always sees its own position, so that a padded one
has finite numbers too.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from recgpt.errors import ConfigError

_HALVED = 160
"""From so many positions on, two halves cost less than one product (one core, 2 heads of 32)."""


class Attention(Protocol):
    """A backend: q [B, H, Tq, d], k and v [B, H, Tk, d] -> [B, H, Tq, d]."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        real: Tensor | None = None,
        causal: bool = True,
    ) -> Tensor:
        """Attend.

        Args:
            q: queries of the last Tq positions.
            k: keys.
            v: values.
            bias: added to the scores, [B | 1, H | 1, Tq, Tk].
            real: bool [B, Tk], false where a key is padding.
            causal: whether later keys are hidden.
        """


def visible(n_queries: int, real: Tensor | None, causal: bool, like: Tensor) -> Tensor | None:
    """Where a query may look: bool [Tq, Tk], or [B, 1, Tq, Tk] with padding; None for everywhere.

    Args:
        n_queries: Tq.
        real: bool [B, Tk] or None, as in `Attention`.
        causal: as there.
        like: keys [..., Tk, d].
    """
    n_keys, device = like.shape[-2], like.device
    if not causal and real is None:
        return None
    seen = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    if causal:
        seen = seen.tril(n_keys - n_queries)
    if real is None:
        return seen
    own = torch.arange(n_queries, device=device)[:, None] + n_keys - n_queries == torch.arange(n_keys, device=device)
    return seen & real[:, None, None, :] | own


def weights(
    q: Tensor, k: Tensor, bias: Tensor | None = None, real: Tensor | None = None, causal: bool = True
) -> Tensor:
    """Attention weights [B, H, Tq, Tk] of `reference`; arguments as in `Attention`."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    seen = visible(q.shape[-2], real, causal, k)
    return (scores if seen is None else scores.masked_fill(~seen, -math.inf)).softmax(-1)


def reference(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, real: Tensor | None = None, causal: bool = True
) -> Tensor:
    """The specification: softmax(q k' / sqrt(d) + bias) v with hidden keys masked out."""
    return weights(q, k, bias, real, causal) @ v


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, real: Tensor | None = None, causal: bool = True
) -> Tensor:
    """Torch's fused attention; on CPU in float32, where its backward pass is 1.6 times as fast as in bfloat16."""
    if q.dtype == torch.bfloat16 and not q.is_cuda:
        return sdpa(q.float(), k.float(), v.float(), bias, real, causal).to(q.dtype)
    if bias is None and real is None and (not causal or q.shape[-2] == k.shape[-2]):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    mask = visible(q.shape[-2], real, causal, k)
    if bias is not None:
        mask = bias.to(q.dtype) if mask is None else bias.to(q.dtype).masked_fill(~mask, -math.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def matmul(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, real: Tensor | None = None, causal: bool = True
) -> Tensor:
    """Batched products in the type given; in bfloat16 on CPU faster than `sdpa`.

    The earlier half of a long causal sequence never forms its scores of the later half.
    """
    n = q.shape[-2]
    if not causal or n != k.shape[-2] or n < _HALVED:
        return _matmul(q, k, v, bias, real, causal)
    half = n // 2
    inner = None if bias is None else bias[..., :half, :half]
    known = None if real is None else real[:, :half]
    early = _matmul(q[:, :, :half], k[:, :, :half], v[:, :, :half], inner, known)
    late = _matmul(q[:, :, half:], k, v, None if bias is None else bias[..., half:, :], real)
    return torch.cat((early, late), 2)


def _matmul(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, real: Tensor | None = None, causal: bool = True
) -> Tensor:
    B, H, Tq, d = q.shape
    Tk = k.shape[-2]
    added = q.new_zeros(Tq, Tk) if bias is None else bias.to(q.dtype)
    seen = visible(Tq, real, causal, k)
    if seen is not None:
        added = added.masked_fill(~seen, -math.inf)
    flat = [part.reshape(B * H, -1, d) for part in (q, k, v)]
    added = added.expand(B * H, -1, -1) if added.dim() == 2 else added.expand(B, H, Tq, Tk).reshape(B * H, Tq, Tk)
    scores = torch.baddbmm(added, flat[0], flat[1].transpose(1, 2), alpha=d**-0.5)
    return torch.bmm(scores.softmax(-1), flat[2]).view(B, H, Tq, d)


def auto(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, real: Tensor | None = None, causal: bool = True
) -> Tensor:
    """`matmul` in bfloat16 on CPU, `sdpa` for everything else."""
    chosen = matmul if q.dtype == torch.bfloat16 and not q.is_cuda else sdpa
    return chosen(q, k, v, bias, real, causal)


@functools.cache
def _flex_kernel(compiled: bool) -> Callable[..., Tensor]:
    kernel: Any = importlib.import_module("torch.nn.attention.flex_attention").flex_attention
    return torch.compile(kernel, dynamic=True) if compiled else kernel


def flex(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, real: Tensor | None = None, causal: bool = True
) -> Tensor:
    """Torch's FlexAttention: a compiled kernel on GPU, plain and without a backward pass on CPU."""
    seen = visible(q.shape[-2], real, causal, k)
    where = None if seen is None else seen.expand(len(q), 1, *seen.shape[-2:])
    added = None if bias is None else bias.to(q.dtype).expand(len(q), q.shape[1], *bias.shape[-2:])

    def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if added is not None:
            value = value + added[b, h, i, j]
        return value if where is None else torch.where(where[b, 0, i, j], value, -math.inf)

    return _flex_kernel(q.is_cuda)(q, k, v, score_mod=score)


def xformers(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, real: Tensor | None = None, causal: bool = True
) -> Tensor:
    """Memory-efficient attention of xformers on GPU; `sdpa` for tensors on CPU, where it has no operator."""
    if not q.is_cuda:
        return sdpa(q, k, v, bias, real, causal)
    return _xformers(q, k, v, bias, visible(q.shape[-2], real, causal, k))


def _xformers(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, seen: Tensor | None) -> Tensor:
    """The call itself: [B, T, H, d] operands, a bias whose rows start at multiples of 8 entries."""
    ops: Any = importlib.import_module("xformers.ops")
    B, H, Tq, _ = q.shape
    Tk = k.shape[-2]
    added: Tensor | None = None
    if bias is not None or seen is not None:
        plain = q.new_zeros(Tq, Tk) if bias is None else bias.to(q.dtype)
        plain = plain if seen is None else plain.masked_fill(~seen, -math.inf)
        added = F.pad(plain.expand(B, H, Tq, Tk), (0, -Tk % 8))[..., :Tk]
    operands = [part.transpose(1, 2) for part in (q, k, v)]
    return ops.memory_efficient_attention(*operands, attn_bias=added).transpose(1, 2)


ATTENTION: dict[str, Attention] = {
    "auto": auto,
    "flex": flex,
    "matmul": matmul,
    "reference": reference,
    "sdpa": sdpa,
    "xformers": xformers,
}
"""Backends by name."""


def missing(name: str) -> str | None:
    """Why a backend cannot train on this machine, or None if it can."""
    if name not in ("flex", "xformers"):
        return None
    if not torch.cuda.is_available():
        lacks = "torch's FlexAttention has no backward pass on CPU" if name == "flex" else "it has no operator for CPU"
        return f"needs a CUDA GPU and none is here ({lacks})"
    if name == "xformers" and importlib.util.find_spec("xformers") is None:
        return "needs the package xformers (pip install 'recgpt[gpu]')"
    return None


def runnable(name: str) -> str:
    """The backend itself, or `auto` where it cannot run: the weights are the same model."""
    return name if missing(name) is None else "auto"


def backend(name: str) -> Attention:
    """The backend of that name; raises ConfigError where it cannot run."""
    why = missing(name)
    if why is not None:
        raise ConfigError(f"model.attention: {name} {why}; set model.attention to auto")
    return ATTENTION[name]
