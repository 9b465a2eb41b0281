"""The whole story through the command line, as a newcomer runs it: from an empty directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]


class Story(NamedTuple):
    """A finished quickstart and an export of its run."""

    home: Path
    run: Path
    printed: dict[str, Any]
    users: dict[str, list[Any]]
    items: dict[str, list[Any]]


def recgpt(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recgpt", *words],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def result_of(home: Path, *words: str) -> dict[str, Any]:
    done = recgpt(home, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return result


def _columns(folder: Path) -> dict[str, list[Any]]:
    tables = [pq.read_table(part).to_pydict() for part in sorted(folder.glob("part-*.parquet"))]
    return {name: [value for table in tables for value in table[name]] for name in tables[0]}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    home = tmp_path_factory.mktemp("home")
    printed = result_of(home, "quickstart", "--size", "tiny", "--out", "first")
    assert (home / "first" / "summary.json").is_file()
    run = home / "first" / "run"
    result_of(home, "export", str(run), "--out", "vectors")
    assert (home / "vectors" / "manifest.json").is_file()
    users, items = _columns(home / "vectors" / "users"), _columns(home / "vectors" / "items")
    return Story(home, run, printed, users, items)


def test_the_summary_is_what_was_printed(story: Story) -> None:
    text = (story.home / "first" / "summary.json").read_text(encoding="utf-8")
    summary = json.loads(text)
    assert summary == story.printed
    for method in ("model", "popularity", "item_knn", "markov", "oracle"):
        assert 0 < summary[method]["ndcg@10"] < 1, method
        assert summary[method]["ndcg@10"] <= summary["oracle"]["ndcg@10"]
    assert summary["model"]["ndcg@10"] > summary["popularity"]["ndcg@10"]
    assert all(seconds >= 0 for seconds in summary["seconds"].values())
    # "Nothing beside --out": a newcomer's directory stays as it was.
    assert {path.name for path in story.home.iterdir()} <= {"first", "vectors"}


def test_the_ranking_goes_on_from_the_pretrained_run(story: Story) -> None:
    summary, ranking = story.printed, story.home / "first" / "ranking"
    assert set(summary["ranking"]) == {"click", "like"}
    for outcome, values in summary["ranking"].items():
        assert set(values) == {"auc", "gauc", "logloss", "ne", "ece"}
        assert 0.5 < values["auc"] < summary["ranking_beside"]["oracle"][outcome]["auc"]
    ranked, served = summary["ranked"], summary["served"]
    assert [each["item"] for each in ranked["items"]] == [each["item"] for each in served["items"]]
    for here, there in zip(ranked["items"], served["items"], strict=True):
        assert here["known"]
        assert here["outcomes"] == pytest.approx(there["outcomes"], abs=1e-6)
    items = ",".join(str(each["item"]) for each in ranked["items"])
    context = [f"{name}={value}" for name, value in ranked["context"].items()]
    words = [word for pair in context for word in ("--context", pair)]
    body = result_of(story.home, "rank", str(ranking), "--user", ranked["user"], "--items", items, *words)
    assert body["items"] == ranked["items"]
    assert body["state"]["source"] == "rebuild"


def test_the_report_is_one_page(story: Story) -> None:
    page = (story.home / "first" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") >= 3
    assert 'src="http' not in page


def test_recommend_agrees_with_the_exported_vectors(story: Story) -> None:
    items = dict(zip(story.items["item"], story.items["embedding"], strict=True))
    for user, vector in list(zip(story.users["user"], story.users["embedding"], strict=True))[:3]:
        body = result_of(story.home, "recommend", str(story.run), "--user", str(user), "-k", "5")
        scores = [entry["score"] for entry in body["items"]]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)
        expected = [np.dot(vector, items[entry["item"]]) for entry in body["items"]]
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        assert body["state"]["events"] > 0


def test_evaluate_and_compare(story: Story) -> None:
    result = result_of(story.home, "evaluate", str(story.run), "--split", "valid", "--k", "5,10")
    assert result["split"] == "valid"
    assert {"recall@5", "recall@10", "ndcg@10", "mrr"} <= set(result["model"])
    assert result["model"]["recall@5"] <= result["model"]["recall@10"]
    saved = json.loads((story.run / "eval" / "valid.json").read_text(encoding="utf-8"))
    assert saved["model"] == result["model"]

    def differences(value: Any) -> Iterator[float]:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key == "difference":
                    yield inner
                else:
                    yield from differences(inner)

    found = list(differences(result_of(story.home, "compare", str(story.run), str(story.run))))
    assert found
    assert found == [0.0] * len(found)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("recommend", "{run}", "--user", "no such user"), 2, "no such user"),
        (("recommend", "nowhere", "--user", "1"), 2, "nowhere"),
        (("evaluate", "nowhere"), 2, "nowhere"),
        (("export", "nowhere", "--out", "x"), 2, "nowhere"),
        (("pretrain", "nowhere.yaml"), 2, "nowhere.yaml"),
        (("prepare", "nowhere.yaml"), 2, "nowhere.yaml"),
        (("data", "check", "nowhere.yaml"), 2, "nowhere.yaml"),
        (("quickstart", "--data", "no-such-log"), 2, "no-such-log"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_not_there_is_one_clear_line(story: Story, words: tuple[str, ...], code: int, told: str) -> None:
    done = recgpt(story.home, *(word.format(run=story.run) for word in words))
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert told in done.stderr
    assert done.stderr.startswith("recgpt: ")
    assert done.stderr.count("\n") == 1
