"""A causal, pre-norm transformer with gated feed-forward layers and rotary positions.

B sequences, T positions, D width, H heads.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.config import Section
from recgpt.nn.attention import ATTENTION, Rotary
from recgpt.nn.dropout import dropout

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [B, H, T, D / H]."""


class TransformerConfig(Section):
    """Size and parts of the transformer."""

    dim: int = Field(default=64, ge=2)
    """Width D of every vector in the model."""
    layers: int = Field(default=2, ge=1)
    """Number of blocks."""
    heads: int = Field(default=2, ge=1)
    """Attention heads H; D / H must be even."""
    feed_forward: float = Field(default=2.0, gt=0)
    """Width of the gated feed-forward layer, in D."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout on the embeddings and on what each layer adds (attention weights are never dropped)."""
    attention: Literal["auto", "matmul", "reference", "sdpa"] = "auto"
    """Attention backend: torch's fused `sdpa`, `matmul` (faster in bfloat16 training on CPU), the slow `reference`,
    or `auto` of the first two."""

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerConfig:
        if self.dim % (2 * self.heads):
            raise ValueError(f"heads: {self.heads} must divide dim {self.dim} into an even width")
        return self


def _norm(dim: int) -> nn.LayerNorm:
    """LayerNorm without bias: one fused pass on CPU, where RMSNorm takes five."""
    return nn.LayerNorm(dim, 1e-6, bias=False)


class Block(nn.Module):
    """x + attention(norm x), then x + gated feed-forward(norm x) (SwiGLU: Shazeer 2020)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim, inner = config.dim, int(config.dim * config.feed_forward)
        self.heads = config.heads
        self.attend = ATTENTION[config.attention]
        self.dropout = config.dropout
        self.norm_attention, self.norm_feed_forward = _norm(dim), _norm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 2 * inner, bias=False)
        self.down = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, rotary: Rotary, past: KeyValue | None, start: int) -> tuple[Tensor, KeyValue]:
        """[B, T, D] at positions start.., after `past` -> the same shape, and this part's own keys and values."""
        B, T, D = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(B, T, 3, self.heads, D // self.heads)
        qk = rotary(qkv[:, :, :2].float(), start).to(qkv.dtype)
        q, k, v = (part.transpose(1, 2) for part in (qk[:, :, 0], qk[:, :, 1], qkv[:, :, 2]))
        keys, values = (k, v) if past is None else (torch.cat((past[0], k), 2), torch.cat((past[1], v), 2))
        y = self.attend(q, keys, values).transpose(1, 2).reshape(B, T, D)
        x = x + dropout(self.out(y), self.dropout, self.training)
        gate, linear = self.up(self.norm_feed_forward(x)).chunk(2, -1)
        y = self.down(F.silu(gate) * linear)
        return x + dropout(y, self.dropout, self.training), (k, v)


class Transformer(nn.Module):
    """A stack of blocks and a final norm.

    Args:
        config: sizes.
        length: positions that may occur.
    """

    def __init__(self, config: TransformerConfig, length: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.rotary = Rotary(config.dim // config.heads, length)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = _norm(config.dim)
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * config.layers) ** 0.5)

    def forward(self, x: Tensor, past: list[KeyValue] | None = None, start: int = 0) -> tuple[Tensor, list[KeyValue]]:
        """Hidden vectors of [B, T, D] inputs and the layers' keys and values.

        Args:
            x: inputs at positions start .. start + T - 1.
            past: each layer's keys and values of positions 0 .. start - 1.
            start: number of positions before x.
        """
        x = dropout(x, self.dropout, self.training)
        kept: list[KeyValue] = []
        for layer, block in enumerate(self.blocks):
            x, own = block(x, self.rotary, past[layer] if past else None, start)
            kept.append(own)
        return self.norm(x), kept
