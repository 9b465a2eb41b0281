"""What the trained model looks like inside, as `recgpt.inspection` finds it: tables, vectors, lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from recgpt.report.attention import attention
from recgpt.report.blocks import NOTHING, Block, Figure, Figures, Key, Section, Table, Text, count, number, percent
from recgpt.report.charts import Axes, Line, draw

_VECTORS = {"item": "items", "query": "user queries", "unnormalised": "items before normalising", "id": "ids"}
_DRAWN = {"item": "model", "query": "second", "id": "third", "content": "fourth"}
"""Vectors whose singular values are drawn, and how the lines look."""

MOST_ROWS = 12
"""A longer table is folded."""

Found = Mapping[str, Any]


def geometry(found: Found) -> Section:
    """The section of a run's inspection."""
    if found["items"]["vectors"] == 0:
        return Section("model", "The model", [Text("No item of this run has a training event.")])
    load, spectra = found["collisions"], found["vectors"]
    figures = [
        *_table_spectrum(found["tables"]),
        _spectrum(spectra),
        _load_figure(load),
        *_norms(found["norms"], found["score"] == "dot"),
    ]
    blocks: list[Block] = [Figures(tuple(figures)), _ranks(spectra), _tables(found["tables"]), _load_table(load)]
    looked, of = found["items"]["vectors"], found["items"]["all"]
    if looked < of:
        blocks.append(Text(f"Vectors and lengths: {count(looked)} of {count(of)} items, evenly spread."))
    return Section("model", "The model", [*blocks, *attention(found["attention"], found["biases"])])


def _relative(values: Any) -> tuple[Any, Any]:
    """Numbers of the singular values and their shares of the largest, as far as they are no rounding."""
    share = np.asarray(values) / max(values[0], 1e-300)
    known = share > 1e-6
    return np.arange(1, len(share) + 1)[known], share[known]


def _table_spectrum(tables: list[Found]) -> list[Figure]:
    """The id table's singular values beside an untrained one's; none where its rows have no width."""
    table = next((t for t in tables if t["name"].startswith("items.id") and "spectrum" in t), None)
    if table is None:
        return []
    lines, keys = [], []
    for look, name, part in (("model", "trained", table["spectrum"]), ("reference", "untrained", table["start"])):
        lines.append(Line(look, *_relative(part["singular_values"])))
        keys.append(Key(look, name))
    title, reading = (
        "Singular values of the id table",
        "Its rows in use; largest = 1. Falling far below the untrained line: directions that training left unused.",
    )
    svg = draw("table-spectrum", f"{title}. {reading}", Axes("number of the value", x_whole=True), lines)
    return [Figure(title, svg, reading, tuple(keys))]


def _spectrum(spectra: Mapping[str, Found]) -> Figure:
    lines, keys = [], []
    ids_alone = not any(name == "content" or name.startswith("features.") for name in spectra)
    for name, look in _DRAWN.items():
        if name in spectra and not (ids_alone and name == "id"):  # then items are little else
            lines.append(Line(look, *_relative(spectra[name]["singular_values"])))
            keys.append(Key(look, _VECTORS.get(name, name)))
    title, reading = (
        "Singular values of the vectors",
        "Largest = 1. A slow fall uses the whole width; a steep one leaves directions unused.",
    )
    svg = draw("spectrum", f"{title}. {reading}", Axes("number of the value", y_log=True, x_whole=True), lines)
    return Figure(title, svg, reading, tuple(keys))


def _ranks(spectra: Mapping[str, Found]) -> Table:
    rows = [
        (
            _VECTORS.get(name, name),
            count(of["n"]),
            f"{number(of['information_abundance'], 1)} of {min(of['n'], of['width'])}",
            number(of["effective_rank"], 1),
            percent(of["first_direction"]),
            number(of["length"], 3),
        )
        for name, of in spectra.items()
    ]
    return Table(
        ("vectors", "n", "information abundance", "effective rank", "along the first direction", "length"),
        tuple(rows),
        "Information abundance: sum of the singular values over the largest, 1 = all on one line (Guo et al. 2024). "
        "Effective rank: the exponentiated entropy of their shares (Roy and Vetterli 2007). Along the first direction: "
        "the share of the squared length that all vectors have in common. An item is the sum of its parts; of unlike "
        "length (root mean square), the longest decides.",
    )


