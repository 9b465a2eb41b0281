"""Every cell's difference from its log's default with its interval, as one SVG."""

from __future__ import annotations

from typing import Any

from benchmarks.svg import svg

from .page import Table
from .plan import Plan

_INK, _QUIET, _FAINT = "#1f2328", "#6b7280", "#d0d7de"
_WORSE, _BETTER = "#b45309", "#0f5f9c"  # told apart by the marker's shape too


def picture(plan: Plan, tables: list[Table]) -> str:
    """The SVG; cells without a figure are left out. White ground, so that it reads on a dark page too."""
    panels = {log: [table for table in tables if table.log == log] for log in plan.logs}
    heights = {log: _lines(own) for log, own in panels.items() if _lines(own)}
    size = (8.6, 0.23 * (sum(heights.values()) or 1) + 0.75 * max(1, len(heights)))
    return svg("ablations", size, lambda figure: _draw(figure, plan, panels, heights))


def _draw(figure: Any, plan: Plan, panels: dict[str, list[Table]], heights: dict[str, int]) -> None:
    if not heights:
        figure.text(0.5, 0.5, "Nothing is measured yet.", ha="center", va="center", color=_INK)
        return
    ratios = {"height_ratios": list(heights.values())}
    grid = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw=ratios)
    for axes, log in zip(grid[:, 0], heights, strict=True):
        _panel(axes, plan, log, panels[log])
    inch, apart = 1 / figure.get_figheight(), 0.75 * len(heights) / (0.23 * sum(heights.values()))
    figure.subplots_adjust(left=0.42, right=0.97, top=1 - 0.3 * inch, bottom=0.45 * inch, hspace=apart)


def _drawn(table: Table) -> list[tuple[str, Any]]:
    return [(cell.value, row) for cell, row in table.rows if row is not None and row.difference is not None]


def _lines(tables: list[Table]) -> int:
    """Lines of a panel: for each question its title, its default and its cells."""
    return sum(2 + len(_drawn(table)) for table in tables if _drawn(table))


def _panel(axes: Any, plan: Plan, log: str, tables: list[Table]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    line, ticks = 0, []
    for table in tables:
        drawn = _drawn(table)
        if not drawn:
            continue
        question = plan.questions[table.question]
        ticks += [(line, question.title, "bold"), (line + 1, f"{question.default} (default)", "normal")]
        axes.plot([0], [line + 1], marker="D", markersize=5, color=_INK, zorder=3)
        for place, (value, row) in enumerate(drawn, line + 2):
            ticks.append((place, value, "normal"))
            _point(axes, place, row)
        line += 2 + len(drawn)
    axes.axvline(0, color=_INK, linewidth=1, zorder=1)
    axes.set_ylim(line - 0.4, -0.6)
    axes.set_yticks([place for place, _, _ in ticks], [text for _, text, _ in ticks])
    for label, (_, _, weight) in zip(axes.get_yticklabels(), ticks, strict=True):
        label.set_fontweight(weight)
        label.set_color(_INK)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", colors=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.grid(axis="x", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(f"{plan.logs[log].title}: NDCG@10 minus the default's, 95 % interval", fontsize=9, color=_INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _tick(value: float) -> str:
    """`+.005`, `0`."""
    text = f"{value:+.4f}".replace("0.", ".", 1).rstrip("0")
    return "0" if abs(value) < 1e-9 else text.replace("-", "\N{MINUS SIGN}")


def _point(axes: Any, place: int, row: Any) -> None:
    """Filled triangles to the side that a difference points to, a hollow circle where there is none."""
    marker, colour = {"better": (">", _BETTER), "worse": ("<", _WORSE)}.get(row.verdict, ("o", _QUIET))
    if row.half_width is not None:
        ends = row.difference - row.half_width, row.difference + row.half_width
        axes.hlines(place, *ends, color=colour, linewidth=1.6, zorder=2)
    face = "white" if marker == "o" else colour
    axes.plot([row.difference], [place], marker=marker, markersize=6, color=colour, markerfacecolor=face, zorder=3)
