"""The item index against exhaustive search, damaged and foreign files, FAISS beside torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from recgpt import index as index_module
from recgpt.api import RecGPT
from recgpt.data.hashing import hash_ids
from recgpt.data.items import ItemTable
from recgpt.errors import ConfigError, RecGPTError
from recgpt.files import write_json
from recgpt.index import ItemIndex, build_index, recommend_with_index, write_index
from recgpt.state import UserState
from tests.recgpt.builders import columns, recgpt, schema

ROOT = Path(__file__).parents[2]


def tied_model(untrained: int = 15) -> RecGPT:
    """Items known by their id alone: those that training never saw have one vector, and so one score."""
    model = recgpt(untrained=untrained, log=schema(features={}, content_dim=None, has_category=False))
    return RecGPT(model.model, replace(model.items, features={}, embedding=None))


def written(folder: Path, model: RecGPT, choice: str = "flat") -> Path:
    """What an export leaves: the index and, last, the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    section = write_index(folder, model, choice, np.zeros((0, model.config.dim), np.float32))  # type: ignore[arg-type]
    write_json(folder / "manifest.json", {"model": model.fingerprint, "index": section})
    return folder


def plain_items(n: int) -> ItemTable:
    """Items 0 to n - 1 of which nothing is known."""
    ids, counts, yes = list(range(n)), np.ones(n, np.int64), np.ones(n, bool)
    return ItemTable(pa.array(ids), hash_ids(ids), counts, counts, yes, yes, np.zeros(n, np.int64))


def exhaustive(vectors: NDArray, query: NDArray, k: int, hidden: set[int]) -> tuple[list[int], list[float]]:
    """Every item's score, best first, ties by row."""
    scores = [float(np.float32(np.dot(v.astype(np.float64), query.astype(np.float64)))) for v in vectors]
    rows = sorted((row for row in range(len(scores)) if row not in hidden), key=lambda row: (-scores[row], row))[:k]
    return rows, [scores[row] for row in rows]


def test_the_index_answers_queries_that_ask_for_outcomes(tmp_path: Path) -> None:
    model = recgpt(condition=True)
    index = ItemIndex.open(written(tmp_path, model), model)
    state = model.encode(columns(9))
    found = recommend_with_index(model, index, state, 5, want={"click": 1})
    assert [item for item, _ in found] == [item for item, _ in model.recommend(state, 5, want={"click": 1})]
    assert found != recommend_with_index(model, index, state, 5)


def assert_same_up_to_rounding(model: RecGPT, index: ItemIndex, state: UserState, k: int, exclude: bool) -> None:
    """What `recommend` answers, its float32 scores aside: items may change places within 1e-6."""
    plain, found = model.recommend(state, k, exclude), recommend_with_index(model, index, state, k, exclude)
    assert len(plain) == len(found)
    scores = dict(model.recommend(state, len(model.items), exclude_seen=False))
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-6)
        assert ours.item == theirs.item or scores[ours.item] == pytest.approx(theirs.score, abs=1e-6)
    assert len({item for item, _ in found}) == len(found)


@pytest.mark.parametrize("k", [1, 7, 26, 40, 1000])
@pytest.mark.parametrize("choice", ["flat", "hnsw"])
@pytest.mark.parametrize("exclude", [True, False])
def test_the_index_answers_as_the_exhaustive_search(tmp_path: Path, k: int, choice: str, exclude: bool) -> None:
    """Also with 15 tied items, k beyond the catalogue, and a catalogue so small that hnsw may not miss."""
    model = tied_model()
    index = ItemIndex.open(written(tmp_path, model, choice), model)
    vectors = model.catalogue.numpy()
    assert len(np.unique(vectors[25:], axis=0)) == 1
    for seed in range(5):
        log = columns(12, seed)
        state = model.encode(log)
        hidden = set(log["item"]) if exclude else set()
        rows, scores = exhaustive(vectors, state.embedding.numpy(), k, hidden)
        found = recommend_with_index(model, index, state, k, exclude)
        assert [item for item, _ in found] == rows
        assert [score for _, score in found] == scores
        assert_same_up_to_rounding(model, index, state, k, exclude)


@pytest.mark.parametrize("choice", ["flat", "hnsw"])
def test_everything_seen_or_nothing_there(tmp_path: Path, choice: str) -> None:
    model = recgpt()
    index = ItemIndex.open(written(tmp_path / "all", model, choice), model)
    log = columns(40) | {"item": list(range(40))}
    assert recommend_with_index(model, index, model.encode(log), 5) == []
    assert len(recommend_with_index(model, index, model.encode(log), 5, exclude_seen=False)) == 5
    rows, scores = index.search(model.encode(log).embedding, 3, hash_ids(["never seen", *range(38)]))
    assert sorted(rows) == [38, 39]
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)
    empty = RecGPT(model.model, recgpt().items.from_arrow(model.items.to_arrow().slice(0, 0)))
    assert len(empty.items) == 0
    nothing = ItemIndex.open(written(tmp_path / "none", empty, choice), empty)
    assert recommend_with_index(empty, nothing, empty.encode({"item": []}), 5) == []


