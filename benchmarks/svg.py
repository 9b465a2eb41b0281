"""Figures as SVG text that is the same for the same figures, with words as words and a white ground."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from typing import Any


def svg(name: str, size: tuple[float, float], draw: Callable[[Any], None], layout: str | None = None) -> str:
    """An SVG file's text.

    Args:
        name: keeps ids apart from those of other pictures on one page.
        size: width and height in inches.
        draw: fills a matplotlib figure.
        layout: of the figure, such as `constrained`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, facecolor="white", layout=layout)
        draw(figure)
        out = StringIO()
        figure.savefig(out, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
