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
        ConfigError: a horizon together with further look-aheads, or in a log without a clock; an objective that the
            model is not made for.
    """
    loss, farthest = config.loss, tuple(config.model.look_ahead)
    every = loss.targets == "all"
    if loss.objective == "masked":
        return _masked(config, every)
    if not config.model.causal:
        raise ConfigError(
            "model.causal: false shows every position the item that it is to predict; set loss.objective: masked"
        )
    if loss.horizon is None:
        return LookAhead(farthest, every) if len(farthest) > 1 else NextItem(every)
    if len(farthest) > 1:
        raise ConfigError(
            f"loss.horizon: {loss.horizon} and model.look_ahead: {list(farthest)} both choose targets; use one of them"
        )
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


def _masked(config: PretrainConfig, every: bool) -> Targets:
    """The masked objective, for a model that it fits."""
    loss = config.loss
    if config.model.causal:
        raise ConfigError("loss.objective: masked needs a model that looks both ways; set model.causal: false")
    if loss.horizon is not None:
        raise ConfigError(f"loss.horizon: {loss.horizon} and loss.objective: masked both choose targets; use one")
    return MaskedItems(loss.masked.probability, loss.masked.last_only, every)
