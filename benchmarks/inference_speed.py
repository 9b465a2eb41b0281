"""Users a second of evaluation (all items ranked) and of `export --users`, beside RecTools' `recommend()`, in turn.

Every measurement is a process of its own, that compiles its products anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.process import printed
from recgpt.api import InferencePrecision, inference_dtype
from recgpt.evaluation import model_scorer, rank_users
from recgpt.export import export
from recgpt.runs import TrainedRun

WORK = ("evaluate_fp32", "export_fp32", "evaluate_bf16", "export_bf16")
PEER = Path(__file__).parent / "peers" / "rectools_recommend.py"


def ours(run: Path, what: str) -> float:
    """Users a second of a trained run: model alone (no baselines), from its prepared log."""
    work, name = what.split("_")
    precision: InferencePrecision = "bf16" if name == "bf16" else "fp32"
    trained = TrainedRun.open(run)
    trained.prepared.events(0, 1)  # libraries loaded and the log mapped before the clock starts, as the peer's are
    if work == "evaluate":
        scorers = {"model": model_scorer(trained.model, inference_dtype(precision), trained.want)}
        started = time.perf_counter()
        _, protocol = rank_users(trained.prepared, "valid", scorers, (10,))
        return protocol["users"] / (time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        told = export(run, Path(folder) / "out", items=False, precision=precision)
        return told["n_users"] / (time.perf_counter() - started)


def main() -> None:
    """Measure in turn; a line each on stderr, medians and ratios as one JSON object on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference_speed", description=__doc__)
    parser.add_argument("run", type=Path, help="a finished pretraining run")
    parser.add_argument("--peer", nargs=2, metavar=("PYTHON", "LOG"), help="interpreter with rectools[torch]; the log")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=WORK, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(ours(arguments.run, arguments.one)))
        return
    run, threads = arguments.run.resolve(), arguments.threads
    words: dict[str, list[object]] = {
        what: ["benchmarks.inference_speed", run, "--threads", threads, "--one", what] for what in WORK
    }
    if arguments.peer:
        python, log = arguments.peer
        config = TrainedRun.open(run).model.config
        words["recommend"] = [python, PEER, Path(log).resolve(), config.dim, threads, config.window.length]
    found: list[dict[str, float]] = []
    for _ in range(arguments.repeats):
        found.append({name: printed(command) for name, command in words.items()})
        print({name: round(value) for name, value in found[-1].items()}, file=sys.stderr)
    told = {name: statistics.median(each[name] for each in found) for name in words}
    if arguments.peer:
        for name in WORK:
            told[f"ratio_{name}"] = statistics.median(each[name] / each["recommend"] for each in found)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
