"""Finding the files of a log: globs, `$RECGPT_DATA`, and what to put where for the public logs."""

import glob
import os
from pathlib import Path
from typing import NamedTuple

from recgpt.errors import ConfigError

DATA_VARIABLE = "RECGPT_DATA"


class NamedLog(NamedTuple):
    """A public log that ready configs use."""

    files: tuple[str, ...]
    source: str


NAMED_LOGS: dict[str, NamedLog] = {
    "ml-1m": NamedLog(
        ("ml-1m_sasrec.txt.gz",),
        "MovieLens-1M from GroupLens as the 'user item' order file of the public SASRec code, gzipped",
    ),
    "amazon-beauty": NamedLog(
        ("events.parquet", "items.parquet"),
        "the 2014 5-core Amazon Beauty file of the public S3-Rec code (user, item, pos, ts) and its item texts",
    ),
    "kuairand-pure": NamedLog(
        ("events.parquet", "item_features.parquet"),
        "KuaiRand-Pure from kuairand.com (CC BY-SA 4.0): impressions in user order with their outcomes",
    ),
}


def find_files(patterns: list[str], field: str) -> list[Path]:
    """The existing files that paths and globs name, sorted within a glob, each once.

    Args:
        patterns: paths or globs, `$RECGPT_DATA` and `~` allowed.
        field: the config key, for errors.

    Raises:
        ConfigError: a pattern matches no file; one line says what to put where.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = os.path.expanduser(_expand(pattern, field))
        matches = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        files = [Path(match) for match in matches if os.path.isfile(match)]
        if not files:
            raise ConfigError(_not_found(pattern, path, field))
        found.update(dict.fromkeys(files))
    return list(found)


def _expand(pattern: str, field: str) -> str:
    if f"${DATA_VARIABLE}" in pattern and not os.environ.get(DATA_VARIABLE):
        raise ConfigError(
            f"{field}: {pattern!r} needs the environment variable {DATA_VARIABLE}; set it to the folder that holds"
            f" the logs{_what_to_put(pattern)}"
        )
    return os.path.expandvars(pattern)


def _not_found(pattern: str, path: str, field: str) -> str:
    if os.path.isdir(path):
        example = f"{path.rstrip('/')}/*.parquet"
        return f"{field}: {path!r} is a folder; name its files, for example {example}"
    known = _what_to_put(pattern)
    if known:
        return f"{field}: no file {path!r}{known}"
    near = f" (working directory {os.getcwd()})" if not os.path.isabs(path) else ""
    return f"{field}: no file matches {path!r}{near}; check the path"


def _what_to_put(pattern: str) -> str:
    for name, log in NAMED_LOGS.items():
        if f"${DATA_VARIABLE}/{name}/" in pattern.replace("{", "").replace("}", ""):
            files = ", ".join(f"${DATA_VARIABLE}/{name}/{file}" for file in log.files)
            return f"; put there {files}: {log.source}"
    return ""
