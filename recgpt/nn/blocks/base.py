"""What every block is given beside its input, and what the blocks with softmax attention share.

B sequences, T positions, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from recgpt.nn.attention import backend, weights
from recgpt.nn.blocks.config import TransformerConfig
from recgpt.nn.linear import Linear, linear
from recgpt.nn.positions import Rotary, relative_bias

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [B, H, T, D / H]."""


@dataclass(frozen=True)
class Frame:
    """One pass through the blocks.

    Attributes:
        rotary: what turns queries and keys, or None.
        start: number of cached positions before the inputs.
        causal: whether later positions are hidden.
        real: bool [B, start + T], false where a key is padding; None = no padding is in sight.
        buckets: int64 [B, T, start + T] time-gap buckets, for models with a time bias.
        weights: where attention weights [B, H, T, start + T] are collected, or None.
        at: int64 [B], the one position of each sequence that is asked for; None = all. For the last block of a pass
            without cached positions.
    """

    rotary: Rotary | None
    start: int = 0
    causal: bool = True
    real: Tensor | None = None
    buckets: Tensor | None = None
    weights: list[Tensor] | None = None
    at: Tensor | None = None

    def asked(self, x: Tensor) -> Tensor:
        """Of x [B, T, ...] the positions that are asked for: [B, 1, ...], or all."""
        return x if self.at is None else x[torch.arange(len(x), device=x.device), self.at].unsqueeze(1)

    def seen(self, n_keys: int) -> Tensor:
        """Where the positions `at` may look, bool [B, 1, 1, T]."""
        assert self.at is not None
        place = torch.arange(n_keys, device=self.at.device)
        seen = place <= self.at[:, None] if self.causal else torch.ones_like(place, dtype=torch.bool)[None]
        return (seen if self.real is None else seen & self.real)[:, None, None]

    def turned(self, x: Tensor) -> Tensor:
        """Queries and keys [B, T, ..., H, d] of all positions, turned by them."""
        return x if self.rotary is None else self.rotary(x.float(), self.start).to(x.dtype)

    def turned_queries(self, q: Tensor) -> Tensor:
        """Queries [B, T, H, d] of all positions, or [B, 1, H, d] of those asked for, turned by them."""
        if self.at is None or self.rotary is None:
            return self.turned(q)
        return self.rotary(q.float(), self.at).to(q.dtype)


class Block(nn.Module):
    """One layer: `(x [B, T, D], frame, past)` -> x of the same shape, and this part's own keys and values.

    With `frame.at`, x of the positions asked for alone, [B, 1, D].

    Args:
        config: sizes and parts.
        length: number of positions.
    """

    shares_bias: ClassVar[bool] = False
    """Whether the heads share one bias of the scores."""

    def __init__(self, config: TransformerConfig, length: int) -> None:
        super().__init__()
        self.heads, self.dropout, self.length = config.heads, config.dropout, length
        self.bias = relative_bias(config.bias, 1 if self.shares_bias else config.heads, length)

    @staticmethod
    def input_norm(dim: int) -> nn.Module:
        """What the sum of events and positions goes through: nothing, unless a block has one."""
        return nn.Identity()

    @staticmethod
    def final_norm(dim: int) -> nn.Module:
        """What follows the last block."""
        raise NotImplementedError

    def initialise(self, layers: int) -> None:
        """Draw the start values that differ from torch's; `layers` blocks add up."""
        raise NotImplementedError

    def added(self, frame: Frame, n_queries: int) -> Tensor | None:
        """The bias of the scores [B | 1, H | 1, Tq, Tk], or None."""
        bias = None if self.bias is None else self.bias(frame.start, n_queries, frame.buckets)
        if bias is None or frame.at is None:
            return bias
        rows = bias.expand(len(frame.at), -1, -1, -1)
        return rows[torch.arange(len(rows), device=rows.device), :, frame.at].unsqueeze(2)


class SoftmaxBlock(Block):
    """A block with softmax attention through one of the backends."""

    def __init__(self, config: TransformerConfig, length: int) -> None:
        super().__init__(config, length)
        self.backend = backend(config.attention)

    def projected(self, qkv: Linear, x: Tensor, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """Turned queries and keys, and values, [B, T, H, d] each, of x [B, T, D]; queries of asked positions alone."""
        B, T, D = x.shape
        if frame.at is None:
            heads = qkv(x).view(B, T, 3, self.heads, -1)
            turned = frame.turned(heads[:, :, :2])  # one pass for both
            return turned[:, :, 0], turned[:, :, 1], heads[:, :, 2]
        of_q, of_kv = (None, None) if qkv.bias is None else (qkv.bias[:D], qkv.bias[D:])
        q = linear(frame.asked(x), qkv.weight[:D], of_q).view(B, 1, self.heads, -1)
        kv = linear(x, qkv.weight[D:], of_kv).view(B, T, 2, self.heads, -1)
        return frame.turned_queries(q), frame.turned(kv[:, :, 0]), kv[:, :, 1]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, frame: Frame, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """Attention of turned queries and keys, and values, [B, T, H, d] each -> [B, T, D], own keys and values.

        With `frame.at`, queries [B, 1, H, d] -> [B, 1, D].
        """
        T = k.shape[1]
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        keys, values = extended((k, v), past)
        added = self.added(frame, T)
        if frame.weights is not None:
            frame.weights.append(weights(q, keys, added, frame.real, frame.causal))
        if frame.at is None:
            y = self.backend(q, keys, values, added, frame.real, frame.causal)
        else:
            hidden = torch.where(frame.seen(T), 0.0, -torch.inf)
            bias = hidden if added is None else hidden + added
            y = self.backend(q, keys, values, bias, causal=False)
        return y.transpose(1, 2).flatten(2), (k, v)


def extended(own: KeyValue, past: KeyValue | None) -> KeyValue:
    """Cached keys and values followed by a pass's own."""
    return own if past is None else (torch.cat((past[0], own[0]), 2), torch.cat((past[1], own[1]), 2))


def plain_norm(dim: int) -> nn.LayerNorm:
    """LayerNorm without bias: one fused pass on CPU, where RMSNorm takes five."""
    return nn.LayerNorm(dim, 1e-6, bias=False)
