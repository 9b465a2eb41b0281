"""RecGPT: item vectors, recommendations, what callers may give, model folders."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recgpt.api import RecGPT
from recgpt.data.batch import collate
from recgpt.errors import ConfigError, RecGPTError
from tests.recgpt.builders import columns, recgpt, schema


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
    twice = model.recommend(state, 10, exclude_seen=False, candidates=[39, 3, 39, 17, 3])
    assert [r.item for r in twice] == chosen
    array = model.recommend(state, 10, exclude_seen=False, candidates=np.array(candidates))
    assert [type(r.item) for r in array] == [int] * 3
    assert model.recommend(state, 10, candidates=[]) == []
    (nothing,) = model.recommend(state, 10, candidates=["never seen"])
    assert nothing == ("never seen", 0)
    equal = model.recommend(state, 10, candidates=list("hgfedcbah"))
    assert [r.item for r in equal] == list("hgfedcba")  # in the order given
    with pytest.raises(ConfigError, match="k: 0"):
        model.recommend(state, 0)


def test_a_query_may_ask_for_outcomes() -> None:
    model = recgpt(condition=True)
    for log in (columns(20), columns(0)):
        state = model.encode(log)
        hidden = state.hidden[-1] if len(state.hidden) else state.first
        wanted = {"click": torch.ones(1), "seconds": torch.tensor([30.0])}
        with torch.no_grad():
            expected = model.model.queries(hidden[None], wanted=wanted)[0]
        asked = model.query(state, {"click": True, "seconds": 30})
        torch.testing.assert_close(asked, expected)
        assert not torch.allclose(asked, state.embedding, atol=0.05)
        assert not torch.allclose(asked, model.query(state, {"click": 0, "seconds": 30}), atol=0.05)
        for nothing in (None, {}, {"click": None}):
            assert torch.equal(model.query(state, nothing), state.embedding)
        scores = (model.item_vectors(list(range(40))) @ asked).tolist()
        found = model.recommend(state, 5, exclude_seen=False, want={"click": 1, "seconds": 30.0})
        assert [r.item for r in found] == sorted(range(40), key=lambda i: -scores[i])[:5]
        among = model.recommend(state, 5, False, [r.item for r in found], want={"click": 1, "seconds": 30.0})
        assert [r.item for r in among] == [r.item for r in found]


def test_outcomes_that_cannot_be_asked_for() -> None:
    model = recgpt(condition=True)
    state = model.encode(columns(5))
    for want, message in (
        ({"clik": 1}, "want.clik: this model reads no such value; did you mean 'click'?"),
        ({"device": "phone"}, "want.device: this model reads no such value; it reads click, seconds"),
        ({"click": 2}, "want.click: 2 .*is not 0 or 1"),
        ({"seconds": -1.0}, "want.seconds: -1.0 .*negative watch time"),
        ({"seconds": "long"}, "want.seconds: type string is no number"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.recommend(state, 5, want=want)
    plain = recgpt()
    with pytest.raises(ConfigError, match="want: .*set model.condition: true"):
        plain.recommend(plain.encode(columns(5)), 5, want={"click": 1})
    with pytest.raises(RecGPTError, match="made by model"):
        model.query(plain.encode(columns(5)), {"click": 1})
    with pytest.raises(ConfigError, match="model.condition: the log has no outcome to ask for"):
        recgpt(log=schema(outcomes={}), condition=True)
    with pytest.raises(ConfigError, match="model.condition: true needs model.causal: true"):
        recgpt(condition=True, causal=False)


@pytest.mark.parametrize("value", [[], [1], [0, 0], [0, 5, 3], [5, 0]])
def test_look_aheads_rise_from_the_next_item(value: list[int]) -> None:
    with pytest.raises(ValueError, match=r"look_ahead[\s\S]*does not rise from 0; write for example \[0, 5, 12\]"):
        recgpt(look_ahead=value)


def test_recommendations_are_of_the_first_look_ahead() -> None:
    model = recgpt(look_ahead=[0, 4])
    log = columns(9)
    before = model.encode(log).embedding
    with torch.no_grad():
        for ahead in model.model.query.ahead:
            ahead.weight += 1
    assert torch.equal(recgpt_of(model).encode(log).embedding, before)


def recgpt_of(model: RecGPT) -> RecGPT:
    """The model as it is now, without what it remembers of its weights."""
    return RecGPT(model.model, model.items)


def test_item_vectors_are_unit_and_in_order() -> None:
    vectors = recgpt().item_vectors([5, 2, 5])
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    assert torch.equal(vectors[0], vectors[2])


def test_an_untrained_item_is_scored_by_its_content_alone() -> None:
    model = recgpt(untrained=2)
    content = {"embedding": [model.items.embedding[38].tolist()], "brand": ["brand 3"], "tags": [["tag 3"]]}
    own = model.item_vectors([38])
    torch.testing.assert_close(own, model.item_vectors(["never seen"], content))
    assert not torch.allclose(own, recgpt().item_vectors([38]))
    assert model.item_vectors(["never seen"]).abs().max() == 0


def test_untrained_items_in_a_history_are_read_by_content() -> None:
    model = recgpt(untrained=2)
    for untrained, trained in ((38, 37), (39, 36)):
        one, other = model.encode({"item": [1, untrained]}), model.encode({"item": [1, trained]})
        assert not torch.equal(one.embedding, other.embedding)
    unknown = model.encode({"item": [1, 99999]})
    assert torch.equal(unknown.embedding, model.encode({"item": [1, 88888]}).embedding)


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
    with pytest.raises(ConfigError, match="no finished run; finish its training"):
        RecGPT.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="not a whole model .*; copy or train it again"):
        RecGPT.from_pretrained(tmp_path)
    recgpt(layers=3).save_pretrained(tmp_path / "deep")
    weights.write_bytes((tmp_path / "deep" / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="weights belong to another config.* Unexpected key"):
        RecGPT.from_pretrained(tmp_path)
    recgpt(feed_forward=3).save_pretrained(tmp_path / "wide")
    weights.write_bytes((tmp_path / "wide" / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="weights belong to another config.*size mismatch") as error:
        RecGPT.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_weights_of_another_model_of_the_same_shape_are_refused(tmp_path: Path) -> None:
    one, other = recgpt(0), recgpt(1)
    one.save_pretrained(tmp_path / "one")
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "one" / "model.safetensors")
    with pytest.raises(ConfigError, match=f"{other.fingerprint}.*{one.fingerprint}.*copy or train it again"):
        RecGPT.from_pretrained(tmp_path / "one")


def test_the_config_of_a_model_folder(tmp_path: Path) -> None:
    model, config = recgpt(), tmp_path / "config.json"
    model.save_pretrained(tmp_path)
    saved = json.loads(config.read_text())
    assert list(saved) == ["format", "fingerprint", "model", "schema"]
    assert (saved["format"], saved["fingerprint"]) == (2, model.fingerprint)
    assert saved["schema"]["outcomes"] == {"click": "binary", "seconds": "watch_time"}
    for change, message in (
        ({"format": 1}, "format 1, this version reads 2"),
        ({"model": {"dim": "wide"}}, r"model\.dim"),
        ({"surprise": 1}, "surprise: unknown key"),
    ):
        config.write_text(json.dumps(saved | change))
        with pytest.raises(ConfigError, match=message):
            RecGPT.from_pretrained(tmp_path)
    config.write_text("[]")
    with pytest.raises(ConfigError, match="not a whole model"):
        RecGPT.from_pretrained(tmp_path)


def test_saving_leaves_the_rest_of_a_folder_and_writes_the_config_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep me")
    recgpt(0).save_pretrained(folder)
    recgpt(1).save_pretrained(folder)
    assert {p.name for p in folder.iterdir()} == {"notes.txt", "config.json", "items.parquet", "model.safetensors"}
    assert RecGPT.from_pretrained(folder).fingerprint == recgpt(1).fingerprint
    with pytest.raises(ConfigError, match=r"notes\.txt: is a file; name a folder"):
        recgpt(0).save_pretrained(folder / "notes.txt")

    def full(*_: object) -> None:
        raise RecGPTError("no space left")

    monkeypatch.setattr("recgpt.api.write_json", full)
    with pytest.raises(RecGPTError, match="no space"):
        recgpt(0).save_pretrained(tmp_path / "half")
    with pytest.raises(ConfigError, match=r"config\.json: not there"):
        RecGPT.from_pretrained(tmp_path / "half")


def test_a_model_changed_in_memory_is_saved_with_its_new_fingerprint(tmp_path: Path) -> None:
    model = recgpt()
    before = model.fingerprint
    with torch.no_grad():
        model.model.encoder.begin += 1
    model.save_pretrained(tmp_path)
    assert RecGPT.from_pretrained(tmp_path).fingerprint != before


def test_a_model_is_what_it_was_written_as(tmp_path: Path) -> None:
    """An earlier version's folder lacks later settings; it tells all others, so a changed default changes nothing."""
    model = recgpt()
    model.save_pretrained(tmp_path / "new")
    saved = json.loads((tmp_path / "new" / "config.json").read_text())
    assert set(saved["model"]) == set(type(model.config).model_fields)
    earlier = {
        "model": {name: value for name, value in saved["model"].items() if name != "condition"},
        "schema": saved["schema"],
    }
    old = RecGPT(model.model, model.items, earlier)
    assert old.fingerprint != model.fingerprint
    old.save_pretrained(tmp_path / "old")
    loaded = RecGPT.from_pretrained(tmp_path / "old")
    assert (loaded.fingerprint, loaded.config) == (old.fingerprint, model.config)
    loaded.save_pretrained(tmp_path / "again")
    assert RecGPT.from_pretrained(tmp_path / "again").fingerprint == old.fingerprint


