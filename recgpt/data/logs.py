"""Finding the files of a log: globs, `$RECGPT_DATA`, and what to put where for the public logs."""

import glob
import os
from pathlib import Path

from recgpt.errors import ConfigError

DATA_VARIABLE = "RECGPT_DATA"


NAMED_LOGS: dict[str, dict[str, str]] = {
    "ml-1m": {
        "ml-1m_sasrec.txt.gz": "MovieLens-1M from GroupLens as the 'user item' order file of the public SASRec code",
        "ml1m_merged.parquet": (
            "MovieLens-1M's ratings from GroupLens (user, movie, rating, ts) with sas_pos, an event's place in its "
            "user's part of the order file of the public SASRec code (null = not in it)"
        ),
        "movie_overviews_plum.csv.gz": (
            "MovieLens-1M's movies with plots from mt0rm0/movie_descriptors on Hugging Face (movie_id, title, year, "
            "genres, overview)"
        ),
        "users.dat.gz": "MovieLens-1M's users.dat from GroupLens, gzipped",
    },
    "amazon-beauty": {
        "events.parquet": "the 2014 5-core Amazon Beauty file of the public S3-Rec code (user, item, pos, ts)",
        "items.parquet": "its items (item, attributes: brand and categories with | between, text_id: a short text)",
    },
    "kuairand-pure": {
        "events.parquet": "KuaiRand-Pure from kuairand.com (CC BY-SA 4.0): impressions in user order with outcomes",
        "item_features.parquet": "KuaiRand-Pure's videos from kuairand.com (CC BY-SA 4.0)",
        "user_features.parquet": "KuaiRand-Pure's users from kuairand.com (CC BY-SA 4.0)",
    },
}
"""Of the public logs that ready configs use: folder -> file -> what it is and where it comes from."""


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
    plain = pattern.replace("{", "").replace("}", "")
    for folder, files in NAMED_LOGS.items():
        for file, source in files.items():
            if plain == (place := f"${DATA_VARIABLE}/{folder}/{file}"):
                return f"; put there {place}: {source}"
    return ""
