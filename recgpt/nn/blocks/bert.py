"""BERT4Rec's block (Sun et al. 2019, section 3.3)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.nn.blocks.base import Frame, KeyValue, SoftmaxBlock
from recgpt.nn.blocks.config import TransformerConfig
from recgpt.nn.dropout import dropout
from recgpt.nn.linear import Linear


class BertBlock(SoftmaxBlock):
    """LN(x + attention x), then LN(x + W2 gelu(W1 x)): the norm comes after the sum. BERT's width is 4 D."""

    def __init__(self, config: TransformerConfig, length: int) -> None:
        super().__init__(config, length)
        dim, inner = config.dim, int(config.dim * config.feed_forward)
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(dim, 1e-12), nn.LayerNorm(dim, 1e-12)
        self.qkv, self.out = Linear(dim, 3 * dim), Linear(dim, dim)
        self.up, self.down = Linear(dim, inner), Linear(inner, dim)

    @staticmethod
    def input_norm(dim: int) -> nn.Module:
        """BERT's norm of the embeddings' sum (Devlin et al. 2019, the authors' code)."""
        return nn.LayerNorm(dim, 1e-12)

    @staticmethod
    def final_norm(dim: int) -> nn.Module:
        """None: every block ends with one."""
        return nn.Identity()

    def initialise(self, layers: int) -> None:
        """BERT's start: std .02, zero biases."""
        for layer in (self.qkv, self.out, self.up, self.down):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, frame: Frame, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """As `Block`."""
        y, own = self.attend(*self.projected(self.qkv, x, frame), frame, past)
        x = self.norm_attention(frame.asked(x) + dropout(self.out(y), self.dropout, self.training))
        y = self.down(F.gelu(self.up(x)))
        return self.norm_feed_forward(x + dropout(y, self.dropout, self.training)), own
