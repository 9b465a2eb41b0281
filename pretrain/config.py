"""The whole config of a pretraining run."""

from recgpt.config import Section
from recgpt.data.schema import DataConfig
from recgpt.losses.next_item import LossConfig
from recgpt.model import ModelConfig
from recgpt.train import OptimConfig, RunConfig


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
    """The run folder, limits and logging."""
