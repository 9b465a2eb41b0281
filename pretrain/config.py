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
    def _one_prediction(self) -> "PretrainConfig":
        """The objective, the horizon, the look-aheads and the model fit each other."""
        loss, farthest = self.loss, self.model.look_ahead
        masked = loss.objective == "masked"
        if loss.auxiliary.active and not self.model.causal:
            raise ValueError(
                "loss.auxiliary: a model that sees later events knows what it is to predict; set model.causal: true or"
                " the weights to 0"
            )
        if masked and self.model.causal:
            raise ValueError("loss.objective: masked needs a model that looks both ways; set model.causal: false")
        if not masked and not self.model.causal:
            raise ValueError(
                "model.causal: false shows every position the item that it is to predict; set loss.objective: masked"
            )
        if loss.newest is not None and len(farthest) > 1 and loss.newest <= farthest[-2]:
            raise ValueError(
                f"loss.newest: {loss.newest} leaves a look-ahead beyond {farthest[-2]} events nothing to learn; take"
                " more, or null"
            )
        if loss.horizon is not None and masked:
            raise ValueError(f"loss.horizon: {loss.horizon} and loss.objective: masked both choose targets; use one")
        if loss.horizon is not None and len(farthest) > 1:
            raise ValueError(
                f"loss.horizon: {loss.horizon} and model.look_ahead: {list(farthest)} both choose targets; use one of"
                " them"
            )
        return self
