"""Where the model looks: attention by how many events ago and by how long ago."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recgpt.report.blocks import Block, Figure, Figures, Heading, Key, Table, Text, count, number, percent
from recgpt.report.charts import LOOKS, Axes, Line, draw
from recgpt.report.groups import short

_LOOKS = ("model", "second", "third", "fourth")
"""Of the heads of a layer; of more heads their mean and range are drawn."""
MOST_LAYERS = 4
"""Layers that are drawn: of more, evenly spread ones from the first to the last."""
_UNITS = ((31_536_000, "y"), (604_800, "w"), (86_400, "d"), (3600, "h"), (60, "m"))

Found = Mapping[str, Any]


def attention(found: Found | None, biases: Mapping[str, Any]) -> list[Block]:
    """Figures of some layers and of learned biases, a table of all heads; nothing where no user has an event."""
    if found is None:
        return []
    layers = found["layers"]
    drawn = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), MOST_LAYERS)).round().astype(int)).tolist()
    figures = [_by_distance(found, layer) for layer in drawn]
    if any(share > 0 for share in found["even"]["gap"][1:-1]):  # a log with a clock
        figures += [_by_gap(found, layer) for layer in drawn]
    figures += _biases(found, biases)
    about = (
        f"Means over the events of {count(found['users'])} users at the end of the training part, every user counting "
        "alike. The dotted line looks at all that it may see alike: above it the head prefers, below it the head shuns."
    )
    if not found["normalised"]:
        about += " This block's weights do not sum to 1; shares are of the sum of their sizes."
    return [Heading("Where the model looks"), Text(about), Figures(tuple(figures)), _table(found)]


def _by_distance(found: Found, layer: int) -> Figure:
    names = [short(first) for first in found["distance_from"]]
    shares = [[*head["distance"], head["first_token"]] for head in (*found["layers"][layer], found["even"])]
    return _figure(
        (f"distance-{layer + 1}", f"Layer {layer + 1}: attention by events back", "events back, from (0: itself)"),
        [*names, "start"],
        np.array(shares),
        "Share that goes to the event itself, to those before it in groups, and to the window's first token.",
    )


def _by_gap(found: Found, layer: int) -> Figure:
    names = ["0", *(_duration(seconds) for seconds in found["gap_below"]), "more", "?"]
    shares = [head["gap"] for head in (*found["layers"][layer], found["even"])]
    return _figure(
        (f"gap-{layer + 1}", f"Layer {layer + 1}: attention by time", "time between the events, below (0: itself)"),
        names,
        np.array(shares),
        "Share that goes to the event itself and to others by the time between; `?`: a time is unknown.",
    )


def _biases(found: Found, biases: Mapping[str, Any]) -> list[Figure]:
    """Learned biases, a line a layer: the mean of its heads."""
    figures = []
    for kind, by, names in (
        ("distance", "events back, from (0: itself)", [short(first) for first in found["distance_from"]]),
        ("gap", "time between the events, below", [*(_duration(s) for s in found["gap_below"]), "more"]),
    ):
        layers = [np.mean(layer, 0) for layer in biases.get(kind, [])][: len(LOOKS)]
        if layers:
            places = np.arange(len(layers[0]))
            title = f"Learned bias by {'events back' if kind == 'distance' else 'time'}"
            reading = "What is added to the scores, mean of a layer's heads."
            if found["normalised"]:
                reading += " Only differences count: 1 more is e times."
            lines = [Line(look, places, layer, dots="both") for look, layer in zip(LOOKS, layers, strict=False)]
            ticks = [(place, names[place]) for place in places.tolist()]
            svg = draw(f"bias-{kind}", f"{title}. {reading}", Axes(by, y_zero=False, ticks=ticks), lines)
            keys = tuple(Key(look, f"layer {i}") for i, look in enumerate(LOOKS[: len(layers)], 1))
            figures.append(Figure(title, svg, reading, keys))
    return figures


def _duration(seconds: int) -> str:
    """A short label: the largest unit that divides it."""
    size, unit = next((size, unit) for size, unit in _UNITS if seconds % size == 0)
    return f"{seconds // size}{unit}"


def _figure(words: tuple[str, str, str], names: Sequence[str], shares: NDArray[np.float64], reading: str) -> Figure:
    """Shares [heads + 1, bins] of a layer's heads and, last, of even attention; bins that never occur are left out."""
    name, title, by = words
    occurs = shares.max(0) > 0
    *heads, even = shares[:, occurs]
    places = np.arange(len(even))
    if len(heads) <= len(_LOOKS):
        lines = [Line(look, places, head, dots="both") for look, head in zip(_LOOKS, heads, strict=False)]
        keys = [Key(look, f"head {j}") for j, look in enumerate(_LOOKS[: len(heads)], 1)]
    else:
        all_heads = np.array(heads)
        lines = [Line("model", places, all_heads.mean(0), all_heads.min(0), all_heads.max(0), "both")]
        keys = [Key("model", f"mean of {len(heads)} heads, least to greatest")]
    lines.append(Line("reference", places, even))
    keys.append(Key("reference", "all alike"))
    ticks = [(place, label) for place, label in enumerate(np.array(names)[occurs].tolist())]
    svg = draw(name, f"{title}. {reading}", Axes(by, ticks=ticks), lines)
    return Figure(title, svg, reading, tuple(keys))


def _table(found: Found) -> Table:
    heads = [
        (f"layer {i}, head {j}", head) for i, layer in enumerate(found["layers"], 1) for j, head in enumerate(layer, 1)
    ]
    rows = [
        (
            name,
            percent(head["first_token"]),
            percent(head["distance"][0]),
            percent(head["distance"][1]),
            number(head["mean_distance"], 1),
            number(head["effective_positions"], 1),
        )
        for name, head in [*heads, ("all alike", found["even"])]
    ]
    return Table(
        ("attention", "first token", "the event itself", "the one before", "mean distance", "effective positions"),
        tuple(rows),
        "Mean distance: in events, by weight, the first token aside. Effective positions: the exponentiated entropy of "
        "the weights, 1 = one position alone.",
        folded=True,
        title="Every head in numbers",
    )
