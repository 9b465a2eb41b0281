"""What the command line prints: one JSON object, or tables for people."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METHODS = ("model", "markov", "item_knn", "popularity", "oracle")
PIPE_WIDTH = 160
"""Columns of a table when stdout is no terminal; rich's own 80 would fold most lines."""


def print_json(result: Any) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(_plain(result), allow_nan=False))


def print_text(text: str) -> None:
    """Print a finished text as it is."""
    sys.stdout.write(text)


def _plain(value: Any) -> Any:
    """`value` with what JSON knows only: NaN and infinities become null, NumPy numbers numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, tensors
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, int, type(None))):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def show_fields(result: Mapping[str, Any]) -> None:
    """A table of every value, one a line, under its dotted key."""
    _print_table(("", ""), list(_flat(result).items()))


def show_metrics(result: Mapping[str, Any]) -> None:
    """A table with a line a method and a column a metric, then whatever else there is."""
    methods = [name for name in METHODS if isinstance(result.get(name), Mapping)]
    metrics = list(dict.fromkeys(metric for name in methods for metric in result[name]))
    rows = [(name, *(result[name].get(metric, "") for metric in metrics)) for name in methods]
    _print_table(("", *metrics), rows)
    rest = {key: value for key, value in result.items() if key not in methods}
    if rest:
        show_fields(rest)


def show_evaluation(result: Mapping[str, Any]) -> None:
    """The metrics, the model's lead over each method, then the protocol; for a ranker a table an outcome."""
    if "outcomes" in result:
        _show_ranking(result)
        return
    show_metrics({name: value for name, value in result.items() if name != "paired"})
    _show_lead(result.get("paired", {}))


def _show_lead(paired: Mapping[str, Any]) -> None:
    rows = [
        (name, metric, gap["difference"], f"{gap['low']:+.4f} to {gap['high']:+.4f}")
        for name, metrics in paired.items()
        for metric, gap in metrics.items()
    ]
    if rows:
        _print_table(("model minus", "metric", "difference", "95 % interval over users"), rows)


def _show_ranking(result: Mapping[str, Any]) -> None:
    """A table an outcome: the model beside the other systems, and its lead over the first of them."""
    protocol = result["protocol"]
    print(
        f"{result['split']}: {result['rows']:,} impressions of {result['users']:,} users; history {result['history']}, "
        f"trained on {protocol['trained_on']}"
    )
    others = list(result["paired"])  # item_popularity first
    for name, outcome in result["outcomes"].items():
        read = [(metric, track) for metric, track in protocol["read_on"].items() if metric != "gauc"]
        read[1:1] = [("gauc", "frozen"), ("gauc", "online")]
        rows = [
            _ranking_row(result, name, metric, track, others)
            for metric, track in [*read, ("ece_expected", result["history"]), ("mean_p", result["history"])]
        ]
        print(
            f"\n{name}: rate {_text(outcome['rate'])} of {outcome['rows']:,} rows; "
            f"gauc over {outcome['users']:,} users with {outcome['gauc_rows']:,} rows"
        )
        _print_table(("", "model", "95 % interval", *others, "difference", "95 % interval"), rows)
    chosen = protocol.get("item_popularity", {}).items()
    print("item_popularity: smoothing " + ", ".join(f"{name} {of['m']}" for name, of in chosen))
    notes = f"difference: model minus {others[0]}. Intervals: {protocol['intervals']}. {protocol['gauc']}"
    print(textwrap.fill(notes, 100))


def _ranking_row(
    result: Mapping[str, Any], name: str, metric: str, track: str, others: Sequence[str]
) -> tuple[str, ...]:
    model = result["tracks"][track][name]
    gap = result["paired"][others[0]][name].get(metric)
    if result["protocol"]["read_on"].get(metric) != track:
        gap = None  # gauc of the online track
    lead = ("", "") if gap is None else (_signed(gap["difference"]), _interval(gap["low"], gap["high"], "+"))
    return (
        f"{metric}, {track}" if metric == "gauc" else metric.replace("_", " "),
        _text(model[metric]),
        _interval(*(model["interval"].get(metric) or (None, None))),
        *(_text(result[other].get(name, {}).get(metric)) for other in others),
        *lead,
    )


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _interval(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None or high is None else f"{low:{sign}.4f}, {high:{sign}.4f}"


def show_comparison(result: Mapping[str, Any]) -> None:
    """Two runs; of rankers a table an outcome, with the second's lead over the first."""
    if "history" not in result:
        show_fields(result)
        return
    print(f"{result['split']}: {result['rows']:,} impressions of {result['users']:,} users; gauc on the frozen track")
    for place, (run, history) in enumerate(result["history"].items(), 1):
        print(f"{place}: {run}, history {history}")
    runs = list(result["runs"].values())
    for name, metrics in result["second_minus_first"].items():
        rows = [
            (
                metric,
                runs[0][name][metric],
                runs[-1][name][metric],
                _signed(gap["difference"]),
                _interval(gap["low"], gap["high"], "+"),
            )
            for metric, gap in metrics.items()
        ]
        _print_table((name, "1", "2", "2 - 1", "95 % interval"), rows)


def show_quickstart(summary: Mapping[str, Any]) -> None:
    """What came out, what it recommends to one user, and what to try next."""
    methods = {name: summary[name] for name in METHODS if name in summary}
    shown = ("ndcg@10", "recall@10", "mrr", "coverage@10")
    show_metrics({name: {key: metrics[key] for key in shown} for name, metrics in methods.items()})
    _show_lead({name: {"ndcg@10": value["ndcg@10"]} for name, value in summary["paired"].items()})
    items = summary["recommended"]["items"]
    columns = list(dict.fromkeys(key for item in items for key in item))
    _print_table(
        (f"for {summary['recommended']['user']}", *columns),
        [(place, *(item.get(key, "") for key in columns)) for place, item in enumerate(items, 1)],
    )
    if "ranking" in summary:
        _show_quickstart_ranking(summary)
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in summary["seconds"].items())
    print(f"{stages}; trained on {summary['targets_per_second']:,.0f} events/s")
    run = summary.get("ranking_run", summary["run"])
    print("look at", " and ".join(summary[key] for key in ("report", "ranking_report") if key in summary))
    print(f"next: recgpt recommend {run} --user ID -k 10; recgpt serve {run}; recgpt config show {run}/config.yaml")