def test_ties_at_the_cut_go_by_row_whatever_faiss_sums_up() -> None:
    """400 orders of the same numbers under a query of ones: equal scores, which FAISS's float32 sums do not see."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=24)
    vectors = np.stack([rng.permutation(numbers) for _ in range(400)]).astype(np.float32)
    built = build_index(vectors, "flat").index
    query, ids = np.ones(24, np.float32), list(range(400))
    summed, found = built.search(query[None], 20)
    assert len(np.unique(summed)) > 1
    assert sorted(found[0]) != ids[:20]  # so a search for the best alone would miss
    index = ItemIndex(built, plain_items(400))
    for k, hidden in ((1, 0), (10, 40), (399, 5)):
        rows, scores = index.search(query, k, hash_ids(ids[:hidden]))
        assert rows.tolist() == ids[hidden : hidden + k]
        assert len(np.unique(scores)) == 1


def unit(rng: np.random.Generator, n: int, width: int) -> NDArray[np.float32]:
    vectors = rng.normal(size=(n, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_hnsw_keeps_the_recall_it_states() -> None:
    """On 20,000 random directions, the hardest case, with queries that it was not measured on."""
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng, 20_000, 32), unit(rng, 64, 32)
    built = build_index(vectors, "hnsw", queries)
    assert built.kind == "hnsw"
    assert built.recall >= 0.98
    assert built.width in (64, 128, 256, 512, 1024, 2048)
    found = []
    for query in unit(rng, 100, 32):
        best = np.argsort(-(vectors @ query))[:100]
        _, rows = built.index.search(query[None], 100)
        found.append(len(np.intersect1d(best, rows)) / 100)
    assert np.mean(found) >= 0.97


def test_auto_chooses_by_size_and_by_recall(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    vectors = unit(np.random.default_rng(0), 500, 16)
    assert build_index(vectors).kind == "flat"
    monkeypatch.setattr(index_module, "FLAT_MAX", 499)
    assert build_index(vectors).kind == "hnsw"
    monkeypatch.setattr(index_module, "RECALL_FLOOR", 1.01)  # cannot be reached
    assert build_index(vectors).kind == "flat"
    assert "flat is written instead" in caplog.text
    assert build_index(vectors, "hnsw").kind == "hnsw"
    assert "--index-kind flat is exact" in caplog.text
    with pytest.raises(ConfigError, match="--index-kind: 'ivf'; choose one of auto, flat, hnsw"):
        build_index(vectors, "ivf")  # type: ignore[arg-type]


def test_an_hnsw_search_goes_wide_for_a_user_who_has_seen_the_best() -> None:
    rng = np.random.default_rng(0)
    vectors = unit(rng, 3000, 8)
    built = build_index(vectors, "hnsw")
    index = ItemIndex(built.index, plain_items(3000), built.width)
    query = unit(rng, 1, 8)[0]
    best = np.argsort(-(vectors @ query))
    for seen in (50, 500, 2995):
        rows, _ = index.search(query, 10, hash_ids(best[:seen].tolist()))
        assert rows.tolist() == best[seen : seen + 10].tolist()


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_files_hold_rows_not_hashes(tmp_path: Path) -> None:
    model = recgpt()
    folder = written(tmp_path, model)
    table = pq.read_table(folder / "index_ids.parquet")
    assert table.column_names == ["row", "item"]
    assert table["row"].to_pylist() == list(range(40))
    assert table["item"].to_pylist() == model.items.ids.to_pylist()
    faiss = index_module.import_faiss()
    stored = faiss.read_index(str(folder / "index.faiss"))
    assert (stored.ntotal, stored.d, stored.metric_type) == (40, 16, faiss.METRIC_INNER_PRODUCT)
    np.testing.assert_array_equal(stored.reconstruct_n(0, 40), model.catalogue.numpy())
    section = json.loads((folder / "manifest.json").read_text())["index"]
    assert {name: section[name] for name in ("kind", "dim", "rows")} == {"kind": "flat", "dim": 16, "rows": 40}
    assert not list(tmp_path.glob(".tmp*"))


def test_another_models_index_is_refused(tmp_path: Path) -> None:
    model, other = recgpt(0), recgpt(1)
    folder = written(tmp_path, model)
    with pytest.raises(ConfigError, match=f"made by model {model.fingerprint}, this is {other.fingerprint}; export"):
        ItemIndex.open(folder, other)
    with pytest.raises(RecGPTError, match="encode the user again"):
        recommend_with_index(model, ItemIndex.open(folder, model), other.encode(columns(3)), 5)
    with pytest.raises(ConfigError, match="k: 0; ask for at least 1"):
        recommend_with_index(model, ItemIndex.open(folder, model), model.encode(columns(3)), 0)
    with pytest.raises(RecGPTError, match="query: 3 numbers, the index holds vectors of 16"):
        ItemIndex.open(folder, model).search(np.zeros(3, np.float32), 1)


def test_an_index_of_other_items_or_features_is_refused(tmp_path: Path) -> None:
    """Neither is part of the fingerprint: the ids of untrained items, and what is known of an item."""
    model = recgpt(untrained=2)
    folder = written(tmp_path, model)
    fewer = RecGPT(model.model, model.items.from_arrow(model.items.to_arrow().slice(0, 39)))
    assert fewer.fingerprint == model.fingerprint
    with pytest.raises(ConfigError, match="lists other items than the run"):
        ItemIndex.open(folder, fewer)
    assert model.items.embedding is not None
    changed = RecGPT(model.model, replace(model.items, embedding=model.items.embedding + 1))
    assert changed.fingerprint == model.fingerprint
    with pytest.raises(ConfigError, match="are not those of this run's items; export the index again"):
        ItemIndex.open(folder, changed)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut_short, flip, empty])
@pytest.mark.parametrize("name", ["index.faiss", "index_ids.parquet"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    model = recgpt()
    folder = written(tmp_path, model)
    damage(folder / name)
    with pytest.raises(ConfigError, match=f"{name} is damaged .*; copy or export it again"):
        ItemIndex.open(folder, model)
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"{name} is missing"):
        ItemIndex.open(folder, model)


def test_folders_without_a_finished_index_are_refused(tmp_path: Path) -> None:
    model = recgpt()
    folder = written(tmp_path, model)
    manifest = json.loads((folder / "manifest.json").read_text())
    for text, told in (
        ("{", "manifest.json is damaged"),
        ("[]", "has no index; export once more"),
        (json.dumps(manifest | {"index": None}), "has no index; export once more"),
        (json.dumps(manifest | {"index": {}}), "its index section is no whole one"),
        (json.dumps(manifest | {"index": {"digests": {}}}), "is damaged"),
    ):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ConfigError, match=told):
            ItemIndex.open(folder, model)
    (folder / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=f"holds no finished export; write one with .* --out {folder} --index"):
        ItemIndex.open(folder, model)


def test_files_that_are_whole_but_of_another_export_are_refused(tmp_path: Path) -> None:
    """Digests set right by hand: what lies behind them is checked too."""
    model = recgpt()
    folder = written(tmp_path, model)
    manifest = json.loads((folder / "manifest.json").read_text())

    def signed() -> None:
        digests = {name: index_module._digest(folder / name) for name in ("index.faiss", "index_ids.parquet")}
        write_json(folder / "manifest.json", manifest | {"index": manifest["index"] | {"digests": digests}})

    faiss = index_module.import_faiss()
    whole = (folder / "index.faiss").read_bytes()
    faiss.write_index(build_index(model.catalogue.numpy()[:30], "flat").index, str(folder / "index.faiss"))
    signed()
    with pytest.raises(ConfigError, match="it holds 30 vectors of width 16"):
        ItemIndex.open(folder, model)
    (folder / "index.faiss").write_bytes(b"no index at all")
    signed()
    with pytest.raises(ConfigError, match=r"index\.faiss is damaged"):
        ItemIndex.open(folder, model)
    (folder / "index.faiss").write_bytes(whole)
    table = pq.read_table(folder / "index_ids.parquet")
    pq.write_table(table.take([1, 0, *range(2, 40)]), folder / "index_ids.parquet")
    signed()
    with pytest.raises(ConfigError, match="its rows are not 0, 1, 2"):
        ItemIndex.open(folder, model)


def test_without_faiss_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match="--index: the package faiss is missing .*; pip install faiss-cpu") as caught:
        build_index(np.eye(3, dtype=np.float32))
    assert "\n" not in str(caught.value)


BESIDE_TORCH = """
import sys, threading
for name in sys.argv[1].split(","):
    __import__(name)
