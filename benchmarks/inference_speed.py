"""Users a second of evaluation (all items ranked) and of `export --users`, beside RecTools' `recommend()`, in turn."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from recgpt.api import InferencePrecision, inference_dtype
from recgpt.evaluation import model_scorer, rank_users
from recgpt.export import export
from recgpt.runs import TrainedRun

PEER = Path(__file__).parent / "peers" / "rectools_recommend.py"


def ours(run: Path, precision: InferencePrecision) -> dict[str, float]:
    """Users a second of a trained run: model alone (no baselines), from its prepared log."""
    trained = TrainedRun.open(run)
    trained.prepared.events(0, 1)  # libraries loaded and the log mapped before the clock starts, as the peer's are
    scorers = {"model": model_scorer(trained.model, inference_dtype(precision), trained.want)}
    started = time.perf_counter()
    _, protocol = rank_users(trained.prepared, "valid", scorers, (10,))
    ranked = protocol["users"] / (time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        told = export(run, Path(folder) / "out", items=False, precision=precision)
        exported = told["n_users"] / (time.perf_counter() - started)
    return {f"evaluate_{precision}": ranked, f"export_{precision}": exported}


def rectools(python: str, log: str, dim: int, threads: int, length: int) -> dict[str, float]:
    """RecTools' `recommend()` on the same log with the same sizes, in its own interpreter."""
    words = [python, str(PEER), log, str(dim), str(threads), str(length)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return {str(name): float(value) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> None:
    """Measure in turn; a line each on stderr, medians and ratios as one JSON object on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a finished pretraining run")
    parser.add_argument("--peer", nargs=2, metavar=("PYTHON", "LOG"), help="interpreter with rectools[torch]; the log")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = TrainedRun.open(arguments.run).model.config
    found: list[dict[str, float]] = []
    for _ in range(arguments.repeats):
        found.append(ours(arguments.run, "fp32") | ours(arguments.run, "bf16"))
        if arguments.peer:
            python, log = arguments.peer
            found[-1] |= rectools(python, log, config.dim, arguments.threads, config.window.length)
        print({name: round(value) for name, value in found[-1].items()}, file=sys.stderr)
    told = {name: statistics.median(each[name] for each in found) for name in found[0]}
    if arguments.peer:
        for name in [each for each in told if each != "recommend"]:
            told[f"ratio_{name}"] = statistics.median(each[name] / each["recommend"] for each in found)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
