"""A fine-tuned run: how well outcomes of impressions are predicted, from what `recgpt evaluate` saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recgpt.eval_files import Split, impressions_file
from recgpt.inspection.sample import spread
from recgpt.outcome_metrics import METRICS, calibration, measure
from recgpt.report.blocks import (
    MINUS,
    Block,
    Figure,
    Figures,
    Heading,
    Key,
    Section,
    Table,
    Text,
    count,
    number,
    percent,
    ranged,
    signed,
)
from recgpt.report.charts import Axes, Line, draw
from recgpt.report.groups import Bounds, cut, group_figure
from recgpt.report.material import PARTS, Material

SMALL_RATE = 0.1
"""Below it calibration is drawn on logarithmic axes."""
MOST_ROWS = 200_000
"""Impressions of the figures by history length; more are sampled evenly."""
RESAMPLES = 100
SYSTEMS = {"item_popularity": "item popularity", "oracle": "best possible"}
_EXPLAINED = {
    "item_popularity": "the item's own rate in training, smoothed",
    "oracle": "the true probabilities, which only a simulator knows",
}
_TITLES = {"auc": "AUC", "gauc": "GAUC", "logloss": "log loss", "ne": "NE", "ece": "ECE"}


@dataclass(frozen=True)
class Impressions:
    """What `recgpt evaluate` saved of a part's impressions.

    Attributes:
        split: which part.
        saved: the metrics.
        columns: the table, int64 or float [N].
    """

    split: Split
    saved: dict[str, Any]
    columns: dict[str, NDArray[Any]]

    @property
    def part(self) -> str:
        """Which part, in words."""
        return PARTS[self.split]

    @property
    def outcomes(self) -> list[str]:
        """The outcomes that are predicted."""
        return list(self.saved["outcomes"])

    @property
    def systems(self) -> list[str]:
        """What the model was measured beside."""
        return [name for name in self.saved["paired"] if isinstance(self.saved.get(name), Mapping)]


def read_impressions(material: Material) -> Impressions | None:
    """The saved ranking evaluation of the test part, else of the validation part, else None."""
    splits: tuple[Split, ...] = ("test", "valid")
    for split in splits:
        saved, path = material.evaluation(split), impressions_file(material.path, split)
        if saved is not None and "outcomes" in saved and path.is_file():
            table = pq.read_table(path)
            columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
            return Impressions(split, saved, columns)
    return None


def ranking(data: Impressions) -> Section:
    """The section."""
    blocks: list[Block] = [Text(_protocol(data)), _explanation(data)]
    for place, name in enumerate(data.outcomes):
        blocks.append(Heading(name))
        blocks.append(_metrics(data, name))
        figures = [_calibration(data, name, f"o{place}"), *_by_history(data, name, f"o{place}")]
        blocks.append(Figures(tuple(figures)))
    return Section("ranking", "Outcomes of impressions", blocks)


def _protocol(data: Impressions) -> str:
    saved = data.saved
    text = (
        f"{count(saved['rows'])} impressions of {count(saved['users'])} users of the {data.part}, as "
        "`recgpt evaluate` saved them. Two tracks, same weights: online, where each impression's history goes up to "
        f"it, and frozen, where it ends before the part begins. The config asks for the {saved['history']} track."
    )
    if saved["history"] == "online":
        text += (
            " GAUC is read on the frozen track: on the online one the score follows the user's own earlier outcomes, "
            "which lowers GAUC whatever the model is worth."
        )
    return text


def _explanation(data: Impressions) -> Text:
    systems = "".join(
        f" {_called(name).capitalize()}: {what}." for name, what in _EXPLAINED.items() if name in data.systems
    )
    return Text(
        "AUC: share of pairs (with, without the outcome) in the right order, .5 = chance. GAUC: the same within a "
        "user, weighted by impressions. Log loss: of the probabilities, lower is better. NE: log loss over that of "
        "always saying the overall rate; below 1 something was learned. ECE: mean distance of predicted from observed "
        "rates in 15 groups; chance alone gives the value in the last column." + systems
    )


def _metrics(data: Impressions, name: str) -> Table:
    """Every system's metrics, then the model's lead over the others."""
    own = {f"model, {track}": data.saved["tracks"][track][name] for track in ("online", "frozen")}
    others = {system: data.saved[system][name] for system in data.systems if name in data.saved[system]}
    rows = [
        (_called(system), *(_with_interval(metrics, metric) for metric in METRICS), number(metrics["ece_expected"]))
        for system, metrics in (own | others).items()
    ]
    for system in others:
        gaps = data.saved["paired"][system][name]
        cells = [_gap(gaps[metric]) for metric in METRICS]
        rows.append((f"model {MINUS} {_called(system)}", *cells, ""))
    known = data.saved["outcomes"][name]
    note = (
        f"{count(known['rows'])} impressions with a known outcome, observed rate {number(known['rate'])}, predicted on "
        f"average {number(known['mean_p'])}; GAUC over {count(known['users'])} users with both outcomes. 95 % "
        "intervals by resampling users, the same ones for both systems of a difference. Log loss, NE, ECE: "
        "lower is better."
    )
    return Table(("", *(_TITLES[metric] for metric in METRICS), "ECE by chance"), tuple(rows), note)


def _called(system: str) -> str:
    return SYSTEMS.get(system, system)


def _with_interval(metrics: Mapping[str, Any], metric: str) -> str:
    return ranged(metrics[metric], *(metrics["interval"][metric] or (None, None)))


def _gap(gap: Mapping[str, Any]) -> str:
    return ranged(gap["difference"], gap["low"], gap["high"], signed)


def _tracks(data: Impressions, name: str) -> dict[str, NDArray[Any]]:
    """Probabilities by track."""
    columns, history = data.columns, data.saved["history"]
    own, frozen = columns[f"p.{name}"], columns[f"frozen.{name}"]
    if history == "frozen":
        return {"frozen": frozen}
    return {"online and frozen": own} if np.array_equal(own, frozen) else {"online": own, "frozen": frozen}


def _calibration(data: Impressions, name: str, anchor: str) -> Figure:
    y = data.columns[f"y.{name}"].astype(float)
    small = (data.saved["outcomes"][name]["rate"] or 0) < SMALL_RATE
    lines, keys = [], []
    for look, (track, p) in zip(("model", "second"), _tracks(data, name).items(), strict=False):
        bins = [b for b in calibration(y, p) if not small or b["rate"] > 0]
        x, rate, low, high = ([b[key] for b in bins] for key in ("p", "rate", "low", "high"))
        lines.append(Line(look, x, rate, low, high, True))
        keys.append(Key(look, track, dots=True))
    title = "Calibration"
    reading = (
        "Predicted (across) against observed rate in 15 equal groups, 95 % intervals (Wilson). On the line: right."
    )
    if small:
        reading += " Logarithmic; groups without the outcome are left out."
    axes = Axes("predicted", x_log=small, y_log=small, diagonal=True)
    return Figure(
        title, draw(f"{anchor}-calibration", f"{title} of an outcome. {reading}", axes, lines), reading, tuple(keys)
    )


def _by_history(data: Impressions, name: str, anchor: str) -> list[Figure]:
    """AUC and log loss by how many events an impression reads."""
    chosen = spread(len(data.columns["user"]), MOST_ROWS, 64)
    y = data.columns[f"y.{name}"].astype(float)[chosen]
    user, history = data.columns["user"][chosen], data.columns["history"][chosen]
    groups = cut(history)
    if len(groups) < 2:
        return []
    measured: dict[str, list[Mapping[str, Any]]] = {}
    for track, p in _tracks(data, name).items():
        measured[track] = [measure(y[g.rows], p[chosen][g.rows], user[g.rows], RESAMPLES).metrics for g in groups]
    figures = []
    for metric, title, better in (
        ("auc", "AUC by history length", "Higher is better."),
        ("logloss", "Log loss by history length", "Lower is better."),
    ):
        reading = f"Impressions in groups of similar size by the events that they read, 95 % intervals. {better}"
        values = {
            Key(look, track): _bounds(of, metric)
            for look, (track, of) in zip(("model", "second"), measured.items(), strict=False)
        }
        words = (title, reading, "events before the impression")
        figures.append(group_figure(f"{anchor}-{metric}", words, groups, values, y_zero=False))
    return figures


def _bounds(measured: Sequence[Mapping[str, Any]], metric: str) -> Bounds:
    """Value, low and high of a metric in each group; NaN where it is undefined."""
    rows = [(of[metric], *(of["interval"][metric] or (None, None))) for of in measured]
    value, low, high = np.array([[np.nan if cell is None else cell for cell in row] for row in rows], float).T
    return value, low, high


def headline(data: Impressions) -> tuple[str, Table]:
    """What came out, in one sentence, and the key figures beside item popularity's."""
    rows = []
    for name in data.outcomes:
        own, other = data.saved["outcomes"][name], data.saved["item_popularity"][name]
        gap = data.saved["paired"]["item_popularity"][name]["auc"]
        rows.append((f"AUC, {name}", _with_interval(own, "auc"), _with_interval(other, "auc"), _gap(gap)))
    note = (
        f"{count(data.saved['rows'])} impressions of {count(data.saved['users'])} users of the {data.part}, "
        f"{data.saved['history']} track; 95 % intervals by resampling users, the difference paired."
    )
    return _sentence(data), Table(("", "model", "item popularity", "difference"), tuple(rows), note)


def _sentence(data: Impressions) -> str:
    shares = [f"{percent(data.saved['outcomes'][name]['auc'])} by {name}" for name in data.outcomes]
    gaps = {name: data.saved["paired"]["item_popularity"][name]["auc"] for name in data.outcomes}
    better = [name for name, gap in gaps.items() if gap["low"] is not None and gap["low"] > 0]
    worse = [name for name, gap in gaps.items() if gap["high"] is not None and gap["high"] < 0]
    unclear = [name for name in gaps if name not in better + worse]
    found = [
        f"{what} for {', '.join(names)}"
        for what, names in (("better", better), ("worse", worse), ("no difference shown", unclear))
        if names
    ]
    return (
        f"Of {count(data.saved['rows'])} impressions of the {data.part} the model puts pairs in the right order in "
        f"{', '.join(shares)} (AUC). Beside the item's own rate: {'; '.join(found)}."
    )
