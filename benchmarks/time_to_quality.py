"""Validation NDCG@10 after so many minutes of training: a run of its own for each, its rate falling to its end."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import recgpt
from benchmarks.svg import svg
from recgpt.files import atomic_write_text


def picture(found: dict[str, dict[str, float]]) -> str:
    """NDCG@10 by minutes of training, as SVG."""
    return svg("time_to_quality", (5.4, 2.8), lambda figure: _draw(figure, found), "constrained")


def _draw(figure: Any, found: dict[str, dict[str, float]]) -> None:
    axes = figure.subplots()
    minutes, heights = [float(each) for each in found], [each["ndcg@10"] for each in found.values()]
    axes.plot(minutes, heights, marker="o", markersize=4, color="#0f5f9c")
    for x, y in zip(minutes, heights, strict=True):
        axes.annotate(f"{y:.3f}".removeprefix("0"), (x, y), (0, 6), textcoords="offset points", ha="center")
    axes.set_xscale("log")
    axes.set_xticks(minutes, list(found))
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, 1.15 * max(*heights, 1e-3))
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("validation NDCG@10")
    axes.grid(color="#d0d7de", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main() -> None:
    """Train for each time; a line each on stderr, one JSON object on stdout. Finished runs are not trained again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="pretraining config, such as configs/pretrain/ml-1m.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--runs", type=Path, default=Path("runs/time_to_quality"), help="folder of the run folders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="an SVG file to draw the curve to")
    arguments = parser.parse_args()
    found = {}
    for minutes in arguments.minutes:
        name = f"{Path(arguments.config).stem}-{minutes:g}-{arguments.seed}"
        end = [f"run.minutes={minutes}", "run.epochs=null", "run.steps=null"]
        words = [*arguments.overrides, *end, f"run.seed={arguments.seed}", f"run.dir={arguments.runs / name}"]
        told = recgpt.pretrain(arguments.config, overrides=words)
        rate = told["targets"] / told["seconds"]
        found[f"{minutes:g}"] = told["valid"] | {"targets": told["targets"], "targets_per_second": rate}
        print(f"{minutes:g} min: NDCG@10 {told['valid']['ndcg@10']:.4f}, {rate:,.0f} events/s", file=sys.stderr)
    if arguments.picture is not None:
        atomic_write_text(arguments.picture, picture(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
