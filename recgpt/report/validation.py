"""Who is shown what, on the validation part: `recgpt evaluate` saves ranks, not lists; the test part is not read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recgpt.evaluation import MAX_BLOCK, SCORES_BYTES, Block, Scorer, baseline_scorers, model_scorer, split_users
from recgpt.inspection.sample import spread
from recgpt.metrics import target_ranks, top_k
from recgpt.retrieval import RECOMMENDERS
from recgpt.runs import TrainedRun, user_blocks

SHOWN = 10
"""Items of a list."""
SCORES = 100_000_000
"""Scores computed for each system: bounds the users where the catalogue is large."""
MOST_EVENTS = 20_000_000
"""Up to so many training events the baselines are counted for the report."""
FEWEST, MOST = 256, 10_000
"""Users that are looked at, where there are as many."""
GROUP = 32
"""Neighbouring users of a sample, which lie side by side in the log."""


@dataclass(frozen=True)
class Lists:
    """What each system shows to users of the validation part.

    Attributes:
        rows: int64 [U] user rows.
        history: int64 [U] events before the target.
        target: int64 [U] global positions of the targets.
        all_users: users of the part; more than U where they were sampled.
        shown: int64 [I] of every system: how often an item stands among a user's first 10.
        ranks: int64 [U] of every system; 0 = the target is no candidate.
        left_out: baselines that were not counted, because the log is large.
    """

    rows: NDArray[np.int64]
    history: NDArray[np.int64]
    target: NDArray[np.int64]
    all_users: int
    shown: dict[str, NDArray[np.int64]]
    ranks: dict[str, NDArray[np.int64]]
    left_out: tuple[str, ...]

    @property
    def who(self) -> str:
        """Whose lists these are, in words."""
        if len(self.rows) == self.all_users:
            return f"all {self.all_users:,} users of the validation part"
        return f"{len(self.rows):,} of the {self.all_users:,} users of the validation part, evenly spread over the log"


def read_lists(trained: TrainedRun, told: Callable[[int, int], None]) -> Lists | None:
    """Rank the validation part for the model and its baselines; None where it has no users.

    Args:
        trained: the run.
        told: called with the users done and to do.
    """
    prepared = trained.prepared
    all_rows, all_history, all_target = split_users(prepared, "valid")
    if len(all_rows) == 0:
        return None
    chosen = spread(len(all_rows), int(np.clip(SCORES // max(1, prepared.n_items), FEWEST, MOST)), GROUP)
    rows, history, target = all_rows[chosen], all_history[chosen], all_target[chosen]
    size = (
        GROUP
        if len(chosen) < len(all_rows)
        else int(np.clip(SCORES_BYTES // (4 * max(1, prepared.n_items)), 1, MAX_BLOCK))
    )
    large = int(prepared.users.train_end.sum()) > MOST_EVENTS
    scorers: Mapping[str, Scorer] = {} if large else baseline_scorers(prepared)
    counter = _Counter(prepared.items.valid_candidate)
    model, done = model_scorer(trained.model, want=trained.want), 0
    told(0, len(rows))
    for users, histories, item_rows in user_blocks(prepared, rows, history, size):
        place = prepared.users.offset[users] + target[done : done + len(users)]
        wanted = np.array([prepared.item_rows(p, p + 1)[0] for p in place.tolist()], np.int64)
        block = Block(users, histories, item_rows, wanted)
        counter.add(block, {"model": model, **scorers})
        done += len(users)
        told(done, len(rows))
    return Lists(
        rows=rows,
        history=history,
        target=prepared.users.offset[rows] + target,
        all_users=len(all_rows),
        shown=counter.shown,
        ranks={name: np.concatenate(ranks) for name, ranks in counter.ranks.items()},
        left_out=tuple(RECOMMENDERS) if large else (),
    )


class _Counter:
    """Ranks and lists of every system, block by block, under the protocol of `recgpt evaluate`."""

    def __init__(self, candidate: NDArray[np.bool_]) -> None:
        self.candidate = candidate
        self.shown: dict[str, NDArray[np.int64]] = {}
        self.ranks: dict[str, list[NDArray[np.int64]]] = {}

    def add(self, block: Block, scorers: Mapping[str, Scorer]) -> None:
        """Rank a block of users under each scorer."""
        row = np.repeat(np.arange(len(block.users)), [len(items) for items in block.item_rows])
        column = np.concatenate(block.item_rows)
        seen = column != block.target[row]  # a target met before stays, as in `recgpt evaluate`
        target = np.where(self.candidate[block.target], block.target, -1)
        for name, scorer in scorers.items():
            scores = scorer(block)
            scores[:, ~self.candidate] = -np.inf
            scores[row[seen], column[seen]] = -np.inf
            best = top_k(scores, SHOWN).ravel()
            counts = np.bincount(best[best >= 0], minlength=len(self.candidate))
            self.shown[name] = self.shown.get(name, 0) + counts
            self.ranks.setdefault(name, []).append(target_ranks(scores, target)[0])
