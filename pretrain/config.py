"""The whole config of a pretraining run."""

from typing import Any

from pydantic import model_validator

from recgpt.config import Section
from recgpt.data.schema import DataConfig
from recgpt.losses.config import LossConfig
from recgpt.model import ModelConfig
from recgpt.train import OptimConfig, RunConfig
from recgpt.train.stage import with_some_end

EPOCHS = 20


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
    run: RunConfig = RunConfig(epochs=EPOCHS)
    """The run folder, limits and logging; 20 epochs where no limit is given."""

    @model_validator(mode="before")
    @classmethod
    def _some_end(cls, values: Any) -> Any:
        return with_some_end(values, EPOCHS)

    @model_validator(mode="after")
    def _auxiliary_needs_causality(self) -> "PretrainConfig":
        if self.loss.auxiliary.active and not self.model.causal:
            raise ValueError(
                "loss.auxiliary: a model that sees later events knows what it is to predict; set model.causal: true or"
                " the weights to 0"
            )
        return self
