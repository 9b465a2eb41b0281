"""The one training loop; a stage gives it a task.

A step is one batch and one update; there is no gradient accumulation: batches are as large as a
stage makes them. With a limit in steps or epochs a run is repeatable bit for bit in one CPU
process, killed and resumed or not. With `minutes` the rate and the end follow the clock: such a run
is not.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recgpt.config import Section, dump_config
from recgpt.errors import ConfigError, RecGPTError, Stopped
from recgpt.files import atomic_dir
from recgpt.train.checkpoint import (
    Interval,
    Progress,
    TrainState,
    clean_checkpoints,
    current_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from recgpt.train.log import METRICS, Log, cut_records, import_wandb, open_log, tell
from recgpt.train.optim import (
    OptimConfig,
    build_optimizer,
    clip_gradients,
    gradient_norm,
    lr_fraction,
    set_lr,
)
from recgpt.train.rng import seed_everything
from recgpt.train.run import (
    MODEL,
    NONFINITE,
    RunConfig,
    finished_record,
    locked,
    run_status,
    start_run,
)
from recgpt.train.signals import StopRequest
from recgpt.train.task import StepResult, Task


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run_dir: the run's folder; the model is in its folder `model`.
        step: updates done.
        epoch: whole passes over the training part.
        seconds: training time, without evaluations and checkpoints, over all resumes.
        targets: targets learned from.
        validation: the validation's metrics of the exported weights.
        exported_step: the step whose weights were exported.
        finished_before: nothing was left to do.
    """

    run_dir: Path
    step: int
    epoch: int
    seconds: float
    targets: int
    validation: dict[str, float]
    exported_step: int
    finished_before: bool = False


def train(task: Task, optim: OptimConfig, run: RunConfig, resolved_config: Section, fresh: bool = False) -> TrainResult:
    """Train until the first limit, resuming what stands in the run's folder, then export.

    Args:
        task: the stage's model, batches and loss. Its model is changed in place.
        optim: optimiser and rate.
        run: folder, limits, checkpoints, log. `run.dir` must be set.
        resolved_config: the stage's whole config, saved with the run and compared on resume.
        fresh: remove the folder's old run and start anew.

    Raises:
        ConfigError: the folder holds a run of another config, or a setting does not fit.
        Stopped: after Ctrl-C or SIGTERM; a checkpoint was written.
        RecGPTError: non-finite loss, full disk, damaged checkpoint, folder in use.
    """
    if run.dir is None:
        raise ConfigError("run.dir: not set; give the run a folder, for example run.dir=runs/first")
    if int(os.environ.get("WORLD_SIZE", "1")) != 1:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: training runs in one process; start it without torchrun"
        )
    if run.wandb is not None:
        import_wandb()  # missing, it must be told before `fresh` removes anything
    run_dir = Path(run.dir)
    with locked(run_dir):
        status = run_status(run_dir, resolved_config, fresh)
        finished = finished_record(run_dir) if status == "finished" else None
        if finished is not None:
            return _result(run_dir, finished, finished_before=True)
        if status == "new":
            start_run(run_dir, resolved_config)
        state = TrainState(task.model, build_optimizer(task.model, optim, task.lr_factors), Progress())
        _restore(run_dir, state, run.seed)
        settings = resolved_config.model_dump(mode="json")
        with (
            _threads(run.threads),
            StopRequest() as stop,
            open_log(run_dir, run.wandb, settings) as log,
        ):
            loop = _Loop(task, optim, run, state, log, stop, dump_config(resolved_config))
            return loop.run_to_end()


def _restore(run_dir: Path, state: TrainState, seed: int) -> None:
    """Go back to the checkpoint in force, or to the seed when there is none."""
    current = current_checkpoint(run_dir)
    clean_checkpoints(run_dir, current)
    if current is None:
        seed_everything(seed)
    else:
        load_checkpoint(current, state)
        tell(f"{run_dir}: going on from step {state.progress.step}")
    cut_records(run_dir / METRICS, state.progress.step, state.progress.evaluated)


