"""Training events per second on a log, beside RecTools' SASRec on the same events and shapes.

An event counts when it is a target (padding and repeated context do not). The first steps are left out: they import
and allocate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPE = {"dim": 64, "layers": 2, "heads": 2}
LENGTH, WARM_UP = 200, 5


def ours(log: Path, seconds: float, threads: int) -> float:
    """Events per second of recgpt's own loop body: batches, forward, backward, update."""
    import torch

    from recgpt.data.prepare import prepare
    from recgpt.model import EventModel
    from recgpt.stages import load_stage
    from recgpt.train.optim import build_optimizer, clip_gradients, gradient_norm

    torch.set_num_threads(threads)
    load_stage("pretrain")
    from recgpt.pretrain.main import resolve  # type: ignore[import-not-found]
    from recgpt.pretrain.task import PretrainTask  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        columns = {"header": False, "delimiter": " ", "columns": ["user", "item"]}
        data = {"events": str(log), "format": columns, "user": "user", "item": "item", "order": "row"}
        window = {"length": LENGTH, "stride": LENGTH // 2, "chunk": LENGTH // 8}
        config = resolve(
            {
                "data": data | {"prepared": folder + "/prepared"},
                "model": SHAPE | {"window": window, "id": {"rows": 8192}},
                "optim": {"lr": 2e-3},
            }
        )
        prepared = prepare(config.data, progress=False)
        task = PretrainTask(config, prepared, EventModel(config.model, prepared.schema, prepared.items.trained))
        optimizer = build_optimizer(task.model, config.optim)
        task.model.train()
        events, steps, started, epoch = 0, 0, time.perf_counter(), 0
        while True:
            for batch in task.batches(epoch, 0):
                optimizer.zero_grad(set_to_none=True)
                result = task.step(batch)
                result.loss.backward()
                clip_gradients(optimizer, float(gradient_norm(optimizer)), config.optim.clip_norm)
                optimizer.step()
                steps += 1
                if steps == WARM_UP:
                    events, started = 0, time.perf_counter()
                elif steps > WARM_UP:
                    events += result.targets
                    if time.perf_counter() - started > seconds:
                        return events / (time.perf_counter() - started)
            epoch += 1


PEER = Path(__file__).parent / "peers" / "rectools_sasrec.py"


def rectools(python: str, log: Path, seconds: float, threads: int) -> float:
    """Events per second of RecTools' SASRec, in its own interpreter."""
    words = [python, str(PEER), str(log), str(seconds), str(threads), str(LENGTH), str(WARM_UP)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure in turn and print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter that has rectools[torch]")
    parser.add_argument("--seconds", type=float, default=30, help="training time of one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {"recgpt": [], "rectools": []}
    for _ in range(arguments.repeats):
        found["recgpt"].append(ours(arguments.log, arguments.seconds, arguments.threads))
        if arguments.peer:
            found["rectools"].append(rectools(arguments.peer, arguments.log, arguments.seconds, arguments.threads))
        print({name: [round(rate) for rate in rates] for name, rates in found.items()}, file=sys.stderr)
    medians = {name: statistics.median(rates) for name, rates in found.items() if rates}
    ratios = [a / b for a, b in zip(found["recgpt"], found["rectools"], strict=False)]
    print(json.dumps({"events_per_second": medians, "ratio": statistics.median(ratios) if ratios else None}))


if __name__ == "__main__":
    main()
