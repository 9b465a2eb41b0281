"""Prepares a log in children that kill themselves, or in two at once; prints how each child ended.

`python -m tests.recgpt.data.prepare_crash_driver SCENARIO CONFIG` where CONFIG is a YAML file with `data.prepared`.
The children are forks of a process that has imported everything and computed nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets  # noqa: F401 (loaded once here, not in every child)
import ibis
import pyarrow.parquet as pq

from recgpt.config import read_config
from recgpt.data.prepare import prepare

PATIENCE = 1.5  # seconds that a process waits at the rename for the other


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_rename_to(name: str, action: Callable[[], Any]) -> None:
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == name:
            action()
        real(source, target)

    os.replace = replace


def in_the_middle(folder: Path) -> None:
    """The events are written, users and items are not."""
    real = pq.write_table

    def write(table: Any, where: Any, **options: Any) -> None:
        if Path(where).name == "users.parquet":
            die()
        real(table, where, **options)

    pq.write_table = write


def removing_scratch(folder: Path) -> None:
    shutil.rmtree = lambda path, **options: die() if Path(path).name == "scratch" else None


def meet_at_the_rename(folder: Path) -> None:
    """Tell that this process is about to publish; wait a while for another that is."""
    meeting = folder.parent / "meeting"

    def meet() -> None:
        meeting.mkdir(exist_ok=True)
        (meeting / str(os.getpid())).touch()
        deadline = time.monotonic() + PATIENCE
        while len(list(meeting.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)

    before_rename_to(folder.name, meet)


SCENARIOS: dict[str, tuple[int, Callable[[Path], None]]] = {
    "in the middle": (1, in_the_middle),
    "before the summary": (1, lambda _: before_rename_to("summary.json", die)),
    "while scratch is removed": (1, removing_scratch),
    "before the rename": (1, lambda folder: before_rename_to(folder.name, die)),
    "two at once": (2, meet_at_the_rename),
}


def child(arm: Callable[[Path], None], config: Path, folder: Path) -> int:
    """Fork a child that prepares; its process id."""
    process = os.fork()
    if process == 0:
        try:
            arm(folder)
            prepared = prepare(config, progress=False)
            assert len(prepared.events(0, prepared.n_events)) == prepared.n_events
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    return process


def main(scenario: str, config: Path) -> None:
    assert ibis.duckdb.name == "duckdb"  # loads the backend
    number, arm = SCENARIOS[scenario]
    folder = Path(read_config(config)["data"]["prepared"])
    processes = [child(arm, config, folder) for _ in range(number)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    sys.stdout.write(json.dumps(codes))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
