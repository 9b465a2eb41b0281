"""Tables of id vectors: plain ones, and ones whose stored rows take 8 or 4 bits a number.

R rows, W width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.nn.ids.config import IdEmbeddingConfig

_LEAST = 1e-30
"""Of a scale that is divided by: a row of zeros has none."""


class RoundedTable(nn.Module):
    """Rows of integers between plus and minus 127 (8 bits) or 7 (4 bits), each row with a scale of its own.

    While it learns it holds float32 rows and reads them rounded; the gradient passes as if they were not
    (straight-through: Bengio et al. 2013, arXiv 1308.3432; Jacob et al. 2018, section 3.1, symmetric). So training
    takes the memory that it takes without; what is saved, and what `from_pretrained` holds, are the integers.

    Args:
        rows: R.
        width: W.
        bits: 8 or 4; with 4, two numbers share a byte.

    Attributes:
        learns: whether it holds float32 rows; then `weight` [R, W] is there, else the other two.
        codes: int8 [R, W], or uint8 [R, ceil(W / 2)] with 4 bits.
        scale: float32 [R], with the few digits that bfloat16 has: rows that were rounded stay as they are.
    """

    weight: nn.Parameter
    codes: Tensor
    scale: Tensor

    def __init__(self, rows: int, width: int, bits: int) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.bits = rows, width, bits
        self.weight = nn.Parameter(torch.empty(rows, width))
        self.register_buffer("codes", None)
        self.register_buffer("scale", None)

    @property
    def embedding_tables(self) -> tuple[str, ...]:
        """Names of the parameters that are tables (see `table_parameters`)."""
        return ("weight",) if self.learns else ()

    @property
    def learns(self) -> bool:
        """See `RoundedTable`."""
        return self._parameters["weight"] is not None

    @property
    def n_bytes(self) -> int:
        """Of the stored form."""
        return self.num_embeddings * row_bytes(self.embedding_dim, self.bits)

    def forward(self, rows: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., W], the rounded rows."""
        if self.learns:
            return _Rounded.apply(F.embedding(rows, self.weight), self._most)
        codes = self.codes[rows]
        if self.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)[..., : self.embedding_dim].to(torch.int8) - 8
        return codes.float() * self.scale[rows].unsqueeze(-1)

    @property
    def _most(self) -> int:
        return 2 ** (self.bits - 1) - 1

    @torch.no_grad()
    def rounded(self) -> dict[str, Tensor]:
        """`codes` and `scale` of the rows as they are."""
        if not self.learns:
            return {"codes": self.codes, "scale": self.scale}
        scale = _scale(self.weight, self._most)
        codes = (self.weight / scale.clamp(min=_LEAST)).round().to(torch.int8)
        if self.bits == 4:
            pairs = F.pad(codes + 8, (0, self.embedding_dim % 2)).to(torch.uint8).unflatten(-1, (-1, 2))
            codes = pairs[..., 0] | pairs[..., 1] << 4
        return {"codes": codes, "scale": scale.squeeze(-1)}

    def store(self) -> None:
        """Hold the integers instead of the float32 rows."""
        for name, value in self.rounded().items():
            self.register_buffer(name, value)
        self.register_parameter("weight", None)

    def learn(self) -> None:
        """Hold float32 rows again, those that the integers stand for."""
        if not self.learns:
            with torch.no_grad():
                rows = self(torch.arange(self.num_embeddings, device=self.scale.device))
            self.register_parameter("weight", nn.Parameter(rows))
            for name in ("codes", "scale"):
                self.register_buffer(name, None)


class _Rounded(torch.autograd.Function):
    """Rows [..., W] rounded to multiples of their scale; the gradient of the rows as if they were not."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, most: int) -> Tensor:
        scale = _scale(rows, most)
        return (rows / scale.clamp(min=_LEAST)).round() * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None


def _scale(rows: Tensor, most: int) -> Tensor:
    """[..., 1]: about a `most`-th of a row's largest entry, which is then rounded to `most` times it."""
    return (rows.abs().amax(-1, keepdim=True) / most).to(torch.bfloat16).to(rows.dtype)


def row_bytes(width: int, bits: int) -> int:
    """Of a stored row of so many numbers: they and, with fewer than 32 bits, its scale."""
    return -(-width * bits // 8) + (4 if bits < 32 else 0)


def make_table(config: IdEmbeddingConfig, rows: int, width: int) -> nn.Embedding | RoundedTable:
    """The table of an id embedding, its `weight` yet to be drawn."""
    return nn.Embedding(rows, width) if config.bits == 32 else RoundedTable(rows, width, config.bits)


def _tables(model: nn.Module) -> dict[str, RoundedTable]:
    return {name: module for name, module in model.named_modules() if isinstance(module, RoundedTable)}


def store_tables(model: nn.Module) -> None:
    """Let all rounded tables of a model hold their integers."""
    for table in _tables(model).values():
        table.store()


def learn_tables(model: nn.Module) -> None:
    """Let all rounded tables of a model hold float32 rows, which can be trained and looked at."""
    for table in _tables(model).values():
        table.learn()


def stored_state(model: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` that a model has after `store_tables`; it stays as it is."""
    state = dict(model.state_dict())
    for name, table in _tables(model).items():
        state.pop(f"{name}.weight", None)
        state |= {f"{name}.{part}": value for part, value in table.rounded().items()}
    return state
