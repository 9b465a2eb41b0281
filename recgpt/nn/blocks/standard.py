"""The default block."""

from __future__ import annotations

from torch import Tensor, nn

from recgpt.nn.blocks.base import Frame, KeyValue, SoftmaxBlock, plain_norm
from recgpt.nn.blocks.config import TransformerConfig
from recgpt.nn.dropout import dropout
from recgpt.nn.linear import Linear, swiglu


class StandardBlock(SoftmaxBlock):
    """x + attention(norm x), then x + gated feed-forward(norm x) (SwiGLU: Shazeer 2020); no biases."""

    def __init__(self, config: TransformerConfig, length: int) -> None:
        super().__init__(config, length)
        dim, inner = config.dim, int(config.dim * config.feed_forward)
        self.norm_attention, self.norm_feed_forward = plain_norm(dim), plain_norm(dim)
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.out = Linear(dim, dim, bias=False)
        self.up = Linear(dim, 2 * inner, bias=False)
        self.down = Linear(inner, dim, bias=False)

    @staticmethod
    def final_norm(dim: int) -> nn.Module:
        """A pre-norm stack ends with a norm."""
        return plain_norm(dim)

    def initialise(self, layers: int) -> None:
        """What is added to the residual stream starts small (GPT-2: std .02 / sqrt(2 layers))."""
        for weight in (self.out.weight, self.down.weight):
            nn.init.normal_(weight, std=0.02 / (2 * layers) ** 0.5)

    def forward(self, x: Tensor, frame: Frame, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """As `Block`."""
        y, own = self.attend(*self.projected(self.qkv, self.norm_attention(x), frame), frame, past)
        x = frame.asked(x) + dropout(self.out(y), self.dropout, self.training)
        y = self.down(swiglu(self.norm_feed_forward(x), self.up.weight))
        return x + dropout(y, self.dropout, self.training), own
