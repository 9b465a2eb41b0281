"""`recgpt data check`: what a log holds and what looks wrong with it, before anything is trained."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recgpt.data.engine import ROW, Engine
from recgpt.data.prepare import Preparation, data_config
from recgpt.data.read import Log, used_columns
from recgpt.data.schema import DataConfig
from recgpt.progress import Stages

if TYPE_CHECKING:
    from rich.console import Console

LEAK_SAMPLE = 200_000
LEAK_AUC = 0.98
LEAK_NAMES = re.compile(r"play|stay|watch|_cnt", re.IGNORECASE)
NAMES_USERS = 0.9
"""Distinct values per user above which a profile column all but names the users."""
FEW_USERS = 20
COUNTS = (
    "users",
    "items",
    "events",
    "targets",
    "one_event_users",
    "events_per_user",
    "tied_events",
    "copies",
    "unknown_times",
    "backward_times",
    "time_range",
    "hash_collisions",
    "split",
    "impressions",
)


def check(config: DataConfig | str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Look a log over as `prepare` would read it; nothing is kept on the disk.

    Returns:
        `rows` (in, kept, rejected, filtered, dropped), `rejected` (reason, field, rows), `columns` (column -> role,
        type, nulls), the counts of `summary.json`, `id_collisions` (of `model.id` and of the items with a training
        event), `leaks` (suspected ones, one line each) and `warnings`.

    Raises:
        ConfigError: what `prepare` would raise, but for the share of rejected rows and for copies; a wrong `model.id`.
    """
    from recgpt.data.id_check import check_ids, id_settings

    section = data_config(config, overrides)
    settings = id_settings(config, overrides)
    lenient = section.model_copy(update={"max_reject_fraction": 1.0, "duplicates": "keep"})
    with tempfile.TemporaryDirectory(prefix="recgpt-check-") as name:
        folder = Path(name)
        with Engine(section.memory_limit, folder / "spill") as engine:
            scratch = folder / "scratch"
            scratch.mkdir()
            log = Preparation(lenient, engine, folder, scratch, Stages(False)).run()
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            columns = _columns(engine, log, section)
            collisions = check_ids(settings, folder)
            profile = _profile(folder, section)
            leaks = [
                *_suspicious_names(section),
                *_naming_users(profile, section),
                *_predictive(engine, log, section, profile),
            ]
    if section.outcomes and section.order is not None and section.impressions is None and summary["copies"]:
        leaks.append(
            f"{summary['copies']:,} events repeat another's user, item and time: with data.order alone a history"
            " would show an event its own outcome (set data.duplicates: drop, or keep them knowingly)"
        )
    found = {"rows": summary["rows"], "rejected": summary["rejected"], "columns": columns}
    found |= {name: summary[name] for name in COUNTS}
    return found | {
        "id_collisions": collisions,
        "leaks": leaks,
        "warnings": [*_reject_warning(summary, section), *summary["warnings"]],
    }


def _reject_warning(summary: dict[str, Any], config: DataConfig) -> Iterator[str]:
    rows = summary["rows"]
    share = rows["rejected"] / max(1, rows["in"] - rows["filtered"])
    if share > config.max_reject_fraction:
        worst = summary["rejected"][0]
        yield (
            f"{share:.1%} of the rows are rejected, mostly {worst['reason']} ({worst['field']}):"
            f" prepare will refuse this log (data.max_reject_fraction {config.max_reject_fraction:g})"
        )


def _columns(engine: Engine, log: Log, config: DataConfig) -> dict[str, dict[str, Any]]:
    """Role, type and nulls (of a text file: empty values) of every column that the config names."""
    table = log.source.table
    roles: dict[str, list[str]] = {}
    for key, name in used_columns(config).items():
        roles.setdefault(name, []).append(key.removeprefix("data."))
    empty = {
        f"n{index}": ((table[name] == "") if log.source.text else table[name].isnull()).sum()
        for index, name in enumerate(roles)
    }
    nulls = engine.fetch(table.aggregate(**empty)).to_pylist()[0]
    return {
        name: {
            "role": ", ".join(keys),
            "type": "text" if log.source.text else str(table[name].type()),
            "nulls": int(nulls[f"n{index}"] or 0),
        }
        for index, (name, keys) in enumerate(roles.items())
    }


def _suspicious_names(config: DataConfig) -> Iterator[str]:
    tables: dict[str, Mapping[str, object]] = {
        "data.context": config.context,
        "data.items.features": config.items.features if config.items is not None else {},
        "data.users.features": config.users.features if config.users is not None else {},
    }
    for key, names in tables.items():
        for name in names:
            if LEAK_NAMES.search(name):
                yield (
                    f"{key}.{name}: by its name it is measured after the event (play, stay, watch, _cnt);"
                    " declare it as an outcome or leave it out"
                )


