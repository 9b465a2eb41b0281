"""Which rule chooses the targets of a run."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from recgpt.data.masked import MaskedItems
from recgpt.data.sampler import TrainingBatches
from recgpt.data.schema import DataSchema
from recgpt.data.targets import LookAhead, NextItem, Targets, WithinHorizon, microseconds
from recgpt.errors import ConfigError

if TYPE_CHECKING:
    from .config import PretrainConfig

LOOKED_AT = 20
"""Batches."""


def target_rule(config: PretrainConfig, schema: DataSchema) -> Targets:
    """The rule that the `loss` and the `model` section ask for.

    Raises:
        ConfigError: a horizon in a log without a clock.
    """
    loss, farthest = config.loss, tuple(config.model.look_ahead)
    every = loss.targets == "all"
    if loss.objective == "masked":
        return MaskedItems(loss.masked.probability, loss.masked.last_only, every)
    if loss.horizon is None:
        return LookAhead(farthest, every) if len(farthest) > 1 else NextItem(every)
    if not schema.has_time:
        raise ConfigError(f"loss.horizon: {loss.horizon} needs the events' times; name data.time, or set it to null")
    return WithinHorizon(microseconds(loss.horizon), loss.horizon_positions, every)


def check_some(data: TrainingBatches, config: PretrainConfig) -> None:
    """Refuse a horizon within which nothing happens: such a run would learn nothing, and look fine.

    Raises:
        ConfigError: none of the first batches has a target.
    """
    if config.loss.horizon is not None and not any(len(batch.position) for batch in islice(data.epoch(0), LOOKED_AT)):
        raise ConfigError(
            f"loss.horizon: {config.loss.horizon} gives no target in the first {LOOKED_AT} batches; take a longer one"
        )
