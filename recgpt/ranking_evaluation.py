"""Ranking metrics of a fine-tuned run on the impressions of a part, beside each item's own rate.

Every impression is scored on two tracks by the same weights: *online*, its history going up to the impression, and
*frozen*, its history ending where the part begins (one state a user over the whole part).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from recgpt.data.impression_batches import Track
from recgpt.errors import ConfigError, RecGPTError
from recgpt.eval_files import Split, impressions_file, require_split, save_evaluation, saved_result, saved_table
from recgpt.outcome_metrics import BINS, CLIP, METRICS, Measured, logloss, measure, paired
from recgpt.ranking_run import ImpressionScores, RankingRun

TRACKS: tuple[Track, ...] = ("online", "frozen")
BASELINE = "item_popularity"
SMOOTHING = (2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Impressions at the overall rate that an item's own are mixed with; one is chosen per outcome."""
BOOTSTRAP = 200
GAUC_NOTE = (
    "gauc compares a user's impressions with each other. On the online track the score also follows the user's own "
    "earlier outcomes (after a lone like every later row scores higher, and each is a negative), which lowers gauc "
    "whatever the model is worth: read it on the frozen track, and never compare it across tracks."
)

Predictor = Callable[[ImpressionScores], Mapping[str, ArrayLike]]
"""From the impressions of a part (p = {}) to the probabilities of each outcome, [N] in their order."""


@dataclass(frozen=True)
class ItemPopularity:
    """An item's smoothed rate of an outcome on earlier impressions: (sum y + m rate) / (n + m).

    Attributes:
        n: float64 [I], the item's impressions with a known outcome.
        positives: float64 [I], those with the outcome.
    """

    n: NDArray[np.float64]
    positives: NDArray[np.float64]

    @classmethod
    def count(cls, item: NDArray[np.int64], y: NDArray[np.floating], n_items: int) -> ItemPopularity:
        """Count impressions of known outcome: item rows int64 [N], y 0 or 1 [N]."""
        n = np.bincount(item, minlength=n_items).astype(np.float64)
        return cls(n, np.bincount(item, np.asarray(y, np.float64), n_items).astype(np.float64))

    def predict(self, item: NDArray[np.int64], m: float) -> NDArray[np.float64]:
        """Float64 [N] for item rows; the overall rate for an item that was never shown."""
        rate = _rate(self.positives.sum(), self.n.sum())
        return (self.positives[item] + m * rate) / (self.n[item] + m)

    def left_out(self, item: NDArray[np.int64], y: NDArray[np.floating], m: float) -> NDArray[np.float64]:
        """The same for the counted impressions themselves, each predicted as if it had not been counted."""
        rate = _rate(self.positives.sum() - y, self.n.sum() - 1)
        return (self.positives[item] - y + m * rate) / (self.n[item] - 1 + m)


def _rate(positives: Any, n: float) -> Any:
    return positives / n if n > 0 else np.full_like(positives, 0.5, np.float64)


def choose_smoothing(
    popularity: ItemPopularity,
    train: tuple[NDArray[np.int64], NDArray[np.floating]],
    valid: tuple[NDArray[np.int64], NDArray[np.floating]],
) -> tuple[int, str]:
    """The m of `SMOOTHING` with the lowest log loss, and what that was measured on.

    Args:
        popularity: counted on `train`.
        train: item rows and outcomes (known ones) of the train impressions.
        valid: of the validation impressions; none of them: train, each impression left out once.
    """
    item, y = valid if len(valid[0]) else train
    predict = popularity.predict if len(valid[0]) else lambda rows, m: popularity.left_out(rows, y, m)
    losses = [logloss(y, predict(item, m)) for m in SMOOTHING]
    where = "valid" if len(valid[0]) else "train, each impression left out once"
    return SMOOTHING[int(np.argmin(losses))], f"log loss on {where}"


