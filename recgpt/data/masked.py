"""BERT4Rec's objective: some of a window's items are hidden, and each is predicted from all that is not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from recgpt.config import Section
from recgpt.data.events import Events
from recgpt.data.targets import Chosen


class MaskedConfig(Section):
    """Which events the masked objective hides."""

    probability: float = Field(default=0.2, gt=0, le=1)
    """Share of a window's targets that are hidden (BERT4Rec: .2 on MovieLens, .6 on Beauty)."""
    last_only: float = Field(default=0.1, ge=0, le=1)
    """Share of the windows in which the newest alone is hidden, as when a state is read."""


@dataclass(frozen=True)
class MaskedItems:
    """The masked objective (BERT4Rec: Sun et al. 2019, section 3.6).

    Position t predicts event t. A [MASK] hides it: it replaces all that is known of the event, item, content, outcome
    and time. The event after the inputs is one of those that may be hidden; it is never seen. Events that an earlier
    window predicts (before `skip`) are not hidden. At least one event is.

    Args:
        probability: of each target to be hidden.
        last_only: share of the windows with a target after their inputs that hide this one alone.
        every: also events that are no target of the log.
    """

    probability: float = 0.2
    last_only: float = 0.1
    every: bool = False
    reach: int = 0

    def choose(self, events: Events, length: int, skip: int, rng: np.random.Generator) -> Chosen:
        """See `Targets`."""
        wanted = skip + np.flatnonzero(events.target[skip : length + 1] | self.every)
        masked = np.zeros(length, bool)
        if len(wanted) and wanted[-1] == length and rng.random() < self.last_only:
            wanted = wanted[-1:]
        elif len(wanted):
            drawn = rng.random(len(wanted)) < self.probability
            drawn[rng.integers(len(wanted))] |= not drawn.any()
            wanted = wanted[drawn]
        masked[wanted[wanted < length]] = True
        outcomes = {name: column[wanted] for name, column in events.outcomes.items()}
        return Chosen(wanted, events.item[wanted], outcomes=outcomes, masked=masked)
