"""The plan: which logs, which questions, which cells. A cell is one variant on one log, written as config overrides.

So each cell is a command: `recgpt pretrain CONFIG OVERRIDES...`, with the log's own overrides first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from recgpt.config import Section, flatten, load_config
from recgpt.errors import ConfigError
from recgpt.stages import load_stage

ROOT = Path(__file__).resolve().parent.parent.parent
CELLS = Path(__file__).parent / "cells.yaml"
MOST_CELLS = 30
DEFAULT = "default"
"""The name of a log's cell that changes nothing."""

# Where things lie and what is told with a result beside its config.
_NOT_COMPARED = {"run.dir", "run.log", "run.seed", "data.prepared", "data.memory_limit"}


class Log(Section):
    """One log and its default."""

    title: str
    """What people call the log."""
    config: str
    """A pretraining config, from the root of the checkout."""
    set: list[str] = []
    """`key.sub=value`: what the default of the ablations changes of that config."""


class Question(Section):
    """One table."""

    title: str
    """The heading."""
    text: str
    """What is varied and why, for readers."""
    default: str
    """The value of this factor in the default."""
    reference: str | None = None
    """A cell of this question whose NDCG@10 the others are told as shares of."""
    finding: str = ""
    """What the figures say, written after they were measured."""


class Cell(Section):
    """One variant on one log."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    """Unique among the log's cells."""
    log: str
    """The log that it is measured on."""
    question: str | None = None
    """The table that shows it; a default stands in every table of its log."""
    value: str = "default"
    """The value of the factor, for readers."""
    set: list[str] = []
    """`key.sub=value`: what it changes of the log's default."""

    @field_validator("set")
    @classmethod
    def _own_seeds(cls, overrides: list[str]) -> list[str]:
        taken = [line for line in overrides if line.startswith(("run.seed", "run.dir", "run.threads"))]
        if taken:
            raise ValueError(f"{taken[0]}: the runner sets it; remove it")
        return overrides

    @property
    def key(self) -> str:
        """LOG/NAME."""
        return f"{self.log}/{self.name}"


class Plan(Section):
    """All that is measured."""

    seeds: int = Field(2, ge=1)
    """Seeds of a cell."""
    default_seeds: int = Field(5, ge=1)
    """Seeds of each log's default: they give the noise."""
    logs: dict[str, Log]
    """The logs, by short name."""
    questions: dict[str, Question]
    """The tables, in their order."""
    cells: list[Cell]
    """The variants; each log's default comes by itself."""

    @model_validator(mode="after")
    def _coherent(self) -> Plan:
        if len(self.cells) > MOST_CELLS:
            raise ValueError(f"cells: {len(self.cells)} besides the defaults, at most {MOST_CELLS}; leave some out")
        keys = [cell.key for cell in self.all_cells()]
        for cell in self.cells:
            if cell.log not in self.logs:
                raise ValueError(f"cells: {cell.key} has no log {cell.log!r}; logs: {', '.join(self.logs)}")
            if cell.question not in self.questions:
                raise ValueError(f"cells: {cell.key} has no question {cell.question!r}; write it under questions")
            if not cell.set or keys.count(cell.key) > 1:
                raise ValueError(f"cells: {cell.key} changes nothing or stands twice; a cell is one variant")
        for name, question in self.questions.items():
            own = [cell.name for cell in self.cells if cell.question == name]
            if question.reference not in (None, *own):
                raise ValueError(
                    f"questions: {name}.reference: no cell {question.reference!r}; it has {', '.join(own)}"
                )
        return self

    def all_cells(self) -> list[Cell]:
        """Every log's default, then the variants."""
        return [Cell(name=DEFAULT, log=log) for log in self.logs] + self.cells

    def cell(self, key: str) -> Cell:
        """The cell LOG/NAME.

        Raises:
            ConfigError: no such cell.
        """
        for cell in self.all_cells():
            if cell.key == key:
                return cell
        raise ConfigError(f"{key}: no such cell; `python -m benchmarks.ablations --list` tells them all")

    def chosen(self, only: Sequence[str]) -> list[Cell]:
        """The cells whose key, log, name or question is named; all of them where nothing is.

        Raises:
            ConfigError: a name fits no cell.
        """
        everything = self.all_cells()
        if not only:
            return everything
        names = {cell.key: {cell.key, cell.log, cell.name, cell.question} for cell in everything}
        for wanted in only:
            if not any(wanted in known for known in names.values()):
                raise ConfigError(f"--only: {wanted} fits no cell; give LOG/NAME, a log, a name or a question")
        return [cell for cell in everything if names[cell.key] & set(only)]

    def n_seeds(self, cell: Cell) -> int:
        """How often a cell is measured."""
        return self.default_seeds if cell.name == DEFAULT else self.seeds

    def source(self, cell: Cell) -> Path:
        """The config that the cell's log starts from."""
        return ROOT / self.logs[cell.log].config

    def overrides(self, cell: Cell) -> list[str]:
        """What the cell changes of that config."""
        return [*self.logs[cell.log].set, *cell.set]

    def resolve(self, cell: Cell) -> Any:
        """The cell's whole `PretrainConfig`.

        Raises:
            ConfigError: every problem, each with the cell's name in front; a limit in minutes is one.
        """
        try:
            config = load_config(_pretrain_config(), self.source(cell), self.overrides(cell))
        except ConfigError as error:
            raise ConfigError("\n".join(f"{cell.key}: {line}" for line in str(error).splitlines())) from error
        if config.run.minutes is not None or config.run.epochs is None:  # type: ignore[attr-defined]
            raise ConfigError(
                f"{cell.key}: run.minutes: limits are epochs, so that runs are repeatable; set run.epochs"
            )
        return config

    def settings(self, cell: Cell) -> dict[str, Any]:
        """Every value that a result depends on, by dotted key."""
        return _compared(self.resolve(cell).model_dump(mode="json"))


@dataclass(frozen=True)
class Job:
    """One thing to measure."""

    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        """LOG/NAME-SEED: also the place of its result and its run folder."""
        return f"{self.cell.key}-{self.seed}"


def jobs(plan: Plan, cells: Sequence[Cell]) -> list[Job]:
    """Every seed of the cells, all first seeds before any second one, so that half a plan answers all questions."""
    every = [Job(cell, seed) for cell in cells for seed in range(plan.n_seeds(cell))]
    return sorted(every, key=lambda job: job.seed)


@cache
def default_settings() -> dict[str, Any]:
    """What a field has where no config names it, by dotted key (also those of side tables); see `Plan.settings`."""
    log: dict[str, Any] = {"events": "-", "user": "user", "item": "item", "order": "row"}
    log |= {"items": {"path": "-", "id": "item"}, "users": {"path": "-", "id": "user"}}
    return _compared(load_config(_pretrain_config(), {"data": log}).model_dump(mode="json"))


def _compared(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flatten(values).items() if key not in _NOT_COMPARED}


def _pretrain_config() -> type[Section]:
    load_stage("pretrain")
    from recgpt.pretrain.config import PretrainConfig  # type: ignore[import-not-found]

    return PretrainConfig


def command(plan: Plan, cell: Cell) -> str:
    """The cell as a command line."""
    return command_line(plan.logs[cell.log].config, plan.overrides(cell))


def command_line(config: str, overrides: Sequence[str]) -> str:
    """Pretraining a config, as one types it."""
    words = [f"'{line}'" if set(line) & set(" {}[]$*") else line for line in overrides]
    return " ".join(["recgpt pretrain", config, *words])
