"""The whole config of a pretraining run."""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from recgpt.config import Section
from recgpt.data.schema import DataConfig
from recgpt.losses.next_item import LossConfig
from recgpt.model import ModelConfig
from recgpt.train import OptimConfig, RunConfig

LIMITS = ("epochs", "steps", "minutes")


class PretrainConfig(Section):
    """One pretraining run."""

    data: DataConfig
    """The log."""
    model: ModelConfig = ModelConfig()
    """The event model."""
    loss: LossConfig = LossConfig()
    """The next-item loss."""
    optim: OptimConfig = OptimConfig()
    """Batches and the optimiser."""
    run: RunConfig = RunConfig(epochs=20)
    """The run folder, limits and logging; 20 epochs where no limit is given."""

    @model_validator(mode="before")
    @classmethod
    def _some_end(cls, values: Any) -> Any:
        run = values.get("run") or {} if isinstance(values, Mapping) else None
        if isinstance(run, Mapping) and all(run.get(limit) is None for limit in LIMITS):
            return {**values, "run": {**run, "epochs": 20}}
        return values
