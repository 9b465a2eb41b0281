"""The window rule: which past events a user's state at n reads.

n = the user's events ever, W = window, S = stride. A state at n depends on events [start(n), n) and on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from recgpt.config import Section

IntLike = TypeVar("IntLike", int, NDArray[np.int64])


class WindowConfig(Section):
    """How much of the past a state reads, and in what steps it slides."""

    length: int = Field(default=256, ge=1)
    """Window W in events, a multiple of the stride."""
    stride: int | None = Field(default=None, ge=1)
    """Stride S in events, a multiple of the chunk; default W / 4. A full window is rebuilt once per S events."""
    chunk: int = Field(default=32, ge=1)
    """Chunk C in events: keys and values are kept for whole chunks."""

    @model_validator(mode="after")
    def _multiples(self) -> WindowConfig:
        if self.stride is None:
            if self.length % (4 * self.chunk):
                raise ValueError(
                    f"length: {self.length} is not a multiple of 4 chunks of {self.chunk}, so the default "
                    "stride W/4 is no whole number of chunks; set stride and chunk"
                )
            object.__setattr__(self, "stride", self.length // 4)
        if self.S % self.chunk:
            raise ValueError(f"stride: {self.S} must be a multiple of chunk ({self.chunk})")
        if self.length % self.S:
            raise ValueError(f"length: {self.length} must be a multiple of stride ({self.S})")
        return self

    @property
    def S(self) -> int:  # noqa: N802 (the letter of the design)
        """The stride, resolved."""
        assert self.stride is not None
        return self.stride

    def start(self, n: IntLike) -> IntLike:
        """The first event that a state at n reads: S max(0, ceil((n - W) / S))."""
        steps = -((self.length - n) // self.S)
        if isinstance(steps, np.ndarray):
            return cast(IntLike, self.S * np.maximum(steps, 0))
        return self.S * max(0, steps)


@dataclass(frozen=True)
class LikeWindows:
    """Users whose windows are of like length, as one padded block.

    Attributes:
        rows: int64 [N], which users.
        width: events of a window, padding included.
        size: windows of the block, at least N; those beyond are empty.
        full: whether it is of the size of all blocks of its width, as all but the last block are.
    """

    rows: NDArray[np.int64]
    width: int
    size: int
    full: bool


def like_windows(n_events: NDArray[np.int64], window: WindowConfig, positions: int) -> Iterator[LikeWindows]:
    """Users in blocks of like windows, the longest first, in few shapes: libraries compile code for each of them.

    A width and its first token make a multiple of 8, or of a sixteenth of the next power of two (or a full window); all
    blocks of a width have the same size but for the last block of all.

    Args:
        n_events: int64 [U], each user's events ever.
        window: the rule.
        positions: of a block at most, each window's first token included.
    """
    length = n_events - window.start(n_events)
    order = np.argsort(-length, kind="stable")
    first = 0
    while first < len(order):
        tokens = min(_rounded(int(length[order[first]]) + 1, 8), window.length + 1)
        size = max(1, positions // tokens)
        rows = order[first : first + size]
        padded = min(size, _rounded(len(rows), 1))
        yield LikeWindows(rows, tokens - 1, padded, padded == size)
        first += size


def _rounded(n: int, least: int) -> int:
    """The next multiple of a sixteenth of the power of two above n (at least 1), or of `least`, a power of two."""
    step = max(least, 1 << max(0, (n - 1).bit_length() - 4))
    return -(-n // step) * step
