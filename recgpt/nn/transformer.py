"""The transformer: positions, a stack of blocks, a final norm.

B sequences, T positions, D width, H heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from recgpt.nn.blocks import BLOCKS, Block, Frame, KeyValue, TransformerConfig
from recgpt.nn.dropout import dropout
from recgpt.nn.positions import ADDED_POSITIONS, Rotary, time_buckets

__all__ = ["KeyValue", "Transformer", "TransformerConfig"]


class Transformer(nn.Module):
    """A stack of blocks and a final norm.

    Learned arrays besides the blocks' own: `positions.table.weight` [length, D] and, in block l,
    `blocks.l.bias.distance` [H | 1, 2 length - 1] and `blocks.l.bias.time` [H | 1, 129], where switched on.

    Args:
        config: sizes and parts.
        length: positions that may occur.
    """

    def __init__(self, config: TransformerConfig, length: int) -> None:
        super().__init__()
        block = BLOCKS[config.block]
        self.dropout, self.causal, self.incremental = config.dropout, config.causal, config.incremental
        self.needs_time = config.bias.time
        self.rotary = Rotary(config.dim // config.heads, length) if config.positions == "rotary" else None
        added = ADDED_POSITIONS.get(config.positions)
        self.positions = None if added is None else added(config.dim, length)
        self.input_norm = block.input_norm(config.dim)
        self.blocks = nn.ModuleList(block(config, length) for _ in range(config.layers))
        self.norm = block.final_norm(config.dim)
        for each in self.blocks:
            cast(Block, each).initialise(config.layers)

    def forward(
        self,
        x: Tensor,
        past: list[KeyValue] | None = None,
        start: int = 0,
        real: Tensor | None = None,
        time: Tensor | None = None,
        weights: list[Tensor] | None = None,
        at: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Hidden vectors of [B, T, D] inputs and the layers' keys and values.

        Args:
            x: inputs at positions start .. start + T - 1.
            past: each layer's keys and values of positions 0 .. start - 1.
            start: number of positions before x.
            real: bool [B, start + T], false where a position is padding, on either side; None = none is, or only
                after everything that is read of a causal pass.
            time: int64 [B, start + T] microseconds or NO_TIME, needed with a time bias.
            weights: a list that takes each layer's attention weights [B, H, T, start + T].
            at: int64 [B], the one position of each sequence that is asked for (with start = 0): hidden vectors
                [B, 1, D]. The last block then computes no other. Not together with `weights`.
        """
        if weights is not None and at is not None:
            raise ValueError("at: attention weights are of all positions; leave one of both out")
        if self.positions is not None:
            x = self.positions(x, start, real)
        x = dropout(self.input_norm(x), self.dropout, self.training)
        if real is not None and self.causal and not (real[:, 1:] & ~real[:, :-1]).any():
            real = None  # padding on the right is later than all that is read
        buckets = time_buckets(time, x.shape[1]) if self.needs_time and time is not None else None
        frame = Frame(self.rotary, start, self.causal, real, buckets, weights)
        kept: list[KeyValue] = []
        for layer, block in enumerate(self.blocks):
            last = replace(frame, at=at) if layer == len(self.blocks) - 1 else frame
            x, own = block(x, last, past[layer] if past else None)
            kept.append(own)
        return self.norm(x), kept

    def attention_weights(self, x: Tensor, real: Tensor | None = None, time: Tensor | None = None) -> list[Tensor]:
        """Each layer's attention weights [B, H, T, T] by the reference's arithmetic; arguments as in `forward`.

        Rows of softmax blocks sum to 1; HSTU's are SiLU(score) / n.
        """
        collected: list[Tensor] = []
        with torch.no_grad():
            self(x, real=real, time=time, weights=collected)
        return collected
