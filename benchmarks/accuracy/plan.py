"""The rows: shipped configs and variants of them, each measured with some seeds on the test part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from recgpt.config import Section, flatten, load_config
from recgpt.errors import ConfigError
from recgpt.stages import load_stage

ROOT = Path(__file__).resolve().parents[2]
ROWS = Path(__file__).parent / "rows.yaml"

# Where things lie, how many cores there are, and what is told with a result beside its config.
_NOT_COMPARED = {"run.dir", "run.log", "run.seed", "run.threads", "data.prepared", "data.memory_limit"}


class Other(Section):
    """A figure of somebody else's system on the same log and protocol."""

    system: str
    """What was measured, and by whom."""
    ndcg: float = Field(gt=0, lt=1)
    """NDCG@10."""
    recall: float = Field(gt=0, lt=1)
    """Recall@10 (hit rate)."""
    command: str | None = None
    """What measured it here; null = as published."""


class Log(Section):
    """One table of the page."""

    title: str
    """Its heading."""
    text: str
    """What is ranked for whom."""
    others: list[Other] = []
    """Figures of others, best first."""
    remark: str = ""
    """What to read of the table: what is short of what, and why."""


class Row(Section):
    """One config, or a variant of it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Unique; also its command-line name."""
    log: str
    """The table that shows it."""
    value: str
    """What it is, for readers."""
    config: str
    """A pretraining config, from the root of the checkout."""
    set: list[str] = []
    """`key.sub=value`: what it changes of that config."""
    against: str | None = None
    """A row of the same log whose loss or gain is told in per cent."""

    @property
    def source(self) -> Path:
        """The config's file."""
        return ROOT / self.config

    def settings(self) -> dict[str, Any]:
        """Every value that a result depends on, by dotted key.

        Raises:
            ConfigError: a wrong value, or a limit in minutes: then the machine's speed would decide the result.
        """
        load_stage("pretrain")
        from recgpt.pretrain.config import PretrainConfig  # type: ignore[import-not-found]

        config = load_config(PretrainConfig, self.source, self.set)
        if config.run.minutes is not None:  # type: ignore[attr-defined]
            raise ConfigError(f"{self.name}: run.minutes: accuracy is measured by epochs; set run.epochs")
        return {k: v for k, v in flatten(config.model_dump(mode="json")).items() if k not in _NOT_COMPARED}


class Plan(Section):
    """All that is measured."""

    seeds: int = Field(3, ge=1)
    """Runs of a row."""
    logs: dict[str, Log]
    """The tables, in their order."""
    rows: list[Row]
    """What is measured, in the order of the tables' lines."""

    @model_validator(mode="after")
    def _coherent(self) -> Plan:
        names = {row.name: row.log for row in self.rows}
        if len(names) < len(self.rows):
            raise ValueError("rows: a name stands twice; give every row its own")
        for row in self.rows:
            if row.name in self.logs:
                raise ValueError(f"rows: {row.name} is a log's name too; choose another")
            if row.log not in self.logs:
                raise ValueError(f"rows: {row.name} has no log {row.log!r}; logs: {', '.join(self.logs)}")
            if row.against is not None and names.get(row.against) != row.log:
                raise ValueError(f"rows: {row.name}.against: no row {row.against!r} of the same log")
        return self

    def chosen(self, names: list[str]) -> list[Row]:
        """The rows with these names, or of these logs; all where none is named.

        Raises:
            ConfigError: a name fits no row.
        """
        for name in names:
            if not any(name in (row.name, row.log) for row in self.rows):
                raise ConfigError(f"{name}: no such row; rows: {', '.join(row.name for row in self.rows)}")
        return [row for row in self.rows if not names or {row.name, row.log} & set(names)]
