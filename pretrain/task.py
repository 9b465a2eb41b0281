"""Pretraining as a task of the one loop: batch -> next-item loss; validation; the model folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from recgpt.ahead import read_ahead
from recgpt.api import RecGPT
from recgpt.data.batch import EventBatch, item_columns, on_device
from recgpt.data.prepared import Prepared
from recgpt.data.sampler import Predicted, TrainingBatches
from recgpt.data.schema import TargetConfig
from recgpt.errors import ConfigError
from recgpt.evaluation import model_scorer, rank_users, split_users
from recgpt.losses.auxiliary import AuxiliaryLosses
from recgpt.losses.config import LossConfig
from recgpt.losses.contrast import Contrast, make_estimate, make_negatives
from recgpt.losses.frequency import Estimate
from recgpt.losses.self_supervision import SelfSupervision
from recgpt.model import EventModel
from recgpt.nn.queries import hide_wanted
from recgpt.runs import asked
from recgpt.train import StepResult
from recgpt.train.device import product_dtype, training_device

from .targets import check_some, target_rule

if TYPE_CHECKING:
    from .config import PretrainConfig


class _Trained(nn.Module):
    """All that training changes: the event model, auxiliary heads, and the estimate of how often batches hold items."""

    def __init__(self, events: EventModel, loss: LossConfig, frequency: Estimate) -> None:
        super().__init__()
        self.events = events
        self.frequency = frequency
        own = loss.auxiliary
        self.auxiliary = AuxiliaryLosses(own, events.schema, events.config.dim) if own.active else None


class PretrainTask:
    """Next-item pretraining on a prepared log.

    Args:
        config: the resolved config.
        prepared: the log.
        events: the event model to train.
    """

    selection = "ndcg@10"
    lr_factors: Mapping[str, float] = {}

    def __init__(self, config: PretrainConfig, prepared: Prepared, events: EventModel) -> None:
        self.prepared, self.loss = prepared, config.loss
        target = config.data.target
        self.target = {target.outcome: target.min} if isinstance(target, TargetConfig) else {}
        negatives = make_negatives(config.loss, prepared.items)
        self.data = TrainingBatches(
            prepared,
            config.model.window,
            config.optim.batch_tokens,
            config.run.seed,
            which=Predicted(config.loss.targets == "all", config.loss.newest),
            targets=target_rule(config, prepared.schema),
            negatives=negatives,
        )
        if len(self.data) == 0:
            raise ConfigError(
                "data: no training target; check data.target and data.split against the log (`recgpt data check`)"
            )
        check_some(self.data, config)
        own = config.loss.self_supervision
        self.self_supervision = SelfSupervision(own, prepared.items) if own.weight > 0 else None
        # The heads' first weights are the seed's alone; the caller's draws stay its own.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            self.model = _Trained(events, config.loss, make_estimate(config.loss, prepared))
        self.device = training_device(config.run.device)
        self.model.to(self.device)
        self.contrast = Contrast(config.loss, prepared.items, self.model.frequency, negatives, self.device)
        self.dtype = product_dtype(config.optim.precision, self.device)

    def batches(self, epoch: int, skip: int) -> Iterator[EventBatch]:
        """The batches of an epoch, a pure function of (seed, epoch)."""
        batches = self.data.epoch(epoch, skip)
        return batches if self.device.type == "cpu" else read_ahead(batches)

    def steps_in_epoch(self, epoch: int) -> int:
        """Batches of an epoch."""
        return len(self.data)

    def step(self, batch: EventBatch) -> StepResult:
        """The next-item loss of one batch."""
        events, batch = self.model.events, on_device(batch, self.device)
        with self._products():
            encoded = events.encode_items(batch)
            hidden = events(batch, encoded)
            q = events.queries(hidden.flatten(0, 1).index_select(0, batch.position), batch.head, self._asked(batch))
            columns = self.contrast.columns(batch)
            v = self._vectors(encoded, columns.rows)
            own = None if columns.own is None else self._vectors(encoded, columns.own[0])
        value = self.contrast.loss(q, v, own, columns, batch, self.dtype)
        metrics = {"columns": float(len(v))}
        if batch.dropped is not None:
            metrics["dropped"] = float(batch.dropped.sum()) / max(1, len(q))  # its mean weighs a batch by its targets
        value = value + self._own_items(metrics) + self._auxiliary(hidden, batch, metrics)
        return StepResult(value, len(q), metrics)

    def _products(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _asked(self, batch: EventBatch) -> dict[str, Tensor]:
        """What the queries are told of their targets' outcomes."""
        return hide_wanted(batch.wanted, self.loss.condition_dropout) if self.model.events.config.condition else {}

    def _own_items(self, metrics: dict[str, float]) -> Tensor | float:
        """The item encoder's own loss, weighted; its value goes to `metrics`."""
        if self.self_supervision is None:
            return 0.0
        with self._products():
            value, _ = self.self_supervision.loss(self._direction)
        metrics["self_supervision"] = float(value.detach())
        return self.loss.self_supervision.weight * value

    def _direction(self, *item: Any) -> Tensor:
        """Unit vectors [n, D] of items: their hashes, features and content."""
        events = self.model.events
        return events.direction(events.vectors(events.items(*on_device(list(item), self.device))))

    def _auxiliary(self, hidden: Tensor, batch: EventBatch, metrics: dict[str, float]) -> Tensor | float:
        """The weighted auxiliary losses; their values go to `metrics`."""
        auxiliary = self.model.auxiliary
        if auxiliary is None:
            return 0.0
        terms = auxiliary(hidden, batch, self.dtype)
        metrics |= {f"auxiliary.{name}": float(term.detach()) for name, term in terms.items()}
        return auxiliary.weighted(terms)

    def _vectors(self, encoded: Tensor, rows: Tensor | None) -> Tensor:
        """Vectors [U, D] of encoded items, or of the catalogue where no rows are told; gradients stop at `detach`."""
        events, detach = self.model.events, self.loss.detach
        if rows is None:
            encoded = events.items(*self._catalogue)
        else:
            encoded = encoded.index_select(0, rows)
        v = events.vectors(encoded.detach() if detach == "table" else encoded)
        return v.detach() if detach == "all" else v

    @cached_property
    def _catalogue(self) -> list[Any]:
        """The catalogue's hashes, features and content."""
        hashes = self.contrast.catalogue
        return [hashes, *on_device(list(item_columns(self.prepared.items, hashes.cpu().numpy())), self.device)]

    def recgpt(self) -> RecGPT:
        """The model as callers hold it (in eval mode)."""
        return RecGPT(self.model.events, self.prepared.items)

    def evaluate(self) -> dict[str, float]:
        """NDCG@10 and recall@10 on the validation part; empty where it has no user."""
        if len(split_users(self.prepared, "valid")[0]) == 0:
            return {}
        self.model.eval()
        model = self.recgpt()
        scorer = model_scorer(model, want=asked(model, self.target))
        rankings, _ = rank_users(self.prepared, "valid", {"model": scorer}, (10,))
        return rankings["model"].metrics.result()

    def dump_batch(self, batch: EventBatch, path: Path) -> None:
        """Write a batch's tensors, for the non-finite guard."""
        tensors: dict[str, Tensor] = {}
        for name, value in vars(batch).items():
            if isinstance(value, dict):
                tensors |= {f"{name}.{key}": tensor.contiguous() for key, tensor in value.items()}
            elif value is not None:
                tensors[name] = value.contiguous()
        safetensors.torch.save_file(tensors, path)

    def export(self, path: Path) -> None:
        """Write the model folder's files."""
        self.recgpt().write(path)
