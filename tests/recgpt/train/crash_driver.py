"""Trains the toy task in children that kill themselves, resumes, and prints what each run left.

`python -m tests.recgpt.train.crash_driver FOLDER` prints {scenario: {"killed", "digest"}}.
A driver of its own: the children are forks of a process that has not computed anything yet.
"""

from __future__ import annotations

import builtins
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401 (the first optimiser loads it: once here, not in every child)
import xxhash

from recgpt.train import train
from tests.recgpt.train.toy import ToyTask, config

STEPS = 30
SAVED = "step_00000012"
CLOCK = ("seconds", "targets_per_second", "evaluation_seconds")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingTask(ToyTask):
    """Dies in front of the forward pass of step `last_step` (counted over the run)."""

    def __init__(self, last_step: int = 0) -> None:
        super().__init__()
        self.last_step = last_step

    def hook(self, epoch: int, number: int) -> None:
        if epoch * self.n_batches + number + 1 == self.last_step:
            die()


def run(run_dir: Path, task: ToyTask) -> None:
    settings = config(run_dir, steps=STEPS, checkpoint_every=6, evaluate_every=5, log_every=4, select="best")
    train(task, settings.optim, settings.run, settings)


def at_step(step: int) -> Callable[[Path], None]:
    return lambda run_dir: run(run_dir, DyingTask(step))


def in_temporary_write(run_dir: Path) -> None:
    real = builtins.open

    def half(path: Any, *args: Any, **kwargs: Any) -> Any:
        file = real(path, *args, **kwargs)
        if SAVED in str(path) and str(path).endswith("optimizer.safetensors"):
            file.write(b"half of it")
            file.flush()
            die()
        return file

    builtins.open = half
    run(run_dir, ToyTask())


def before(is_it: Callable[[Path, Path], bool]) -> Callable[[Path], None]:
    """Die where `os.replace(source, target)` is called with what `is_it` accepts."""

    def scenario(run_dir: Path) -> None:
        real = os.replace

        def replace(source: Any, target: Any) -> None:
            if is_it(Path(source), Path(target)):
                die()
            real(source, target)

        os.replace = replace
        run(run_dir, ToyTask())

    return scenario


def in_removal(run_dir: Path) -> None:
    """Die when the first checkpoint that is too old is half removed."""

    real = shutil.rmtree

    def remove(path: Any, **kwargs: Any) -> None:
        if str(path).endswith("step_00000006-removed"):
            (Path(path) / "state.json").unlink()
            die()
        real(path, **kwargs)

    shutil.rmtree = remove
    run(run_dir, ToyTask())


def forked(action: Callable[[], None]) -> bool:
    """Run `action` in a child; whether SIGKILL ended it. Any other failure is an error here."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not killed and status != 0:
        raise SystemExit("a child failed; its message is above")
    return killed


def digest(run_dir: Path) -> dict[str, Any]:
    """Everything a finished run left, without the clock."""
    last = run_dir / "checkpoints" / (run_dir / "latest").read_text().strip()
    files = [run_dir / "model" / "model.safetensors", *sorted(last.glob("*.safetensors"))]
    state = json.loads((last / "state.json").read_text())
    del state["progress"]["seconds"], state["progress"]["interval"]["seconds"]
    del state["files"]["config.yaml"]
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        "files": {f"{p.parent.name}/{p.name}": xxhash.xxh64_hexdigest(p.read_bytes()) for p in files},
        "state": state,
        "records": [{k: v for k, v in r.items() if k not in CLOCK} for r in records],
        "folders": sorted(p.name for p in (run_dir / "checkpoints").iterdir()),
    }


def main(folder: Path) -> None:
    scenarios = {f"step {n}": at_step(n) for n in random.Random(7).sample(range(1, STEPS + 1), 5)}
    scenarios |= {
        "inside the temporary write": in_temporary_write,
        "before the rename": before(lambda _, target: target.name == SAVED),
        "before latest moves": before(lambda source, target: target.name == "latest" and SAVED in source.read_text()),
        "before the first latest": before(lambda _, target: target.name == "latest"),
        "before the model is renamed": before(lambda _, target: target.name == "model"),
        "while an old checkpoint is removed": in_removal,
    }
    forked(lambda: run(folder / "undisturbed", ToyTask()))
    results = {"undisturbed": {"killed": False, "digest": digest(folder / "undisturbed")}}
    for name, scenario in scenarios.items():
        run_dir = folder / name
        killed = forked(lambda act=scenario, where=run_dir: act(where))  # type: ignore[misc]
        forked(lambda where=run_dir: run(where, ToyTask()))  # type: ignore[misc]
        results[name] = {"killed": killed, "digest": digest(run_dir)}
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