def item_popularity(
    run: RankingRun, split: Split, item: NDArray[np.int64]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, dict[str, Any]]]:
    """The baseline's probabilities for item rows, and the smoothing that was chosen; both by outcome.

    When the test part is evaluated, the smoothing is chosen on the validation impressions, which then count too if
    the run has learned from them; else it is chosen on train.
    """
    train, valid = run.labels("train"), run.labels("valid") if split == "test" else None
    predicted, chosen = {}, {}
    for name in run.outcomes:
        seen, held = _labelled(train, name), (item[:0], np.zeros(0)) if valid is None else _labelled(valid, name)
        popularity = ItemPopularity.count(*seen, run.prepared.n_items)
        m, by = choose_smoothing(popularity, seen, held)
        if run.fit_on == "train_valid":
            later = ItemPopularity.count(*held, run.prepared.n_items)
            popularity = ItemPopularity(popularity.n + later.n, popularity.positives + later.positives)
        predicted[name], chosen[name] = popularity.predict(item, m), {"m": m, "chosen_by": by}
    return predicted, chosen


def _labelled(rows: ImpressionScores, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    y = np.asarray(rows.y[name], np.float64)
    known = ~np.isnan(y)
    return rows.item[known], y[known]


def evaluate_ranking(
    run: str | Path, split: Split = "test", extra: Mapping[str, Predictor] | None = None
) -> dict[str, Any]:
    """Evaluate a fine-tuned run; writes `eval/SPLIT.json` and `eval/SPLIT-impressions.parquet`.

    The table holds one row an impression: hashes of user and item, `history` (events of the config's track), and for
    each outcome `y.NAME` (null = unknown), `p.NAME` (config's track) and `frozen.NAME`.

    Args:
        run: the run's folder.
        split: `valid` or `test`; a reading of the test part is added to `test_reads.jsonl`.
        extra: further systems by name, such as a simulator's oracle.

    Returns:
        `outcomes`: the metrics of each outcome on the config's track (of `measure`); `tracks`: on both;
        `item_popularity` and each of `extra`: the same of those; `paired`: the model minus each of them, gauc on the
        frozen track, else on the config's; `protocol`: what was compared and how to read it.

    Raises:
        ConfigError: no fine-tuned run, it has learned from the part, or the part holds no impression.
    """
    require_split(split)
    return evaluate_opened(RankingRun.open(run), split, extra)


def evaluate_opened(run: RankingRun, split: Split, extra: Mapping[str, Predictor] | None = None) -> dict[str, Any]:
    """`evaluate_ranking` of a run that is open already."""
    if split == "valid" and run.fit_on == "train_valid":
        raise ConfigError(
            f"split: {run.path} has learned from the valid part (tasks.fit_on: train_valid); evaluate test, or the run "
            "that it is a refit of"
        )
    online, frozen = (run.scores(split, track) for track in TRACKS)
    rows = frozen if run.history == "frozen" else online
    _require_same_rows(online, frozen)
    if len(rows.user) == 0:
        raise ConfigError(f"split: the {split} part holds no impression; check data.impressions and data.split")
    predicted: dict[str, Mapping[str, ArrayLike]] = {"online": online.p, "frozen": frozen.p}
    predicted[BASELINE], smoothing = item_popularity(run, split, rows.item)
    others = [BASELINE, *(extra or {})]
    for name, predictor in (extra or {}).items():
        predicted[name] = predictor(rows._replace(p={}))
    measured = {
        system: {name: measure(rows.y[name], p[name], rows.user, BOOTSTRAP) for name in run.outcomes if name in p}
        for system, p in predicted.items()
    }
    metrics = {system: {name: of.metrics for name, of in outcomes.items()} for system, outcomes in measured.items()}
    read = {name: _read(measured[run.history][name], measured["frozen"][name]) for name in run.outcomes}
    result: dict[str, Any] = {
        "split": split,
        "rows": len(rows.user),
        "users": len(np.unique(rows.user)),
        "history": run.history,
        "outcomes": metrics[run.history],
        **{name: metrics[name] for name in others},
        "tracks": {track: metrics[track] for track in TRACKS},
        "paired": {
            system: {name: paired(read[name], of) for name, of in measured[system].items()} for system in others
        },
        "protocol": _protocol(run, smoothing),
    }
    reading = {
        "fingerprint": run.ranker.fingerprint,
        "auc": {name: of["auc"] for name, of in result["outcomes"].items()},
    }
    save_evaluation(run.path, impressions_file(run.path, split), _columns(run, rows, frozen), result, reading)
    return result


def _require_same_rows(a: ImpressionScores, b: ImpressionScores) -> None:
    if not (np.array_equal(a.user, b.user) and np.array_equal(a.item, b.item)):
        raise RecGPTError("impressions: the online and the frozen track do not hold the same rows in the same order")


def _read(track: Measured, frozen: Measured) -> Measured:
    """Each metric from the track that it should be read on: gauc from the frozen one."""
    interval = track.metrics["interval"] | {"gauc": frozen.metrics["interval"]["gauc"]}
    return Measured(
        track.metrics | {"gauc": frozen.metrics["gauc"], "interval": interval},
        track.values | {"gauc": frozen.values["gauc"]},
        track.samples | {"gauc": frozen.samples["gauc"]},
    )


def _protocol(run: RankingRun, smoothing: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "trained_on": run.fit_on,
        "ties": "half",
        "clip": CLIP,
        "ece_bins": BINS,
        "intervals": f"95 %, {BOOTSTRAP} resamples of users",
        "read_on": {name: "frozen" if name == "gauc" else run.history for name in METRICS},
        "gauc": GAUC_NOTE,
        BASELINE: dict(smoothing),
    }


def _columns(run: RankingRun, rows: ImpressionScores, frozen: ImpressionScores) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "user": run.prepared.users.hash[rows.user],
        "item": run.prepared.items.hash[rows.item],
        "history": rows.history,
    }
    for name in run.outcomes:
        columns[f"y.{name}"] = pa.array(np.asarray(rows.y[name], np.float32), from_pandas=True)  # NaN becomes null
        columns[f"p.{name}"], columns[f"frozen.{name}"] = rows.p[name], frozen.p[name]
    return columns


