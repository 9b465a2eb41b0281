"""HSTU's block (Zhai et al. 2024, "Actions Speak Louder than Words", eq. 1 to 3)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.nn.attention import visible
from recgpt.nn.blocks.base import Block, Frame, KeyValue, extended
from recgpt.nn.blocks.config import TransformerConfig
from recgpt.nn.dropout import dropout
from recgpt.nn.linear import Linear

_EPS = 1e-6


class HstuBlock(Block):
    """x + W_o(U * LN(A V)), A = SiLU(Q K' + bias) / n, and [U, V, Q, K] = SiLU(LN(x) W); norms without weights.

    No softmax, no 1 / sqrt(d), no feed-forward layer. n is the number of positions that the model has, a constant:
    dividing by a row's or a batch's length would make a score depend on who else is in the batch. Hidden keys are
    multiplied by 0 after SiLU (SiLU of minus infinity is not a number).
    """

    shares_bias = True

    def __init__(self, config: TransformerConfig, length: int) -> None:
        super().__init__(config, length)
        self.uvqk = Linear(config.dim, 4 * config.dim, bias=False)
        self.out = Linear(config.dim, config.dim)

    @staticmethod
    def final_norm(dim: int) -> nn.Module:
        """None: the query vector is normalised (`model.score`)."""
        return nn.Identity()

    def initialise(self, layers: int) -> None:
        """The authors' start."""
        nn.init.normal_(self.uvqk.weight, std=0.02)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, frame: Frame, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """As `Block`."""
        B, T, D = x.shape
        uvqk = F.silu(self.uvqk(F.layer_norm(x, (D,), eps=_EPS)))
        u = uvqk[..., :D]
        vqk = uvqk[..., D:].view(B, T, 3, self.heads, D // self.heads)
        qk = frame.turned(vqk[:, :, 1:])
        q, k, v = (part.transpose(1, 2) for part in (qk[:, :, 0], qk[:, :, 1], vqk[:, :, 0]))
        keys, values = extended((k, v), past)
        weights = self.intensity(frame.asked(q.transpose(1, 2)).transpose(1, 2), keys, frame)
        if frame.weights is not None:
            frame.weights.append(weights)
        y = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)
        y = dropout(frame.asked(u) * F.layer_norm(y, (D,), eps=_EPS), self.dropout, self.training)
        return frame.asked(x) + self.out(y), (k, v)

    def intensity(self, q: Tensor, k: Tensor, frame: Frame) -> Tensor:
        """The weights A [B, H, Tq, Tk]; they need not sum to 1."""
        scores, added = q @ k.transpose(-1, -2), self.added(frame, k.shape[-2] - frame.start)
        weights = F.silu(scores if added is None else scores + added) / self.length
        seen = visible(q.shape[-2], frame.real, frame.causal, k) if frame.at is None else frame.seen(k.shape[-2])
        return weights if seen is None else weights * seen
