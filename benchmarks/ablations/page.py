"""`docs/ablations.md` from the plan and the results: nothing in it is written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .figures import Noise, Row, noise, row
from .plan import DEFAULT, Cell, Log, Plan, Question, command
from .results import Measured

PICTURE = "ablations.svg"
_HEAD = ("", "NDCG@10", "recall@10", "difference in NDCG@10", "", "seeds", "CPU s", "model MB", "changes")


@dataclass(frozen=True)
class Table:
    """One question on one log.

    Attributes:
        log: its short name.
        question: its short name.
        default: the default's figures.
        rows: each cell with its figures, None where it is not measured.
    """

    log: str
    question: str
    default: Row | None
    rows: list[tuple[Cell, Row | None]]


def tables(plan: Plan, measured: dict[str, Measured]) -> list[Table]:
    """All tables in the order of the questions; `measured` by cell key."""
    found = []
    for question in plan.questions:
        for log in plan.logs:
            cells = [cell for cell in plan.cells if (cell.question, cell.log) == (question, log)]
            if not cells:
                continue
            default = measured[f"{log}/{DEFAULT}"].results
            rows = [(cell, row(measured[cell.key].results, default)) for cell in cells]
            found.append(Table(log, question, row(default, default, is_default=True), rows))
    return found


def page(plan: Plan, measured: dict[str, Measured]) -> str:
    """The whole page as Markdown."""
    parts = ["# Ablations", _opening(plan), f"![Every cell's difference from its log's default]({PICTURE})"]
    parts.append("Triangles point to better or worse; hollow circles: no difference; diamonds: the default itself.")
    parts += ["## The defaults", _defaults(plan, measured)]
    every = tables(plan, measured)
    for name, question in plan.questions.items():
        own = [table for table in every if table.question == name]
        if own:
            parts += [f"## {question.title}", question.text]
        for table in own:
            parts += [f"**{plan.logs[table.log].title}**", _table(table, question.default), _shares(table, question)]
        if own and question.finding:
            parts.append(question.finding)
    parts += ["## Provenance", _provenance(measured)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _shares(table: Table, question: Question) -> str:
    """Each cell's share of the reference's metric, one line; nothing without both."""
    whole = next((found for cell, found in table.rows if cell.name == question.reference), None)
    if whole is None:
        return ""
    value = next(cell.value for cell, _ in table.rows if cell.name == question.reference)
    shares = [
        f"{cell.value} {100 * found.metric / whole.metric:.0f} %"
        for cell, found in table.rows
        if found is not None and found is not whole
    ]
    return f"NDCG@10 as a share of that of {value}: {'; '.join(shares)}."


def _opening(plan: Plan) -> str:
    compared = len(plan.cells)
    return (
        "What each method is worth: one factor at a time, from one default for each log. "
        "`python -m benchmarks.ablations` measures what is missing and `--render` writes this page from the files in "
        "`benchmarks/ablations/results/`.\n\n"
        "- All figures are of the **validation part** (every candidate ranked, seen items removed) after the last "
        "epoch; the test part is not read.\n"
        "- A run ends after a number of epochs, on one thread; seconds are process time of training and validation.\n"
        f"- A cell has {plan.seeds} seeds, a default {plan.default_seeds}. The difference is that of the means, with "
        "its 95 % interval t(n0 - 1) sd sqrt(1/n0 + 1/n): n0 the default's seeds, n the cell's, sd the deviation "
        'between the default\'s seeds. Where it holds 0 stands "no difference".\n'
        f"- Of {compared} comparisons {compared / 20:.1f} would stand out by chance at 95 %. The intervals tell of "
        "seeds, not of other logs or longer training, and nothing is tuned anew for a variant.\n"
        "- A result stands until its cell's settings change; changed code makes none stale (`--fresh` measures anew)."
    )


def _defaults(plan: Plan, measured: dict[str, Measured]) -> str:
    lines = [line(("log", "NDCG@10 (sd of a run)", "recall@10", "seeds", "CPU s", "command")), line(["---"] * 6)]
    for name, log in plan.logs.items():
        cell = plan.cell(f"{name}/{DEFAULT}")
        results = measured[cell.key].results
        lines.append(
            line(_default_cells(log, row(results, results, is_default=True), noise(results), command(plan, cell)))
        )
    return "\n".join(lines)


def _default_cells(log: Log, figures: Row | None, band: Noise | None, line: str) -> Sequence[str]:
    if figures is None:
        return (log.title, "not measured", "", "0", "", f"`{line}`")
    deviation = "" if band is None else f" ({small(band.sd)})"
    values = (
        f"{small(figures.metric)}{deviation}",
        small(figures.second),
        str(figures.n),
        f"{figures.cpu_seconds:.0f}",
    )
    return (log.title, *values, f"`{line}`")


def _table(table: Table, default: str) -> str:
    lines = [line(_HEAD), line(["---"] * len(_HEAD)), line(_cells(f"{default} (default)", "", table.default))]
    lines += [line(_cells(cell.value, " ".join(f"`{line}`" for line in cell.set), found)) for cell, found in table.rows]
    return "\n".join(lines)


def _cells(value: str, changes: str, figures: Row | None) -> Sequence[str]:
    if figures is None:
        return (value, "not measured", "", "", "", "0", "", "", changes)
    return (
        value,
        small(figures.metric),
        small(figures.second),
        interval(figures),
        figures.verdict,
        str(figures.n),
        f"{figures.cpu_seconds:.0f}",
        f"{figures.model_bytes / 1e6:.2f}",
        changes,
    )


def interval(figures: Row) -> str:
    """`+.0031 (+.0011 to +.0051)`."""
    if figures.difference is None:
        return ""
    if figures.half_width is None:
        return small(figures.difference, sign=True)
    low, high = figures.difference - figures.half_width, figures.difference + figures.half_width
    return f"{small(figures.difference, sign=True)} ({small(low, sign=True)} to {small(high, sign=True)})"


def small(value: float, sign: bool = False) -> str:
    """Four decimals without the leading zero: `.1523`, `+.0031`."""
    text = f"{value:{'+' if sign else ''}.4f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def _provenance(measured: dict[str, Measured]) -> str:
    results = [result for each in measured.values() for result in each.results]
    if not results:
        return "Nothing is measured yet."
    days = sorted({result.date for result in results})
    versions = sorted({f"torch {result.versions['torch']}" for result in results})
    hours = sum(result.cpu_seconds for result in results) / 3600
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{len(results)} runs, {span}, {', '.join(versions)}, one thread each, {hours:.1f} hours of process time."


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
