"""Training tokens a second on a GPU, by attention backend, and the share of its measured matrix rate.

A random log stands for a real one: what is measured does not depend on the values. `full` windows have no padding,
`mixed` ones (lengths from an eighth of the window on) are padded within the sampler's length buckets; a token is a real
event or a first token, never padding. Without a GPU it says so; `--smoke` runs a small model on the CPU instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.steps import Steps, matrix_rate, random_log, tokens
from recgpt.errors import ConfigError
from recgpt.train.device import training_device

SHAPE = {"dim": 512, "layers": 8, "heads": 8}
SMOKE = {"dim": 32, "layers": 2, "heads": 2}


def lengths(kind: str, users: int, length: int) -> np.ndarray:
    """Training events of each user: one window and what it predicts last."""
    if kind == "full":
        return np.full(users, length + 1)
    return np.random.default_rng(1).integers(length // 8, length + 2, users)


def measure(backend: str, kind: str, device: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of the loop's own step and FLOPs of a token; or why there are none, so that the others follow."""
    length, batch = (32, 1024) if arguments.smoke else (arguments.length, arguments.batch_tokens)
    window = {"length": length, "stride": length // 2, "chunk": length // 16}
    model = (SMOKE if arguments.smoke else SHAPE) | {"attention": backend, "id": {"rows": 65_536}, "window": window}
    with tempfile.TemporaryDirectory() as folder:
        n_items = 1000 if arguments.smoke else arguments.items
        config = {
            "data": random_log(Path(folder), lengths(kind, max(8, 16 * batch // length), length), n_items),
            "model": model,
            "optim": {"batch_tokens": batch, "precision": "bf16"},
            "run": {"steps": 1, "device": device},
        }
        try:
            steps = Steps.of(config, [])
            rate, _ = steps.timed(arguments.seconds, tokens)
            return {"tokens_per_second": rate, "flops_per_token": steps.flops(tokens)}
        except (ConfigError, RuntimeError) as error:  # no such backend here; no memory left, or a kernel that fails
            return {"not_measured": " ".join(f"{type(error).__name__}: {error}".split())[:500]}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every backend with full and mixed windows."""
    device = training_device("cpu" if arguments.smoke else "cuda")
    ceiling = matrix_rate(device)
    found: dict[str, Any] = {"ceiling_flops_per_second": ceiling}
    for kind in ("full", "mixed"):
        for backend in arguments.backends:
            one = found[f"{backend}, {kind}"] = measure(backend, kind, device.type, arguments)
            if "tokens_per_second" in one:
                alike = found.get(f"sdpa, {kind}", {})  # the counter knows no compiled or foreign kernel
                one["flops_per_token"] = alike.get("flops_per_token", one["flops_per_token"])
                one["share_of_ceiling"] = one["tokens_per_second"] * one["flops_per_token"] / ceiling
            print(f"{backend}, {kind}: {one}", file=sys.stderr)
    return found


def main() -> None:
    """Measure; a line each on stderr, one JSON object on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_training", description=__doc__)
    parser.add_argument("--backends", nargs="+", default=["sdpa", "flex", "xformers"])
    parser.add_argument("--length", type=int, default=768, help="events of a window, a multiple of 16")
    parser.add_argument("--batch-tokens", type=int, default=98_304, help="padded events of a batch")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--smoke", action="store_true", help="a small model on the CPU: that the command works")
    try:
        print(json.dumps(run(parser.parse_args())))
    except ConfigError as error:
        parser.exit(2, f"gpu_training: {error}\n")


if __name__ == "__main__":
    main()
