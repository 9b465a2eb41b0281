"""Which items and users are looked at where there are too many: evenly spread, the same ones every time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from recgpt.data.events import Events
from recgpt.runs import TrainedRun, user_blocks


def spread(n: int, most: int, together: int = 1) -> NDArray[np.int64]:
    """At most about `most` of n places, evenly spread, in groups of `together` neighbours; all where n is no more.

    The same n gives the same places: what is written of the same files is the same.
    """
    if n <= most:
        return np.arange(n)
    starts = np.linspace(0, n - together, max(1, most // together)).astype(np.int64)
    return np.unique((starts[:, None] + np.arange(together)).ravel())


def training_windows(trained: TrainedRun, most: int, together: int = 1) -> Iterator[Events]:
    """What a state at the end of the training part reads, of at most about `most` users who have such events.

    Args:
        trained: the run.
        most: users.
        together: neighbours in the log that are taken together: a run of them is read at once.
    """
    end = trained.prepared.users.train_end
    rows = np.flatnonzero(end > 0)
    rows = rows[spread(len(rows), most, together)]
    for _, histories, _ in user_blocks(trained.prepared, rows, end[rows], together):
        for events in histories:
            yield events[trained.model.config.window.start(len(events)) :]
