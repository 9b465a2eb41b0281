"""Writing files so that no half-written one is ever taken for a whole one.

Everything is written to a sibling, flushed to the disk and renamed; a rename within one folder is atomic.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recgpt.errors import ConfigError, RecGPTError

TMP_PREFIX = ".tmp-"


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Turn "no space left" into one clear line that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RecGPTError(f"{path}: no space left on the disk; free some and run the same command again") from error


def fsync_path(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sibling(path: Path) -> Path:
    return path.parent / f"{TMP_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}"


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`: the old content or the new one is there, never a part."""
    path = Path(path)
    temporary = _sibling(path)
    with full_disk_told(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            fsync_path(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8; see `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN is refused, so that every reader can parse it."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write_text(path, text + "\n")


def require_folder(path: str | Path, field: str) -> None:
    """Refuse a `path` that is, or lies under, something else than a folder; it need not exist.

    Raises:
        ConfigError: one line that names `field`.
    """
    for place in (Path(path), *Path(path).parents):
        if place.exists():
            if not place.is_dir():
                raise ConfigError(f"{field}: {place} is a file, not a folder; choose another folder")
            return


def require_replaceable(path: str | Path, marker: str | None = None) -> None:
    """Refuse a folder that may not be replaced: one that holds something, but not the file `marker`.

    Raises:
        ConfigError: one line that names the folder.
    """
    path = Path(path)
    require_folder(path, "folder")
    if path.is_dir() and any(path.iterdir()) and (marker is None or not (path / marker).is_file()):
        lacks = "" if marker is None else f" and holds no {marker}"
        raise ConfigError(f"{path}: is not empty{lacks}, so nothing there is replaced; choose another folder")


@contextmanager
def atomic_dir(path: str | Path, marker: str | None = None) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes `path` when the block ends well.

    When the block fails, the temporary folder is removed and `path` is untouched.

    Args:
        path: absent, empty, or a folder that holds `marker`, which is then replaced as a whole.
        marker: a file that only a folder written by the caller holds, such as "truth/states.npz".

    Raises:
        ConfigError: `path` is a file or a folder that may not be replaced; told before the block runs.
        RecGPTError: the disk is full.
    """
    path = Path(path)
    require_replaceable(path, marker)
    temporary = _sibling(path)
    with full_disk_told(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for entry in sorted(temporary.rglob("*")):
                fsync_path(entry)
            fsync_path(temporary)
            replace_dir(temporary, path, marker)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def replace_dir(source: Path, path: Path, marker: str | None = None) -> None:
    """Rename folder `source` to `path`, moving an existing `path` away first; see `require_replaceable`."""
    require_replaceable(path, marker)
    if path.exists():
        old = _sibling(path)
        os.replace(path, old)
        try:
            os.replace(source, path)
        except OSError:
            os.replace(old, path)
            raise
        shutil.rmtree(old)
    else:
        os.replace(source, path)
    fsync_path(path.parent)


def remove_leftovers(folder: str | Path, name: str | None = None) -> None:
    """Remove the temporary files and folders that a killed process left in `folder`: all, or those for `name` alone."""
    folder = Path(folder)
    if not folder.is_dir():
        return
    pattern = "*" if name is None else f"{glob.escape(name)}-{'[0-9a-f]' * 8}"
    for entry in folder.glob(TMP_PREFIX + pattern):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


@contextmanager
def exclusive(path: str | Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`, one process at a time; the lock goes with the process, however that ends.

    Args:
        path: made here, removed at the end.
        waiting: called when another process holds it, before waiting for that one.
    """
    import fcntl

    path = Path(path)
    while True:
        with full_disk_told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "ab")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                continue  # whoever held it has removed it: this lock keeps nobody out
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