class _Loop:
    """The steps of one process, from where `state` stands to the end of the run."""

    def __init__(
        self,
        task: Task,
        optim: OptimConfig,
        run: RunConfig,
        state: TrainState,
        log: Log,
        stop: StopRequest,
        config_yaml: str,
    ) -> None:
        self.task, self.optim, self.run = task, optim, run
        self.state, self.progress = state, state.progress
        self.log, self.stop, self.config_yaml = log, stop, config_yaml
        self.run_dir = Path(str(run.dir))
        self._saved_step = state.progress.step
        self._steps_in_epoch = max(1, task.steps_in_epoch(state.progress.epoch))
        self._last_norm = self._lr = 0.0

    def run_to_end(self) -> TrainResult:
        """Steps, then the last checkpoint, validation and export."""
        progress = self.progress
        self.task.model.train()
        # A run stopped by a signal saves before the validation that was due at that step.
        if progress.step and self._due(self._evaluate_every()) and not self._validated():
            self._evaluate()
        while not self._ended():
            self._run_epoch()
        self._save()
        if not self._validated():
            self._evaluate()
        self._stop_if_asked()
        self._export()
        if self.stop.exit_code:
            raise Stopped(f"{self.run_dir}: finished at step {progress.step}", self.stop.exit_code)
        record = finished_record(self.run_dir)
        assert record is not None
        return _result(self.run_dir, record)

    def _run_epoch(self) -> None:
        """Go through the rest of the current epoch, or to the end of the run."""
        progress = self.progress
        self._steps_in_epoch = max(1, self.task.steps_in_epoch(progress.epoch))
        batches = self.task.batches(progress.epoch, progress.batch)
        try:
            started = time.perf_counter()
            for batch in batches:
                self._update(batch)
                seconds = time.perf_counter() - started
                progress.seconds += seconds
                progress.interval.seconds += seconds
                self._after_step()
                if self._ended():
                    return
                started = time.perf_counter()
        finally:
            # A generator that reads ahead in a thread ends with it here, not at garbage collection.
            close = getattr(batches, "close", None)
            if close is not None:
                close()
        if progress.batch == 0:
            raise RecGPTError(
                f"epoch {progress.epoch}: the training part gave no batch; it needs users with at least two events"
            )
        progress.epoch, progress.batch = progress.epoch + 1, 0

    def _update(self, batch: Any) -> None:
        """One forward and backward pass and one change of the weights."""
        progress, optimizer = self.progress, self.state.optimizer
        self._lr = self.optim.lr * lr_fraction(self.optim, progress.step, self._done_fraction())
        set_lr(optimizer, self._lr)
        optimizer.zero_grad(set_to_none=True)
        result = self.task.step(batch)
        result.loss.backward()
        # One wait for the device: both numbers come in one transfer.
        both = torch.stack([result.loss.detach().float(), gradient_norm(optimizer).float()])
        loss, norm = both.tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._refuse(batch, loss, norm)
        clip_gradients(optimizer, norm, self.optim.clip_norm)
        optimizer.step()
        progress.step += 1
        progress.batch += 1
        progress.targets += result.targets
        self._add(result, loss)
        self._last_norm = norm

    def _add(self, result: StepResult, loss: float) -> None:
        interval = self.progress.interval
        interval.targets += result.targets
        interval.loss += loss * result.targets
        for name, value in result.metrics.items():
            interval.metrics[name] = interval.metrics.get(name, 0.0) + value * result.targets

    def _after_step(self) -> None:
        """Log, stop, validate and save, each when due."""
        if self._due(self.run.log_every):
            self._log_interval()
        self._stop_if_asked()
        if self._due(self._evaluate_every()):
            self._evaluate()
        if self._due(self.run.checkpoint_every):
            self._save()

    def _log_interval(self) -> None:
        progress, interval = self.progress, self.progress.interval
        weight = max(1, interval.targets)
        self.log.write(
            "train",
            progress.step,
            epoch=progress.epoch,
            loss=interval.loss / weight,
            lr=self._lr,
            grad_norm=self._last_norm,
            targets=progress.targets,
            targets_per_second=interval.targets / max(interval.seconds, 1e-9),
            seconds=progress.seconds,
            progress=min(1.0, self._done_fraction()),
            **{name: value / weight for name, value in interval.metrics.items()},
        )
        progress.interval = Interval()

    def _evaluate(self) -> None:
        """Validate; keep the weights if they are the best so far and the best are wanted."""
        progress, model = self.progress, self.task.model
        started = time.perf_counter()
        model.eval()
        with torch.no_grad():
            metrics = self.task.evaluate()
        model.train()
        progress.evaluated, progress.validation = progress.step, dict(metrics)
        seconds = time.perf_counter() - started
        self.log.write("valid", progress.step, **metrics, evaluation_seconds=seconds)
        if self.run.select == "best":
            self._keep_if_best(progress.validation)

    def _keep_if_best(self, metrics: dict[str, float]) -> None:
        name = self.task.selection.removeprefix("-")
        if name not in metrics:
            raise ConfigError(
                f"run.select=best: the validation gives no {name} (it gives"
                f" {', '.join(metrics) or 'nothing'}); use run.select=last"
            )
        progress, value = self.progress, metrics[name]
        sign = -1 if self.task.selection.startswith("-") else 1
        progress.stale += 1
        if progress.best_value is None or sign * value > sign * progress.best_value:
            progress.best_step, progress.best_value, progress.stale = progress.step, value, 0
            progress.best_validation = metrics
            weights = self.task.model.state_dict()
            self.state.best = {name: t.detach().cpu().clone() for name, t in weights.items()}

    def _save(self) -> None:
        if self._saved_step != self.progress.step:
            self.log.sync()
            save_checkpoint(self.run_dir, self.state, self.config_yaml, self.run.keep)
            self._saved_step = self.progress.step

    def _export(self) -> None:
        """Write the model folder and the record that closes the run."""
        progress = self.progress
        exported_step, validation = progress.step, progress.validation
        if self.state.best is not None and progress.best_step is not None:
            self.task.model.load_state_dict(self.state.best)
            exported_step = progress.best_step
            validation = progress.best_validation or validation  # a checkpoint from before it was kept has none
        self.task.model.eval()
        with atomic_dir(self.run_dir / MODEL, "model.safetensors") as temporary, torch.no_grad():
            self.task.export(temporary)
        self.log.write(
            "finished",
            progress.step,
            epoch=progress.epoch,
            seconds=progress.seconds,
            targets=progress.targets,
            exported_step=exported_step,
            exported_at=self._exported_at(exported_step),
            validation=validation,
        )
        self.log.sync()

    def _exported_at(self, step: int) -> float:
        """The part of the whole run that was done at a step: `run.stop_at` of a run that repeats it."""
        return min(1.0, self._done_fraction() * step / max(1, self.progress.step))

    def _stop_if_asked(self) -> None:
        if self.stop.exit_code:
            self._save()
            raise Stopped(
                f"{self.run_dir}: stopped at step {self.progress.step} with a checkpoint; run the"
                " same command again to go on",
                self.stop.exit_code,
            )

    def _refuse(self, batch: Any, loss: float, norm: float) -> None:
        """End the run before a non-finite number reaches the weights."""
        step = self.progress.step + 1
        path = self.run_dir / NONFINITE / f"step_{step:08d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        self.task.dump_batch(batch, path)
        raise RecGPTError(
            f"step {step}: loss {loss}, gradient norm {norm}: not finite; the batch is in {path}"
            " and the last checkpoint stays; lower optim.lr, or look for extreme values there"
        )

    def _validated(self) -> bool:
        return self.progress.evaluated == self.progress.step

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    def _evaluate_every(self) -> int:
        """Steps between two validations."""
        every = self.run.evaluate_every
        part = isinstance(every, float) and 0 < every <= 1
        return max(1, round(every * self._steps_in_epoch)) if part else int(every)

    def _done_fraction(self) -> float:
        """The part of the run that is done: that of the limit that is nearest."""
        run, progress = self.run, self.progress
        parts = [0.0]
        if run.epochs is not None:
            within = min(1.0, progress.batch / self._steps_in_epoch)
            parts.append((progress.epoch + within) / run.epochs)
        if run.steps is not None:
            parts.append(progress.step / run.steps)
        if run.minutes is not None:
            parts.append(progress.seconds / (60 * run.minutes))
        return max(parts)

    def _ended(self) -> bool:
        run, progress = self.run, self.progress
        return (
            (run.epochs is not None and progress.epoch >= run.epochs)
            or (run.steps is not None and progress.step >= run.steps)
            or (run.minutes is not None and progress.seconds >= 60 * run.minutes)
            or (run.stop_at is not None and self._done_fraction() >= run.stop_at - 1e-9)  # a product, so rounded
            or (run.patience is not None and progress.stale >= run.patience)
        )


def _result(run_dir: Path, record: dict[str, Any], finished_before: bool = False) -> TrainResult:
    return TrainResult(
        run_dir=run_dir,
        step=record["step"],
        epoch=record["epoch"],
        seconds=record["seconds"],
        targets=record["targets"],
        validation=record["validation"],
        exported_step=record["exported_step"],
        finished_before=finished_before,
    )


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Let torch use `number` CPU threads inside the block."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
