"""Several measurements at once, each in a process of its own with one thread."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .plan import ROOT, Job

_POLL_SECONDS = 0.1
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

Told = Callable[[Job, str | None], None]
"""Called when a job has ended: None, or the last line that it wrote."""


def run_all(plan: Path, jobs: Sequence[Job], n: int, results: Path, runs: Path, ended: Told) -> list[Job]:
    """Run the jobs, `n` at a time; a job that fails stops none of the others.

    Args:
        plan: the plan's file.
        jobs: in the order in which they start.
        n: processes at once.
        results: folder of the results.
        runs: folder of the run folders; `NAME.log` beside one holds what its process wrote.
        ended: told of each job's end.

    Returns:
        The jobs that failed.
    """
    waiting, failed = list(jobs), []
    running: list[tuple[Job, subprocess.Popen[bytes]]] = []
    try:
        while waiting or running:
            while waiting and len(running) < n:
                job = waiting.pop(0)
                running.append((job, _start(plan, job, results, runs)))
            time.sleep(_POLL_SECONDS)
            for job, process in [each for each in running if each[1].poll() is not None]:
                running.remove((job, process))
                if process.returncode:
                    failed.append(job)
                ended(job, _last_line(_log(runs, job), process.returncode) if process.returncode else None)
    finally:
        _stop([process for _, process in running])
    return failed


def _log(runs: Path, job: Job) -> Path:
    return runs / f"{job.name}.log"


def _words(plan: Path, job: Job, results: Path, runs: Path) -> list[str]:
    own = [str(plan), job.cell.key, str(job.seed), str(results), str(runs)]
    return [sys.executable, "-m", "benchmarks.ablations.measure", *own]


def _start(plan: Path, job: Job, results: Path, runs: Path) -> subprocess.Popen[bytes]:
    """Start one measurement; what it writes goes to its log file."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    log = _log(runs, job)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as out:
        return subprocess.Popen(
            _words(plan, job, results, runs),
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others
        )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs; their cells are measured anew next time."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path, code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    told = [line for line in lines if line.strip()]
    return f"exit code {code}: {told[-1] if told else 'nothing told'} ({log})"
