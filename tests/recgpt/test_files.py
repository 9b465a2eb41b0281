"""Writing files: whole or not at all, on a full disk and when the process is killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recgpt.errors import ConfigError, RecGPTError
from recgpt.files import (
    TMP_PREFIX,
    atomic_dir,
    atomic_write_bytes,
    atomic_write_text,
    exclusive,
    full_disk_told,
    remove_leftovers,
    require_folder,
    write_json,
)

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full_disk(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# -- files -------------------------------------------------------------------------------------------------------------


def test_bytes_and_text_are_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    atomic_write_bytes(path, b"\x00one")
    assert path.read_bytes() == b"\x00one"
    atomic_write_text(path, "zwei – 二\n")
    assert path.read_bytes() == "zwei – 二\n".encode()
    assert names(path.parent) == ["a.bin"]


def test_everything_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        done.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name.partition('-')[0]}")
        fsync(descriptor)

    def recorded_replace(source: Any, target: Any) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    folder = tmp_path / "place"
    folder.mkdir()
    atomic_write_bytes(folder / "a", b"x")
    assert done == ["fsync .tmp", "rename", "fsync place"]

    done.clear()
    with atomic_dir(folder / "whole") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "file").write_text("x")
    assert done == ["fsync deep", "fsync file", "fsync .tmp", "rename", "fsync place"]


def test_write_json_reads_back_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"a": [1, 2.5, None], "日本": {"b": True}}
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value
    assert "日本" in path.read_text(encoding="utf-8")
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"a": number})
    assert json.loads(path.read_text(encoding="utf-8")) == value
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    path = tmp_path / "a"
    atomic_write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, function, full_disk)
        with pytest.raises(RecGPTError) as caught:
            atomic_write_text(path, "new")
    assert str(caught.value) == f"{path}: no space left on the disk; free some and run the same command again"
    assert caught.value.exit_code == 1
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_disk_that_is_full_in_the_middle_of_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`file.write` itself fails, with part of the data already written."""
    import builtins

    real = builtins.open

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *exception: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            self.file.write(data[:2])
            self.file.flush()
            return full_disk()

    path = tmp_path / "a"
    atomic_write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", lambda *args, **kwargs: Full(real(*args, **kwargs)))
        with pytest.raises(RecGPTError, match="no space left on the disk"):
            atomic_write_text(path, "new content")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_real_full_device_is_told() -> None:
    def write() -> None:
        with full_disk_told(Path("/dev/full")), open("/dev/full", "wb") as file:
            file.write(b"x")
            file.flush()

    with pytest.raises(RecGPTError, match="^/dev/full: no space left"):
        write()


