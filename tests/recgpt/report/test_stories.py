"""Users' stories against the library's own answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from recgpt.ranker import Ranker
from recgpt.report.blocks import NOTHING, Story, Table
from recgpt.report.material import Material
from recgpt.report.stories import _known, ahead, pick, stories
from recgpt.report.validation import read_lists
from recgpt.runs import user_blocks


def test_users_are_chosen_by_history_length() -> None:
    history = np.array([5, 1, 9, 3, 7, 2, 8, 4, 6, 0, 10])
    assert [(q, int(history[place])) for q, place in pick(history, np.arange(11))] == [
        (0.1, 1),
        (0.35, 3),
        (0.65, 6),
        (0.9, 9),
    ]
    assert len(pick(np.array([4]), np.array([0]))) == 1
    assert pick(np.array([4, 4]), np.array([1, 0]))[0][1] == 1  # equal lengths: the earlier row


def _log(kind: str, parts: list[int], **users: int) -> Any:
    """Stands for a prepared log with one user, at global position 100, whose events are impressions of these parts."""
    known = {"offset": 100, "n_events": len(parts)} | users
    part = np.array(parts)

    def impressions(start: int, stop: int) -> SimpleNamespace:
        places = start + np.flatnonzero(part[start - 100 : stop - 100] >= 0)
        return SimpleNamespace(place=places, part=part[places - 100])

    return SimpleNamespace(
        users=SimpleNamespace(**{name: np.array([value]) for name, value in known.items()}),
        summary={"split": {"kind": kind}},
        impressions=impressions,
    )


def test_what_came_next_stays_within_the_validation_part() -> None:
    parts = [0, 0, 1, 1, 1, 2, 2, 2, 2]
    where = {"valid_target": 2, "test_target": 8, "test_history": 8}  # events 5 to 7 are test events before its target
    assert ahead(_log("where", parts, **where), 0) == (102, 105)
    assert ahead(_log("column", [0, 0, 1, -1, 1, 2, 2, 2, 2], **where), 0) == (102, 103)  # 3 is of no known part
    assert ahead(_log("where", [0, 0, 1] + [1] * 9, **where), 0) == (102, 107)
    by_time = {"valid_target": 3, "test_target": 8, "test_history": 5}
    assert ahead(_log("time", parts, **by_time), 0) == (103, 105)
    assert ahead(_log("time", parts, **(by_time | {"test_target": -1, "test_history": -1})), 0) == (103, 104)
    last = {"valid_target": 7, "test_target": 8, "test_history": 8}
    assert ahead(_log("leave_one_out", parts, **last), 0) == (107, 108)


def test_columns_of_which_nothing_is_known_are_left_out() -> None:
    cells = ((NOTHING, "a", "1 of 2", NOTHING), (NOTHING, "b", "2 of 2", "none"))
    table = Table(("when", "item", "model's place", "outcomes"), cells)
    known = _known(table)
    assert known.columns == ("item", "model's place", "outcomes")
    assert known.rows[0] == ("a", "1 of 2", NOTHING)
    assert known.texts == (0, 2)
    assert _known(replace(table, rows=())).columns == ()


def test_stories_agree_with_the_library(heads: Path) -> None:
    material = Material.open(heads)
    lists = read_lists(material.trained, lambda done, of: None)
    assert lists is not None
    told = [block for block in stories(material, lists).blocks if isinstance(block, Story)]
    chosen = pick(lists.history, lists.rows)
    assert len(told) == len(chosen) == 4
    prepared, ranker = material.trained.prepared, Ranker.from_pretrained(heads)
    items = prepared.items
    allowed = [items.id(row) for row in np.flatnonzero(items.valid_candidate)]
    for story, (_, place) in zip(told, chosen, strict=True):
        row, history = int(lists.rows[place]), int(lists.history[place])
        assert story.user == prepared.user_ids([row])[0]
        [(_, [events], [met])] = user_blocks(prepared, np.array([row]), np.array([history]), 1)
        state = ranker.recgpt.encode(events)
        best = ranker.recgpt.recommend(state, 10, candidates=allowed)
        assert [cells[2] for cells in story.recommended.rows] == [
            f"{score:.3f}".replace("-", "\N{MINUS SIGN}") for _, score in best
        ]
        ranked = ranker.rank(state, [item for item, _ in best])
        assert [cells[3] for cells in story.recommended.rows] == [f"{one.outcomes['click']:.3f}" for one in ranked]
        # Leave-one-out: one event comes next, the target; `evaluate` gave it the same rank if it is new to the user.
        [following] = story.following.rows
        target = int(prepared.item_rows(int(lists.target[place]), int(lists.target[place]) + 1)[0])
        rank = int(lists.ranks["model"][place])
        if target in met:
            assert following[2] == "met before"
            assert story.recommended.marked == frozenset()
        else:
            assert following[2].split(" of ")[0] == str(rank)
            assert story.recommended.marked == (frozenset([rank - 1]) if rank <= 10 else frozenset())
        assert len(story.events.rows) == min(8, history)
