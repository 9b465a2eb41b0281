"""The item index of an export: FAISS over the unit item vectors, beside the ids of its rows.

FAISS chooses the candidates; their scores are computed anew in double precision from the vectors that the index holds.
A score so depends on its query and item alone, never on the place in a block, and equal scores stand in row order.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from recgpt.api import RecGPT, Recommendation
from recgpt.data.items import ItemTable
from recgpt.errors import ConfigError, RecGPTError
from recgpt.files import TMP_PREFIX, atomic_write_bytes, fsync_path, full_disk_told
from recgpt.state import UserState

logger = logging.getLogger(__name__)

IndexKind = Literal["flat", "hnsw"]
IndexChoice = Literal["auto", "flat", "hnsw"]

MANIFEST = "manifest.json"
INDEX, IDS = "index.faiss", "index_ids.parquet"
FLAT_MAX = 300_000
"""Items up to which `auto` searches them all: 6 ms a query on one core at 96 dimensions."""
RECALL_FLOOR, RECALL_AT = 0.98, 100
"""What an hnsw index must find of the 100 best, measured on the queries when it is built."""
LINKS, BUILD_WIDTH = 32, 200
SEARCH_WIDTHS = (64, 128, 256, 512, 1024, 2048)
QUERIES = 256
"""Queries that the recall is measured on."""
MARGIN = 16
CHECKED_ROWS = 16
"""Vectors that `open` compares with the model's own."""