import faiss, numpy as np, torch

faiss.omp_set_num_threads(2)
torch.set_num_threads(2)
rng = np.random.default_rng(0)
vectors = rng.normal(size=(2000, 32)).astype(np.float32)
index = faiss.IndexHNSWFlat(32, 16, faiss.METRIC_INNER_PRODUCT)
index.add(vectors)
flat = faiss.IndexFlatIP(32)
flat.add(vectors)
weights = torch.from_numpy(vectors)
want, product = flat.search(vectors, 1)[1], weights.T @ weights
wrong = []

def work(seed):
    for _ in range(20):
        if not np.array_equal(flat.search(vectors, 1)[1], want):
            wrong.append("search")
        index.search(vectors[:64], 10)
        if not torch.allclose(weights.T @ weights, product):
            wrong.append("product")

threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
[thread.start() for thread in threads]
[thread.join(100) for thread in threads]
sys.exit(" ".join(wrong) if wrong else 9 if any(thread.is_alive() for thread in threads) else 0)
"""


@pytest.mark.parametrize("order", ["torch,faiss", "faiss,torch"])
def test_faiss_and_torch_share_a_process(order: str) -> None:
    """Each brings its own OpenMP: both pools at work, from several threads, whichever was loaded first."""
    command = [sys.executable, "-c", BESIDE_TORCH, order]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