def compare_rankings(run_a: str | Path, run_b: str | Path, split: Split = "test") -> dict[str, Any]:
    """Paired 95 % intervals of run B over run A on the same impressions, from what their evaluations saved.

    Returns:
        Per outcome that both predict: the metrics of each run and the second's minus the first's; gauc on the
        frozen track, else on each run's own (`history`).

    Raises:
        ConfigError: a run is not evaluated, or their impressions or outcomes differ.
    """
    runs = (Path(run_a), Path(run_b))
    tables = [saved_table(run, impressions_file(run, split), split) for run in runs]
    a, b = ({name: table[name].to_numpy() for name in table.column_names} for table in tables)
    names = [name.removeprefix("y.") for name in a if name.startswith("y.") and name in b]
    if not names:
        raise ConfigError(f"{run_a} and {run_b}: they predict no outcome in common")
    for key in ("user", "item", *(f"y.{name}" for name in names)):
        if not np.array_equal(a[key], b[key], equal_nan=key.startswith("y.")):
            raise ConfigError(
                f"{run_a} and {run_b}: their impressions differ (column {key}), so they cannot be paired; evaluate "
                "both on one log, split and data.impressions.where"
            )
    read = [
        {
            name: _read(
                *(measure(a[f"y.{name}"], of[f"{key}.{name}"], a["user"], BOOTSTRAP) for key in ("p", "frozen"))
            )
            for name in names
        }
        for of in (a, b)
    ]
    return {
        "split": split,
        "rows": len(a["user"]),
        "users": len(np.unique(a["user"])),
        "history": {str(run): saved_result(run, split)["history"] for run in runs},
        "runs": {
            str(run): {name: {metric: of.metrics[metric] for metric in METRICS} for name, of in measured.items()}
            for run, measured in zip(runs, read, strict=True)
        },
        "second_minus_first": {name: paired(read[1][name], read[0][name]) for name in names},
    }
