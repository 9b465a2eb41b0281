"""Validation NDCG@10 after so many minutes of training: a run of its own for each, its rate falling to its end."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import recgpt


def main() -> None:
    """Train for each time; a line each on stderr, one JSON object on stdout. Finished runs are not trained again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="pretraining config, such as configs/pretrain/ml-1m.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--runs", type=Path, default=Path("runs/time_to_quality"), help="folder of the run folders")
    parser.add_argument("--seed", type=int, default=0)
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
    print(json.dumps(found))


if __name__ == "__main__":
    main()
