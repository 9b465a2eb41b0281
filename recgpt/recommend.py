"""Recommendations and ranks for one user of a run's log: the bodies that the service answers too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recgpt.answers import rank_answer, recommend_answer
from recgpt.data.hashing import hash_ids
from recgpt.errors import ConfigError
from recgpt.index import ItemIndex
from recgpt.runs import TrainedRun
from recgpt.state import UserState


def recommend_user(
    run: str | Path,
    user: str,
    k: int,
    index: str | Path | None = None,
    want: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The k best unseen items for a user after all the events of the log.

    Args:
        run: a run folder.
        user: the id as it stands in the log.
        k: how many items.
        index: the folder of an export with an index of this run's items; by default all items are scored.
        want: outcomes that the items should have; see `RecGPT.query`.

    Returns:
        See `recgpt.answers.recommend_answer`.

    Raises:
        ConfigError: the log has no such user, the index is another model's or damaged, or the model cannot be asked for
            such outcomes.
    """
    trained = TrainedRun.open(run)
    opened = None if index is None else ItemIndex.open(index, trained.model)
    return recommend_answer(trained.model, _state(trained, user), "rebuild", k, index=opened, want=want)


def rank_user(
    run: str | Path, user: str, items: Sequence[int | str], context: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The outcomes of items for a user after all the events of the log.

    Args:
        run: the folder of a fine-tuned run.
        user: the id as it stands in the log.
        items: their ids; a text stands for an integer id too.
        context: what is known of the request, by the log's column names.

    Returns:
        See `recgpt.answers.rank_answer`.

    Raises:
        ConfigError: no fine-tuned run, no such user, no item, or an unknown name or value in `context`.
    """
    from recgpt.ranker import Ranker

    if not items:
        raise ConfigError("items: none is given; name at least one item id")
    trained, ranker = TrainedRun.open(run), Ranker.from_pretrained(run)
    rows = ranker.recgpt.items.rows(hash_ids(list(items)))
    ids = [ranker.recgpt.items.id(int(row)) if row >= 0 else item for row, item in zip(rows, items, strict=True)]
    return rank_answer(ranker, _state(trained, user), "rebuild", ids, context)


def read_items_file(path: str | Path) -> list[str]:
    """The ids in a text file, one a line; empty lines are left out.

    Raises:
        ConfigError: no such file, or no text in UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--items-file: {path}: {error}; give a text file with one item id a line") from error
    return [line for line in text.split("\n") if line]


def _state(trained: TrainedRun, user: str) -> UserState:
    return trained.model.encode(trained.history(trained.prepared.find_user(user)))
