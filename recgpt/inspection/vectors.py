"""What is computed from the tables: the parts of an item, its vector and the users' queries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recgpt.data.events import Events
from recgpt.data.items import ItemTable
from recgpt.inspection.popularity import by_popularity
from recgpt.inspection.spectra import Directions
from recgpt.inspection.tables import event_batches, item_batches
from recgpt.model import EventModel


def item_parts(model: EventModel) -> dict[str, nn.Module]:
    """The modules whose outputs an encoded item sums: id, content, features by name."""
    parts: dict[str, nn.Module] = {}
    for name, module in model.items.named_children():
        if isinstance(module, nn.ModuleDict):
            parts |= {f"{name}.{key}": inner for key, inner in module.items()}
        else:
            parts[name] = module
    return parts


@contextmanager
def outputs_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """The last output of each module that ran, by name, as long as the block lasts."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(
                module.register_forward_hook(lambda _module, _given, out, name=name: seen.update({name: out}))
            )
        yield seen


@torch.no_grad()
def look_at_items(model: EventModel, items: ItemTable, hashes: NDArray[np.int64]) -> dict[str, Any]:
    """Directions and lengths of items' vectors.

    Args:
        model: in evaluation mode.
        items: the run's.
        hashes: int64 [N], which items.

    Returns:
        `vectors`: name -> spectrum (`Directions.spectrum`) of each part that encoded items sum, of the item vectors
        before their length is normalised away (`unnormalised`) and after (`item`). `norms`: the length of `id` and
        `unnormalised` against popularity (`by_popularity`).
    """
    directions: dict[str, Directions] = {}
    lengths: dict[str, list[NDArray[np.float32]]] = {"id": [], "unnormalised": []}
    with outputs_of(item_parts(model)) as parts:
        for batch in item_batches(items, hashes):
            encoded = model.encode_items(batch)
            found = dict(parts) | {"unnormalised": model.item(encoded), "item": model.vectors(encoded)}
            for name, value in found.items():
                vectors = value.float().numpy()
                if vectors.shape != (len(batch.items), model.config.dim):
                    continue  # a part that is no vector of its own for each item
                directions.setdefault(name, Directions(vectors.shape[1])).add(vectors)
                if name in lengths:
                    lengths[name].append(np.linalg.norm(vectors, axis=1))
    events = items.n_train_events[items.rows(hashes)]
    return {
        "vectors": {name: part.spectrum() for name, part in directions.items()},
        "norms": {name: by_popularity(np.concatenate(part), events) for name, part in lengths.items() if part},
    }


@torch.no_grad()
def look_at_queries(model: EventModel, items: ItemTable, windows: Iterable[Events]) -> dict[str, Any]:
    """The spectrum of the unit query vectors at the end of some windows."""
    directions = Directions(model.config.dim)
    for batch in event_batches(items, windows):
        directions.add(model.queries(model.read(batch)[2]).numpy())
    return directions.spectrum()
