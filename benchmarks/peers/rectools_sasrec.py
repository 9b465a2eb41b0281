"""Training events per second of RecTools' SASRec (full softmax), for training_speed.py, in RecTools' environment."""

import json
import os
import resource
import sys
import time

import pytorch_lightning as pl
from rectools.models import SASRecModel
from rectools_log import read, set_up

IMPORTED = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
"""MiB after the imports."""


class Count(pl.Callback):
    """Counts targets after the warm-up and ends the process when the time is over."""

    def __init__(self, seconds: float, warm_up: int) -> None:
        self.seconds, self.warm_up = seconds, warm_up
        self.steps = self.events = 0
        self.started = self.used = 0.0

    def on_train_batch_end(self, trainer, module, out, batch, i) -> None:  # type: ignore[no-untyped-def]
        """Count one step."""
        self.steps += 1
        if self.steps == self.warm_up:
            self.started, self.used = time.perf_counter(), time.process_time()
        elif self.steps > self.warm_up:
            self.events += int((batch["y"] != 0).sum())
            spent = time.perf_counter() - self.started
            if spent > self.seconds:
                cpu = time.process_time() - self.used
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - IMPORTED
                found = {"events_per_second": self.events / spent, "events_per_cpu_second": self.events / cpu}
                print(json.dumps(found | {"peak_mib": peak}), flush=True)
                os._exit(0)  # Lightning has no prompt way out of an epoch


def main() -> None:
    """Fit on all but each user's last two events."""
    path, seconds, threads, length, warm_up = sys.argv[1:]
    set_up(int(threads))
    count = Count(float(seconds), int(warm_up))

    def trainer() -> pl.Trainer:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        return pl.Trainer(
            max_epochs=1000, accelerator="cpu", devices=1, enable_model_summary=False, callbacks=[count], **quiet
        )

    model = SASRecModel(
        n_factors=64,
        n_blocks=2,
        n_heads=2,
        session_max_len=int(length),
        batch_size=128,
        dropout_rate=0.2,
        loss="softmax",
        get_trainer_func=trainer,
    )
    model.fit(read(path, 2))


if __name__ == "__main__":
    main()
