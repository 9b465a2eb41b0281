"""How far long work is, on stderr: stages with counts, and a bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

Told = Callable[[str, int, int], None]
"""What is being done, how far it is and how far it goes (0 = unknown)."""
EVERY = 10.0
"""Seconds between two lines where there is no terminal."""


@contextmanager
def progress_bar() -> Iterator[Told]:
    """A bar on a terminal's stderr that goes away at the end; elsewhere a line from time to time."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        yield _Lines()
        return
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, what_now = bar.add_task("", total=None), ""

        def told(what: str, done: int, of: int) -> None:
            nonlocal task, what_now
            if what != what_now:  # a rate is of one piece of work
                bar.remove_task(task)
                task, what_now = bar.add_task("", total=of or None, completed=done), what
            counted = f": {done:,} of {of:,}" if of else ""
            bar.update(task, description=what + counted, completed=done)

        yield told


class _Lines:
    """`Told` as lines: none before `EVERY` seconds, then one for each such time."""

    def __init__(self) -> None:
        self.what, self.first, self.begun, self.shown = "", 0, time.monotonic(), time.monotonic()

    def __call__(self, what: str, done: int, of: int) -> None:
        now = time.monotonic()
        if what != self.what:
            self.what, self.first, self.begun = what, done, now  # what was there before is no work of this run
        if now - self.shown < EVERY or not of:
            return
        self.shown = now
        rate = (done - self.first) / max(now - self.begun, 1e-9)
        left = f", {(of - done) / rate / 60:.1f} min left" if rate else ""
        sys.stderr.write(f"{what}: {done:,} of {of:,}, {rate:,.0f}/s{left}\n")
        sys.stderr.flush()


class Stages:
    """Shows one line a stage: its name, a running count, its seconds.

    Args:
        shown: show anything at all.
    """

    def __init__(self, shown: bool) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, quiet=not shown, highlight=False)

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int], None]]:
        """Time a stage; call the yielded function with the count so far."""
        started, count = time.perf_counter(), 0
        with self.console.status(name) as status:

            def told(n: int) -> None:
                nonlocal count
                count = n
                status.update(f"{name}: {n:,}")

            yield told
        shown = f"{count:>13,}" if count else " " * 13
        self.console.print(f"{name:<24}{shown}  {time.perf_counter() - started:8.1f} s")

    def warn(self, lines: Sequence[str]) -> None:
        """Tell what deserves a look."""
        for line in lines:
            self.console.print(f"note: {line}", soft_wrap=True, markup=False)
