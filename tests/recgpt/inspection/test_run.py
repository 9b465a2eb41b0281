"""`recgpt inspect` of run folders: what is written, by whom it may be read, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from recgpt.cli import main
from recgpt.errors import RecGPTError
from recgpt.inspection import inspect
from recgpt.inspection import run as run_module
from recgpt.inspection.run import look, open_ranker, saved
from recgpt.nn.ids import ID_EMBEDDINGS
from recgpt.ranker import Ranker, ScoreConfig
from recgpt.ranking.network import HeadsConfig, RankingNetwork
from recgpt.runs import TrainedRun

MakeRun = Callable[..., TrainedRun]


def write_run(folder: Path, trained: TrainedRun, ranked: bool = False) -> Path:
    """A run folder as training leaves it."""
    settings = {"data": {"prepared": str(trained.prepared.folder)}, "run": {"log": trained.prepared.content}}
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    if ranked:
        heads = HeadsConfig(features=4, id_rows=53, hidden=[8], attention=4)
        torch.manual_seed(1)
        network = RankingNetwork(heads, trained.prepared.schema, trained.model.config.dim, ["click"])
        Ranker(trained.model, network, heads, ScoreConfig()).save_pretrained(folder / "model")
    else:
        trained.model.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def run(make_run: MakeRun, tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", make_run())


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for inner in value for number in numbers(inner)]
    return [value] if isinstance(value, float) else []


def test_what_is_written_is_what_is_returned_and_the_same_every_time(run: Path) -> None:
    found = inspect(run)
    text = (run / "inspect.json").read_text()
    assert json.loads(text) == found
    assert {"tables", "vectors", "collisions", "norms", "attention"} <= set(found)
    assert all(float(f"{number:.6g}") == number for number in numbers(found))
    assert inspect(run) == found
    assert (run / "inspect.json").read_text() == text
    assert not list(run.glob(".tmp-*"))
    assert [part["name"] for part in found["tables"]][0] == "items.id.table"
    assert found["users"]["attention"] == found["attention"]["users"] == found["users"]["all"]


@pytest.mark.parametrize("kind", ID_EMBEDDINGS)
def test_every_kind_of_id_is_looked_at_as_a_whole(kind: str, make_run: MakeRun) -> None:
    found = look(make_run(id={"kind": kind, "rows": 97}), None)
    assert found["collisions"]["kind"] == kind
    assert found["vectors"]["id"]["information_abundance"] > 4
    assert json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"causal": False, "positions": "learned", "block": "bert"},
        {"positions": "reverse", "score": "dot"},
        {"bias": {"distance": True, "time": True}, "block": "hstu"},
        {"look_ahead": [0, 5], "condition": True},
        {"numeric": "numerals", "time": ["gap", "hour", "week", "absolute"]},
    ],
)
def test_every_part_of_the_model_may_be_switched(changes: dict[str, Any], make_run: MakeRun) -> None:
    found = look(make_run(**changes), None)
    assert found["score"] == changes.get("score", "cosine")
    assert set(found["biases"]) == ({"distance", "gap"} if "bias" in changes else set())
    assert found["vectors"]["query"]["effective_rank"] > 1
    assert all(table["spectrum"]["effective_rank"] >= 1 for table in found["tables"] if "spectrum" in table)
    names = {table["name"]: table["reached"] for table in found["tables"]}
    if "positions" in changes:
        assert names["transformer.positions.table"] is None  # not looked at: all of its rows are described
    if "condition" in changes:
        assert names["query.outcomes.click.table"] is None


def test_heads_of_a_finetuned_run_are_looked_at_too(make_run: MakeRun, tmp_path: Path) -> None:
    plain = look(make_run(), None)
    folder = write_run(tmp_path / "heads", make_run(), ranked=True)
    found = inspect(folder)
    own = {table["name"]: table for table in found["tables"] if table["name"].startswith("heads.")}
    assert own["heads.id.table"]["rows"] == 53
    assert 0 < own["heads.id.table"]["reached"] <= 53
    assert own["heads.hour.table"]["reached"] is None
    assert found["tables"][: len(plain["tables"])] == plain["tables"]
    assert found["fingerprint"] == Ranker.from_pretrained(folder).fingerprint != plain["fingerprint"]
    trained = TrainedRun.open(folder)
    assert saved(trained, open_ranker(folder)) == found
    assert saved(trained, None) is None


def test_only_what_was_written_of_these_weights_is_read(run: Path, make_run: MakeRun) -> None:
    trained = TrainedRun.open(run)
    assert saved(trained, None) is None
    found = inspect(run)
    assert saved(trained, None) == found
    path = run / "inspect.json"
    for text in ("{", "[]", json.dumps(found | {"format": 0}), json.dumps(found | {"fingerprint": "another"})):
        path.write_text(text)
        assert saved(trained, None) is None


def test_large_logs_are_sampled_and_say_so(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MOST_ITEMS": 10, "MOST_USERS": 8, "TOGETHER": 4, "SAMPLE": 5}.items():
        monkeypatch.setattr(run_module, name, value)
    trained = make_run()
    found = look(trained, None)
    assert found["items"] == {"all": len(trained.model.items.trained), "vectors": 10}
    assert found["vectors"]["item"]["n"] == 10
    assert found["collisions"]["items"] == found["items"]["all"]  # collisions are counted in full
    assert (found["users"]["tables"], found["users"]["attention"]) == (8, 5)


def test_verb_shows_tables_or_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((run / "inspect.json").read_text())
    assert main(["inspect", str(run)]) == 0
    text = capsys.readouterr().out
    for word in ("items.id.table", "information abundance", "confused pairs", "Spearman", "layer 2, head 2", "even"):
        assert word in text
    assert "each of 2 out of 97 addresses" in text


def test_what_goes_wrong_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
    assert "no run folder" in capsys.readouterr().err
    (run / "inspect.json").mkdir()
    with pytest.raises(RecGPTError, match=r"inspect\.json: cannot be written"):
        inspect(run)