def _profile(folder: Path, config: DataConfig) -> pa.Table:
    """The users' ids as `user` and their profiles as `f.NAME`."""
    features = config.users.features if config.users is not None else {}
    return pq.read_table(folder / "users.parquet", columns=["user", *(f"f.{name}" for name in features)])


def _naming_users(profile: pa.Table, config: DataConfig) -> Iterator[str]:
    """Categorical profile columns in which nearly every user has a value of its own."""
    for name, feature in (config.users.features if config.users is not None else {}).items():
        codes = profile[f"f.{name}"].to_numpy()
        known = codes[codes != 0] if feature.kind == "categorical" else codes[:0]
        distinct = len(np.unique(known))
        if len(known) >= FEW_USERS and distinct > NAMES_USERS * len(known):
            yield (
                f"data.users.features.{name}: {distinct:,} values for {len(known):,} users, so it stands for the user"
                " id, which the model must not see; leave it out"
            )


def _predictive(engine: Engine, log: Log, config: DataConfig, profile: pa.Table) -> Iterator[str]:
    """Context and profile columns that all but tell an outcome, on a sample of rows spread over the log."""
    features = config.users.features if config.users is not None else {}
    if not config.outcomes or not (config.context or features):
        return
    n = engine.fetch(log.kept.aggregate(n=log.kept.count())).to_pylist()[0]["n"]
    step = max(1, n // LEAK_SAMPLE)
    names = [f"__o.{name}" for name in config.outcomes] + [f"__c.{name}" for name in config.context]
    sample = engine.fetch(log.kept.filter(log.kept[ROW] % step == 0).order_by(ROW).select("__user", *names))
    users = pc.index_in(sample["__user"].cast(profile["user"].type), value_set=profile["user"])
    columns = [(f"data.context.{name}", sample[f"__c.{name}"], each.kind) for name, each in config.context.items()]
    columns += [
        (f"data.users.features.{name}", profile[f"f.{name}"].take(users), each.kind) for name, each in features.items()
    ]
    for key, column, kind in columns:
        for outcome in config.outcomes:
            known = sample[f"__o.{outcome}"].is_valid()
            label = sample[f"__o.{outcome}"].filter(known).to_numpy()
            auc = predictive_auc(
                column.filter(known),
                label > np.median(label) if _graded(label) else label > 0,
                kind == "categorical",
            )
            if auc > LEAK_AUC:
                yield (
                    f"{key}: it tells the outcome {outcome} (AUC {auc:.3f} alone), so it is likely"
                    " measured after the event; declare it as an outcome or leave it out"
                )


def _graded(label: NDArray[np.float64]) -> bool:
    return bool(np.setdiff1d(label, [0.0, 1.0]).size)


def predictive_auc(column: pa.ChunkedArray, label: NDArray[np.bool_], categorical: bool) -> float:
    """How well one column alone ranks a binary label, 0.5 to 1, ties half.

    A categorical column scores the odd rows by the label's rate of each value in the even rows, so that a column of
    distinct values tells nothing.
    """
    if categorical:
        codes = column.combine_chunks().dictionary_encode().indices
        codes = codes.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
        size = int(codes.max(initial=0)) + 1
        rows = np.bincount(codes[::2], minlength=size)
        hits = np.bincount(codes[::2], weights=label[::2], minlength=size)
        rate = (hits + label[::2].mean() if len(label) else hits) / (rows + 1)
        return _auc(rate[codes[1::2]], label[1::2])
    values = column.to_numpy().astype(np.float64)
    known = np.isfinite(values)
    auc = _auc(values[known], label[known])
    return max(auc, 1 - auc)


def _auc(score: NDArray[np.float64], label: NDArray[np.bool_]) -> float:
    positives = int(label.sum())
    negatives = len(label) - positives
    if positives == 0 or negatives == 0:
        return 0.5
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((rank[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def print_check(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Show what `check` found as tables: on the console given, else on stdout."""
    from rich.console import Console
    from rich.table import Table

    from recgpt.data.id_check import ids_table

    console = console or Console(highlight=False)
    columns = Table("column", "role", "type", "nulls", title="columns", title_justify="left")
    for name, column in found["columns"].items():
        columns.add_row(name, column["role"], column["type"], f"{column['nulls']:,}")
    console.print(columns)
    counts = Table("", "", title="log", title_justify="left", show_header=False)
    for name, value in found["rows"].items():
        counts.add_row(f"rows {name}", f"{value:,}")
    for name in COUNTS:
        value = found[name]
        if value is not None:
            counts.add_row(name.replace("_", " "), _shown(value))
    console.print(counts)
    console.print(ids_table(found["id_collisions"]))
    for kind, lines in (("suspected leak", found["leaks"]), ("note", found["warnings"])):
        for line in lines:
            console.print(f"{kind}: {line}", markup=False, soft_wrap=True)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return " to ".join(str(inner) for inner in value)
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)
