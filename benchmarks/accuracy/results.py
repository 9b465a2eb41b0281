"""What was measured: one JSON file for each finished (row, seed), with every user's rank among the first ten."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.ablations.results import read_files
from recgpt.files import write_json
from recgpt.metrics import MISS

from .plan import Row

FOLDER = Path(__file__).parent / "results"
K = 10
_DIGITS = "0123456789a"


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        seed: its seed.
        test: the model's metrics on the test part.
        baselines: the same of the counting models.
        valid: the model's metrics on the validation part.
        ranks: one digit a user in the order of their hashes: the target's rank up to 10 (`a`), 0 = below.
        minutes: of training, validations left out.
        threads: cores.
        targets: targets learned from.
        model_bytes: size of the weights' file.
        date: when it ended, ISO.
        versions: recgpt and torch.
        config: `Row.settings`.
    """

    seed: int
    test: dict[str, float]
    baselines: dict[str, dict[str, float]]
    valid: dict[str, float]
    ranks: str
    minutes: float
    threads: int
    targets: int
    model_bytes: int
    date: str
    versions: dict[str, str]
    config: dict[str, Any]

    def rank(self) -> NDArray[np.int64]:
        """Every user's rank, int64 [users]; `MISS` below ten."""
        return np.array([_DIGITS.index(digit) for digit in self.ranks], np.int64)


def digits(rank: NDArray[np.int64]) -> str:
    """Ranks as `Result.ranks` keeps them."""
    return "".join(_DIGITS[value] for value in np.where(rank <= K, rank, MISS).tolist())


def place(folder: Path, row: Row, seed: int) -> Path:
    """The file of a result."""
    return folder / f"{row.name}-{seed}.json"


def save(folder: Path, row: Row, result: Result) -> None:
    """Write a result; the file is there whole or not at all."""
    write_json(place(folder, row, result.seed), asdict(result))


def read(folder: Path, row: Row, seeds: int) -> tuple[list[Result], list[str]]:
    """The results of a row that count, and why others do not: one line for each.

    Raises:
        RecGPTError: a file is no result.
    """
    found, stale = read_files([place(folder, row, seed) for seed in range(seeds)], Result, row.settings())
    return found, [f"{name}: measured with another config ({how})" for name, how in stale.items()]
