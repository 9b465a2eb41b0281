"""Opening a finished run: its model beside the prepared log that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recgpt.api import RecGPT
from recgpt.config import flatten, read_config
from recgpt.data.events import Events, profile_rows
from recgpt.data.prepared import Prepared
from recgpt.errors import ConfigError


def asked(model: RecGPT, target: Mapping[str, float]) -> dict[str, float]:
    """The yes of a yes/no outcome that makes the targets, where the model can be asked (`model.condition`); or nothing.

    Args:
        model: the model.
        target: its name and least value; empty where every event is a target.
    """
    if not model.config.condition:
        return {}
    return {name: 1.0 for name, least in target.items() if model.schema.outcomes[name] == "binary" and 0 < least <= 1}


@dataclass(frozen=True)
class TrainedRun:
    """A run folder with what it holds.

    Attributes:
        path: the run's folder.
        model: what it trained.
        prepared: the log it was trained on.
        settings: its resolved config, values by dotted key.
    """

    path: Path
    model: RecGPT
    prepared: Prepared
    settings: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> TrainedRun:
        """Open a run folder and the prepared log that it was trained on; nothing is prepared anew.

        Raises:
            ConfigError: no finished run, or its prepared log is gone or another one.
        """
        path = Path(path)
        config = path / "config.yaml"
        if not config.is_file():
            raise ConfigError(
                f"{path}: no run folder (it holds no config.yaml); give one of `recgpt pretrain` or `finetune`"
            )
        model, settings = RecGPT.from_pretrained(path), flatten(read_config(config))
        prepared = Prepared.open(settings["data.prepared"])
        if prepared.content != settings["run.log"]:
            raise ConfigError(
                f"{path}: the log has changed since this run was trained ({prepared.folder} holds {prepared.content}, "
                f"it was trained on {settings['run.log']}); train it again with --fresh"
            )
        return cls(path, model, prepared, settings)

    @property
    def want(self) -> dict[str, float]:
        """What its evaluation asks the model for: see `asked`."""
        outcome = self.settings.get("data.target.outcome")
        return asked(self.model, {} if outcome is None else {outcome: self.settings["data.target.min"]})

    def history(self, row: int) -> Events:
        """All events of a user row, with the user's profile."""
        users = self.prepared.users
        first = int(users.offset[row])
        [profile] = profile_rows(self.prepared.profile(np.array([row])), 1)
        return self.prepared.events(first, first + int(users.n_events[row])).with_profile(profile)


def user_blocks(
    prepared: Prepared, rows: NDArray[np.int64], length: NDArray[np.int64], size: int
) -> Iterator[tuple[NDArray[np.int64], list[Events], list[NDArray[np.int64]]]]:
    """Histories of users in blocks, each read from the log in one slice.

    Args:
        prepared: the log.
        rows: int64 [M] user rows, ascending.
        length: int64 [M] events of each user's history.
        size: users of a block.

    Yields:
        The block's user rows, their histories, and the item rows of those.
    """
    offset = prepared.users.offset
    for first in range(0, len(rows), size):
        block, n_events = rows[first : first + size], length[first : first + size]
        begin, end = int(offset[block[0]]), int(offset[block[-1]] + n_events[-1])
        events, item_rows = prepared.events(begin, end), prepared.item_rows(begin, end)
        spans = [slice(int(o) - begin, int(o + n) - begin) for o, n in zip(offset[block], n_events, strict=True)]
        profiles = profile_rows(prepared.profile(block), len(block))
        histories = [events[span].with_profile(known) for span, known in zip(spans, profiles, strict=True)]
        yield block, histories, [item_rows[span] for span in spans]
