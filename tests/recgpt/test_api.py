"""RecGPT: item vectors, recommendations, what callers may give, model folders."""

from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from recgpt.api import RecGPT
from recgpt.errors import ConfigError, RecGPTError
from tests.recgpt.builders import columns, cut, recgpt


def test_recommend_equals_sorting_all_scores() -> None:
    model, log = recgpt(), columns(10)
    state = model.encode(log)
    scores = (model.item_vectors(list(range(40))) @ state.embedding).tolist()
    order = [i for i in sorted(range(40), key=lambda i: -scores[i]) if i not in log["item"]]
    found = model.recommend(state, 7)
    assert [r.item for r in found] == order[:7]
    assert [r.score for r in found] == pytest.approx([scores[i] for i in order[:7]], abs=1e-6)
    everything = model.recommend(state, 100, exclude_seen=False)
    assert len(everything) == 40
    assert {r.item for r in model.recommend(state, 100)} == set(range(40)) - set(log["item"])


def test_seen_beyond_the_window_is_not_recommended() -> None:
    model, log = recgpt(), columns(39)
    log["item"] = list(range(39))  # the window of 16 holds the newest ones alone
    state = model.encode(log)
    assert state.start > 0
    assert [r.item for r in model.recommend(state, 10)] == [39]


def test_recommend_among_candidates() -> None:
    model, state = recgpt(), recgpt().encode(columns(5))
    candidates = [39, 3, 17]
    chosen = [r.item for r in model.recommend(state, 10, exclude_seen=False, candidates=candidates)]
    everything = [r.item for r in model.recommend(state, 40, exclude_seen=False)]
    assert chosen == [i for i in everything if i in candidates]
    with pytest.raises(ConfigError, match="k: 0"):
        model.recommend(state, 0)


def test_item_vectors_are_unit_and_in_order() -> None:
    vectors = recgpt().item_vectors([5, 2, 5])
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    assert torch.equal(vectors[0], vectors[2])


def test_an_untrained_item_is_scored_by_its_content_alone() -> None:
    model = recgpt(untrained=2)
    content = {"embedding": [model.items.embedding[38].tolist()], "brand": ["brand 3"]}
    own = model.item_vectors([38])
    torch.testing.assert_close(own, model.item_vectors(["never seen"], content))
    assert not torch.allclose(own, recgpt().item_vectors([38]))
    assert model.item_vectors(["never seen"]).abs().max() == 0


def test_untrained_items_in_a_history_are_read_by_content() -> None:
    model = recgpt(untrained=2)
    for untrained, trained in ((38, 37), (39, 36)):
        one, other = model.encode({"item": [1, untrained]}), model.encode({"item": [1, trained]})
        assert not torch.equal(one.embedding, other.embedding)
    unknown = model.encode({"item": [1, "x"] if False else [1, 99999]})
    assert torch.equal(unknown.embedding, model.encode({"item": [1, 88888]}).embedding)


def as_tables(table: dict) -> list:
    arrow = pa.table(table)
    return [table, arrow, arrow.to_pandas(types_mapper=pd.ArrowDtype), pl.from_arrow(arrow), datasets.Dataset(arrow)]


def test_every_kind_of_table_gives_one_state() -> None:
    model = recgpt()
    states = [model.encode(table) for table in as_tables(columns(12))]
    for state in states[1:]:
        assert torch.equal(state.embedding, states[0].embedding)
        assert state.content_hash == states[0].content_hash


def test_ids_of_any_size_and_script_are_told_apart() -> None:
    model = recgpt()
    big = 2**63 - 1
    assert model.events({"item": [big, big - 1, -(2**63)]}).item.tolist() == [
        model.events({"item": [str(i)]}).item[0] for i in (big, big - 1, -(2**63))
    ]
    strings = ["ключ", "鍵", "clé", "cle\u0301", "🗝", " key", "key"]
    assert len(set(model.events({"item": strings}).item)) == len(strings)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"item": [1.0, 2.0]}, r"events\.item: ids are floating point \(first: 1\.0\); give integers or strings"),
        ({"item": [1, None]}, r"events\.item: null at row 1; leave that event out"),
        ({"itme": [1]}, r"no item column 'item'; did you mean 'itme'"),
        ({"item": [1], "time": [1_600_000_000_000]}, r"events\.time: 1600000000000 is no time .* in s"),
        ({"item": [1], "time": [-5]}, r"events\.time: -5 is no time"),
        ({"item": [1], "time": ["noon"]}, r"events\.time: type string is no time"),
        ({"item": [1], "click": [float("nan")]}, r"events\.click: NaN; write null"),
        ({"item": [1], "click": ["yes"]}, r"events\.click: type string is no number"),
        ({"item": [1, "a"]}, r"events: a column mixes types"),
        ({"item": [""]}, "empty"),
        ([1, 2], r"events: got list; give a dict of columns"),
    ],
)
def test_bad_events_are_refused_by_name(table: object, message: str) -> None:
    with pytest.raises(RecGPTError, match=message) as error:
        recgpt().encode(table)
    assert "\n" not in str(error.value)


def test_saved_and_loaded_models_agree(tmp_path: Path) -> None:
    model, log = recgpt(untrained=1), columns(20)
    model.save_pretrained(tmp_path / "model")
    other = RecGPT.from_pretrained(tmp_path / "model")
    assert other.fingerprint == model.fingerprint
    assert torch.equal(other.encode(log).hidden, model.encode(log).hidden)
    assert other.recommend(model.encode(log), 5) == model.recommend(model.encode(log), 5)
    assert other.items.title == model.items.title
    assert not list(tmp_path.glob(".tmp*"))


def test_truncated_or_foreign_model_folders_are_refused(tmp_path: Path) -> None:
    model = recgpt()
    with pytest.raises(ConfigError, match="no finished run; finish it with `recgpt pretrain`"):
        RecGPT.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="not a whole model .*; copy or train it again"):
        RecGPT.from_pretrained(tmp_path)
    recgpt(layers=3).save_pretrained(tmp_path / "deep")
    weights.write_bytes((tmp_path / "deep" / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="weights belong to another config"):
        RecGPT.from_pretrained(tmp_path)


def test_the_outcome_of_an_event_reaches_no_prediction_of_itself() -> None:
    """The state that predicts event t is the one after t events: it holds no outcome of t."""
    model, log = recgpt(), columns(8)
    for t in range(8):
        flipped = cut(log, 0, 8)
        flipped["click"] = list(log["click"])
        flipped["click"][t] = 0 if log["click"][t] else 1
        before, after = model.encode(cut(log, 0, t)), model.encode(cut(flipped, 0, t))
        assert torch.equal(before.embedding, after.embedding)
        assert not torch.equal(model.encode(log).embedding, model.encode(flipped).embedding)


def test_read_only_arrays_are_accepted() -> None:
    column = np.arange(5)
    column.flags.writeable = False
    assert recgpt().encode({"item": column}).n == 5
