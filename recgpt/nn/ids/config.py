"""The section `model.id`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recgpt.config import Section


class IdEmbeddingConfig(Section):
    """How item ids become vectors. With 32 `bits`, equal `rows` are equal bytes in every kind but `full`."""

    kind: Literal["hash", "full", "weighted_hash", "factorized", "qr", "robe", "kshift", "unified"] = "hash"
    """`hash`: k seeded hashes into one table, summed. `full`: a row for each item of the run, zeros for others.
    `weighted_hash`: `hash` with learned weights of each id. `factorized`: `hash` with narrow rows, more of them, and a
    linear map to `dim`. `qr`: quotient and remainder of the folded hash, a table
    each. `robe`: blocks of one flat array. `kshift`: rotations of the hash, one table. `unified`: one table for the
    ids and every categorical feature."""
    rows: int = Field(default=65_536, ge=1, le=2**31)
    """The memory: rows x dim numbers in all, whatever a kind makes of them (`full`: no use for it)."""
    n_hashes: int = Field(default=2, ge=1, le=16)
    """`hash`, `weighted_hash`, `factorized`: rows that one id sums; two ids are confused only when all agree."""
    width: int = Field(default=16, ge=1)
    """`factorized`: floats of a row."""
    combine: Literal["mult", "add", "concat"] = "mult"
    """`qr`: how the two rows become one vector; `concat` has half as wide tables of twice as many rows."""
    block: int = Field(default=16, ge=1)
    """`robe`: floats that lie side by side (Z); 1 is HashedNets, `dim` or more one slice an id."""
    shifts: int = Field(default=8, ge=1, le=64)
    """`kshift`: rotations that one id sums."""
    lookups: int = Field(default=2, ge=1, le=8)
    """`unified`: rows that one value concatenates."""
    bits: Literal[32, 8, 4] = 32
    """Of a stored number. With 8 or 4 the rows are integers with a scale of 4 bytes each: about a quarter or an eighth
    of the memory, more where rows are narrow, and `weighted_hash` keeps its weights as they are. The model learns with
    the rows as they will be. Training itself takes the memory of 32. Not for `robe`."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the hash functions."""

    @model_validator(mode="after")
    def _fits(self) -> IdEmbeddingConfig:
        if self.kind == "qr" and self.rows < 2:
            raise ValueError(f"rows: {self.rows}; qr divides them between two tables, so give at least 2")
        if self.kind == "robe" and self.bits != 32:
            raise ValueError(f"bits: {self.bits} keeps a scale for each row, and robe has no rows; set 32")
        return self
