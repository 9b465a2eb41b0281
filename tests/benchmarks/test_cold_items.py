"""The cold-item benchmark, and what it is there to show, at a tiny size."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.cold_items import cosine_scorer, measure, recalls, table, variant, without_cold_items
from recgpt.evaluation import Block

COLUMNS = ("user", "item", "time")


def log(events: dict[str, str]) -> pa.Table:
    """One letter an item, in order."""
    rows = [(user, item, time) for user, items in events.items() for time, item in enumerate(items)]
    return pa.table(dict(zip(COLUMNS, (list(column) for column in zip(*rows, strict=True)), strict=True)))


def kept(events: dict[str, str], share: float, seed: int = 0) -> dict[str, str]:
    rows = without_cold_items(log(events), COLUMNS, share, seed).to_pylist()
    return {user: "".join(row["item"] for row in rows if row["user"] == user) for user in events}


def test_cold_items_stay_as_last_events_alone() -> None:
    events = {"u": "abcdefghij", "v": "jihgfedcba", "w": "aabbccddeei", "x": "cdefgabj"}
    for seed in range(8):
        after = kept(events, 0.2, seed)
        cold = [item for item in "abcdefghij" if all(item not in items[:-1] for items in after.values())]
        assert len(cold) == 2
        for user, items in events.items():
            assert after[user] == "".join(item for item in items[:-1] if item not in cold) + items[-1]
    assert kept(events, 0) == events


def test_a_user_too_short_for_a_test_target_keeps_no_cold_item() -> None:
    """Three events make a test target; of a shorter history the last event would be one of training."""
    for seed in range(8):
        after = kept({"u": "abz", "v": "az", "w": "bz", "x": "ab"}, 1 / 3, seed)
        if after["x"] == "ab":  # z is the cold one
            assert after == {"u": "abz", "v": "a", "w": "b", "x": "ab"}
            return
    pytest.fail("no seed chose z")


def test_the_order_column_decides_which_event_is_last() -> None:
    rows = {"user": ["u"] * 4, "item": ["a", "b", "c", "d"], "time": [4, 3, 2, 1]}
    for seed in range(8):
        items = without_cold_items(pa.table(rows), COLUMNS, 0.25, seed)["item"].to_pylist()
        assert "a" in items
        assert len(items) == (4 if len(set("bcd") - set(items)) == 0 else 3)


def test_recall_by_hand() -> None:
    rank = np.array([1, 10, 11, 50, 51, 0])
    cold = np.array([True, True, False, False, False, True])
    assert recalls(rank, cold) == {
        "cold": {"recall@10": 0.6667, "recall@50": 0.6667},
        "warm": {"recall@10": 0.0, "recall@50": 0.6667},
        "all": {"recall@10": 0.3333, "recall@50": 0.6667},
    }
    assert "cold" not in recalls(rank, np.zeros(6, bool))


def test_cosine_by_hand() -> None:
    content = np.float32([[2, 0], [0, 3], [np.nan, np.nan], [1, 1]])
    block = Block(np.arange(2), [], [np.array([0, 1]), np.array([2, 0])], np.zeros(2, np.int64))
    half = 2**-0.5
    expected = [[0.8, 1, 0, 1.8 * half], [1, 0, 0, half]]  # the newer of two counts 1, the older .8
    np.testing.assert_allclose(cosine_scorer(content)(block), expected, atol=1e-6)


def test_variants_differ_in_content_alone() -> None:
    config = {"data": {"prepared": "p", "items": {"path": "i"}}, "model": {"dim": 8}, "optim": {"lr": 1}}
    free = variant(config, "content-free")
    assert free == config | {"data": {"prepared": "p-plain"}}
    content, cascade = variant(config, "content"), variant(config, "cascade")
    assert content == config | {"data": config["data"] | {"prepared": "p-content"}}
    assert cascade["model"].pop("content")
    assert cascade == content


def test_content_finds_cold_items_and_the_same_model_without_it_cannot(tmp_path) -> None:
    """Users stay in one of 8 groups of 10 items; content says which, with noise."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(8), 10)
    of_user = rng.integers(0, 8, 160)
    items = np.stack([rng.permutation(10)[:8] + 10 * g for g in of_user])
    events = pa.table({"user": np.repeat(np.arange(160), 8), "item": items.ravel(), "time": np.tile(np.arange(8), 160)})
    content = np.eye(8, 12)[group] + 0.1 * rng.standard_normal((80, 12))
    pq.write_table(without_cold_items(events, COLUMNS, 0.2, 0), tmp_path / "events.parquet")
    side = {"item": np.arange(80), "v": pa.array(content.tolist(), pa.list_(pa.float32()))}
    pq.write_table(pa.table(side), tmp_path / "items.parquet")
    config = {
        "data": {
            "events": str(tmp_path / "events.parquet"),
            "user": "user",
            "item": "item",
            "order": "time",
            "items": {"path": str(tmp_path / "items.parquet"), "id": "item", "embedding": "v"},
            "prepared": str(tmp_path / "prepared"),
        },
        "model": {
            "dim": 16,
            "layers": 1,
            "heads": 1,
            "id": {"rows": 512},
            "id_dropout": 0.2,
            "window": {"length": 8, "stride": 8, "chunk": 8},
        },
        "optim": {"lr": 1e-2, "batch_tokens": 256, "warmup_steps": 0},
        "run": {"epochs": 8},
    }
    result = measure(config, ["content", "content-free"], tmp_path / "runs")
    systems, targets = result["systems"], result["targets"]
    assert 12 <= result["cold_items"] <= 16  # one that is no target is not in the log
    assert targets["cold"] > 15
    assert sum(targets.values()) == 160
    assert systems["content"]["cold"]["recall@10"] > 0.8
    assert systems["content"]["warm"]["recall@10"] > 0.8
    assert systems["content-free"]["warm"]["recall@10"] > 0.8
    assert systems["content-free"]["cold"]["recall@10"] < 0.1
    assert systems["popularity"]["cold"]["recall@10"] == 0
    assert systems["content"]["among_cold"]["recall@10"] >= systems["content"]["cold"]["recall@10"]
    assert systems["content-free"]["among_cold"]["recall@10"] < 0.1  # all score 0: a tie never helps
    assert systems["cosine"]["cold"]["recall@10"] > 0.8
    assert len(table(result).splitlines()) == 5
