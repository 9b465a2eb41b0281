"""Curves over k against the metrics themselves, shares by hand, lists against what `recgpt evaluate` says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recgpt.evaluation import evaluate
from recgpt.metrics import ndcg_gain, recall_gain
from recgpt.report import validation
from recgpt.report.material import Material
from recgpt.report.retrieval import best_baseline, decile_shares, headline, mean_popularity, over_k
from recgpt.report.validation import read_lists
from recgpt.runs import TrainedRun


@pytest.mark.parametrize(("metric", "gain"), [("recall", recall_gain), ("ndcg", ndcg_gain)])
def test_curves_equal_the_metric_at_every_k(metric: str, gain: object) -> None:
    ranks = np.concatenate((np.random.default_rng(0).integers(1, 300, 500), [0, 0]))  # two misses
    ks = np.arange(1, 101)
    mean, low, high = over_k(ranks, metric, ks)
    gains = np.array([gain(ranks, int(k)) for k in ks])  # type: ignore[operator]
    assert mean == pytest.approx(gains.mean(1))
    half = 1.959963984540054 * gains.std(1, ddof=1) / len(ranks) ** 0.5
    assert low == pytest.approx(np.maximum(gains.mean(1) - half, 0))
    assert high == pytest.approx(gains.mean(1) + half)


def test_shares_by_tenth_by_hand() -> None:
    events = np.array([100, 1, *range(90, 0, -10), 5])
    candidate = np.ones(12, bool)
    candidate[1] = False
    shown = np.array([6, 99, 2, 2, 0, 0, 0, 0, 0, 0, 0, 1])
    # Candidates by popularity: 100, 90, 80 .. 10, 5: eleven, so the first tenth holds two of them.
    assert decile_shares(shown, candidate, events) == pytest.approx([8 / 11, 2 / 11, 0, 0, 0, 0, 0, 0, 0, 1 / 11])
    assert mean_popularity(np.array([3, 1]), np.array([10, 2])) == 8


def test_lists_agree_with_evaluate(first: Path) -> None:
    saved = evaluate(first, "valid")
    trained = TrainedRun.open(first)
    lists = read_lists(trained, lambda done, of: None)
    assert lists is not None
    table = pq.read_table(first / "eval" / "valid.users.parquet")
    assert lists.all_users == len(lists.rows) == len(table)
    assert trained.prepared.users.hash[lists.rows].tolist() == table["user"].to_pylist()
    candidates = trained.prepared.items.valid_candidate.sum()
    for system in ("model", "popularity", "item_knn", "markov"):
        assert lists.ranks[system].tolist() == table[system].to_pylist()
        shown = lists.shown[system]
        assert (shown > 0).sum() / candidates == pytest.approx(saved[system]["coverage@10"])
        popularity = mean_popularity(shown, trained.prepared.items.n_train_events)
        assert popularity == pytest.approx(saved[system]["avg_popularity@10"])


def test_a_large_log_is_sampled_and_says_so(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_lists(TrainedRun.open(first), lambda done, of: None)
    for name, value in {"FEWEST": 8, "MOST": 16, "GROUP": 4, "MOST_EVENTS": 1}.items():
        monkeypatch.setattr(validation, name, value)
    lists = read_lists(TrainedRun.open(first), lambda done, of: None)
    assert whole is not None
    assert lists is not None
    assert len(lists.rows) == 16
    assert lists.who == f"16 of the {whole.all_users} users of the validation part, evenly spread over the log"
    place = np.searchsorted(whole.rows, lists.rows)
    assert lists.ranks["model"].tolist() == whole.ranks["model"][place].tolist()
    assert list(lists.ranks) == ["model"]
    assert lists.left_out == ("popularity", "item_knn", "markov")


def test_headline_names_the_best_baseline(first: Path) -> None:
    ranks = Material.open(first).ranks
    assert ranks is not None
    ranked = {name: float(ndcg_gain(ranks.ranks[name], 10).mean()) for name in ("popularity", "item_knn", "markov")}
    assert best_baseline(ranks, 10) == max(ranked, key=lambda name: ranked[name])
    own = recall_gain(ranks.ranks["model"], 10).mean()
    sentence, table = headline(ranks)
    assert f"{100 * own:.1f}\N{NO-BREAK SPACE}%" in sentence
    assert table.rows[1][1].startswith(f"{own:.4f}\n")