def test_only_a_full_disk_is_translated(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), full_disk_told(tmp_path):
        (tmp_path / "nothing").read_bytes()
    with pytest.raises(RecGPTError, match="no space left"), full_disk_told(tmp_path):
        raise OSError(errno.EDQUOT, "quota")


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_folder_appears_whole_and_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with atomic_dir(path) as temporary:
        (temporary / "a").write_text("1")
        assert temporary.parent == path.parent  # a rename must not cross file systems
        assert not path.exists()
    assert names(path) == ["a"]
    with atomic_dir(path, "a") as temporary:
        (temporary / "b").write_text("2")
        assert names(path) == ["a"]
    assert names(path) == ["b"]
    assert names(path.parent) == ["folder"]


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with atomic_dir(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("1")
    assert names(tmp_path / "folder") == ["a"]


@pytest.mark.parametrize(("marker", "lacks"), [(None, ""), ("summary.json", " and holds no summary.json")])
def test_a_folder_of_someone_else_is_not_replaced(tmp_path: Path, marker: str | None, lacks: str) -> None:
    path = tmp_path / "home"
    path.mkdir()
    (path / "letters").write_text("x")
    with pytest.raises(ConfigError) as caught, atomic_dir(path, marker):
        pytest.fail("told before any work is done")
    assert str(caught.value) == f"{path}: is not empty{lacks}, so nothing there is replaced; choose another folder"
    assert (names(tmp_path), names(path)) == (["home"], ["letters"])


def test_a_folder_that_filled_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def writing() -> None:
        with atomic_dir(tmp_path / "folder", "mine") as temporary:
            (temporary / "mine").write_text("1")
            (tmp_path / "folder").mkdir()
            (tmp_path / "folder" / "theirs").write_text("2")

    with pytest.raises(ConfigError, match="holds no mine"):
        writing()
    assert names(tmp_path / "folder") == ["theirs"]
    assert names(tmp_path) == ["folder"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    require_folder(tmp_path / "new" / "folder", "out")
    for path in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(ConfigError) as caught:
            require_folder(path, "out")
        assert str(caught.value) == f"out: {tmp_path / 'file'} is a file, not a folder; choose another folder"
        with pytest.raises(ConfigError, match="is a file, not a folder"), atomic_dir(path):
            pytest.fail("told before any work is done")
    assert (tmp_path / "file").read_text() == "x"


def test_a_failing_block_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_dir(path) as temporary:
        (temporary / "old").write_text("1")

    def failing() -> None:
        with atomic_dir(path, "old") as temporary:
            (temporary / "new").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


def full_at_fsync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "fsync", full_disk)


def full_at_rename(number: int) -> Callable[[pytest.MonkeyPatch], None]:
    """The `number`-th rename finds the disk full (a folder's entry needs a block too)."""

    def arm(patch: pytest.MonkeyPatch) -> None:
        real, calls = os.replace, iter(range(1, 100))
        patch.setattr(os, "replace", lambda a, b: full_disk() if next(calls) == number else real(a, b))

    return arm


@pytest.mark.parametrize(
    "arm",
    [full_at_fsync, full_at_rename(1), full_at_rename(2)],
    ids=["fsync", "moving the old one away", "moving the new one in"],
)
def test_a_full_disk_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: Callable[[pytest.MonkeyPatch], None]
) -> None:
    path = tmp_path / "folder"
    with atomic_dir(path) as temporary:
        (temporary / "old").write_text("1")

    def writing() -> None:
        with atomic_dir(path, "old") as temporary:
            (temporary / "new").write_text("2")

    with monkeypatch.context() as patch:
        arm(patch)
        with pytest.raises(RecGPTError) as caught:
            writing()
    assert str(caught.value) == f"{path}: no space left on the disk; free some and run the same command again"
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / f"{TMP_PREFIX}folder-1").mkdir()
    (tmp_path / f"{TMP_PREFIX}folder-1" / "file").write_text("x")
    (tmp_path / f"{TMP_PREFIX}file-2").write_text("x")
    (tmp_path / "kept").write_text("x")
    (tmp_path / "kept.tmp-1").write_text("x")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["kept", "kept.tmp-1"]
    remove_leftovers(tmp_path / "missing")


def test_leftovers_of_one_name(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "log[1]") as temporary:
        own = temporary.name
    for name in (own, f"{TMP_PREFIX}log[1]-2-00000000", f"{TMP_PREFIX}log1-00000000", f"{TMP_PREFIX}other-00000000"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path, "log[1]")
    assert own not in names(tmp_path)
    assert len(names(tmp_path)) == 4


def test_one_holds_the_lock_at_a_time(tmp_path: Path) -> None:
    path, inside, most, waited = tmp_path / "new" / ".lock", 0, 0, []

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with exclusive(path, lambda: waited.append(1)):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)
    assert waited
    assert names(path.parent) == []

    def failing() -> None:
        with exclusive(path, lambda: None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    with exclusive(path, lambda: pytest.fail("nobody holds it")):
        assert names(path.parent) == [".lock"]


# -- SIGKILL -----------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from recgpt.files import atomic_dir, atomic_write_text

function, what, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
setattr(os, function, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
if what == "file":
    atomic_write_text(folder / "file", "new")
else:
    with atomic_dir(folder / "folder", "old") as temporary:
        (temporary / "new").write_text("2")
"""


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_killed_inside_a_write_the_old_content_stays(tmp_path: Path, function: str, what: str) -> None:
    atomic_write_text(tmp_path / "file", "old")
    with atomic_dir(tmp_path / "folder") as temporary:
        (temporary / "old").write_text("1")
    command = [sys.executable, "-c", KILLED, function, what, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path / "folder") == ["old"]
    left = [name for name in names(tmp_path) if name.startswith(f"{TMP_PREFIX}{what}-")]
    assert len(left) == 1
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["file", "folder"]
