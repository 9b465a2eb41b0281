"""`recgpt inspect RUN`: everything that is looked at, put together and written."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recgpt.errors import RecGPTError
from recgpt.files import write_json
from recgpt.inspection.attention import look_at_attention, look_at_biases
from recgpt.inspection.load import look_at_load
from recgpt.inspection.sample import spread, training_windows
from recgpt.inspection.tables import (
    embedding_tables,
    event_outputs,
    first_outputs,
    head_outputs,
    item_outputs,
    look_at_tables,
    untrained,
    untrained_heads,
)
from recgpt.inspection.vectors import look_at_items, look_at_queries
from recgpt.nn.ids.table import learn_tables
from recgpt.ranker import Ranker, is_ranker
from recgpt.runs import TrainedRun

FILE = "inspect.json"
FORMAT = 1
MOST_ITEMS = 200_000
"""Items whose vectors are looked at; of more, evenly spread ones."""
MOST_USERS = 20_000
"""Users whose events tell which rows of the tables are reached; of more, evenly spread groups of `TOGETHER`."""
TOGETHER = 64
SAMPLE = 256
"""Users whose attention and queries are looked at."""

Told = Callable[[str], None]


def inspect(run: str | Path) -> dict[str, Any]:
    """Look inside a finished run and write RUN/inspect.json.

    Args:
        run: its folder, pretrained or fine-tuned.

    Returns:
        What is written; see `look`.

    Raises:
        ConfigError: no finished run, or its log has moved or changed.
        RecGPTError: the file cannot be written.
    """
    trained = TrainedRun.open(run)
    found = look(trained, open_ranker(trained.path))
    path = trained.path / FILE
    try:
        write_json(path, found)
    except OSError as error:
        raise RecGPTError(f"{path}: cannot be written ({error.strerror}); free that place and try again") from error
    return found


def open_ranker(run: Path) -> Ranker | None:
    """The ranking heads of a fine-tuned run, None for a pretrained one."""
    return Ranker.from_pretrained(run) if is_ranker(run) else None


def look(trained: TrainedRun, ranker: Ranker | None, told: Told = lambda what: None) -> dict[str, Any]:
    """Spectra, collisions, attention and norms of a run; the same files give the same numbers.

    Args:
        trained: the run.
        ranker: its ranking heads, or None.
        told: called with what is being looked at.

    Returns:
        `format`, `fingerprint`, `score` (as in the config), `items` and `users` (how many, and how many were looked
        at), `tables` (`look_at_tables`), `collisions` (`look_at_load` of the event model's ids), `vectors` and `norms`
        (`look_at_items`; `vectors` with the users' queries), `attention` (`look_at_attention`), `biases`
        (`look_at_biases`). Numbers to six figures.
    """
    model, items = trained.model.model, trained.model.items
    chosen = items.trained[spread(len(items.trained), MOST_ITEMS)]
    told("looking at the tables")
    learn_tables(model)  # reads the same, and has gradients
    tables = _tables(trained, ranker)
    told("looking at the items")
    seen = look_at_items(model, items, chosen) if len(chosen) else {"vectors": {}, "norms": {}}
    told("looking at the attention")
    sample = list(training_windows(trained, SAMPLE))
    if sample:
        seen["vectors"]["query"] = look_at_queries(model, items, sample)
    trained_users = int((trained.prepared.users.train_end > 0).sum())
    found = {
        "format": FORMAT,
        "fingerprint": _fingerprint(trained, ranker),
        "score": trained.model.config.score,
        "items": {"all": len(items.trained), "vectors": len(chosen)},
        "users": {
            "all": trained_users,
            "tables": min(trained_users, MOST_USERS),
            "attention": len(sample),
        },
        "tables": tables,
        "collisions": look_at_load(model.items.id, items.trained) if len(items.trained) else None,
        **seen,
        "attention": look_at_attention(model, items, sample),
        "biases": look_at_biases(model),
    }
    return _rounded(found)


def _tables(trained: TrainedRun, ranker: Ranker | None) -> list[dict[str, Any]]:
    """The event model's tables, then those of the heads."""
    model, items = trained.model.model, trained.model.items

    outputs = itertools.chain(
        item_outputs(model, items),
        first_outputs(model, trained.prepared),
        event_outputs(model, items, training_windows(trained, MOST_USERS, TOGETHER)),
    )
    found = look_at_tables(embedding_tables(model), embedding_tables(untrained(model, items)), outputs)
    if ranker is not None:
        network = ranker.network
        reading = head_outputs(network, items, training_windows(trained, MOST_USERS, TOGETHER))
        own = look_at_tables(embedding_tables(network), embedding_tables(untrained_heads(ranker)), reading)
        found += [table | {"name": f"heads.{table['name']}"} for table in own]
    return found


def saved(trained: TrainedRun, ranker: Ranker | None) -> dict[str, Any] | None:
    """What `inspect` wrote of these very weights; None where there is nothing, or something else."""
    try:
        found = json.loads((trained.path / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    known = isinstance(found, dict) and found.get("format") == FORMAT
    return found if known and found.get("fingerprint") == _fingerprint(trained, ranker) else None


def _fingerprint(trained: TrainedRun, ranker: Ranker | None) -> str:
    return trained.model.fingerprint if ranker is None else ranker.fingerprint


def _rounded(value: Any) -> Any:
    """`value` with numbers to six figures; what is not finite becomes None."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
