"""Ranking from a state: cached as uncached, many candidates as one by one, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recgpt.api import RecGPT
from recgpt.data.targets import Chosen
from recgpt.errors import ConfigError, RecGPTError
from recgpt.ranker import Ranked, Ranker, is_ranker
from tests.recgpt.builders import columns, cut, ranker, recgpt

CONTEXT = {"device": "phone", "volume": 0.3, "time": 1_600_900_060}
PROFILE = {"country": "NL", "age": 33.0}
IDS = [3, 17, 3, 999, 8]


def probabilities(ranked: list[Ranked]) -> np.ndarray:
    return np.array([list(each.outcomes.values()) for each in ranked])


@pytest.mark.parametrize("n", [0, 1, 7, 16, 17, 24, 31])
def test_a_grown_state_ranks_as_one_that_was_encoded_at_once(n: int) -> None:
    model, log = ranker(), columns(n)
    whole = model.recgpt.encode(log, profile=PROFILE)
    grown = model.recgpt.encode({}, profile=PROFILE)
    for at in range(n):
        grown = model.recgpt.append(grown, cut(log, at, at + 1))
    padded = model.recgpt.encode_many([log], [PROFILE])[0]
    expected = model.rank(whole, IDS, CONTEXT)
    assert model.rank(grown, IDS, CONTEXT) == expected
    np.testing.assert_allclose(probabilities(model.rank(padded, IDS, CONTEXT)), probabilities(expected), atol=1e-5)


@pytest.mark.parametrize("behaviour", ["din", "pool"])
def test_many_candidates_rank_as_one_by_one(behaviour: str) -> None:
    model = ranker(behaviour=behaviour)
    state = model.recgpt.encode(columns(20))
    at_once = model.rank(state, list(range(40)) * 9, CONTEXT)  # more than one block
    assert [each.item for each in at_once] == list(range(40)) * 9
    alone = [model.rank(state, [item], CONTEXT)[0] for item in range(40)]
    np.testing.assert_allclose(probabilities(at_once), np.tile(probabilities(alone), (9, 1)), atol=1e-6)


def test_everything_that_is_known_matters() -> None:
    model, log = ranker(), columns(12)
    base = probabilities(model.rank(model.recgpt.encode(log), IDS, CONTEXT))
    others = [
        model.rank(model.recgpt.encode(cut(log, 0, 11)), IDS, CONTEXT),
        model.rank(model.recgpt.encode(log | {"click": [1] * 12}), IDS, CONTEXT),
        model.rank(model.recgpt.encode(log, profile=PROFILE), IDS, CONTEXT),
        model.rank(model.recgpt.encode(log), IDS, CONTEXT | {"device": "tablet"}),
        model.rank(model.recgpt.encode(log), IDS, CONTEXT | {"time": 1_600_900_060 + 5 * 3600}),
        model.rank(model.recgpt.encode(log), IDS),
        model.rank(model.recgpt.encode(log), [4, 4, 4, 4, 4], CONTEXT),
    ]
    for other in others:
        assert np.abs(probabilities(other) - base).max() > 1e-4


def test_an_unknown_item_is_scored_by_what_is_known_of_it() -> None:
    model = ranker(untrained=5)
    ranked = model.rank(model.recgpt.encode(columns(10)), [2, 38, 39, 12345, 67890], CONTEXT)
    assert [each.known for each in ranked] == [True, False, False, False, False]
    assert ranked[1].outcomes != ranked[2].outcomes  # their content and brand differ
    assert ranked[3].outcomes == ranked[4].outcomes  # of these nothing is known


def test_the_score_formula() -> None:
    total = ranker(kind="sum", weights={"click": 1.0, "like": 4.0})
    power = ranker(kind="product", weights={"like": 0.5})
    state = total.recgpt.encode(columns(10))
    for model, score in ((total, lambda c, k: c + 4 * k), (power, lambda c, k: k**0.5), (ranker(), lambda c, k: c + k)):
        for each in model.rank(state, IDS, CONTEXT):
            assert each.score == pytest.approx(score(each.outcomes["click"], each.outcomes["like"]))


def test_no_candidates_give_no_ranks() -> None:
    model = ranker()
    assert model.rank(model.recgpt.encode({}), []) == []


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"devise": "phone"}, "context.devise: this model reads no such value; did you mean 'device'"),
        ({"colour": 1}, "it reads device, volume, time"),
        ({"volume": "loud"}, "context.volume"),
        ({"device": 1.5}, "context.device"),
        ({"time": -5}, "context.time"),
        ({"time": "yesterday"}, "^context.time: 'yesterday' is not an ISO date"),
        ({"time": "1969-12-31T23:59:59"}, "^context.time: '1969-12-31T23:59:59' is no time from 1970 to 2099"),
        ({"time": "2100-01-01"}, "^context.time: '2100-01-01' is no time from 1970 to 2099"),
    ],
)
def test_a_wrong_context_is_refused(context: dict[str, Any], message: str) -> None:
    model = ranker()
    with pytest.raises(ConfigError, match=message):
        model.rank(model.recgpt.encode(columns(3)), IDS, context)


def test_the_time_may_be_text() -> None:
    model = ranker()
    state = model.recgpt.encode(columns(3))
    a = model.rank(state, IDS, {"time": "2020-09-23T22:27:40"})
    assert a == model.rank(state, IDS, {"time": 1_600_900_060})
    assert a != model.rank(state, IDS, {"time": "2020-09-23T12:27:40"})


def test_one_text_is_no_list_of_ids() -> None:
    model = ranker()
    with pytest.raises(ConfigError, match="^ids: 'abc' is one text"):
        model.rank(model.recgpt.encode(columns(3)), "abc")


def test_a_state_of_another_model_is_refused() -> None:
    with pytest.raises(RecGPTError, match="made by model"):
        ranker().rank(recgpt(seed=5).encode(columns(3)), IDS)


def test_a_saved_ranker_ranks_the_same(tmp_path: Path) -> None:
    model = ranker(kind="product", weights={"click": 2.0})
    model.save_pretrained(tmp_path / "run" / "model")
    loaded = Ranker.from_pretrained(tmp_path / "run")
    assert loaded.fingerprint == model.fingerprint
    assert is_ranker(tmp_path / "run")
    log = columns(20)
    assert loaded.rank(loaded.recgpt.encode(log), IDS, CONTEXT) == model.rank(model.recgpt.encode(log), IDS, CONTEXT)
    assert RecGPT.from_pretrained(tmp_path / "run").fingerprint == model.recgpt.fingerprint


def test_a_file_is_no_place_for_a_ranker(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match="file: is a file; name a folder"):
        ranker().save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_mixed_or_missing_files_are_refused(tmp_path: Path) -> None:
    ranker().save_pretrained(tmp_path)
    other = tmp_path / "other"
    ranker(seed=3).save_pretrained(other)
    mixed = (other / "ranker.safetensors").read_bytes()
    (tmp_path / "ranker.safetensors").write_bytes(mixed)
    with pytest.raises(ConfigError, match="different models"):
        Ranker.from_pretrained(tmp_path)
    (tmp_path / "ranker.safetensors").write_bytes(mixed[:100])
    with pytest.raises(ConfigError, match="not a whole ranker"):
        Ranker.from_pretrained(tmp_path)
    saved = json.loads((tmp_path / "ranker.json").read_text())
    (tmp_path / "ranker.json").write_text(json.dumps(saved | {"score": {"weights": {"buy": 1}}}))
    with pytest.raises(ConfigError, match="buy"):
        Ranker.from_pretrained(tmp_path)
    recgpt().save_pretrained(tmp_path / "plain")
    with pytest.raises(ConfigError, match="no ranking heads"):
        Ranker.from_pretrained(tmp_path / "plain")


def test_a_batch_of_impressions_and_the_states_of_serving_agree() -> None:
    """What finetuning computes in one padded pass is what serving computes from the state at each impression."""
    from recgpt.data.batch import collate, gap_between, hours
    from recgpt.data.impression_batches import ImpressionBatch
    from recgpt.data.table import read_context
    from recgpt.ranker import RankingModel
    from recgpt.state import known_only

    model, log = ranker(untrained=4), columns(14)
    events, ids = model.recgpt.events(log, PROFILE), [39, 5, 11, 2]
    history = np.array([0, 3, 14, 14])
    known, moment = read_context(CONTEXT, model.recgpt.schema)
    before = np.append(events.time, np.iinfo(np.int64).min)[history - 1]
    batch = ImpressionBatch(
        events=collate([events], model.recgpt.items, [Chosen(history, model.recgpt.events({"item": ids}).item)]),
        context={name: torch.tensor([value] * 4) for name, value in known.items()},
        hour=torch.from_numpy(hours(np.full(4, moment))),
        gap=torch.from_numpy(gap_between(before, np.full(4, moment))),
        labels={},
        row=torch.arange(4),
    )
    batch = ImpressionBatch(**(vars(batch) | {"events": known_only(batch.events, model.recgpt.items.trained)}))
    with torch.no_grad():
        p = torch.sigmoid(RankingModel(model.recgpt.model, model.network).eval()(batch)).numpy()
    for row, (n, item) in enumerate(zip(history, ids, strict=True)):
        state = model.recgpt.encode(cut(log, 0, int(n)), profile=PROFILE)
        np.testing.assert_allclose(p[row], probabilities(model.rank(state, [item], CONTEXT))[0], atol=1e-5)


def test_heads_read_directions_whatever_the_score_is() -> None:
    """With `score: dot` lengths tell items apart; the heads' inputs keep the scale that they have with cosines."""
    heads, found = ranker(), []
    for factor in (1, 10):
        events = recgpt(score="dot")
        with torch.no_grad():
            events.model.query.weight *= factor
            events.model.item.weight *= factor
        model = Ranker(RecGPT(events.model, events.items), heads.network, heads.heads, heads.score)
        found.append([each.score for each in model.rank(model.recgpt.encode({"item": [1, 2]}), [3, 4, 5])])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert len(set(found[0])) == 3