def import_faiss() -> Any:
    """The package faiss.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"--index: the package faiss is missing ({error}); pip install faiss-cpu, or leave --index out"
        ) from error
    return faiss


@dataclass(frozen=True)
class BuiltIndex:
    """A FAISS index and how well it finds.

    Attributes:
        index: IndexFlatIP or IndexHNSWFlat over the item vectors, row for row.
        kind: which of the two.
        recall: part of the 100 best items that it finds, mean over the queries; 1 for flat.
        width: candidates that an hnsw search keeps (efSearch), None for flat.
    """

    index: Any
    kind: IndexKind
    recall: float = 1.0
    width: int | None = None


def build_index(
    vectors: NDArray[np.float32], choice: IndexChoice = "auto", queries: NDArray[np.float32] | None = None
) -> BuiltIndex:
    """Index vectors for inner products.

    Args:
        vectors: float32 [I, D].
        choice: `flat` (exact), `hnsw` (approximate; Malkov and Yashunin 2018, arXiv 1603.09320), or `auto`: flat up to
            300,000 items, above that hnsw unless it misses the recall of .98, then flat.
        queries: float32 [Q, D], what will be asked, to choose the width of the search by; by default items.

    Raises:
        ConfigError: an unknown choice, or faiss is not installed.
    """
    if choice not in get_args(IndexChoice):
        raise ConfigError(f"--index-kind: {choice!r}; choose one of {', '.join(get_args(IndexChoice))}")
    faiss = import_faiss()
    vectors = np.ascontiguousarray(vectors, np.float32)
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    if choice == "flat" or len(vectors) == 0 or (choice == "auto" and len(vectors) <= FLAT_MAX):
        return BuiltIndex(flat, "flat")
    index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_WIDTH
    index.add(vectors)
    if queries is None or len(queries) == 0:
        queries = vectors[np.linspace(0, len(vectors) - 1, min(QUERIES, len(vectors))).astype(np.int64)]
    recall, width = _measure(faiss, index, flat, np.ascontiguousarray(queries, np.float32))
    if recall < RECALL_FLOOR:
        logger.warning(
            "index: hnsw finds %.3f of the %d best, the floor is %g; %s",
            recall,
            RECALL_AT,
            RECALL_FLOOR,
            "flat is written instead" if choice == "auto" else "--index-kind flat is exact",
        )
        if choice == "auto":
            return BuiltIndex(flat, "flat")
    index.hnsw.efSearch = width
    return BuiltIndex(index, "hnsw", recall, width)


def _measure(faiss: Any, index: Any, flat: Any, queries: NDArray[np.float32]) -> tuple[float, int]:
    """The recall at the narrowest search that reaches the floor (else at the widest), and its width."""
    k = min(RECALL_AT, flat.ntotal)
    best = flat.search(queries, k)[1]
    recall = 0.0
    for width in SEARCH_WIDTHS:
        found = index.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=width))[1]
        hits = [len(np.intersect1d(one, other)) for one, other in zip(found, best, strict=True)]
        recall = float(np.mean(hits)) / k
        if recall >= RECALL_FLOOR:
            return recall, width
    return recall, SEARCH_WIDTHS[-1]


def write_index(folder: Path, model: RecGPT, choice: IndexChoice, queries: NDArray[np.float32]) -> dict[str, Any]:
    """Write `index.faiss` and `index_ids.parquet` (row, item); the caller's manifest then names them.

    Rows are those of the model's item table, 0 to I - 1, never hashes.

    Returns:
        The manifest's `index` section: kind, dim, rows, recall, what a search needs, and the files' digests.
    """
    built = build_index(model.catalogue.numpy(), choice, queries)
    _write_faiss(built.index, folder / INDEX)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"row": np.arange(len(model.items)), "item": model.items.ids}), sink)
    atomic_write_bytes(folder / IDS, sink.getvalue().to_pybytes())
    section: dict[str, Any] = {"kind": built.kind, "dim": model.config.dim, "rows": len(model.items)}
    if built.width is not None:
        section |= {"width": built.width, f"recall@{RECALL_AT}": round(built.recall, 4), "floor": RECALL_FLOOR}
    return section | {"digests": {name: _digest(folder / name) for name in (INDEX, IDS)}}


def _write_faiss(index: Any, path: Path) -> None:
    """Beside, flushed, renamed; FAISS writes the file itself, so that it is not held in memory once more."""
    temporary = path.parent / f"{TMP_PREFIX}{path.name}"
    with full_disk_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            import_faiss().write_index(index, str(temporary))
            fsync_path(temporary)
            os.replace(temporary, path)
            fsync_path(path.parent)
        except RuntimeError as error:
            raise RecGPTError(f"{path}: cannot be written ({_one_line(error)}); is the disk full?") from error
        finally:
            temporary.unlink(missing_ok=True)


class ItemIndex:
    """The index of a finished export, opened for the model that it was made by.

    Args:
        index: IndexFlatIP or IndexHNSWFlat, I rows of D.
        items: the run's item table, row for row.
        width: candidates that an hnsw search keeps at least.
    """

    def __init__(self, index: Any, items: ItemTable, width: int | None = None) -> None:
        self.index, self.items, self.width = index, items, width
        self.faiss = import_faiss()
        self.exact = index if width is None else self.faiss.downcast_index(index.storage)

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @classmethod
    def open(cls, folder: str | Path, model: RecGPT) -> ItemIndex:
        """Open what `recgpt export --index` wrote.

        Raises:
            ConfigError: no finished export with an index, another model's, or damaged files.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        section = manifest["index"]
        if manifest.get("model") != model.fingerprint:
            raise ConfigError(
                f"--index: {folder} was made by model {manifest.get('model')}, this is {model.fingerprint}; "
                "export the index of this run again"
            )
        for name in (INDEX, IDS):
            _check_digest(folder / name, section["digests"].get(name))
        if not _ids(folder / IDS).equals(model.items.ids):
            raise ConfigError(f"--index: {folder / IDS} lists other items than the run does; export the index again")
        try:
            index = import_faiss().read_index(str(folder / INDEX))
        except RuntimeError as error:
            raise _damaged(folder / INDEX, _one_line(error)) from error
        if (index.ntotal, index.d) != (len(model.items), model.config.dim):
            raise _damaged(folder / INDEX, f"it holds {index.ntotal:,} vectors of width {index.d}")
        opened = cls(index, model.items, section.get("width"))
        opened._check_vectors(model, folder)
        return opened

    def _check_vectors(self, model: RecGPT, folder: Path) -> None:
        """A few vectors must be the model's own: features and content of items are no part of its fingerprint."""
        n = len(self)
        rows = np.unique(np.linspace(0, n - 1, min(CHECKED_ROWS, n)).astype(np.int64))
        own = model.item_vectors([self.items.id(int(row)) for row in rows]).numpy()
        if len(rows) and np.abs(own - self.vectors(rows)).max() > 1e-4:
            raise ConfigError(
                f"--index: the vectors of {folder / INDEX} are not those of this run's items; export the index again"
            )

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Item vectors as they were indexed, float32 [M, D]."""
        if len(rows) == 0:
            return np.zeros((0, self.index.d), np.float32)
        return self.exact.reconstruct_batch(np.ascontiguousarray(rows, np.int64))

    def search(
        self, query: Tensor | NDArray[np.float32], k: int, exclude: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best items by inner product, best first, ties by row; fewer when there are not as many.

        Exact for a flat index. An hnsw index that finds too few unexcluded items is searched wider, then exhaustively.

        Args:
            query: float32 [D].
            k: how many, 1 or more.
            exclude: int64, hashes of items to leave out; unknown ones are ignored.

        Returns:
            Their rows int64 and their scores float32, [<= k].
        """
        query = np.ascontiguousarray(np.asarray(query), np.float32).reshape(1, -1)
        if query.shape[1] != self.index.d:
            raise RecGPTError(f"query: {query.shape[1]} numbers, the index holds vectors of {self.index.d}")
        hidden = self.items.rows(exclude) if exclude is not None else np.zeros(0, np.int64)
        hidden, n = np.unique(hidden[hidden >= 0]), len(self)
        exact = self.width is None
        fetch = k + MARGIN + (len(hidden) if exact else k)
        while n:
            exact = exact or fetch > n // 8
            rows, floor = self._fetch(query, min(fetch, n), exact)
            rows = rows[~np.isin(rows, hidden)]
            scores = (self.vectors(rows).astype(np.float64) @ query[0].astype(np.float64)).astype(np.float32)
            order = np.lexsort((rows, -scores))[:k]
            rows, scores = rows[order], scores[order]
            # An exact search has missed nothing once its last score lies clearly below the k-th.
            enough = len(rows) == k and (not exact or scores[-1] > floor + self.index.d * 1e-7)
            if enough or (exact and fetch >= n):
                return rows, scores
            fetch *= 4
        return np.zeros(0, np.int64), np.zeros(0, np.float32)

    def _fetch(self, query: NDArray[np.float32], k: int, exact: bool) -> tuple[NDArray[np.int64], float]:
        """Rows of the k best candidates, in no order that matters, and the lowest score among them by FAISS."""
        if exact:
            scores, rows = self.exact.search(query, k)
        else:
            # Parameters of the call, not of the index: other threads search it too.
            wide = self.faiss.SearchParametersHNSW(efSearch=max(self.width or 0, k))
            scores, rows = self.index.search(query, k, params=wide)
        found = rows[0] >= 0
        return rows[0][found], float(scores[0][found].min(initial=np.inf))


