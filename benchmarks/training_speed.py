"""Training events per second of a config beside peers' SASRec, in turn; peak memory; how near the machine's floor.

An event counts when it is a target (padding and repeated context do not). Every measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.process import printed
from benchmarks.steps import WARM_UP, Steps, matrix_rate, peak, prepared_alone, targets

PEERS = {
    "rectools": "rectools[torch]",
    "replay": "replay-rec[torch]",
    "pmixer": "torch, and the folder python of SASRec.pytorch on PYTHONPATH",
}
"""Peers, each a script `peers/NAME_sasrec.py`, and what its interpreter needs."""
LENGTH = 200


def ours(config: str, overrides: list[str], seconds: float) -> dict[str, float]:
    """Events per second of the loop's own step: batches, forward, backward, update; and what the products allow."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*overrides, f"data.prepared={folder}/prepared"]
        prepared_alone(config, words)
        steps = Steps.of(config, words)
        wall, cpu = steps.timed(seconds, targets)
        found = {"events_per_second": wall, "events_per_cpu_second": cpu, "peak_mib": peak() - steps.imported}
        flops, rate = steps.flops(targets), matrix_rate(steps.device)
    limits = {"flops_per_event": flops, "matrix_flops_per_second": rate, "floor_events_per_second": rate / flops}
    return found | limits | {"share_of_floor": wall * flops / rate}


def main() -> None:
    """Measure in turn; a line each on stderr, medians and ratios as one JSON object on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_speed", description=__doc__)
    parser.add_argument("config", help="pretraining config, such as configs/pretrain/ml-1m.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="such as model.dim=64")
    needs = ", ".join(f"{name} ({package})" for name, package in PEERS.items())
    parser.add_argument("--log", type=Path, help="the config's log as a text file of user-item pairs, for the peers")
    parser.add_argument(
        "--peer",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "PYTHON"),
        help=f"a peer and an interpreter that has what it needs: {needs}; may be given several times",
    )
    parser.add_argument("--seconds", type=float, default=30, help="training time of one measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(ours(arguments.config, arguments.overrides, arguments.seconds)))
        return
    if arguments.peer and arguments.log is None:
        parser.error("--log: peers need the log as a text file")
    limits = ["--seconds", arguments.seconds, "--threads", arguments.threads]
    words = {"recgpt": ["benchmarks.training_speed", arguments.config, *arguments.overrides, "--one", *limits]}
    for name, python in arguments.peer:
        if name not in PEERS:
            parser.error(f"--peer: {name!r}; known: {', '.join(PEERS)}")
        script = Path(__file__).parent / "peers" / f"{name}_sasrec.py"
        words[name] = [python, script, arguments.log.resolve(), arguments.seconds, arguments.threads, LENGTH, WARM_UP]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in words}
    for _ in range(arguments.repeats):
        for name in words:
            found[name].append(printed(words[name]))
            print(name, {key: round(value, 2) for key, value in found[name][-1].items()}, file=sys.stderr)
    told: dict[str, Any] = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()
    }
    for name, _ in arguments.peer:
        pairs = list(zip(found["recgpt"], found[name], strict=True))
        told[name] |= {
            f"ratio_{key}": statistics.median(a[key] / b[key] for a, b in pairs)
            for key in ("events_per_second", "peak_mib")
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
