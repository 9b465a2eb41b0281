"""`docs/accuracy.md` from the rows and the results: nothing in it is written by hand."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.ablations.page import line, small
from benchmarks.ablations.plan import command_line
from recgpt.metrics import ndcg_gain, paired_interval

from .plan import Plan, Row
from .results import K, Result

NDCG, RECALL, COVERAGE, POPULARITY = f"ndcg@{K}", f"recall@{K}", f"coverage@{K}", f"avg_popularity@{K}"
Measured = dict[str, list[Result]]


def page(plan: Plan, measured: Measured) -> str:
    """The whole page as Markdown; `measured` by row name."""
    parts = ["# Accuracy", _opening(plan)]
    for name, log in plan.logs.items():
        rows = [row for row in plan.rows if row.log == name and measured[row.name]]
        if not rows:
            continue
        parts += [f"## {log.title}", log.text, _table(plan, name, rows, measured)]
        parts += [text for row in rows if (text := _against(row, plan, measured))]
        peers = [f"- {name}, {each.system}: `{each.command}`" for each in log.others if each.command is not None]
        parts += [log.remark] * bool(log.remark) + ["\n".join([_commands(rows), *peers])]
    if waiting := [row for row in plan.rows if not measured[row.name]]:
        parts += ["## Not measured yet", _commands(waiting)]
    if every := [result for results in measured.values() for result in results]:
        days, versions = ({pick(each) for each in every} for pick in (_day, _torch))
        parts += ["## Provenance", f"{len(every)} runs, {', '.join(sorted(days))}, {', '.join(sorted(versions))}."]
    return "\n\n".join(parts) + "\n"


def _day(result: Result) -> str:
    return result.date


def _torch(result: Result) -> str:
    return f"torch {result.versions['torch']}"


def _commands(rows: Sequence[Row]) -> str:
    return "\n".join(f"- {row.log}, {row.value}: `{command_line(row.config, row.set)}`" for row in rows)


def _opening(plan: Plan) -> str:
    return (
        f"Test figures: mean and, in brackets, the lowest and highest of {plan.seeds} seeds (fewer where fewer are "
        "told). Every candidate is ranked, a target's equals count against it, and what the user has seen is removed. "
        "Settings were chosen on the validation parts; each test part is read once a run. Coverage is the share of the "
        f"candidates among all first {K}, popularity the mean number of training events of what stands there. Counting "
        "models are measured in the same evaluation; figures of others are on the same file and protocol, as "
        "published where nothing else is told.\n\n"
        "`python -m benchmarks.accuracy` measures what is missing, `--render` writes this page from "
        "`benchmarks/accuracy/results/`. A result stands until its row's settings change; changed code makes none "
        "stale."
    )


def _table(plan: Plan, log: str, rows: Sequence[Row], measured: Measured) -> str:
    head = ("", "NDCG@10", "recall@10", "coverage", "popularity", "seeds", "training")
    lines = [line(head), line(["---"] * len(head))]
    lines += [line(_own(row, measured[row.name])) for row in rows]
    for name, metrics in measured[rows[0].name][0].baselines.items():
        lines.append(line((name, small(metrics[NDCG]), small(metrics[RECALL]), *_spread(metrics), "", "")))
    for each in plan.logs[log].others:
        how = "published" if each.command is None else "measured here"
        lines.append(line((f"{each.system}, {how}", small(each.ndcg), small(each.recall), "", "", "", "")))
    return "\n".join(lines)


def _own(row: Row, results: Sequence[Result]) -> Sequence[str]:
    mean = {name: statistics.fmean(each.test[name] for each in results) for name in (COVERAGE, POPULARITY)}
    minutes = statistics.fmean(result.minutes for result in results)
    cores = "core" if results[0].threads == 1 else "cores"
    return (
        f"**{row.value}**",
        *(_range([result.test[name] for result in results]) for name in (NDCG, RECALL)),
        *_spread(mean),
        str(len(results)),
        f"{minutes:.0f} min, {results[0].threads} {cores}",
    )


def _range(values: Sequence[float]) -> str:
    mean = small(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ({small(min(values))} to {small(max(values))})"


def _spread(metrics: dict[str, float]) -> tuple[str, str]:
    return small(metrics[COVERAGE]), f"{metrics[POPULARITY]:,.0f}"


def _against(row: Row, plan: Plan, measured: Measured) -> str:
    """How much better or worse than another row, over users and the seeds that both have."""
    if row.against is None:
        return ""
    value = next(each.value for each in plan.rows if each.name == row.against)
    other = {result.seed: result for result in measured[row.against]}
    pairs = [(result, other[result.seed]) for result in measured[row.name] if result.seed in other]
    if not pairs:
        return ""
    own, its = (mean_gain([pair[side] for pair in pairs]) for side in (0, 1))
    found = paired_interval(own, its)
    share = {name: 100 * value / its.mean() for name, value in found.items()}
    seeds = f"each user's mean of {len(pairs)} seeds" if len(pairs) > 1 else "one seed"
    size, its_size = (result.model_bytes / 1e6 for result in pairs[0])
    weights = f", at {size:.2f} against {its_size:.2f} MB of weights in all" if abs(size / its_size - 1) > 0.05 else ""
    place = "above" if share["difference"] > 0 else "below"
    return (
        f"**{row.value}**: NDCG@10 {abs(share['difference']):.1f} % {place} **{value}** (95 % over users, {seeds}: "
        f"{share['low']:+.1f} % to {share['high']:+.1f} %){weights}."
    )


def mean_gain(results: Sequence[Result]) -> NDArray[np.float64]:
    """Every user's NDCG@10, the mean over runs, float64 [users]."""
    return np.mean([ndcg_gain(result.rank(), K) for result in results], axis=0)
