"""`python -m benchmarks.accuracy`: measure what is missing on the test parts; `--render` writes the page.

Every run keeps its folder, so a stopped one goes on; each reading of a test part is a line of its `test_reads.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recgpt.config import load_config
from recgpt.errors import RecGPTError
from recgpt.files import atomic_write_text

from .page import page
from .plan import ROOT, ROWS, Plan, Row
from .results import FOLDER, Result, digits, place, read, save

PAGE = ROOT / "docs" / "accuracy.md"


def measure(row: Row, seed: int, threads: int, runs: Path) -> Result:
    """Train (or go on, or find finished), evaluate both parts once, and gather what is kept."""
    import torch

    import recgpt
    from recgpt.eval_files import saved_result, saved_table, users_file
    from recgpt.evaluation import evaluate
    from recgpt.retrieval import RECOMMENDERS

    folder = runs / f"{row.name}-{seed}"
    own = [f"run.seed={seed}", f"run.threads={threads}", f"run.dir={json.dumps(str(folder))}"]
    told = recgpt.pretrain(row.source, overrides=[*row.set, *own])
    for part in ("valid", "test"):
        if not (folder / "eval" / f"{part}.json").is_file():
            evaluate(folder, part)  # type: ignore[arg-type]
    test: dict[str, Any] = saved_result(folder, "test")
    table = saved_table(folder, users_file(folder, "test"), "test").sort_by("user")  # however a log orders its users
    return Result(
        seed=seed,
        test=_rounded(test["model"]),
        baselines={name: _rounded(test[name]) for name in RECOMMENDERS},
        valid=_rounded(saved_result(folder, "valid")["model"]),
        ranks=digits(table["model"].to_numpy()),
        minutes=round(told["seconds"] / 60, 1),
        threads=threads,
        targets=told["targets"],
        model_bytes=(folder / "model" / "model.safetensors").stat().st_size,
        date=datetime.now(UTC).date().isoformat(),
        versions={"recgpt": recgpt.__version__, "torch": torch.__version__},
        config=row.settings(),
    )


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in metrics.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__, allow_abbrev=False)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows or logs; default all")
    parser.add_argument("--seeds", type=int, help="measure the first N seeds of each row only")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="cores of a run")
    parser.add_argument("--render", action="store_true", help="write the page from the results; measures nothing")
    parser.add_argument("--plan", type=Path, default=ROWS, help="the rows (YAML)")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the results")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder of the run folders")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page that --render writes")
    arguments = parser.parse_args(argv)
    try:
        plan: Plan = load_config(Plan, arguments.plan)
        if arguments.render:
            return _render(plan, arguments.results, arguments.out)
        for row, seed in _missing(plan, arguments):
            save(arguments.results, row, measure(row, seed, arguments.threads, arguments.runs))
            _tell(f"wrote {place(arguments.results, row, seed)}")
    except KeyboardInterrupt:
        return _tell("stopped; the same command goes on", 130)
    except RecGPTError as error:
        return _tell(str(error), error.exit_code)
    return 0


def _missing(plan: Plan, arguments: argparse.Namespace) -> list[tuple[Row, int]]:
    """What is to be measured: all first seeds before any second one.

    Raises:
        RecGPTError: wrong arguments, or a result that was measured with another config.
    """
    seeds = plan.seeds if arguments.seeds is None else arguments.seeds
    if not 1 <= seeds <= plan.seeds:
        raise RecGPTError(f"--seeds: {seeds}; the plan has 1 to {plan.seeds}")
    missing = []
    for row in plan.chosen(arguments.rows):
        found, stale = read(arguments.results, row, seeds)
        if stale:
            raise RecGPTError(f"{stale[0]}; remove it to measure again, or undo the change")
        missing += [(row, seed) for seed in range(seeds) if seed not in {result.seed for result in found}]
    return sorted(missing, key=lambda each: each[1])


def _tell(text: str, code: int = 0) -> int:
    sys.stderr.write(f"accuracy: {text}\n")
    return code


def _render(plan: Plan, folder: Path, out: Path) -> int:
    measured = {}
    for row in plan.rows:
        measured[row.name], stale = read(folder, row, plan.seeds)
        for line in stale:
            _tell(f"{line} and is left out")
    atomic_write_text(out, page(plan, measured))
    return _tell(f"wrote {out}")


if __name__ == "__main__":
    sys.exit(main())
