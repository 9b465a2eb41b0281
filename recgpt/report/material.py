"""What a report is made from: the opened run, its log of training, and what `recgpt evaluate` saved."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recgpt.config import read_config
from recgpt.errors import ConfigError
from recgpt.eval_files import Split, users_file
from recgpt.evaluation import split_users
from recgpt.inspection.run import open_ranker
from recgpt.retrieval import RECOMMENDERS
from recgpt.runs import TrainedRun
from recgpt.train.log import METRICS, read_records

NAMES = {
    "model": "model",
    "popularity": "popularity",
    "item_knn": "item-kNN",
    "markov": "Markov counts",
    "oracle": "best possible",
}
PARTS = {"test": "test part", "valid": "validation part"}
_LOOKS = {"model": "model", "markov": "second", "item_knn": "third", "popularity": "fourth", "oracle": "reference"}


def name_of(system: str) -> str:
    """What a system is called on the page."""
    return NAMES.get(system, system)


def look_of(system: str) -> str:
    """How a system's line looks, the same in every figure."""
    return _LOOKS.get(system, "fifth")


@dataclass(frozen=True)
class Ranks:
    """What `recgpt evaluate` saved of a part of the log.

    Attributes:
        split: which part.
        saved: the metrics.
        rows: int64 [U] user rows.
        history: int64 [U] events before the target.
        target: int64 [U] global positions of the targets.
        ranks: int64 [U] of every system; 0 = the target is no candidate.
    """

    split: Split
    saved: dict[str, Any]
    rows: NDArray[np.int64]
    history: NDArray[np.int64]
    target: NDArray[np.int64]
    ranks: dict[str, NDArray[np.int64]]

    @property
    def systems(self) -> list[str]:
        """The model, the baselines, then what else was evaluated."""
        known = [name for name in ("model", "markov", "item_knn", "popularity") if name in self.ranks]
        return known + [name for name in self.ranks if name not in known]

    @property
    def baselines(self) -> list[str]:
        """The systems that the model competes with (no oracle)."""
        return [name for name in self.systems if name in RECOMMENDERS]


@dataclass(frozen=True)
class Material:
    """A run that a report is written of.

    Attributes:
        trained: the run's model and log.
        records: its `metrics.jsonl`.
        ranker: its ranking heads, or None for a pretrained run.
    """

    trained: TrainedRun
    records: list[dict[str, Any]]
    ranker: Any = None

    @classmethod
    def open(cls, run: str | Path) -> Material:
        """Open a finished run.

        Raises:
            ConfigError: no finished run, or its log has moved or changed.
        """
        trained = TrainedRun.open(run)
        return cls(trained, read_records(trained.path / METRICS), open_ranker(trained.path))

    @property
    def settings(self) -> dict[str, Any]:
        """The run's resolved config, values by dotted key."""
        return self.trained.settings

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.trained.path

    @property
    def finished(self) -> dict[str, Any]:
        """The closing record of the training."""
        return next((record for record in reversed(self.records) if record.get("event") == "finished"), {})

    @property
    def learned_validation(self) -> bool:
        """Whether the run learned from the validation part too (a refit)."""
        return self.settings.get("tasks.fit_on") == "train_valid"

    @property
    def test_reads(self) -> int:
        """How often the test part was evaluated."""
        path = self.path / "test_reads.jsonl"
        return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0

    def evaluation(self, split: Split) -> dict[str, Any] | None:
        """The saved `eval/SPLIT.json`, None where there is none."""
        path = self.path / "eval" / f"{split}.json"
        return read_config(path) if path.is_file() else None

    @cached_property
    def ranks(self) -> Ranks | None:
        """The saved ranks of the test part, else of the validation part, else None.

        Raises:
            ConfigError: they are of another log.
        """
        splits: tuple[Split, ...] = ("test", "valid")
        for split in splits:
            saved, path = self.evaluation(split), users_file(self.path, split)
            if saved is not None and "model" in saved and path.is_file():
                return self._read_ranks(split, saved, path)
        return None

    def _read_ranks(self, split: Split, saved: dict[str, Any], path: Path) -> Ranks:
        table = pq.read_table(path)
        users = self.trained.prepared.users
        rows, history, position = split_users(self.trained.prepared, split)
        same = np.array_equal(table["user"].to_numpy(), users.hash[rows])
        if not same or not np.array_equal(table["position"].to_numpy(), position):
            raise ConfigError(
                f"{path}: its users are not those of the run's log; run `recgpt evaluate {self.path} --split {split}` "
                "again"
            )
        names = [name for name in table.column_names if name not in ("user", "position")]
        ranks = {name: table[name].to_numpy() for name in names}
        return Ranks(split, saved, rows, history, users.offset[rows] + position, ranks)
