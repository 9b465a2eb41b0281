"""What the trained model looks like inside: how full the id table is, how many directions the vectors use."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recgpt.report.blocks import NOTHING, Block, Figure, Figures, Key, Section, Table, Text, count, number, percent
from recgpt.report.charts import Axes, Line, draw
from recgpt.report.groups import cut
from recgpt.report.material import Material, spread
from recgpt.report.validation import Lists

MOST_ITEMS = 200_000
"""Items whose vectors are looked at; more are sampled evenly."""


@dataclass(frozen=True)
class Load:
    """How n items share the rows of a hashed table.

    Attributes:
        items: n, items with a training event.
        rows: rows of the table.
        hashes: rows that one item sums.
        used: distinct rows in use, and how many are expected of uniform hashes.
        sharing: items with a row that another item uses too, likewise.
        confused: pairs of items with the same set of rows, which no vector can tell apart, likewise.
        others: float64 [M], share of the items' rows that 0, 1, ... other items use, the last entry: M - 1 or more.
        expected_others: the same, expected.
    """

    items: int
    rows: int
    hashes: int
    used: tuple[int, float]
    sharing: tuple[int, float]
    confused: tuple[int, float]
    others: NDArray[np.float64]
    expected_others: NDArray[np.float64]


def collision_load(slots: NDArray[np.int64], rows: int, most: int = 5) -> Load:
    """Measure the load of a hashed table, and what uniform hashes would give.

    Args:
        slots: int64 [n, k], the k rows of each of n items.
        rows: P, rows of the table.
        most: entries of `others`.

    Returns:
        Measured and expected: P (1 - (1 - 1/P)^(nk)) rows in use; n (1 - (1 - k/P)^((n-1)k)) items that share; n(n-1)/2
        k!/P^k confused pairs (as sets: the sum of rows has no order); others ~ binomial((n-1)k, 1/P).
    """
    n, k = slots.shape
    own = np.sort(slots, 1)
    first = np.ones_like(own, bool)
    first[:, 1:] = own[:, 1:] != own[:, :-1]  # an item whose hashes agree uses that row once
    users = np.bincount(own[first], minlength=rows)
    beside = np.where(first, users[own] - 1, 0)
    _, same = np.unique(own, axis=0, return_counts=True)
    foreign = (n - 1) * k
    bins = np.bincount(np.minimum(beside[first], most - 1), minlength=most) / max(1, int(first.sum()))
    expected = np.array([_binomial(foreign, 1 / rows, j) for j in range(most - 1)])
    return Load(
        items=n,
        rows=rows,
        hashes=k,
        used=(int((users > 0).sum()), rows * -math.expm1(n * k * _log1m(1 / rows))),
        sharing=(int((beside.max(1, initial=0) > 0).sum()), n * -math.expm1(foreign * _log1m(min(1.0, k / rows)))),
        confused=(int((same * (same - 1) // 2).sum()), n * (n - 1) / 2 * math.factorial(k) / rows**k),
        others=bins,
        expected_others=np.append(expected, max(0.0, 1 - expected.sum())),
    )


def _log1m(p: float) -> float:
    return math.log1p(-p) if p < 1 else -math.inf


def _binomial(n: int, p: float, j: int) -> float:
    if j > n:
        return 0.0
    if p >= 1:
        return float(j == n)
    log = math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1)
    return math.exp(log + j * math.log(p) + (n - j) * math.log1p(-p))


def singular_values(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of [N, D], largest first, float64 [D], through the D x D matrix of inner products."""
    gram = np.zeros((vectors.shape[1], vectors.shape[1]))
    for start in range(0, len(vectors), 65_536):
        part = vectors[start : start + 65_536].astype(np.float64)
        gram += part.T @ part
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))


