"""What was measured: one JSON file for each finished (cell, seed), with the config that it was measured with.

A result counts as long as its cell still means the same: the same value of every setting, where a setting that is new
since then has its default.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from recgpt.errors import RecGPTError
from recgpt.files import write_json

from .plan import Cell, Job, Plan, default_settings

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        seed: its seed.
        valid: the validation part's metrics after the last epoch.
        cpu_seconds: process time of training and validation.
        targets: targets learned from.
        model_bytes: size of the weights' file.
        date: when it ended, ISO.
        versions: recgpt and torch.
        config: `Plan.settings` of the cell.
    """

    seed: int
    valid: dict[str, float]
    cpu_seconds: float
    targets: int
    model_bytes: int
    date: str
    versions: dict[str, str]
    config: dict[str, Any]


class WithConfig(Protocol):
    """A result of any kind."""

    config: dict[str, Any]


Saved = TypeVar("Saved", bound=WithConfig)


@dataclass
class Measured:
    """What there is of a cell.

    Attributes:
        results: those that count, by seed.
        stale: file name -> how the config that it was measured with differs from the cell's.
    """

    results: list[Result] = field(default_factory=list)
    stale: dict[str, str] = field(default_factory=dict)


def place(folder: Path, job: Job) -> Path:
    """The file of a job's result."""
    return folder / f"{job.name}.json"


def save(folder: Path, job: Job, result: Result) -> None:
    """Write a result; the file is there whole or not at all."""
    write_json(place(folder, job), asdict(result))


def read(folder: Path, plan: Plan, cell: Cell) -> Measured:
    """The results of a cell, those of the plan's seeds.

    Raises:
        RecGPTError: a file is no result.
    """
    paths = [place(folder, Job(cell, seed)) for seed in range(plan.n_seeds(cell))]
    return Measured(*read_files(paths, Result, plan.settings(cell)))


def read_files(
    paths: Sequence[Path], kind: type[Saved], settings: dict[str, Any]
) -> tuple[list[Saved], dict[str, str]]:
    """The results among the files that are there, and file name -> how the config of one that does not count differs.

    Raises:
        RecGPTError: a file is no result.
    """
    found, stale = [], {}
    for path in paths:
        if not path.is_file():
            continue
        try:
            result = kind(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise RecGPTError(f"{path}: no result ({error}); remove it and measure again") from error
        differing = difference(result.config, settings)
        if differing:
            stale[path.name] = differing
        else:
            found.append(result)
    return found, stale


def difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    """The first setting that differs, with both values; empty where none does.

    A setting that did not exist then counts as its default (or as nothing), which by house rule leaves the model as
    it was.
    """
    default = default_settings()
    for key in [*now, *(key for key in then if key not in now)]:
        after = now.get(key)
        inert = key not in then and (after in (None, [], {}) or after == default.get(key))
        if not inert and then.get(key) != after:
            return f"{key}: {then.get(key, 'absent')} then, {now.get(key, 'absent')} now"
    return ""


def orphans(folder: Path, plan: Plan) -> list[Path]:
    """Files of the folder that belong to no (cell, seed) of the plan."""
    known = {place(folder, Job(cell, seed)) for cell in plan.all_cells() for seed in range(plan.n_seeds(cell))}
    return sorted(path for path in folder.rglob("*.json") if path not in known)
