"""The run folder: whose it is, whether it is finished, and one process at a time in it.

runs/NAME/{config.yaml, metrics.jsonl, latest, checkpoints/, model/}. The same NAME with the same
resolved config goes on or is finished; with another config it is refused unless `fresh`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from recgpt.config import Section, dump_config, flatten, parse_yaml, validate
from recgpt.errors import ConfigError, RecGPTError
from recgpt.files import atomic_write_text
from recgpt.train.device import Device
from recgpt.train.log import METRICS, WandbConfig, read_records

CONFIG = "config.yaml"
MODEL = "model"
LOCK = ".lock"
NONFINITE = "nonfinite"
# What a run writes and `fresh` removes, config.yaml last: till then the folder is known as a run's.
# `test_reads.jsonl` is not among them: how often the test part was looked at stays known.
_OWN = ("latest", "checkpoints", MODEL, METRICS, "eval", "inspect.json", "report.html", "wandb", NONFINITE, CONFIG)

_PLACES = ("run.dir", "data.prepared")  # folders may be moved
RunStatus = Literal["new", "resume", "finished"]


class RunConfig(Section):
    """One training run: its folder, its end, its checkpoints and its log."""

    dir: str | None = None
    """The run's folder; the stage's default is runs/<name of the config file>."""

    start_from: str | None = None
    """A finished run whose weights this one starts from (`pretrain --from RUN`)."""

    log: str | None = None
    """Content digest of the prepared log, filled in when a run starts: it goes on with the same log or not at all."""

    seed: int = Field(0, ge=0)
    """Seed of the random generators (dropout and the like)."""

    epochs: int | None = Field(None, ge=1)
    """End after so many passes over the training part."""

    steps: int | None = Field(None, ge=1)
    """End after so many updates."""

    minutes: float | None = Field(None, gt=0)
    """End after so much training time. The rate then follows the clock: no two runs are equal."""

    checkpoint_every: int = Field(1000, ge=1)
    """Steps between two checkpoints."""

    keep: int = Field(2, ge=1)
    """How many checkpoints stay on the disk."""

    stop_at: float | None = Field(None, gt=0, le=1)
    """End when this part of the run is done, the rate where it then is: repeats a run that `patience` ended."""

    evaluate_every: int | Annotated[float, Field(ge=0)] = 0
    """Steps between two validations; a fraction up to 1.0 is the part of an epoch between them (0.25: four in each,
    1.0: one; 1 is every step); 0 = only at the end."""

    select: Literal["last", "best"] = "last"
    """Which weights are exported: the last ones or those of the best validation (pretraining: NDCG@10, finetuning: log
    loss)."""

    patience: int | None = Field(None, ge=1)
    """End after so many validations in a row without a better one."""

    device: Device = "auto"
    """Where training computes: `cuda` (the current GPU), `cpu`, or `auto`, the GPU where one is. Loading, serving and
    the command lines that read a finished run compute on the CPU."""

    threads: int | None = Field(None, ge=1)
    """CPU threads of torch; null = torch's own choice."""

    log_every: int = Field(50, ge=1)
    """Steps between two logged lines."""

    wandb: WandbConfig | None = None
    """Log to Weights & Biases too."""

    @model_validator(mode="after")
    def _limits(self) -> RunConfig:
        if self.epochs is None and self.steps is None and self.minutes is None:
            raise ValueError("no end is set; set epochs, steps or minutes (the first reached counts)")
        if self.select == "best" and not self.evaluate_every:
            raise ValueError("select: best needs evaluate_every; set it to a number of steps")
        if self.evaluate_every < 0 or (self.evaluate_every > 1 and self.evaluate_every % 1):
            raise ValueError(
                f"evaluate_every: {self.evaluate_every} is no whole number of steps and no part of an epoch"
            )
        if self.patience is not None and self.select != "best":
            raise ValueError("patience: needs select: best, whose validations it counts")
        return self


def run_status(run_dir: Path, resolved: Section, fresh: bool = False) -> RunStatus:
    """Whether training into `run_dir` starts, goes on or has nothing left to do.

    Args:
        run_dir: the run's folder; it need not exist.
        resolved: the whole config. `run.dir` and `data.prepared` are not compared, so folders may be
            moved; `run.log` is, once it is known.
        fresh: start anew whatever is there.

    Raises:
        ConfigError: the folder holds a run of another config (the first keys that differ are
            named), or files of a run's names that no run wrote.
    """
    saved = run_dir / CONFIG
    if not saved.is_file():
        foreign = [name for name in _OWN if (run_dir / name).exists()]
        if foreign:
            raise ConfigError(
                f"{run_dir}: holds {foreign[0]} but no {CONFIG}, so it is no run folder and nothing"
                " in it is touched; choose another run.dir"
            )
        return "new"
    if fresh:
        return "new"
    differing = _differing_keys(saved, resolved)
    if differing:
        raise ConfigError(
            f"{run_dir}: holds a run of another config ({'; '.join(differing)}); choose another"
            " run.dir, or remove the old run with --fresh"
        )
    return "resume" if finished_record(run_dir) is None else "finished"


def finished_record(run_dir: Path) -> dict[str, Any] | None:
    """The closing record of a run that ended and whose model is there, else None."""
    records = [r for r in read_records(run_dir / METRICS) if r.get("event") == "finished"]
    return records[-1] if records and (run_dir / MODEL).is_dir() else None


def start_run(run_dir: Path, resolved: Section) -> None:
    """Make `run_dir` the folder of a new run: what an old one left is removed, the config saved."""
    for name in _OWN:
        path = run_dir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    atomic_write_text(run_dir / CONFIG, dump_config(resolved))


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run folder for this process; the lock goes with the process, however that ends.

    Raises:
        RecGPTError: another process holds it.
    """
    import fcntl

    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise RecGPTError(
                f"{run_dir}: process {holder} is training in this folder; wait for it or choose another run.dir"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def saved_settings(saved: Path, kind: type[Section]) -> dict[str, Any] | None:
    """The settings of a run's `config.yaml` by their whole keys; None where the file holds none.

    A setting that did not exist when the run began has its default, which leaves a run what it was.
    """
    old = parse_yaml(saved.read_text(encoding="utf-8"), str(saved))
    if not isinstance(old, dict):
        return None
    try:
        return flatten(parse_yaml(dump_config(validate(kind, old, str(saved))), str(saved)))
    except ConfigError:
        return flatten(old)


def _differing_keys(saved: Path, resolved: Section, most: int = 3) -> list[str]:
    """The first `most` keys whose values differ, each with both values."""
    before = saved_settings(saved, type(resolved))
    if before is None:
        return [f"{saved.name} holds no settings"]
    now = flatten(parse_yaml(dump_config(resolved), "the config"))
    exempt = {*_PLACES, *(("run.log",) if now.get("run.log") is None else ())}
    keys = [k for k in (*now, *(k for k in before if k not in now)) if k not in exempt]
    pairs = [(k, before.get(k, "absent"), now.get(k, "absent")) for k in keys]
    lines = [f"{key}: {old} there, {new} here" for key, old, new in pairs if old != new]
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return lines[:most] + more
