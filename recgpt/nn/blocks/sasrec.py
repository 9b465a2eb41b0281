"""SASRec's block (Kang and McAuley 2018), as its authors' code has it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.nn.blocks.base import Frame, KeyValue, SoftmaxBlock
from recgpt.nn.blocks.config import TransformerConfig
from recgpt.nn.dropout import dropout
from recgpt.nn.linear import Linear


class SasrecBlock(SoftmaxBlock):
    """h = LN x + attention(q = LN x, k = v = x), then y = LN h, y + W2 relu(W1 y): queries and *residuals* are normed.

    There is no output projection: the heads' results are added as they are. Dropout falls on the attention's result
    instead of its weights. A pre-norm block with the residual on x itself is another model.
    """

    def __init__(self, config: TransformerConfig, length: int) -> None:
        super().__init__(config, length)
        dim, inner = config.dim, int(config.dim * config.feed_forward)
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(dim, 1e-8), nn.LayerNorm(dim, 1e-8)
        self.query = Linear(dim, dim)
        self.key_value = Linear(dim, 2 * dim)
        self.up, self.down = Linear(dim, inner), Linear(inner, dim)

    @staticmethod
    def final_norm(dim: int) -> nn.Module:
        """The paper's last norm."""
        return nn.LayerNorm(dim, 1e-8)

    def initialise(self, layers: int) -> None:
        """Glorot's uniform start, per projection, and zero biases: the authors' (TensorFlow's default)."""
        weights = (self.query.weight, *self.key_value.weight.chunk(2), self.up.weight, self.down.weight)
        for weight in weights:
            nn.init.xavier_uniform_(weight)
        for layer in (self.query, self.key_value, self.up, self.down):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, frame: Frame, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """As `Block`."""
        B, T, _ = x.shape
        normed = self.norm_attention(x)
        asked = frame.asked(normed)
        q = self.query(asked).view(B, asked.shape[1], self.heads, -1)
        kv = self.key_value(x).view(B, T, 2, self.heads, -1)
        y, own = self.attend(frame.turned_queries(q), frame.turned(kv[:, :, 0]), kv[:, :, 1], frame, past)
        x = self.norm_feed_forward(asked + dropout(y, self.dropout, self.training))
        y = dropout(F.relu(self.up(x)), self.dropout, self.training)
        return x + dropout(self.down(y), self.dropout, self.training), own
