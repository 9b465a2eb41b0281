"""How many ids an id embedding confuses: expected by formula, found for given ids; and its bytes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recgpt.nn.hashing import mix64
from recgpt.nn.ids import ID_EMBEDDINGS, IdEmbedding, IdEmbeddingConfig
from recgpt.nn.ids.table import RoundedTable, row_bytes

SIZES = (10**6, 10**7, 10**8, 10**9)


def expected_confused(n: int, probability: float) -> float:
    """Expected ids, out of n, that share all their addresses with another: n (1 - (1 - p)^(n - 1)).

    Args:
        n: distinct ids.
        probability: p that two ids do (`IdEmbedding.confusion`).
    """
    if n < 2:
        return 0.0
    return n * -math.expm1((n - 1) * math.log1p(-probability)) if probability < 1 else float(n)


def confused(embedding: IdEmbedding, hashes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of n distinct ids share all their addresses with another one, bool [n]; they have one vector between them.

    Addresses are compared by a 64-bit digest of theirs, which errs once in 2^64 pairs.
    """
    digest = address_digests(embedding.addresses(torch.from_numpy(np.array(hashes, np.int64))))
    _, place, count = torch.unique(digest, return_inverse=True, return_counts=True)
    return (count[place] > 1).numpy()


def address_digests(addresses: Tensor) -> Tensor:
    """A number of each row of addresses int64 [n, k], int64 [n]; that of two different rows agrees once in 2^64."""
    digest = torch.zeros(len(addresses), dtype=torch.int64)
    for part in addresses.unbind(-1):
        digest = mix64((digest ^ part) * _ODD + 1)
    return digest


_ODD = 6364136223846793005  # Knuth's multiplier: keeps the order of addresses in the digest


def without_weights(config: IdEmbeddingConfig, dim: int, known: NDArray[np.int64]) -> IdEmbedding:
    """An embedding that has addresses and shapes but holds no memory for its weights."""
    with torch.device("meta"):
        return ID_EMBEDDINGS[config.kind](config, dim, known)


def n_bytes(embedding: IdEmbedding) -> int:
    """Bytes of the weights as they are stored, and of saved lists; the embedding still learns."""
    rounded = [module for module in embedding.modules() if isinstance(module, RoundedTable)]
    learned = {id(table.weight) for table in rounded}
    tensors: list[Tensor] = [*embedding.parameters(), *embedding.buffers()]
    plain = sum(tensor.numel() * tensor.element_size() for tensor in tensors if id(tensor) not in learned)
    return plain + sum(table.n_bytes for table in rounded)


def id_collisions(config: IdEmbeddingConfig, dim: int, hashes: NDArray[np.int64]) -> dict[str, Any]:
    """What an id embedding makes of a log's ids, and of 10^6 to 10^9.

    Args:
        config: the section `model.id`.
        dim: width D of the model.
        hashes: int64 [n], the distinct ids of the log.

    Returns:
        `kind`, `rows`, `dim`; `log`: `ids`, `bytes`, `readers` (ids that read a weight, on average), `expected` and
        `actual` ids that are confused with another one; `sizes`: the same but for `actual` of 10^6, ... ids.
    """
    embedding = without_weights(config, dim, hashes)
    log = _size(embedding, len(hashes)) | {"actual": int(confused(embedding, hashes).sum())}
    sizes = [_size(embedding, n) for n in SIZES]
    return {"kind": config.kind, "rows": config.rows, "dim": dim, "log": log, "sizes": sizes}


def _size(embedding: IdEmbedding, n: int) -> dict[str, Any]:
    grows = embedding.config.kind == "full"  # a row and a hash for each id
    return {
        "ids": n,
        "bytes": n * (row_bytes(embedding.dim, embedding.config.bits) + 8) if grows else n_bytes(embedding),
        "readers": float(n > 0) if grows else n * embedding.reach,
        "expected": expected_confused(n, embedding.confusion),
    }