def _show_quickstart_ranking(summary: Mapping[str, Any]) -> None:
    """The outcomes' metrics, and what the heads say of the items that the fine-tuned run recommends."""
    systems = {"model": summary["ranking"]} | summary["ranking_beside"]
    metrics = list(dict.fromkeys(key for values in summary["ranking"].values() for key in values))
    _print_table(
        ("outcome", "", *metrics),
        [
            (outcome, name, *(values[outcome].get(key) for key in metrics))
            for outcome in summary["ranking"]
            for name, values in systems.items()
        ],
    )
    ranked = summary["ranked"]
    outcomes = list(summary["ranking"])
    titled = any("title" in item for item in ranked["items"])
    _print_table(
        (f"ranked for {ranked['user']}", "item", *(f"p({name})" for name in outcomes), *(["title"] if titled else [])),
        [
            (
                place,
                item["item"],
                *(item["outcomes"][name] for name in outcomes),
                *([item.get("title")] if titled else []),
            )
            for place, item in enumerate(ranked["items"], 1)
        ],
    )
    served = summary["served"]
    print(served.get("skipped") or f"served the same over HTTP in {served['milliseconds']} ms")


def show_inspection(found: Mapping[str, Any]) -> None:
    """Tables, vectors, collisions and norms, then what each head of the attention looks at."""
    _print_table(
        ("table", "rows", "reached", "width", "information abundance", "untrained", "effective rank"),
        [_table_row(table) for table in found["tables"]],
    )
    _print_table(
        ("vectors", "n", "width", "information abundance", "effective rank", "length"),
        [
            (name, of["n"], of["width"], of["information_abundance"], of["effective_rank"], of["length"])
            for name, of in found["vectors"].items()
        ],
    )
    load = found["collisions"]
    if load is not None:
        of = f"{load['addresses']} out of {load['slots']:,} addresses"
        print(f"ids: {load['kind']}; {load['items']:,} items, each of {of}")
        chance = load["chance"] or {}
        names = ("in_use", "sharing", "confused_items", "confused_pairs")
        rows = [(name.replace("_", " "), load["here"][name], chance.get(name)) for name in names]
        _print_table(("", "here", "expected of chance"), rows)
    for name, of in found["norms"].items():
        middle = [part["median"] for part in of["deciles"]]
        print(f"length of {name} by popularity: Spearman {_text(of['spearman'])}")
        print(f"  medians of the items in tenths, the least popular first: {_text(middle)}")
    if found["attention"] is not None:
        _show_attention(found["attention"])


def _table_row(table: Mapping[str, Any]) -> tuple[Any, ...]:
    spectrum, start = table.get("spectrum", {}), table.get("start", {})
    abundance, untrained = (of.get("information_abundance") for of in (spectrum, start))
    own = (table["name"], table["rows"], table["reached"], table["width"])
    return *own, abundance, untrained, spectrum.get("effective_rank")


def _show_attention(found: Mapping[str, Any]) -> None:
    """A line a head, and one for a head that looks at everything alike."""
    heads = [
        (f"layer {i}, head {j}", head) for i, layer in enumerate(found["layers"], 1) for j, head in enumerate(layer, 1)
    ]
    rows = [
        (
            name,
            head["first_token"],
            head["distance"][0],
            head["distance"][1],
            head["mean_distance"],
            head["effective_positions"],
        )
        for name, head in [*heads, ("even", found["even"])]
    ]
    columns = ("attention", "first token", "itself", "the event before", "mean distance", "effective positions")
    _print_table(columns, rows)


def show_recommendations(result: Mapping[str, Any]) -> None:
    """A table of the items, best first, then what they were computed from."""
    items = result["items"]
    columns = list(dict.fromkeys(key for item in items for key in item))
    rows = [(place, *(item.get(key, "") for key in columns)) for place, item in enumerate(items, 1)]
    _print_table(("", *columns), rows)
    show_fields({key: value for key, value in result.items() if key != "items"})


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(inner) for inner in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    return "-" if value is None else str(value)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # ids and titles may hold what rich takes for markup

    table = Table(box=SIMPLE_HEAD, show_header=any(columns))
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_text(value)) for value in row))
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)
