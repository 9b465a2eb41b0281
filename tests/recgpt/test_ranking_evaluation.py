"""A ranking evaluation of a stand-in run: what is measured, chosen, written and refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from recgpt import cli_output, ranking_evaluation
from recgpt.errors import ConfigError, RecGPTError
from recgpt.evaluation import compare
from recgpt.outcome_metrics import METRICS, gauc, logloss, outcome_metrics
from recgpt.ranking_evaluation import (
    SMOOTHING,
    ItemPopularity,
    choose_smoothing,
    compare_rankings,
    evaluate_opened,
    evaluate_ranking,
    item_popularity,
)
from recgpt.ranking_run import ImpressionScores

N_ITEMS, N_USERS = 12, 60


def part(n: int, seed: int) -> ImpressionScores:
    """Impressions of items with rates of their own; the online track knows the user too, the frozen one does not."""
    rng = np.random.default_rng(seed)
    user, item = np.sort(rng.integers(0, N_USERS, n)), rng.integers(0, N_ITEMS, n)
    rate = np.random.default_rng(99).random(N_ITEMS)[item]
    y = {}
    for name, factor in (("click", 1.0), ("like", 0.3)):
        y[name] = (rng.random(n) < factor * rate).astype(np.float32)
        y[name][rng.random(n) < 0.1] = np.nan
    p = {name: (0.7 * rate + 0.3 * rng.random(n)).astype(np.float32) for name in y}
    return ImpressionScores(user, item, rng.integers(0, 50, n), y, p)


class Run:
    """Stands for a `RankingRun`."""

    outcomes = ("click", "like")

    def __init__(self, path: Path, history: str = "online", fit_on: str = "train", sizes: Any = None) -> None:
        sizes = {"train": 600, "valid": 200, "test": 300} | (sizes or {})
        self.path, self.history, self.fit_on = path, history, fit_on
        self.parts = {name: part(n, seed) for seed, (name, n) in enumerate(sizes.items())}
        self.ranker = SimpleNamespace(fingerprint="f00d")
        self.prepared = SimpleNamespace(
            n_items=N_ITEMS,
            users=SimpleNamespace(hash=1_000 + np.arange(N_USERS)),
            items=SimpleNamespace(hash=-5 * np.arange(N_ITEMS)),
        )

    def labels(self, name: str) -> ImpressionScores:
        return self.parts[name]._replace(p={})

    def scores(self, name: str, track: str) -> ImpressionScores:
        rows = self.parts[name]
        if track == "online":
            return rows
        p = {outcome: (0.5 * column + 0.1).astype(np.float32) for outcome, column in rows.p.items()}
        p["click"] = p["click"][::-1].copy()
        return rows._replace(p=p, history=np.minimum(rows.history, 10))


def evaluated(folder: Path, split: str = "test", **changes: Any) -> tuple[Run, dict[str, Any]]:
    run = Run(folder, **changes)
    return run, evaluate_opened(run, split)  # type: ignore[arg-type]


class TestItemPopularity:
    item, y = np.array([0, 0, 0, 1, 2]), np.array([1.0, 1, 0, 0, 1])

    def test_rates_are_smoothed_towards_the_overall_rate(self):
        found = ItemPopularity.count(self.item, self.y, 4).predict(np.array([0, 1, 2, 3]), m=2)
        assert found == pytest.approx([(2 + 2 * 0.6) / 5, (0 + 1.2) / 3, (1 + 1.2) / 3, 0.6])

    def test_left_out_equals_counting_the_others(self):
        found = ItemPopularity.count(self.item, self.y, 4).left_out(self.item, self.y, m=5)
        for i in range(5):
            others = np.arange(5) != i
            alone = ItemPopularity.count(self.item[others], self.y[others], 4).predict(self.item[i : i + 1], m=5)
            assert found[i] == pytest.approx(alone[0])
        assert ItemPopularity.count(np.array([3]), np.array([1.0]), 4).left_out(np.array([3]), np.ones(1), 5) == 0.5

    def test_smoothing_is_the_best_of_the_grid(self):
        """Items alike: smooth much. Items of very different rates, each shown often: smooth little."""
        rng = np.random.default_rng(0)
        item = rng.integers(0, 20, 4_000)
        nothing = (item[:0], np.zeros(0))
        for rate, m in ((np.full(20, 0.3), SMOOTHING[-1]), (np.tile([0.02, 0.98], 10), SMOOTHING[0])):
            y = (rng.random(4_000) < rate[item]).astype(float)
            train, valid = (item[:2_000], y[:2_000]), (item[2_000:], y[2_000:])
            popularity = ItemPopularity.count(*train, 20)
            assert choose_smoothing(popularity, train, valid) == (m, "log loss on valid")
            losses = [logloss(valid[1], popularity.predict(valid[0], m)) for m in SMOOTHING]
            assert losses[SMOOTHING.index(m)] == min(losses)
            assert choose_smoothing(popularity, train, nothing) == (
                m,
                "log loss on train, each impression left out once",
            )

    def test_counts_come_from_train_and_the_choice_from_valid(self, tmp_path: Path):
        run = Run(tmp_path)
        item = np.arange(N_ITEMS)
        predicted, chosen = item_popularity(run, "test", item)  # type: ignore[arg-type]
        train = run.parts["train"]
        known = ~np.isnan(train.y["like"])
        for i in range(N_ITEMS):
            own = train.y["like"][known & (train.item == i)].astype(float)
            m, rate = chosen["like"]["m"], train.y["like"][known].mean(dtype=float)
            assert predicted["like"][i] == pytest.approx((own.sum() + m * rate) / (len(own) + m))
        assert chosen["like"]["chosen_by"] == "log loss on valid"
        assert "left out" in item_popularity(run, "valid", item)[1]["like"]["chosen_by"]  # type: ignore[arg-type]

    def test_a_refit_counts_the_validation_part_too(self, tmp_path: Path):
        run, refit = Run(tmp_path), Run(tmp_path, fit_on="train_valid")
        item = np.arange(N_ITEMS)
        m = item_popularity(run, "test", item)[1]["click"]["m"]  # type: ignore[arg-type]
        found, chosen = item_popularity(refit, "test", item)  # type: ignore[arg-type]
        assert chosen["click"]["m"] == m  # chosen before the validation part was counted
        rows = [run.parts[name] for name in ("train", "valid")]
        both = np.concatenate([part.item for part in rows]), np.concatenate([part.y["click"] for part in rows])
        known = ~np.isnan(both[1])
        whole = ItemPopularity.count(both[0][known], both[1][known], N_ITEMS)
        assert found["click"] == pytest.approx(whole.predict(item, m))

    def test_an_outcome_that_train_never_saw(self):
        nothing = (np.zeros(0, np.int64), np.zeros(0))
        popularity = ItemPopularity.count(*nothing, 3)
        m, _ = choose_smoothing(popularity, nothing, nothing)
        assert popularity.predict(np.arange(3), m).tolist() == [0.5] * 3


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("history", ["online", "frozen"])
def test_result_holds_the_metrics_of_each_track(tmp_path: Path, split: str, history: str) -> None:
    run, result = evaluated(tmp_path, split, history=history)
    rows = run.parts[split]
    assert (result["split"], result["rows"], result["history"]) == (split, len(rows.user), history)
    assert result["users"] == len(set(rows.user.tolist()))
    for track in ("online", "frozen"):
        scored = run.scores(split, track)
        for name in run.outcomes:
            expected = outcome_metrics(rows.y[name], scored.p[name], rows.user)
            assert result["tracks"][track][name] == expected
    assert (
        result["outcomes"]
        == result["tracks"][history]
        != result["tracks"]["online" if history == "frozen" else "frozen"]
    )
    predicted, chosen = item_popularity(run, split, rows.item)  # type: ignore[arg-type]
    assert result["item_popularity"]["like"] == outcome_metrics(rows.y["like"], predicted["like"], rows.user)
    assert result["protocol"]["item_popularity"] == chosen
    assert result["protocol"]["read_on"] == {name: "frozen" if name == "gauc" else history for name in METRICS}
    assert "online track" in result["protocol"]["gauc"]
    assert json.loads((tmp_path / "eval" / f"{split}.json").read_text()) == result


def test_paired_reads_gauc_on_the_frozen_track(tmp_path: Path) -> None:
    run, result = evaluated(tmp_path)
    gap, baseline = result["paired"]["item_popularity"]["click"], result["item_popularity"]["click"]
    assert gap["gauc"]["difference"] == result["tracks"]["frozen"]["click"]["gauc"] - baseline["gauc"]
    assert gap["auc"]["difference"] == result["tracks"]["online"]["click"]["auc"] - baseline["auc"]
    for name in METRICS:
        assert gap[name]["low"] < gap[name]["difference"] < gap[name]["high"]


def test_saved_impressions_reproduce_the_metrics(tmp_path: Path) -> None:
    run, result = evaluated(tmp_path, "valid", history="frozen")
    table = pq.read_table(tmp_path / "eval" / "valid-impressions.parquet")
    outcomes = ["y.click", "p.click", "frozen.click", "y.like", "p.like", "frozen.like"]
    assert table.column_names == ["user", "item", "history", *outcomes]
    rows = run.parts["valid"]
    assert table["user"].to_pylist() == (1_000 + rows.user).tolist()
    assert table["item"].to_pylist() == (-5 * rows.item).tolist()
    assert table["history"].to_pylist() == np.minimum(rows.history, 10).tolist()  # of the config's track
    assert table["y.click"].null_count == np.isnan(rows.y["click"]).sum() > 0
    columns = {name: table[name].to_numpy() for name in table.column_names}
    assert outcome_metrics(columns["y.like"], columns["p.like"], columns["user"]) == result["outcomes"]["like"]
    assert (columns["p.like"] == columns["frozen.like"]).all()


def test_only_readings_of_the_test_part_are_logged(tmp_path: Path) -> None:
    evaluated(tmp_path, "valid")
    assert not (tmp_path / "test_reads.jsonl").exists()
    for _ in range(2):
        _, result = evaluated(tmp_path, "test")
    lines = [json.loads(line) for line in (tmp_path / "test_reads.jsonl").read_text().splitlines()]
    assert [line["fingerprint"] for line in lines] == ["f00d", "f00d"]
    assert lines[1]["auc"] == {name: result["outcomes"][name]["auc"] for name in ("click", "like")}


def test_further_systems_are_measured_beside_it(tmp_path: Path) -> None:
    def oracle(rows: ImpressionScores) -> dict[str, Any]:
        assert rows.p == {}
        return {"click": np.random.default_rng(99).random(N_ITEMS)[rows.item]}

    result = evaluate_opened(Run(tmp_path), "test", {"oracle": oracle})  # type: ignore[arg-type]
    assert set(result["oracle"]) == set(result["paired"]["oracle"]) == {"click"}
    assert result["paired"]["oracle"]["click"]["logloss"]["difference"] == pytest.approx(
        result["outcomes"]["click"]["logloss"] - result["oracle"]["click"]["logloss"]
    )


def test_a_part_without_a_positive_gives_null(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.parts["test"].y["like"][:] = 0
    result = evaluate_opened(run, "test")  # type: ignore[arg-type]
    assert (result["outcomes"]["like"]["auc"], result["outcomes"]["like"]["ne"]) == (None, None)
    assert result["paired"]["item_popularity"]["like"]["auc"] == {"difference": None, "low": None, "high": None}
    assert json.loads((tmp_path / "eval" / "test.json").read_text()) == result
    cli_output.show_evaluation(result)


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="the test part holds no impression; check data.impressions"):
        evaluated(tmp_path, sizes={"test": 0})
    with pytest.raises(ConfigError, match="split: 'train'; choose valid or test"):
        evaluate_ranking(tmp_path, "train")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has learned from the valid part"):
        evaluated(tmp_path, "valid", fit_on="train_valid")
    run = Run(tmp_path)
    frozen = run.scores("test", "frozen")
    monkeypatch.setattr(run, "scores", lambda name, track: frozen if track == "frozen" else run.parts["train"])
    with pytest.raises(RecGPTError, match="same rows in the same order"):
        evaluate_opened(run, "test")  # type: ignore[arg-type]
    assert not (tmp_path / "eval").exists()


def test_a_run_is_opened_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking_evaluation, "RankingRun", SimpleNamespace(open=lambda path: Run(Path(path))))
    assert evaluate_ranking(tmp_path, "valid")["rows"] == 200


class TestCompare:
    @pytest.fixture
    def runs(self, tmp_path: Path) -> tuple[Path, Path]:
        first, second = tmp_path / "first", tmp_path / "second"
        evaluated(first)
        better = Run(second)
        for name, column in better.parts["test"].p.items():
            better.parts["test"].p[name] = 0.3 * column + 0.7 * np.nan_to_num(better.parts["test"].y[name], nan=0.5)
        evaluate_opened(better, "test")  # type: ignore[arg-type]
        return first, second

    def test_runs_are_paired_over_users(self, runs: tuple[Path, Path]):
        found = compare(*runs)
        assert (found["rows"], found["history"]) == (300, {str(run): "online" for run in runs})
        saved = [json.loads((run / "eval" / "test.json").read_text()) for run in runs]
        for name in ("click", "like"):
            gap = found["second_minus_first"][name]
            for metric in METRICS:
                track = "frozen" if metric == "gauc" else "online"
                a, b = (result["tracks"][track][name][metric] for result in saved)
                assert gap[metric]["difference"] == pytest.approx(b - a, abs=1e-9)
                assert [found["runs"][str(run)][name][metric] for run in runs] == pytest.approx([a, b])
            assert gap["auc"]["low"] > 0 > gap["logloss"]["high"]
        table = pq.read_table(runs[1] / "eval" / "test-impressions.parquet")
        columns = [table[name].to_numpy() for name in ("y.like", "frozen.like", "user")]
        assert found["runs"][str(runs[1])]["like"]["gauc"] == pytest.approx(gauc(*columns)[0])

    def test_a_run_equals_itself(self, runs: tuple[Path, Path]):
        found = compare_rankings(runs[0], runs[0])
        assert found["second_minus_first"]["like"]["auc"] == {"difference": 0.0, "low": 0.0, "high": 0.0}

    def test_only_common_outcomes_are_compared(self, runs: tuple[Path, Path], tmp_path: Path):
        one = Run(tmp_path / "one")
        one.outcomes = ("like",)  # type: ignore[assignment]
        evaluate_opened(one, "test")  # type: ignore[arg-type]
        assert set(compare(runs[0], tmp_path / "one")["second_minus_first"]) == {"like"}
        other = Run(tmp_path / "other")
        other.outcomes = ("click",)  # type: ignore[assignment]
        evaluate_opened(other, "test")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="no outcome in common"):
            compare(tmp_path / "one", tmp_path / "other")

    @pytest.mark.parametrize("column", ["user", "item", "y.click", "rows"])
    def test_runs_of_different_logs_are_refused(self, runs: tuple[Path, Path], tmp_path: Path, column: str):
        other = Run(tmp_path / "other", sizes={"test": 299 if column == "rows" else 300})
        rows = other.parts["test"]
        if column == "y.click":
            rows.y["click"][:] = np.where(np.arange(300) == 7, np.nan, np.nan_to_num(rows.y["click"]))
        elif column != "rows":
            getattr(rows, column)[-1] = 3
        evaluate_opened(other, "test")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="their impressions differ"):
            compare(runs[0], tmp_path / "other")

    def test_runs_of_two_kinds_or_not_evaluated_are_refused(self, runs: tuple[Path, Path], tmp_path: Path):
        retrieval = tmp_path / "retrieval"
        with pytest.raises(ConfigError, match="run `recgpt evaluate .*retrieval --split test` first"):
            compare(runs[0], retrieval)
        (retrieval / "eval").mkdir(parents=True)
        pq.write_table(
            pq.read_table(runs[0] / "eval" / "test-impressions.parquet"), retrieval / "eval" / "test.users.parquet"
        )
        for pair in ((runs[0], retrieval), (retrieval, runs[0])):
            with pytest.raises(
                ConfigError, match=f"{runs[0]} was evaluated on impressions and the other on next items"
            ):
                compare(*pair)


def test_printed_tables_fit_a_hundred_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path / "a")
    rate = np.random.default_rng(99).random(N_ITEMS)
    oracle = lambda rows: {name: rate[rows.item] for name in run.outcomes}  # noqa: E731
    result = evaluate_opened(run, "test", {"oracle": oracle})  # type: ignore[arg-type]
    cli_output.show_evaluation(result)
    text = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    outcome, baseline = result["outcomes"]["like"], result["item_popularity"]["like"]
    table = text[text.index("like: rate") :]
    [line] = [line for line in table.splitlines() if line.split()[:1] == ["logloss"]]
    low, high = outcome["interval"]["logloss"]
    difference = outcome["logloss"] - baseline["logloss"]
    expected = f"{outcome['logloss']:.4f} {low:.4f}, {high:.4f} {baseline['logloss']:.4f}"
    assert " ".join(line.split()).startswith(f"logloss {expected}")
    assert f"{difference:+.4f}" in line
    gaucs = {line.split()[1]: line.split() for line in table.splitlines() if line.split()[:1] == ["gauc,"]}
    for track in ("frozen", "online"):
        assert gaucs[track][2] == f"{result['tracks'][track]['like']['gauc']:.4f}"
    evaluate_opened(Run(tmp_path / "b"), "test")  # type: ignore[arg-type]
    cli_output.show_comparison(compare(tmp_path / "a", tmp_path / "b"))
    text = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in text.splitlines() if str(tmp_path) not in line) <= 100
    assert f"1: {tmp_path / 'a'}, history online" in text
