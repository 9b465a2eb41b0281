"""Embedding tables: which of their rows are in use, and how many directions those have, beside an untrained table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recgpt.api import BLOCK
from recgpt.data.batch import EventBatch, collate, item_columns, tensor
from recgpt.data.events import Events
from recgpt.data.items import ItemTable
from recgpt.data.prepared import Prepared
from recgpt.inspection.spectra import Directions
from recgpt.model import EventModel
from recgpt.ranker import Ranker
from recgpt.ranking.network import RankingNetwork
from recgpt.train.optim import table_parameters

TOKENS = 51_200
"""Padded events of a batch."""
USERS = 8192
"""First tokens of a batch."""


def embedding_tables(model: nn.Module) -> dict[str, nn.Parameter]:
    """The embedding tables of a model by name; one that several parts share stands under its first name."""
    found = table_parameters(model)
    return {name.removesuffix(".weight"): p for name, p in model.named_parameters() if id(p) in found}


def reached_rows(tables: Mapping[str, nn.Parameter], outputs: Iterable[Tensor]) -> dict[str, NDArray[np.bool_] | None]:
    """Which rows of each table some output depends on, by the gradient of a random sum of all outputs.

    It needs no knowledge of how a table is read; a padding row, which never learns, counts as not reached.

    Args:
        tables: name -> parameter with R rows.
        outputs: any tensors that are computed from the tables, one graph at a time.

    Returns:
        name -> bool [R], or None for a table that no output reads.
    """
    generator = torch.Generator().manual_seed(0)
    reached: dict[str, NDArray[np.bool_] | None] = dict.fromkeys(tables)
    for output in outputs:
        if not output.requires_grad:
            continue
        total = (output * torch.randn(output.shape, generator=generator)).sum()
        gradients = torch.autograd.grad(total, list(tables.values()), allow_unused=True)
        for (name, rows), gradient in zip(reached.items(), gradients, strict=True):
            if gradient is not None:
                here = (gradient.reshape(len(gradient), -1).abs().amax(1) != 0).numpy()
                reached[name] = here if rows is None else rows | here
    return reached


def look_at_tables(
    tables: Mapping[str, nn.Parameter], start: Mapping[str, nn.Parameter], outputs: Iterable[Tensor]
) -> list[dict[str, Any]]:
    """What each table is like.

    Args:
        tables: of the trained model.
        start: the same of an untrained one.
        outputs: see `reached_rows`: every value that training met.

    Returns:
        For each table `name`, `rows`, `width`, `reached` (rows; None = not looked at), the spectrum of the rows reached
        (see `Directions.spectrum`; None for a table without rows of its own width) and `start`, that of the
        same rows when untrained.
    """
    reached = reached_rows(tables, outputs)
    found = []
    for name, table in tables.items():
        rows = reached[name]
        used = np.ones(len(table), bool) if rows is None else rows
        known: dict[str, Any] = {
            "name": name,
            "rows": len(table),
            "width": table[0].numel(),
            "reached": None if rows is None else int(used.sum()),
        }
        if table.ndim == 2 and used.any():
            known["spectrum"] = _spectrum(table, used)
            known["start"] = _spectrum(start[name], used)
        found.append(known)
    return found


def _spectrum(table: nn.Parameter, used: NDArray[np.bool_]) -> dict[str, Any]:
    return Directions(table.shape[1]).add(table.detach().numpy()[used]).spectrum()


def untrained(model: EventModel, items: ItemTable) -> EventModel:
    """A model of the same config as it starts, always with the same draws; the caller's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return EventModel(model.config, model.schema, items.trained)


def untrained_heads(ranker: Ranker) -> RankingNetwork:
    """Ranking heads of the same config as they start; see `untrained`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RankingNetwork(ranker.heads, ranker.recgpt.schema, ranker.recgpt.config.dim, ranker.outcomes)


def item_batches(items: ItemTable, hashes: NDArray[np.int64]) -> Iterator[EventBatch]:
    """Items as batches that hold nothing else."""
    nothing = torch.zeros(1, 1, dtype=torch.int64)
    for first in range(0, len(hashes), BLOCK):
        part = hashes[first : first + BLOCK]
        features, content = item_columns(items, part)
        yield EventBatch(tensor(part), nothing, nothing[0], nothing, features=features, content=content)


def item_outputs(model: EventModel, items: ItemTable) -> Iterator[Tensor]:
    """Encoded items, all that have a training event."""
    for batch in item_batches(items, items.trained):
        yield model.encode_items(batch)


def event_outputs(model: EventModel, items: ItemTable, windows: Iterable[Events]) -> Iterator[Tensor]:
    """Encoded events of some windows, the items themselves left out."""
    for batch in event_batches(items, windows):
        yield model.encoder(batch, torch.zeros(len(batch.items), model.config.dim))


def first_outputs(model: EventModel, prepared: Prepared) -> Iterator[Tensor]:
    """The first tokens of the windows of all users who have a training event."""
    rows = np.flatnonzero(prepared.users.train_end > 0)
    for first in range(0, len(rows), USERS):
        block = rows[first : first + USERS]
        profile = {name: torch.from_numpy(column) for name, column in prepared.profile(block).items()}
        yield model.encoder.beginning(len(block), profile)


def event_batches(items: ItemTable, windows: Iterable[Events]) -> Iterator[EventBatch]:
    """Windows in batches of at most `TOKENS` padded events."""
    block: list[Events] = []
    width = 0
    for window in windows:
        longer = max(width, len(window))
        if block and longer * (len(block) + 1) > TOKENS:
            yield collate(block, items)
            block, longer = [], len(window)
        block.append(window)
        width = longer
    if block:
        yield collate(block, items)


def head_outputs(network: RankingNetwork, items: ItemTable, windows: Iterable[Events]) -> Iterator[Tensor]:
    """What the heads' own embeddings make of the trained items and of the events' context."""
    for batch in item_batches(items, items.trained):
        yield network.id(batch.items)
        for name, module in network.features.items():
            yield module(batch.features[name])
    for batch in event_batches(items, windows):
        for name, module in network.context.items():
            yield module(batch.context[name])
