"""LiGR's block (Borisyuk et al. 2025, arXiv 2502.03417), which eSASRec uses (Tikhonovich et al. 2025)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.nn.blocks.base import Frame, KeyValue, SoftmaxBlock
from recgpt.nn.blocks.config import TransformerConfig
from recgpt.nn.dropout import dropout
from recgpt.nn.linear import Linear


class LigrBlock(SoftmaxBlock):
    """x + sigmoid(G x) * attention(LN x), then x + sigmoid(G' x) * SwiGLU(LN x): the gates read x before the norm."""

    def __init__(self, config: TransformerConfig, length: int) -> None:
        super().__init__(config, length)
        dim, inner = config.dim, int(config.dim * config.feed_forward)
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = Linear(dim, 3 * dim), Linear(dim, dim)
        self.up, self.down = Linear(dim, 2 * inner, bias=False), Linear(inner, dim, bias=False)
        self.gate_attention, self.gate_feed_forward = Linear(dim, dim), Linear(dim, dim)

    @staticmethod
    def final_norm(dim: int) -> nn.Module:
        """None: the gated sums are the output."""
        return nn.Identity()

    def initialise(self, layers: int) -> None:
        """Glorot's start of every projection, zero biases: the gates start half open."""
        parts = (*self.qkv.weight.chunk(3), *self.up.weight.chunk(2))
        whole = (self.out, self.down, self.gate_attention, self.gate_feed_forward)
        for weight in (*parts, *(layer.weight for layer in whole)):
            nn.init.xavier_normal_(weight)
        for layer in (self.qkv, self.out, self.gate_attention, self.gate_feed_forward):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, frame: Frame, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """As `Block`."""
        y, own = self.attend(*self.projected(self.qkv, self.norm_attention(x), frame), frame, past)
        x = frame.asked(x)
        x = x + self.gate_attention(x).sigmoid() * dropout(self.out(y), self.dropout, self.training)
        gate, linear = self.up(self.norm_feed_forward(x)).chunk(2, -1)
        y = self.down(dropout(F.silu(gate) * linear, self.dropout, self.training))
        return x + self.gate_feed_forward(x).sigmoid() * dropout(y, self.dropout, self.training), own