def _tables(tables: list[Found]) -> Table:
    rows = []
    for table in tables:
        spectrum, start = table.get("spectrum", {}), table.get("start", {})
        reached = table["reached"]
        rows.append(
            (
                table["name"],
                count(table["rows"]),
                NOTHING if reached is None else count(table["rows"] - reached),
                str(table["width"]),
                number(spectrum.get("information_abundance"), 1),
                number(start.get("information_abundance"), 1),
                number(spectrum.get("effective_rank"), 1),
            )
        )
    columns = ("table", "rows", "never used", "width", "information abundance", "untrained", "effective rank")
    return Table(
        columns,
        tuple(rows),
        "Never used: rows that no item, event or user looked at reads. The rest of a line is of the rows in use, not "
        "centred, each once. Untrained: the same rows as they start, near the width for random ones; training takes "
        "directions away.",
        folded=len(rows) > MOST_ROWS,
        title="Every table in numbers" if len(rows) > MOST_ROWS else "",
    )


def _load_table(load: Found) -> Table:
    here, chance = load["here"], load["chance"]

    def line(name: str, key: str, digits: int = 0) -> tuple[str, str, str]:
        return name, count(here[key]), _amount(chance and chance[key], digits)

    def crowd(name: str, key: str, digits: int = 0) -> tuple[str, str, str]:
        own, other = (None if of is None else of["items_per_address"][key] for of in (here, chance))
        return name, _amount(own, digits), _amount(other, digits)

    return Table(
        ("id table", "here", "expected of chance"),
        (
            line("rows in use", "in_use"),
            line("items that share a row with another", "sharing"),
            line("items that share all their rows with another", "confused_items", 2),
            line("pairs of items that share all their rows", "confused_pairs", 2),
            crowd("items per row in use, on average", "mean", 2),
            crowd("items per row in use, 99 in 100 rows at most", "p99"),
            crowd("items per row in use, at most", "max"),
        ),
        f"{count(load['items'])} items with a training event, each of {load['addresses']} of {count(load['slots'])} "
        f"rows (`model.id`, kind `{load['kind']}`; for `robe` places in its array, for `weighted_hash` one of them is "
        "a row of weights). Sharing one row is harmless, the others tell items apart; sharing all makes two items one.",
    )


def _amount(value: float | None, digits: int) -> str:
    return number(value, digits) if digits or value is None else count(value)


def _load_figure(load: Found) -> Figure:
    shares, chance = load["here"]["others"], load["chance"]
    places = np.arange(len(shares))
    title, reading = (
        "Other items in an item's row",
        "Share of the items' rows by how many other items use them too. Far right of the expected: too few rows.",
    )
    ticks = [(int(j), f"{j}" if j < len(places) - 1 else f"{j}+") for j in places]
    lines = [Line("model", places - 0.08, shares, np.zeros(len(places)), shares, True)]
    keys = [Key("model", "here", True)]
    if chance is not None:
        lines.append(Line("second", places + 0.08, chance["others"], np.zeros(len(places)), chance["others"], True))
        keys.append(Key("second", "expected of chance", True))
    svg = draw("load", f"{title}. {reading}", Axes("other items", ticks=ticks), lines)
    return Figure(title, svg, reading, tuple(keys))


def _norms(norms: Mapping[str, Found], scored: bool) -> list[Figure]:
    """Length of the vectors by popularity, which may be part of the score; none where all items are as popular."""
    lines, keys, told = [], [], []
    for name, look in (("unnormalised", "model"), ("id", "second")):
        deciles = norms.get(name, {}).get("deciles", [])
        if len(deciles) < 2:
            continue
        middle = [(part["low"] * part["high"]) ** 0.5 for part in deciles]
        half, low, high = ([part[key] for part in deciles] for key in ("median", "p10", "p90"))
        lines.append(Line(look, middle, half, low, high, "both"))
        keys.append(Key(look, {"unnormalised": "item vectors", "id": "id vectors"}[name]))
        told.append(f"{keys[-1].name} {number(norms[name]['spearman'], 2)}")
    if not lines:
        return []
    title = "Length of the vectors by popularity"
    use = "It is part of the score" if scored else "Before it is normalised away"
    reading = (
        f"{use}; median and middle 80 % of each tenth of the items. Rising: what is met more "
        f"often has moved further. Rank correlation with the events: {', '.join(told)}."
    )
    svg = draw("norms", f"{title}. {reading}", Axes("training events of the item", x_log=True), lines)
    return [Figure(title, svg, reading, tuple(keys))]
