"""The accuracy benchmark: its rows, what a measurement keeps, what the page says of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.accuracy.__main__ import PAGE, main
from benchmarks.accuracy.page import mean_gain, page
from benchmarks.accuracy.plan import ROWS, Plan, Row
from benchmarks.accuracy.results import FOLDER, Result, digits, read
from recgpt.config import load_config
from recgpt.errors import ConfigError
from recgpt.metrics import ndcg_gain
from tests.recgpt.builders import write_log

SHIPPED: Plan = load_config(Plan, ROWS)
OTHERS = [
    {"system": "X", "ndcg": 0.5, "recall": 0.75},
    {"system": "Y", "ndcg": 0.25, "recall": 0.5, "command": "python y.py"},
]
TINY_MODEL = {"dim": 8, "layers": 1, "heads": 1, "id": {"rows": 31}, "window": {"length": 8, "stride": 4, "chunk": 4}}


def plan(folder: Path) -> Path:
    """Two rows over a tiny log, with two seeds."""
    data = write_log(folder / "log", [9] * 12)
    base = folder / "base.yaml"
    base.write_text(yaml.safe_dump({"data": data, "model": TINY_MODEL, "run": {"epochs": 1}}))
    values = {
        "seeds": 2,
        "logs": {"tiny": {"title": "A tiny log", "text": "All.", "others": OTHERS, "remark": "Short of X."}},
        "rows": [
            {"name": "cold", "log": "tiny", "value": "cold", "config": str(base)},
            {
                "name": "hot",
                "log": "tiny",
                "value": "hot",
                "config": str(base),
                "set": ["loss.temperature=1.0"],
                "against": "cold",
            },
        ],
    }
    path = folder / "rows.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def result(seed: int, rank: list[int], **changes: Any) -> Result:
    test = {"ndcg@10": 0.1 + seed / 100, "recall@10": 0.2, "coverage@10": 0.5, "avg_popularity@10": 1234.4}
    values = {
        "seed": seed,
        "test": test,
        "baselines": {"markov": {**test, "ndcg@10": 0.05}},
        "valid": test,
        "ranks": digits(np.array(rank)),
        "minutes": 8.25,
        "threads": 2,
        "targets": 1000,
        "model_bytes": 2_000_000,
        "date": "2026-11-22",
        "versions": {"recgpt": "0.1.0", "torch": "2.13.0"},
        "config": {},
    }
    return Result(**values | changes)


# The plan that ships.


@pytest.mark.parametrize("row", SHIPPED.rows, ids=lambda row: row.name)
def test_every_row_is_a_config_of_its_own(row: Row) -> None:
    assert row.source.is_file()
    settings = row.settings()
    assert [other.name for other in SHIPPED.rows if other.settings() == settings] == [row.name]
    assert settings["run.epochs"] is not None


def test_the_page_in_the_repository_is_the_rendered_one() -> None:
    measured = {row.name: read(FOLDER, row, SHIPPED.seeds)[0] for row in SHIPPED.rows}
    assert PAGE.read_text(encoding="utf-8") == page(SHIPPED, measured)


def test_results_belong_to_rows_and_were_measured_with_their_configs() -> None:
    known = {f"{row.name}-{seed}.json" for row in SHIPPED.rows for seed in range(SHIPPED.seeds)}
    assert {path.name for path in FOLDER.glob("*.json")} <= known
    assert [line for row in SHIPPED.rows for line in read(FOLDER, row, SHIPPED.seeds)[1]] == []


# Measuring.


def test_a_measurement_reads_the_test_part_once_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, runs, results = plan(tmp_path), tmp_path / "runs", tmp_path / "results"
    words = ["--plan", str(path), "--runs", str(runs), "--results", str(results), "--threads", "1"]
    assert main([*words, "cold", "--seeds", "1"]) == 0
    [row, _] = load_config(Plan, path).rows
    [first], _ = read(results, row, 2)
    saved = pq.read_table(runs / "cold-0" / "eval" / "test.users.parquet").sort_by("user")
    assert first.ranks == digits(saved["model"].to_numpy())  # whatever order a log has its users in
    assert len(first.ranks) == 12
    assert first.test["ndcg@10"] == pytest.approx(ndcg_gain(first.rank(), 10).mean(), abs=1e-6)
    assert set(first.baselines) == {"popularity", "item_knn", "markov"}

    (results / "cold-0.json").unlink()  # stopped after the evaluation
    assert main([*words, "--seeds", "1"]) == 0
    assert read(results, row, 2)[0] == [first]
    assert len((runs / "cold-0" / "test_reads.jsonl").read_text().splitlines()) == 1
    assert sorted(file.name for file in results.iterdir()) == ["cold-0.json", "hot-0.json"]
    (results / "cold-0.json").unlink()
    (runs / "cold-0" / "eval" / "test.json").unlink()  # killed within the evaluation
    assert main([*words, "--seeds", "1"]) == 0
    assert read(results, row, 2)[0] == [first]
    out = tmp_path / "page.md"
    assert main([*words, "--render", "--out", str(out)]) == 0
    assert "| **hot** |" in out.read_text()


def test_a_result_of_another_config_is_told_and_does_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, results = plan(tmp_path), tmp_path / "results"
    results.mkdir()
    [row, _] = load_config(Plan, path).rows
    for seed, dim in enumerate((8, 16)):
        config = row.settings() | {"model.dim": dim}
        (results / f"cold-{seed}.json").write_text(json.dumps(vars(result(seed, [1], config=config))))
    found, stale = read(results, row, 2)
    assert [each.seed for each in found] == [0]
    assert stale == ["cold-1.json: measured with another config (model.dim: 16 then, 8 now)"]
    assert main(["--plan", str(path), "--results", str(results), "--runs", str(tmp_path / "runs"), "cold"]) != 0
    assert "remove it to measure again" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_wrong_names_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", str(plan(tmp_path)), "warm"]) != 0
    assert "warm: no such row; rows: cold, hot" in capsys.readouterr().err
    for seeds in ("0", "-1", "3"):
        assert main(["--plan", str(tmp_path / "rows.yaml"), "--results", str(tmp_path), "--seeds", seeds]) != 0
        assert f"--seeds: {seeds}; the plan has 1 to 2" in capsys.readouterr().err
    values = yaml.safe_load((tmp_path / "rows.yaml").read_text())
    values["rows"][1]["against"] = "warm"
    with pytest.raises(ConfigError, match=r"hot\.against: no row 'warm'"):
        load_config(Plan, values)


# The page.


def test_ranks_survive_as_digits() -> None:
    rank = np.array([0, 1, 2, 9, 10, 11, 5000])
    assert digits(rank) == "0129a00"
    assert result(0, rank.tolist()).rank().tolist() == [0, 1, 2, 9, 10, 0, 0]


def test_a_row_shows_mean_and_range_of_its_seeds(tmp_path: Path) -> None:
    read_plan: Plan = load_config(Plan, plan(tmp_path))
    text = page(read_plan, {"cold": [result(0, [1, 2]), result(1, [1, 2])], "hot": []})
    assert "| **cold** | .1050 (.1000 to .1100) | .2000 (.2000 to .2000) | .5000 | 1,234 | 2 | 8 min, 2 cores |" in text
    assert "| **hot** |" not in text
    assert text.index("## Not measured yet") < text.index("- tiny, hot: ")
    assert "| markov | .0500 | .2000 | .5000 | 1,234 |  |  |" in text
    assert "| X, published | .5000 | .7500 |  |  |  |  |" in text
    assert "| Y, measured here | .2500 | .5000 |  |  |  |  |\n\nShort of X.\n\n- tiny, cold: `" in text
    assert "- tiny, Y: `python y.py`" in text
    assert f"`recgpt pretrain {tmp_path}/base.yaml loss.temperature=1.0`" in text
    quoted = read_plan.model_copy(update={"rows": [read_plan.rows[0].model_copy(update={"set": ["a={}"]})]})
    assert "base.yaml 'a={}'`" in page(quoted, {"cold": [result(0, [1])]})
    assert "2 runs, 2026-11-22, torch 2.13.0." in text


def test_a_share_is_of_each_users_mean_over_seeds(tmp_path: Path) -> None:
    """Two users, two seeds. Gains of hot: (1, 0) and (1, 1 / log2(3)); of cold (1, 1 / log2(3)) both times."""
    second = 1 / np.log2(3)
    hot, cold = [result(0, [1, 0]), result(1, [1, 2])], [result(0, [1, 2]), result(1, [1, 2])]
    np.testing.assert_allclose(mean_gain(hot), [1, second / 2])
    text = page(load_config(Plan, plan(tmp_path)), {"cold": cold, "hot": hot})
    share = 100 * (-second / 4) / ((1 + second) / 2)
    assert share < 0
    assert f"**hot**: NDCG@10 {-share:.1f} % below **cold** (95 % over users" in text
    assert "each user's mean of 2 seeds" in text
    assert "MB of weights" not in text
    small = [result(0, [1, 0], model_bytes=500_000)]
    text = page(load_config(Plan, plan(tmp_path)), {"cold": cold, "hot": small})
    assert re.search(r"\(95 % over users, one seed: .* at 0\.50 against 2\.00 MB of weights in all\.", text)
    alone = page(load_config(Plan, plan(tmp_path)), {"cold": cold[1:], "hot": hot[:1]})
    assert "below **cold**" not in alone  # no seed in common
