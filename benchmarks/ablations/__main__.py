"""`python -m benchmarks.ablations`: measure what is missing; `--list` and `--render` measure nothing."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recgpt.config import load_config
from recgpt.errors import ConfigError, RecGPTError
from recgpt.files import atomic_write_text
from recgpt.train.run import locked

from .figures import METRIC
from .page import PICTURE, page, tables
from .picture import picture
from .plan import CELLS, ROOT, Cell, Job, Plan, jobs
from .results import FOLDER, Measured, orphans, place, read
from .runner import run_all

PAGE = ROOT / "docs" / "ablations.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        plan: Plan = load_config(Plan, arguments.plan)
        chosen = plan.chosen(arguments.only)
        measured = {cell.key: read(arguments.results, plan, cell) for cell in plan.all_cells()}
        if arguments.list:
            _list(plan, chosen, measured)
        elif arguments.render:
            _render(plan, measured, arguments.results, arguments.out)
        else:
            return _measure(plan, chosen, measured, arguments)
    except KeyboardInterrupt:
        return _tell("stopped; what was being measured begins anew next time", 130)
    except RecGPTError as error:
        return _tell(str(error), error.exit_code)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="LOG/CELL, a log, a cell or a question; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="the cells and what is measured of them")
    parser.add_argument("--render", action="store_true", help="write the page and its picture from the results")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at once, one thread each")
    parser.add_argument("--seeds", type=int, help="measure the first N seeds of each cell only")
    parser.add_argument("--fresh", action="store_true", help="measure anew what was measured with another config")
    parser.add_argument("--plan", type=Path, default=CELLS, help="the cells (YAML)")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the results")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="folder of the run folders")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page that --render writes")
    return parser


def _as_interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _tell(text: str, code: int = 0) -> int:
    sys.stderr.write(f"ablations: {text}\n")
    return code


def _list(plan: Plan, cells: Sequence[Cell], measured: dict[str, Measured]) -> None:
    """One line a cell."""
    for cell in cells:
        found = measured[cell.key]
        values = " ".join(f"{result.valid[METRIC]:.4f}" for result in found.results)
        stale = "".join(f"; another config: {name} ({how})" for name, how in found.stale.items())
        state = f"{len(found.results)}/{plan.n_seeds(cell)} {values}"
        print(f"{cell.key:<32} {state:<44} {' '.join(cell.set)}{stale}")


def _render(plan: Plan, measured: dict[str, Measured], results: Path, out: Path) -> None:
    """Write page and picture; what does not count is told and left out."""
    for key, found in measured.items():
        for name, how in found.stale.items():
            _tell(f"{key}: {name} was measured with another config ({how}) and is left out")
    for path in orphans(results, plan):
        _tell(f"{path}: belongs to no cell of the plan and is left out")
    atomic_write_text(out, page(plan, measured))
    atomic_write_text(out.with_name(PICTURE), picture(plan, tables(plan, measured)))
    _tell(f"wrote {out} and {out.with_name(PICTURE)}")


def _measure(plan: Plan, cells: Sequence[Cell], measured: dict[str, Measured], arguments: argparse.Namespace) -> int:
    """Measure every missing (cell, seed) of the chosen cells.

    Raises:
        ConfigError: a result of another config is there and `--fresh` is not given.
    """
    stale = [f"{cell.key}: {name}: {how}" for cell in cells for name, how in measured[cell.key].stale.items()]
    if stale and not arguments.fresh:
        raise ConfigError(
            "measured with another config; measure again with --fresh, or undo the change:\n" + "\n".join(stale)
        )
    if arguments.jobs < 1:
        raise ConfigError(f"--jobs: {arguments.jobs}; at least one run at a time")
    done = {(cell.key, result.seed) for cell in cells for result in measured[cell.key].results}
    missing = [job for job in jobs(plan, cells) if (job.cell.key, job.seed) not in done]
    if arguments.seeds is not None:
        missing = [job for job in missing if job.seed < arguments.seeds]
    _tell(f"{len(missing)} runs to do, {len(done)} done before")
    ended = 0

    def tell_end(job: Job, failure: str | None) -> None:
        nonlocal ended
        ended += 1
        _tell(f"[{ended}/{len(missing)}] {job.name}: {failure or _figures(plan, arguments.results, job)}")

    with locked(arguments.runs):
        failed = run_all(arguments.plan, missing, arguments.jobs, arguments.results, arguments.runs, tell_end)
    return _tell(f"{len(failed)} runs failed", RecGPTError.exit_code) if failed else 0


def _figures(plan: Plan, folder: Path, job: Job) -> str:
    found = {result.seed: result for result in read(folder, plan, job.cell).results}
    result = found.get(job.seed)
    if result is None:
        return f"no result of this config in {place(folder, job)}"
    return f"NDCG@10 {result.valid[METRIC]:.4f}, {result.cpu_seconds:.0f} s of process time"


if __name__ == "__main__":
    sys.exit(main())
