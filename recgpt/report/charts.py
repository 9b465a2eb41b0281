"""Charts as inline SVG: text stays text, colours are the page's (light and dark), ids are unique on the page.

Every chart is one small panel, so that its letters stay readable where the page is narrow; the page puts panels side
by side. Titles and legends are HTML, where they wrap and cover no line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

WIDTH, HEIGHT = 380, 240
"""Of a panel, in CSS pixels at its natural size."""

_INK, _FAINT = "#fe0100", "#fe0200"  # stand-ins that `_clean` turns into the page's colours
_DASHES: dict[str, Any] = {
    "model": "solid",
    "second": (0, (7, 2)),
    "third": (0, (4, 2, 1, 2)),
    "fourth": (0, (2, 1.5)),
    "fifth": (0, (9, 2, 1, 2, 1, 2)),
    "reference": (0, (1, 2)),
}
_MARKERS = {"model": "o", "second": "s", "third": "^", "fourth": "D", "fifth": "v", "reference": "X"}
LOOKS = tuple(_DASHES)
"""What a line can look like: a colour and a dash pattern (dots: a shape), as the legend tells."""
_STAND_INS = {f"#fe03{place:02x}": look for place, look in enumerate(LOOKS)}
_COLOURS = {look: code for code, look in _STAND_INS.items()}
_DECIMALS = re.compile(r"(\d+\.\d\d)\d+")


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        look: one of `LOOKS`.
        x, y: the points.
        low, high: intervals: a band around a line, bars at dots.
        dots: marks instead of a line; "both" for a line with marks.
    """

    look: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    dots: bool | str = False


@dataclass(frozen=True)
class Axes:
    """The frame of a chart.

    Attributes:
        x: what the x axis counts.
        x_log, y_log: logarithmic.
        x_whole: only whole numbers stand on the x axis.
        y_zero: the y axis begins at 0.
        ticks: positions and labels of the x axis; a label may have two lines.
        diagonal: draw y = x, and both axes over one range.
        square: as high as wide.
    """

    x: str
    x_log: bool = False
    y_log: bool = False
    x_whole: bool = False
    y_zero: bool = True
    ticks: Sequence[tuple[float, str]] = ()
    diagonal: bool = False
    square: bool = False


def draw(name: str, label: str, axes: Axes, lines: Sequence[Line]) -> str:
    """A chart.

    Args:
        name: unique on the page; the ids begin with it.
        label: says the chart in words, for who cannot see it.
        axes: the frame.
        lines: the series; the first is drawn on top.

    Returns:
        `<svg role="img">` markup without colours or fonts of its own.
    """
    import matplotlib
    from matplotlib.figure import Figure

    height = WIDTH if axes.square else HEIGHT
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 11,
        "axes.edgecolor": _FAINT,
        "axes.linewidth": 1,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _FAINT,
        "ytick.color": _FAINT,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        panel = figure.add_axes(_frame(height, axes), facecolor="none")
        for order, line in enumerate(reversed(lines)):
            _add(panel, line, 3 + order)
        _set_axes(panel, axes, lines)
        out = StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _clean(out.getvalue(), name, label)


def _frame(height: int, axes: Axes) -> tuple[float, float, float, float]:
    below = 52 if any("\n" in label for _, label in axes.ticks) else 40
    left, right, top = 46, 10, 10
    return left / WIDTH, below / height, (WIDTH - left - right) / WIDTH, (height - below - top) / height


def _add(panel: Any, line: Line, order: int) -> None:
    colour = _COLOURS[line.look]
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    bounds = None
    if line.low is not None and line.high is not None:
        bounds = np.asarray(line.low, float), np.asarray(line.high, float)
    if bounds is not None and line.dots:
        panel.vlines(x, *bounds, colors=colour, linewidth=1.6, alpha=0.55, zorder=order)
    elif bounds is not None:
        panel.fill_between(x, *bounds, color=colour, alpha=0.16, linewidth=0, zorder=order)
    if line.dots is True:
        panel.plot(x, y, linestyle="none", marker=_MARKERS[line.look], markersize=5, color=colour, zorder=order)
        return
    width = 2.2 if line.look == "model" else 1.6
    marker = {"marker": _MARKERS[line.look], "markersize": 4} if line.dots else {}
    panel.plot(x, y, color=colour, linestyle=_DASHES[line.look], linewidth=width, zorder=order, **marker)


