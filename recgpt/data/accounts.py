"""What became of every row (kept, rejected for a reason, filtered or dropped), and the summary that tells it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recgpt.data.engine import FILE, ROW, Engine
from recgpt.data.events import NO_TIME
from recgpt.data.read import FILTERED, WHY, Check, Log, likely_unit
from recgpt.data.schema import DataConfig, DataSchema, LeaveOneOutSplit, TimeSplit
from recgpt.data.sequences import SequenceWriter
from recgpt.data.side import ItemSide, Side
from recgpt.errors import ConfigError

BAD_LINE = "wrong number of fields"
_FEW_LINES = 100
"""So many may lie inside quotes, whatever their share: what a stray quote takes with it is far more in a real log."""
REJECT_SCHEMA = pa.schema(
    [
        ("reason", pa.string()),
        ("field", pa.string()),
        ("value", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("json", pa.string()),
    ]
)


@dataclass
class Accounts:
    """Row counts of a log.

    Attributes:
        rows_in: rows of the files, without headers and blank lines.
        n_filtered: rows that `where` leaves out.
        rejected: (reason, config key) -> rows.
    """

    engine: Engine
    log: Log
    config: DataConfig
    rows_in: int
    n_filtered: int
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)

    @classmethod
    def count(cls, engine: Engine, log: Log, config: DataConfig) -> Accounts:
        """Count the rows by what becomes of them, in one pass."""
        groups = log.typed.group_by(WHY).aggregate(n=log.typed.count())
        counts = {row[WHY]: row["n"] for row in engine.fetch(groups).to_pylist()}
        n_bad_lines = len(log.source.bad_lines)
        accounts = cls(engine, log, config, sum(counts.values()) + n_bad_lines, counts.get(FILTERED, 0))
        if n_bad_lines:
            accounts.rejected[BAD_LINE, "data.format"] += n_bad_lines
        for why, n in counts.items():
            if why is not None and why != FILTERED:
                accounts.rejected[log.checks[why].reason, log.checks[why].field] += n
        return accounts

    @property
    def n_rejected(self) -> int:
        """Rows rejected for any reason."""
        return sum(self.rejected.values())

    @property
    def n_kept(self) -> int:
        """Rows that are events."""
        return self.rows_in - self.n_rejected - self.n_filtered

    def refuse_bad_log(self) -> None:
        """Stop at an empty log, one with too many rejected rows, or one with no event left.

        Raises:
            ConfigError: the commonest reason with an example and the remedy.
        """
        if self.rows_in == 0:
            raise ConfigError(f"data.events: {_names(self.log.source.files)} has no rows; name a log with events")
        considered = self.rows_in - self.n_filtered
        if considered == 0:
            raise ConfigError(
                f"data.where: {self.config.where!r} leaves none of {self.rows_in:,} rows; correct the condition"
            )
        allowed, quoted = self.config.max_reject_fraction, self.log.source.quoted_lines
        if not self.config.format.quotes and quoted > max(_FEW_LINES, allowed * (self.rows_in + quoted)):
            raise ConfigError(
                f"data.format.quotes: {quoted:,} of {self.rows_in + quoted:,} lines lie inside quotes, as part of the "
                "row before them; set it to false where quotes are plain characters, to true where fields have lines"
            )
        if self.n_rejected > allowed * considered:
            raise ConfigError(f"{self._worst()}, or raise data.max_reject_fraction (now {allowed:g})")
        if self.n_kept == 0:
            raise ConfigError(f"data.events: no event is left; {self._worst()}")

    def _worst(self) -> str:
        """One line on the commonest reason."""
        (reason, key), n = self.rejected.most_common(1)[0]
        share = f"{self.n_rejected:,} of {self.rows_in - self.n_filtered:,} rows are rejected"
        most = f"{n:,} of them: " if n < self.n_rejected else ""
        if reason == BAD_LINE:
            line = self.log.source.bad_lines[0]
            return (
                f"{key}: {share}, {most}{reason} (expected {line.expected}, found {line.found}"
                f" in {line.text[:60]!r}); check data.format.delimiter and columns"
            )
        index, check = next((i, c) for i, c in enumerate(self.log.checks) if (c.reason, c.field) == (reason, key))
        bad = self.log.typed.filter(self.log.typed[WHY] == index).limit(1)
        value = self.engine.fetch(bad.select(value=check.column)).to_pylist()[0]["value"]
        example = f"(column {check.column!r}, such as {value!r})"
        return f"{key}: {share}, {most}{reason} {example}; {self._remedy(check, value)}"

    def _remedy(self, check: Check, value: Any) -> str:
        if check.reason == "time out of range":
            try:
                unit = likely_unit(float(value))
            except (TypeError, ValueError):
                return check.remedy
            if unit is not None and unit != self.config.time_unit:
                return f"{check.remedy} to {unit}"
        return check.remedy

    def write_rejects(self, path: Path) -> None:
        """Write every rejected row: reason, config key (`field`), value, file, row and the row as JSON.

        `row` counts from 0 in the file; the header and blank lines are not counted, all other lines are.
        """
        with pq.ParquetWriter(path, REJECT_SCHEMA) as writer:
            for rows in self._reject_rows():
                writer.write_table(pa.Table.from_pylist(rows, REJECT_SCHEMA))

    def _reject_rows(self) -> Iterator[list[dict[str, Any]]]:
        files = [str(file) for file in self.log.source.files]
        if self.log.source.bad_lines:
            yield [
                {
                    "reason": BAD_LINE,
                    "field": "data.format",
                    "value": line.text,
                    "file": files[line.file],
                    "row": line.row,
                    "json": json.dumps(line.text, ensure_ascii=False),
                }
                for line in self.log.source.bad_lines
            ]
        if self.n_rejected == len(self.log.source.bad_lines):
            return
        typed = self.log.typed
        columns = list(dict.fromkeys(check.column for check in self.log.checks))
        columns = [name for name in self.log.source.columns if name in columns]
        bad = typed.filter(typed[WHY] >= 0).select(*columns, FILE, ROW, WHY)
        for batch in self.engine.batches(bad, 1 << 16):
            places = self.log.source.true_rows(batch[FILE].to_numpy(), batch[ROW].to_numpy()).tolist()
            yield [
                self._reject(row, columns, files) | {"row": place}
                for row, place in zip(batch.to_pylist(), places, strict=True)
            ]

    def _reject(self, row: dict[str, Any], columns: list[str], files: list[str]) -> dict[str, Any]:
        check = self.log.checks[row[WHY]]
        value = row[check.column]
        return {
            "reason": check.reason,
            "field": check.field,
            "value": None if value is None else str(value),
            "file": files[row[FILE]],
            "json": json.dumps({n: row[n] for n in columns}, default=str, ensure_ascii=False),
        }


def _names(files: list[Path]) -> str:
    return files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"


def summarise(
    config: DataConfig,
    accounts: Accounts,
    writer: SequenceWriter,
    users: pa.Table,
    item_hashes: NDArray[np.int64],
    side: ItemSide,
    profile: Side,
) -> dict[str, Any]:
    """What `summary.json` tells of a prepared log: counts, split, schema, warnings."""
    n_events = writer.column("n_events")
    collisions = {
        name: int((np.diff(np.sort(hashes)) == 0).sum())
        for name, hashes in (("users", users["hash"].to_numpy()), ("items", item_hashes))
    }
    summary: dict[str, Any] = {
        "rows": {
            "in": accounts.rows_in,
            "kept": accounts.n_kept - writer.n_dropped,
            "rejected": accounts.n_rejected,
            "filtered": accounts.n_filtered,
            "dropped": writer.n_dropped,
        },
        "rejected": [
            {"reason": reason, "field": key, "rows": n} for (reason, key), n in accounts.rejected.most_common()
        ],
        "events": writer.rows,
        "users": users.num_rows,
        "items": len(item_hashes),
        "quoted_lines": accounts.log.source.quoted_lines,
        "targets": writer.n_targets,
        "one_event_users": int((n_events == 1).sum()),
        "events_per_user": quantiles(n_events),
        "tied_events": writer.n_tied,
        "copies": writer.n_copies,
        "unknown_times": writer.n_no_time if config.time is not None else None,
        "backward_times": writer.n_backwards if config.time is not None else None,
        "time_range": [_iso(writer.first_time), _iso(writer.last_time)],
        "hash_collisions": collisions,
        "split": _split(config, writer),
        "impressions": None if writer.impressions is None else writer.impressions.summary(),
        "schema": data_schema(config, side).model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
    }
    return summary | {"warnings": [*side.warnings, *profile.warnings, *_warnings(summary, config)]}


def data_schema(config: DataConfig, side: ItemSide) -> DataSchema:
    """What the model must know of the log."""
    features = config.items.features if config.items is not None else {}
    profile = config.users.features if config.users is not None else {}
    return DataSchema(
        user=config.user,
        item=config.item,
        time=config.time,
        time_unit=config.time_unit,
        outcomes={name: outcome.kind for name, outcome in config.outcomes.items()},
        context={name: context.kind for name, context in config.context.items()},
        features={name: feature.kind for name, feature in features.items()},
        profile={name: feature.kind for name, feature in profile.items()},
        content_dim=None if side.embedding is None else side.embedding.shape[1],
        has_time=config.time is not None,
        has_category=config.items is not None and config.items.category is not None,
    )


def quantiles(values: NDArray[np.int64]) -> dict[str, float]:
    """Minimum, quartiles, 95th and 99th percentile, maximum, mean."""
    places = {
        "min": 0.0,
        "p25": 0.25,
        "median": 0.5,
        "p75": 0.75,
        "p95": 0.95,
        "p99": 0.99,
        "max": 1.0,
    }
    found = np.quantile(values, list(places.values()), method="inverted_cdf")
    return {name: float(q) for name, q in zip(places, found, strict=True)} | {"mean": round(float(values.mean()), 3)}


def _iso(time: int | None) -> str | None:
    if time is None or time == NO_TIME:
        return None
    return datetime.fromtimestamp(time // 10**6, UTC).isoformat()


def _split(config: DataConfig, writer: SequenceWriter) -> dict[str, Any]:
    parts: dict[str, Any] = {"kind": config.split.kind}
    for name, seen in zip(("valid", "test"), writer.seen, strict=True):
        target, history = writer.column(f"{name}_target"), writer.column(f"{name}_history")
        parts[name] = {
            "users": int((target >= 0).sum()),
            "without_history": int(((target >= 0) & (history == 0)).sum()),
            "candidates": int(seen.sum()),
        }
    parts["train_events"] = int(writer.column("train_end").sum())
    return parts


def _warnings(summary: dict[str, Any], config: DataConfig) -> list[str]:
    """What deserves a look, one line each."""
    lines = []

    def tell(n: int | None, line: str) -> None:
        if n:
            lines.append(f"{n:,} {line}")

    rows, split = summary["rows"], summary["split"]
    tell(rows["rejected"], "rows were rejected: see rejects.parquet")
    tell(rows["dropped"], "copies were dropped")
    tell(summary["quoted_lines"], "lines of the log lie inside quotes, as part of the row before them")
    if config.duplicates == "keep":
        tell(
            summary["copies"],
            "events repeat the user, item and time of another (data.duplicates: keep)",
        )
    tell(
        summary["tied_events"],
        "events share their place in the order: ties were broken by the item hash",
    )
    tell(summary["unknown_times"], "events have no time")
    tell(summary["backward_times"], "events are earlier than the event before them in data.order")
    tell(summary["one_event_users"], "users have one event: nothing to predict from")
    for name, n in summary["hash_collisions"].items():
        tell(n, f"{name} share their hash with another")
    if isinstance(config.split, LeaveOneOutSplit):
        tell(
            summary["users"] - split["test"]["users"],
            "users have fewer than 3 targets: training only",
        )
    for name in ("valid", "test"):
        if split[name]["users"] == 0:
            lines.append(f"no user has a {name} target by data.split: nothing can be evaluated on {name}")
        tell(split[name]["without_history"], f"users of {name} have no event before their target")
    if isinstance(config.split, TimeSplit) and split["train_events"] == 0:
        lines.append(f"no event lies before data.split.valid {config.split.valid}: nothing to train on")
    return [*lines, *_impression_warnings(summary["impressions"])]


def _impression_warnings(counts: dict[str, Any] | None) -> Iterator[str]:
    if counts is None:
        return
    for name in ("train", "valid", "test"):
        if counts[name] == 0:
            yield f"no event of the {name} part is an impression by data.impressions and data.split"
    if counts["outside"]:
        yield (
            f"{counts['outside']:,} impressions of training come after their user's first event of another part:"
            " they are left out of every part"
        )
    for name, rate in counts["rates"].items():
        if rate is None and counts["train"]:
            yield f"no training impression knows the outcome {name}: nothing to learn of it"
