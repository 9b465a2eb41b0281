"""Pretrains through the command line in children that kill themselves, resumes, and prints what each run left.

`python -m tests.pretrain.resume_driver CONFIG FOLDER` prints {scenario: {"killed", "digest"}}. The children are forks
of a process that has imported everything and computed nothing.
"""

from __future__ import annotations

import builtins
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets  # noqa: F401 (loaded once here, not in every child)
import torch._dynamo  # noqa: F401 (the first optimiser loads it)

from recgpt.cli import main as recgpt_command
from recgpt.stages import load_stage
from tests.recgpt.train.crash_driver import die, digest, forked

STEPS = 14
SAVED = "step_00000008"
SCENARIOS = ("step", "inside the temporary write", "before the rename", "before latest moves")


def pretrain(config: Path, run_dir: Path) -> None:
    os.dup2(2, 1)  # the driver's own stdout is for the results
    code = recgpt_command(["pretrain", str(config), f"run.dir={run_dir}"])
    if code:
        raise RuntimeError(f"exit code {code}")


def die_at_step(step: int) -> None:
    """Die in front of the forward pass of a step, counted over the process."""
    import recgpt.pretrain.task as stage

    real, steps = stage.PretrainTask.step, iter(range(1, STEPS + 1))

    def dying(self: Any, batch: Any) -> Any:
        if next(steps) == step:
            die()
        return real(self, batch)

    stage.PretrainTask.step = dying


def die_in_temporary_write() -> None:
    real = builtins.open

    def half(path: Any, *args: Any, **kwargs: Any) -> Any:
        file = real(path, *args, **kwargs)
        if SAVED in str(path) and str(path).endswith("optimizer.safetensors"):
            file.write(b"half of it")
            file.flush()
            die()
        return file

    builtins.open = half


def die_before(is_it: Callable[[Path, Path], bool]) -> None:
    """Die where `os.replace(source, target)` is called with what `is_it` accepts."""
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if is_it(Path(source), Path(target)):
            die()
        real(source, target)

    os.replace = replace


def scenarios() -> dict[str, Callable[[], None]]:
    steps = random.Random(3).sample(range(1, STEPS + 1), 5)
    found: dict[str, Callable[[], None]] = {f"step {n}": lambda n=n: die_at_step(n) for n in steps}  # type: ignore[misc]
    return found | {
        "inside the temporary write": die_in_temporary_write,
        "before the rename": lambda: die_before(lambda _, target: target.name == SAVED),
        "before latest moves": lambda: die_before(
            lambda source, target: target.name == "latest" and SAVED in source.read_text()
        ),
    }


def main(config: Path, folder: Path) -> None:
    load_stage("pretrain")
    import recgpt.pretrain.main
    import recgpt.pretrain.task  # noqa: F401 (loaded once here, not in every child)

    whole = folder / "undisturbed"
    forked(lambda: pretrain(config, whole))
    results = {"undisturbed": {"killed": False, "digest": digest(whole)}}
    for name, arm in scenarios().items():
        run_dir = folder / name

        def disturbed(arm: Callable[[], None] = arm, run_dir: Path = run_dir) -> None:
            arm()
            pretrain(config, run_dir)

        killed = forked(disturbed)
        forked(lambda run_dir=run_dir: pretrain(config, run_dir))  # type: ignore[misc]
        results[name] = {"killed": killed, "digest": digest(run_dir)}
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