def _set_axes(panel: Any, axes: Axes, lines: Sequence[Line]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    if axes.x_log:
        panel.set_xscale("log")
    if axes.y_log:
        panel.set_yscale("log")
    elif axes.y_zero:
        _, top = panel.get_ylim()
        panel.set_ylim(0, top if top > 0 else 1)
    if axes.diagonal:
        low, high = _common_range(axes, lines)
        panel.set_xlim(low, high)
        panel.set_ylim(low, high)
        panel.plot([low, high], [low, high], color=_INK, linewidth=1, alpha=0.5, zorder=2)
    if axes.ticks:
        panel.set_xlim(axes.ticks[0][0] - 0.5, axes.ticks[-1][0] + 0.5)
        panel.xaxis.set_major_locator(FixedLocator([place for place, _ in axes.ticks]))
        panel.set_xticklabels([label for _, label in axes.ticks])
    for axis, logarithmic, limits in (
        (panel.xaxis, axes.x_log, panel.get_xlim()),
        (panel.yaxis, axes.y_log, panel.get_ylim()),
    ):
        axis.set_minor_locator(NullLocator())
        if axis is panel.xaxis and axes.ticks:
            continue
        whole = axis is panel.xaxis and axes.x_whole
        even = MaxNLocator(6, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10], integer=whole, min_n_ticks=4)
        axis.set_major_locator(FixedLocator(log_ticks(*limits)) if logarithmic else even)
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    panel.grid(axis="y", color=_FAINT, alpha=0.45, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.set_xlabel(axes.x, labelpad=3)


def _common_range(axes: Axes, lines: Sequence[Line]) -> tuple[float, float]:
    """The range of all points and intervals."""
    values = np.concatenate(
        [np.asarray(v, float).ravel() for line in lines for v in (line.x, line.y, line.low, line.high) if v is not None]
    )
    values = values[np.isfinite(values)]
    if axes.y_log:
        values = values[values > 0]
        return (values.min() / 1.3, min(1.0, values.max() * 1.3)) if len(values) else (0.1, 1.0)
    return 0.0, (float(values.max()) * 1.05 if len(values) and values.max() > 0 else 1.0)


def tick(value: float) -> str:
    """A short label of a tick."""
    size = abs(value)
    if size >= 999_999.5:
        text = f"{value / 1e6:g}M"
    elif size >= 10_000:
        text = f"{value / 1e3:g}k"
    elif size and size < 1e-4:
        text = f"{value:.0e}".replace("e-0", "e-")
    else:
        text = f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """1 to 9 times powers of ten within [low, high]; 1, 2, 5 times or fewer where that is too many."""
    decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for steps in (range(1, 10), (1, 2, 5), (1, 3), (1,)):
        ticks = np.sort(np.outer(10.0**decades, steps).ravel())
        ticks = ticks[(ticks >= low * 0.999) & (ticks <= high * 1.001)]
        if len(ticks) <= most:
            return ticks.tolist()
    return ticks[:: int(np.ceil(len(ticks) / most))].tolist()


def _clean(svg: str, name: str, label: str) -> str:
    """The bare drawing: no prologue, metadata, fonts, fixed size; the page's colours; ids with the chart's name."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    body = svg[svg.index(">") + 1 :].replace("xlink:href", "href")
    view = re.search(r'viewBox="[^"]*"', svg)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"; font-family: [^;\"]*|font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    for code, colour in {_INK: "ink", _FAINT: "faint", **_STAND_INS}.items():
        body = body.replace(code, f"var(--{colour})")
    body = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda found: _DECIMALS.sub(r"\1", found[0]), body)
    body = re.sub(r"\s*\n\s*", " ", body).replace("> <", "><")
    return f'<svg {view[0] if view else ""} role="img" aria-label="{escape(label)}">{body.strip()}'
