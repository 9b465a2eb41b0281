"""What an evaluation leaves in a run's folder, and the reading of it."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from recgpt.errors import ConfigError
from recgpt.files import atomic_write_bytes, write_json

Split = Literal["valid", "test"]


def require_split(split: str) -> None:
    """Refuse what is no evaluated part.

    Raises:
        ConfigError: neither valid nor test.
    """
    if split not in ("valid", "test"):
        raise ConfigError(f"split: {split!r}; choose valid or test")


def users_file(run: Path, split: str) -> Path:
    """The table of a retrieval evaluation: user, position and each system's rank, one row a user."""
    return run / "eval" / f"{split}.users.parquet"


def impressions_file(run: Path, split: str) -> Path:
    """The table of a ranking evaluation: outcomes and probabilities, one row an impression."""
    return run / "eval" / f"{split}-impressions.parquet"


def save_evaluation(
    run: Path, file: Path, columns: Mapping[str, Any], result: dict[str, Any], reading: Mapping[str, Any]
) -> None:
    """Write the table, add a test part's reading to `test_reads.jsonl`, and write `eval/SPLIT.json` last.

    Args:
        run: the run's folder.
        file: of `users_file` or `impressions_file`.
        columns: of the table.
        result: the metrics; its `split` names the part.
        reading: what the line in `test_reads.jsonl` says beside the time.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(columns)), sink)
    atomic_write_bytes(file, sink.getvalue().to_pybytes())
    if result["split"] == "test":
        when = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        with open(run / "test_reads.jsonl", "a", encoding="utf-8") as lines:
            lines.write(json.dumps({"time": when, **reading}) + "\n")
    write_json(run / "eval" / f"{result['split']}.json", result)


def saved_table(run: Path, file: Path, split: str) -> pa.Table:
    """The table of an earlier evaluation.

    Raises:
        ConfigError: the run was not evaluated on this part.
    """
    if not file.is_file():
        raise ConfigError(f"{file}: not there; run `recgpt evaluate {run} --split {split}` first")
    return pq.read_table(file)


def saved_result(run: Path, split: str) -> dict[str, Any]:
    """The metrics of an earlier evaluation.

    Raises:
        ConfigError: the run was not evaluated on this part, or the file is damaged.
    """
    path = run / "eval" / f"{split}.json"
    if not path.is_file():
        raise ConfigError(f"{path}: not there; run `recgpt evaluate {run} --split {split}` first")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: damaged ({error}); run `recgpt evaluate {run} --split {split}` again") from error
