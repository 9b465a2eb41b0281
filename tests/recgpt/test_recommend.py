"""One user of a run's log: what the verbs recommend and rank answer, against the library on the same events."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recgpt.answers import rank_answer, recommend_answer
from recgpt.cli import main
from recgpt.cli_verb import read_words
from recgpt.errors import ConfigError
from recgpt.ranker import Ranker, ScoreConfig
from recgpt.ranking.network import HeadsConfig, RankingNetwork
from recgpt.recommend import rank_user, read_items_file, recommend_user
from recgpt.stages import load_stage
from tests.recgpt.builders import write_log

SMALL = {"dim": 16, "heads": 2, "id": {"rows": 97}, "window": {"length": 16, "stride": 8, "chunk": 4}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with untrained heads."""
    folder = tmp_path_factory.mktemp("run")
    config = {
        "data": write_log(folder / "log", [3, 30, 8]),
        "model": SMALL,
        "run": {"steps": 2, "dir": str(folder / "a")},
    }
    load_stage("pretrain")(config)
    return folder / "a"


@pytest.fixture(scope="module")
def ranker(run: Path) -> Ranker:
    from recgpt.api import RecGPT

    model, heads = RecGPT.from_pretrained(run), HeadsConfig(attention=4, features=4, id_rows=53, hidden=[8])
    made = Ranker(model, RankingNetwork(heads, model.schema, 16, ["click"]), heads, ScoreConfig())
    made.save_pretrained(run / "model")
    return made


def events_of(run: Path, user: str) -> dict[str, list]:
    table = pq.read_table(run.parent / "log" / "events.parquet", filters=[("user", "==", user)]).to_pydict()
    return {name: table[name] for name in ("item", "time", "click")}


def test_recommendations_after_the_whole_log(run: Path) -> None:
    from recgpt.api import RecGPT

    model = RecGPT.from_pretrained(run)
    expected = recommend_answer(model, model.encode(events_of(run, "user 1")), "rebuild", 4)
    assert recommend_user(run, "user 1", 4) == expected
    with pytest.raises(ConfigError, match="user 'nobody' is not in the log"):
        recommend_user(run, "nobody", 4)


def test_ranks_after_the_whole_log(
    run: Path, ranker: Ranker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ranker.recgpt.encode(events_of(run, "user 1"))
    expected = rank_answer(ranker, state, "rebuild", [3, "-5", 1], {"time": 1_700_000_000})
    assert rank_user(run, "user 1", ["3", "-5", "1"], {"time": 1_700_000_000}) == expected
    words = ["rank", str(run), "--user", "user 1", "--context", "time=2023-11-14T22:13:20", "--json"]
    (tmp_path / "items.txt").write_text("3\r\n\r\n-5\n1", encoding="utf-8")
    for given in (["--items", "3, -5,1"], ["--items-file", str(tmp_path / "items.txt")]):
        assert main([*words, *given]) == 0
        assert json.loads(capsys.readouterr().out) == expected
    assert main(["rank", str(run), "--user", "user 1", "--items", "-5"]) == 0
    assert "rebuild" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--items", ","], "items: none is given"),
        (["--items-file", "nowhere.txt"], "--items-file: nowhere.txt"),
        (["--items", "1", "--items-file", "x"], "not allowed with"),
        ([], "--items"),
        (["--items", "1", "--context", "device"], "write key=value"),
        (["--items", "1", "--context", "tme=5"], "tme"),
        (["--items", "1", "--context", "time=[1, 2]"], "no single value"),
    ],
)
def test_wrong_arguments(
    run: Path, ranker: Ranker, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rank", str(run), "--user", "user 1", *words]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1


def test_wanted_outcomes_on_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from recgpt.api import RecGPT

    data = write_log(tmp_path / "log", [3, 30, 8])
    values = {"data": data, "model": SMALL | {"condition": True}, "run": {"steps": 2, "dir": str(tmp_path / "b")}}
    load_stage("pretrain")(values)
    capsys.readouterr()
    model = RecGPT.from_pretrained(tmp_path / "b")
    state = model.encode(events_of(tmp_path / "b", "user 1"))
    expected = recommend_answer(model, state, "rebuild", 4, want={"click": 1})
    assert expected != recommend_answer(model, state, "rebuild", 4)
    asked = ["recommend", str(tmp_path / "b"), "--user", "user 1", "-k", "4", "--json"]
    assert main([*asked, "--want", "click=1"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    for words, message in (
        (["--want", "click"], "--want: 'click'; write key=value, for example like=1"),
        (["--want", "clik=1"], "want.clik: this model reads no such value; did you mean 'click'?"),
    ):
        assert main([*asked, *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["recommend", str(run), "--user", "user 1", "--want", "click=1"]) == 2
    assert "want: this model cannot be asked for outcomes" in capsys.readouterr().err


def test_context_words_are_read_as_yaml() -> None:
    words = [
        "device=phone",
        "hour=7",
        "share=0.5",
        "night=true",
        "none=",
        "text='7'",
        "equation=a=b",
        "date=2022-04-28",
    ]
    assert read_words(words) == {
        "device": "phone", "hour": 7, "share": 0.5, "night": True, "none": None, "text": "7", "equation": "a=b",
        "date": "2022-04-28",
    }  # fmt: skip


def test_ids_of_a_file_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "items.txt"
    path.write_bytes("\ufeff a b \r\n007\n\n你好\u2028x\n-1".encode())
    assert read_items_file(path) == [" a b ", "007", "你好\u2028x", "-1"]
    path.write_bytes(b"\xff\xfe1")
    with pytest.raises(ConfigError, match="--items-file: .*one item id a line"):
        read_items_file(path)