def recommend_with_index(
    model: RecGPT,
    index: ItemIndex,
    state: UserState,
    k: int,
    exclude_seen: bool = True,
    want: Mapping[str, Any] | None = None,
) -> list[Recommendation]:
    """`RecGPT.recommend` over all items through an index.

    A flat one gives the same items in the same order, up to the rounding of float32 scores: here they are rounded once
    from double precision, so that equal ones stand in row order.

    Args:
        model: the run's model.
        index: opened for it.
        state: of this model.
        k: how many.
        exclude_seen: leave out every item of the user's events, also beyond the window (unless `seen_cut`).
        want: outcomes that the items should have; see `RecGPT.query`.

    Raises:
        RecGPTError: the state is another model's.
        ConfigError: `k` below 1, or see `RecGPT.query`.
    """
    if k < 1:
        raise ConfigError(f"k: {k}; ask for at least 1 item")
    rows, scores = index.search(model.query(state, want), k, state.seen if exclude_seen else None)
    return [
        Recommendation(model.items.id(row), score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
    ]


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished export that has an index."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ConfigError(
            f"--index: {folder} holds no finished export; write one with `recgpt export RUN --out {folder} --index`"
        )
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise _damaged(path, _one_line(error)) from error
    section = manifest.get("index") if isinstance(manifest, dict) else None
    if section is None:
        raise ConfigError(
            f"--index: the export in {folder} has no index; export once more with --index to another folder"
        )
    if not isinstance(section, dict) or not isinstance(section.get("digests"), dict):
        raise _damaged(path, "its index section is no whole one")
    return manifest


def _check_digest(path: Path, digest: Any) -> None:
    if not path.is_file():
        raise ConfigError(f"--index: {path} is missing; copy or export it again")
    if _digest(path) != digest:
        raise _damaged(path, "its bytes are not those that were written")


def _ids(path: Path) -> pa.Array:
    """The items of the rows, in row order."""
    try:
        table = pq.read_table(path)
        column = table["item"].combine_chunks()
        in_order = np.array_equal(table["row"].to_numpy(), np.arange(len(table)))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _damaged(path, _one_line(error)) from error
    if not in_order:
        raise _damaged(path, "its rows are not 0, 1, 2, ...")
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column


def _digest(path: Path) -> str:
    """XXH64 of a file, against damage rather than malice: whoever can write the index can write the manifest."""
    digest = xxhash.xxh64()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _damaged(path: Path, detail: str) -> ConfigError:
    return ConfigError(f"--index: {path} is damaged ({detail}); copy or export it again")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