CHANGES = {
    "click": lambda known: 0 if known else 1,
    "seconds": lambda known: 1000.0,
    "device": lambda known: "watch",
    "volume": lambda known: 50.0,
}


def test_nothing_of_an_event_but_those_before_it_reaches_its_prediction() -> None:
    """Position t of a training pass predicts event t: no outcome, context or time of t or later moves it."""
    model, log = recgpt(time=["gap", "hour", "absolute"], bias={"time": True}), columns(8)

    def hidden(table: dict) -> torch.Tensor:
        with torch.no_grad():
            return model.model(collate([model.events(table)], model.items))[0]

    before = hidden(log)
    for t, name in itertools.product(range(8), [*CHANGES, "time"]):
        changed = {key: list(column) for key, column in log.items()}
        if name == "time":  # and those behind it, which may not go back
            changed[name][t:] = [time + 40_000 for time in log[name][t:]]
        else:
            changed[name][t] = CHANGES[name](log[name][t])
        moved = (hidden(changed) - before).abs().amax(-1)
        assert moved[: t + 1].max() == 0
        assert moved[t + 1] > 1e-6


def test_read_only_arrays_are_accepted() -> None:
    column = np.arange(5)
    column.flags.writeable = False
    assert recgpt().encode({"item": column}).n == 5