def effective_rank(singular: NDArray[np.float64]) -> float:
    """Entropy of the singular values as shares of their sum, exponentiated (Roy and Vetterli 2007, eqs. 3 and 4).

    From 1 (all vectors on one line) to the number of values (all directions alike).
    """
    total = singular.sum()
    if not total > 0:
        return 0.0
    share = singular[singular > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def geometry(material: Material, lists: Lists | None) -> Section:
    """The section."""
    items = material.trained.model.items
    trained = np.flatnonzero(items.n_train_events > 0)
    if len(trained) == 0:
        return Section("model", "The model", [Text("No item of this run has a training event.")])
    blocks: list[Block] = []
    figures: list[Figure] = []
    load = _load(material, items.hash[trained])
    if load is not None:
        blocks.append(_load_table(load))
        figures.append(_load_figure(load))
    chosen = trained[spread(len(trained), MOST_ITEMS)]
    vectors = {"items": material.trained.model.catalogue.numpy()[chosen]}
    if lists is not None:
        vectors["user queries"] = lists.queries
    spectra = {name: singular_values(matrix) for name, matrix in vectors.items()}
    figures += [_spectrum(spectra), *_norms(material, chosen)]
    blocks += [Figures(tuple(figures)), _ranks(spectra, {name: len(matrix) for name, matrix in vectors.items()})]
    if len(chosen) < len(trained):
        blocks.append(Text(f"Vectors and norms: {count(len(chosen))} of {count(len(trained))} items, evenly spread."))
    return Section("model", "The model", blocks)


def _load(material: Material, hashes: NDArray[np.int64]) -> Load | None:
    """The id table's load; None for an embedding that is no hashed table."""
    import torch

    from recgpt.nn.embedding import HashEmbedding, hash_rows

    table = material.trained.model.model.items.id
    if not isinstance(table, HashEmbedding):
        return None
    c = table.config
    slots = hash_rows(torch.from_numpy(np.ascontiguousarray(hashes)), c.n_hashes, c.rows, c.seed)
    return collision_load(slots.numpy(), c.rows)


def _load_table(load: Load) -> Table:
    pairs = (
        ("rows in use", load.used, 0),
        ("items that share a row with another", load.sharing, 0),
        ("pairs of items that share all their rows", load.confused, 2),
    )
    rows = [(name, count(got), number(want, digits) if digits else count(want)) for name, (got, want), digits in pairs]
    per_row = load.items * load.hashes / max(1, load.used[0])
    rows.append(("items per row in use, on average", number(per_row, 2), NOTHING))
    return Table(
        ("id table", "here", "expected of chance"),
        tuple(rows),
        f"{count(load.items)} items with a training event, each the sum of {load.hashes} of {count(load.rows)} rows "
        "(model.id). Sharing one row is harmless, the others tell items apart; sharing all makes two items one.",
    )


def _load_figure(load: Load) -> Figure:
    places = np.arange(len(load.others))
    title, reading = (
        "Other items in an item's row",
        "Share of the items' rows by how many other items use them too. Far right of the expected: too few rows.",
    )
    ticks = [(int(j), f"{j}" if j < len(places) - 1 else f"{j}+") for j in places]
    lines = [
        Line("model", places - 0.08, load.others, np.zeros(len(places)), load.others, True),
        Line("second", places + 0.08, load.expected_others, np.zeros(len(places)), load.expected_others, True),
    ]
    svg = draw("load", f"{title}. {reading}", Axes("other items", ticks=ticks), lines)
    return Figure(title, svg, reading, (Key("model", "here", True), Key("second", "expected of chance", True)))


def _spectrum(spectra: dict[str, NDArray[np.float64]]) -> Figure:
    lines, keys = [], []
    for look, (name, values) in zip(("model", "second"), spectra.items(), strict=False):
        share = values / max(values[0], 1e-300)
        known = share > 1e-6
        lines.append(Line(look, np.arange(1, len(values) + 1)[known], share[known]))
        keys.append(Key(look, name))
    title, reading = (
        "Singular values of the vectors",
        "Largest = 1. A slow fall uses the whole width; a steep one leaves directions unused.",
    )
    svg = draw("spectrum", f"{title}. {reading}", Axes("number of the value", y_log=True), lines)
    return Figure(title, svg, reading, tuple(keys))


def _ranks(spectra: dict[str, NDArray[np.float64]], sizes: dict[str, int]) -> Table:
    rows = [
        (
            name,
            count(sizes[name]),
            f"{number(effective_rank(values), 1)} of {len(values)}",
            percent(values[0] ** 2 / max((values**2).sum(), 1e-300)),
        )
        for name, values in spectra.items()
    ]
    return Table(
        ("vectors", "n", "effective rank", "along the first direction"),
        tuple(rows),
        "Effective rank: the number of directions in use, as the exponentiated entropy of the singular values (Roy and "
        "Vetterli 2007). Along the first direction: the share of the squared length that all vectors have in common.",
    )


def _norms(material: Material, chosen: NDArray[np.int64]) -> list[Figure]:
    """Length of the id vectors by popularity; none where all are of one length (an untrained table)."""
    import torch

    items, module = material.trained.model.items, material.trained.model.model.items.id
    with torch.no_grad():
        norm = module(torch.from_numpy(np.ascontiguousarray(items.hash[chosen]))).norm(dim=-1).numpy()
    events = items.n_train_events[chosen]
    groups = cut(events, most=8)
    if len(groups) < 2:
        return []
    middle = np.array([np.median(events[group.rows]) for group in groups])
    low, half, high = np.array([np.quantile(norm[group.rows], (0.1, 0.5, 0.9)) for group in groups]).T
    title, reading = (
        "Length of the id vectors by popularity",
        "Median and the middle 80 %. Rising: items that are met more often have moved further from their start.",
    )
    axes = Axes("training events of the item", x_log=bool(middle[0] > 0))
    svg = draw("norms", f"{title}. {reading}", axes, [Line("model", middle, half, low, high, "both")])
    return [Figure(title, svg, reading)]
