"""Ctrl-C and SIGTERM: the step is finished, a checkpoint written, the exit code told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from recgpt.errors import RecGPTError, Stopped
from recgpt.train import train
from tests.recgpt.train.toy import ToyTask, config

ROOT = Path(__file__).parents[3]
SLOW_RUN = """
import sys, time
from pathlib import Path
from recgpt.errors import RecGPTError
from recgpt.train import train
from tests.recgpt.train.toy import ToyTask, config

class Slow(ToyTask):
    def hook(self, epoch, number):
        time.sleep(0.02)

toy = config(Path(sys.argv[1]), steps=3000, log_every=1)
try:
    train(Slow(), toy.optim, toy.run, toy)
except RecGPTError as error:
    sys.stderr.write(f"{error}\\n")
    sys.exit(error.exit_code)
"""


class Signalled(ToyTask):
    """Gets signals in front of the forward pass of its fifth step."""

    def __init__(self, *numbers: signal.Signals) -> None:
        super().__init__()
        self.numbers = numbers

    def hook(self, epoch: int, number: int) -> None:
        super().hook(epoch, number)
        if len(self.seen) == 5:
            for each in self.numbers:
                os.kill(os.getpid(), each)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stops_after_the_step_and_goes_on(tmp_path: Path, number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    toy = config(tmp_path / "run", evaluate_every=5)
    with pytest.raises(Stopped, match="stopped at step 5 with a checkpoint") as caught:
        train(Signalled(number), toy.optim, toy.run, toy)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before
    assert (tmp_path / "run" / "latest").read_text() == "step_00000005\n"

    resumed = ToyTask()
    train(resumed, toy.optim, toy.run, toy)
    assert resumed.seen[0] == (0, 5)
    whole = config(tmp_path / "whole", evaluate_every=5)
    train(ToyTask(), whole.optim, whole.run, whole)
    names = [tmp_path / n / "model" / "model.safetensors" for n in ("run", "whole")]
    assert names[0].read_bytes() == names[1].read_bytes()
    # The validation that was due at the step of the signal is made up for.
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert log.count('"event": "valid", "step": 5,') == 1


def test_a_second_ctrl_c_aborts_at_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    toy = config(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(Signalled(signal.SIGINT, signal.SIGINT), toy.optim, toy.run, toy)
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "latest").exists()


def test_outside_the_main_thread_it_trains_without_handlers(tmp_path: Path) -> None:
    toy = config(tmp_path)
    steps: list[int] = []
    thread = threading.Thread(target=lambda: steps.append(train(ToyTask(), toy.optim, toy.run, toy).step))
    thread.start()
    thread.join()
    assert steps == [20]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_from_outside(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_steps(tmp_path / "metrics.jsonl", process)
        toy = config(tmp_path, steps=3000, log_every=1)
        with pytest.raises(RecGPTError, match=f"process {process.pid} is training"):
            train(ToyTask(), toy.optim, toy.run, toy)
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == code
    last = errors.splitlines()[-1]
    step = int((tmp_path / "latest").read_text().removeprefix("step_"))
    assert f"stopped at step {step} with a checkpoint; run the same command again" in last
    weights = load_file(tmp_path / "checkpoints" / f"step_{step:08d}" / "model.safetensors")
    assert weights["calls"].item() == step


def wait_for_steps(log: Path, process: subprocess.Popen[str]) -> None:
    """Until the other process has logged three steps."""
    deadline = time.monotonic() + 60
    while not log.exists() or log.read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
