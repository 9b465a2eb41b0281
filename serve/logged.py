"""The users of the run's own prepared log, as far as `serve.with_log` lets them begin with their events there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recgpt.data.events import Events
from recgpt.data.hashing import hash_id
from recgpt.runs import TrainedRun


class LoggedUsers:
    """Histories of a prepared log by user id; memory-mapped.

    Args:
        trained: the run beside its log.
    """

    def __init__(self, trained: TrainedRun) -> None:
        self.trained = trained
        self.order = np.argsort(trained.prepared.users.hash, kind="stable")
        self.hashes = trained.prepared.users.hash[self.order]

    @classmethod
    def open(cls, run: Path) -> LoggedUsers:
        """Of a run folder; raises ConfigError where its log is gone or another one."""
        return cls(TrainedRun.open(run))

    def history(self, user: str) -> Events | None:
        """All events and the profile of a user, None where the log has no such user."""
        wanted = np.int64(hash_id(user))
        first, last = (int(np.searchsorted(self.hashes, wanted, side)) for side in ("left", "right"))
        for row in self.order[first:last].tolist():
            if str(self.trained.prepared.user_ids([row])[0]) == user:
                return self.trained.history(row)
        return None
