"""How a run's items share the addresses of a compressed id table: the load, and which items are confused."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recgpt.nn.ids import IdEmbedding
from recgpt.nn.ids.collisions import address_digests, expected_confused

MOST = 5
"""Entries of `others`."""


def shared_addresses(addresses: NDArray[np.int64], slots: int) -> dict[str, Any]:
    """Measure how n items share addresses.

    Args:
        addresses: int64 [n, k] in [0, slots), canonical: equal ones are one vector.
        slots: values that an address can take.

    Returns:
        `in_use`: distinct addresses. `sharing`: items one of whose addresses another item has too. `confused_items` and
        `confused_pairs`: those that share all of them. `others`: share of the items' addresses that 0, 1, ... other
        items have, the last entry: `MOST` - 1 or more. `items_per_address`: `mean`, `p99` and `max` over those in use.
    """
    n = len(addresses)
    ordered = np.sort(addresses, 1)
    first = np.ones_like(ordered, bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]  # an item has an address once, however often it reads it
    users = np.bincount(ordered[first], minlength=slots)
    beside = np.where(first, users[ordered] - 1, 0)
    _, same = np.unique(address_digests(torch.from_numpy(addresses)).numpy(), return_counts=True)
    used = users[users > 0]
    bins = np.bincount(np.minimum(beside[first], MOST - 1), minlength=MOST)
    return {
        "in_use": len(used),
        "sharing": int((beside.max(1, initial=0) > 0).sum()),
        "confused_items": int(same[same > 1].sum()),
        "confused_pairs": int((same * (same - 1) // 2).sum()),
        "others": (bins / max(1, bins.sum())).tolist(),
        "items_per_address": {
            "mean": float(used.mean()) if n else 0.0,
            "p99": float(np.quantile(used, 0.99)) if n else 0.0,
            "max": int(used.max(initial=0)),
        },
    }


@torch.no_grad()
def look_at_load(embedding: IdEmbedding, hashes: NDArray[np.int64]) -> dict[str, Any]:
    """The load that n items put on an id embedding, beside the load that is expected of chance.

    Returns:
        `kind`, `items`, `slots` (values that an address can take), `addresses` (of an item), `here` (see
        `shared_addresses`) and `chance`: the same of as many random ids, the confused ones by their probability. None
        for `full`, where every item has its own.
    """
    addresses = _addresses(embedding, hashes)
    found: dict[str, Any] = {
        "kind": embedding.config.kind,
        "items": len(hashes),
        "slots": embedding.slots,
        "addresses": addresses.shape[1],
        "here": shared_addresses(addresses, embedding.slots),
        "chance": None,
    }
    if embedding.config.kind != "full":
        drawn = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, len(hashes), endpoint=True)
        n = len(hashes)
        found["chance"] = shared_addresses(_addresses(embedding, drawn), embedding.slots) | {
            "confused_items": expected_confused(n, embedding.confusion),
            "confused_pairs": n * (n - 1) / 2 * embedding.confusion,
        }
    return found


def _addresses(embedding: IdEmbedding, hashes: NDArray[np.int64]) -> NDArray[np.int64]:
    return embedding.addresses(torch.from_numpy(np.array(hashes, np.int64))).numpy()
