"""What a run tells while it trains: lines or a bar on stderr, `metrics.jsonl`, wandb when asked.

One record goes to every writer. `event` is `train`, `valid` or `finished`; `step` counts updates.
"""

from __future__ import annotations

import json
import math
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from recgpt.config import Section
from recgpt.errors import ConfigError, RecGPTError
from recgpt.files import atomic_write_bytes, full_disk_told

METRICS = "metrics.jsonl"
Record = Mapping[str, Any]


class WandbConfig(Section):
    """Weights & Biases (the extra `wandb`)."""

    project: str = "recgpt"
    """The project that the run is filed under."""

    mode: Literal["online", "offline"] = "online"
    """`offline` writes to the run folder only; `wandb sync` sends it later."""

    entity: str | None = None
    """The team or user; null = the account's default."""

    name: str | None = None
    """The run's shown name; null = the run folder's name."""


class Writer(Protocol):
    """Where records go."""

    def write(self, record: Record) -> None:
        """Take one record."""
        ...

    def sync(self) -> None:
        """Make what was taken safe: a checkpoint is about to be written."""
        ...

    def close(self) -> None:
        """The run ends here, well or not."""
        ...


class Log:
    """The writers of a run; also a context manager that closes them."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self.writers = writers

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exception: object) -> None:
        for writer in self.writers:
            writer.close()

    def write(self, event: str, step: int, **values: Any) -> None:
        """Hand a record to every writer; a number that is not finite becomes null."""
        record = {"event": event, "step": step}
        record |= {key: _finite(value) for key, value in values.items()}
        for writer in self.writers:
            writer.write(record)

    def sync(self) -> None:
        """Make everything written safe."""
        for writer in self.writers:
            writer.sync()


def open_log(run_dir: Path, wandb: WandbConfig | None, settings: Record) -> Log:
    """The writers that a run asks for; `settings` is the resolved config, for wandb."""
    writers: list[Writer] = [] if wandb is None else [WandbWriter(wandb, run_dir, settings)]
    writers.append(JsonlWriter(run_dir / METRICS))
    writers.append(BarWriter() if sys.stderr.isatty() else LineWriter())
    return Log(writers)


def import_wandb() -> Any:
    """The package wandb.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            "run.wandb: the package wandb is missing; pip install 'recgpt[wandb]', or set run.wandb=null"
        ) from error
    return wandb


def tell(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class JsonlWriter:
    """One JSON object a line, appended and handed to the operating system at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append the record."""
        with full_disk_told(self.path):
            self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Flush to the disk."""
        with full_disk_told(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WandbWriter:
    """Weights & Biases; whatever goes wrong there is told once and never ends the training."""

    def __init__(self, config: WandbConfig, run_dir: Path, settings: Record) -> None:
        wandb = import_wandb()
        self._run: Any = None
        self._run = self._guard(
            lambda: wandb.init(
                project=config.project,
                entity=config.entity,
                name=config.name or run_dir.resolve().name,
                mode=config.mode,
                dir=str(run_dir),
                config=dict(settings),
                id=_wandb_id(run_dir),
                resume="allow",
                settings=wandb.Settings(console="off", silent=True),
            )
        )

    def write(self, record: Record) -> None:
        """Log the numbers of the record under its event's name."""
        if self._run is not None:
            event, step = record["event"], record["step"]
            values = {f"{event}/{k}": v for k, v in record.items() if k not in ("event", "step")}
            self._guard(lambda: self._run.log(values, step=step))

    def sync(self) -> None:
        """Nothing to do: wandb sends by itself."""

    def close(self) -> None:
        """Finish the wandb run."""
        if self._run is not None:
            self._guard(lambda: self._run.finish())

    def _guard(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # wandb raises its own, network and value errors alike
            self._run = None
            reason = " ".join(str(error).split())
            tell(f"wandb is off for the rest of this run ({type(error).__name__}: {reason})")
            return None


class LineWriter:
    """One dense line a record on stderr."""

    def write(self, record: Record) -> None:
        """Write the line."""
        tell(describe(record))

    def sync(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is held open."""


class BarWriter:
    """A progress bar on a terminal's stderr; validations stay above it as lines."""

    def __init__(self) -> None:
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% {task.description}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("starting", total=1.0)
        self._bar.start()

    def write(self, record: Record) -> None:
        """Move the bar, or put a line above it."""
        if record["event"] == "train":
            self._bar.update(self._task, completed=record["progress"], description=describe(record))
        else:
            self._bar.console.print(describe(record), markup=False, highlight=False)

    def sync(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


def describe(record: Record) -> str:
    """A record as one dense line."""
    step, event = record["step"], record["event"]
    if event != "train":
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
        return f"{event} step {step} " + " ".join(f"{k} {v:.5g}" for k, v in numbers.items())
    done, seconds = record["progress"], record["seconds"]
    eta = seconds * (1 - done) / done if done else math.nan
    return (
        f"step {step} epoch {record['epoch']} loss {record['loss']:.4f} lr {record['lr']:.2e}"
        f" targets/s {record['targets_per_second']:,.0f} grad {record['grad_norm']:.3f}"
        f" eta {_clock(eta)}"
    )


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a last line that a killed process left half is left out.

    Raises:
        RecGPTError: a line before the last is no record.
    """
    return [record for record, _ in _parse(path)]


def cut_records(path: Path, step: int, evaluated: int) -> None:
    """Keep what was logged up to a checkpoint, so that a resumed run repeats no step.

    Args:
        path: the `metrics.jsonl`.
        step: the checkpoint's step; later records go.
        evaluated: the last step whose validation the checkpoint knows; later `valid` records go.
    """
    if not path.exists():
        return
    last = {"train": step, "valid": evaluated}
    lines = (line for r, line in _parse(path) if r["step"] <= last.get(r["event"], -1))
    atomic_write_bytes(path, b"".join(lines))


def _parse(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    parsed = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise RecGPTError(
                f"{path}: line {number} is no JSON; remove that line and run the same command again"
            ) from error
        if line.endswith(b"\n"):
            parsed.append((record, line))
    return parsed


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _wandb_id(run_dir: Path) -> str:
    """The run's id at wandb, drawn once and kept in the folder, so that a resume continues it."""
    path = run_dir / "wandb" / "id"
    if not path.exists():
        atomic_write_bytes(path, uuid.uuid4().hex[:8].encode("ascii"))
    return path.read_text(encoding="ascii")
