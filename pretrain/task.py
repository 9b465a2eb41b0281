"""Pretraining as a task of the one loop: batch -> next-item loss; validation; the model folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor, nn

from recgpt.api import RecGPT
from recgpt.data.batch import EventBatch, item_columns
from recgpt.data.prepared import Prepared
from recgpt.data.sampler import TrainingBatches
from recgpt.errors import ConfigError
from recgpt.evaluation import model_scorer, rank_users, split_users
from recgpt.losses.config import LossConfig
from recgpt.losses.frequency import FrequencyEstimate
from recgpt.losses.next_item import Mask, multiplicity_offset, next_item_loss
from recgpt.model import EventModel
from recgpt.train import StepResult
from recgpt.train.precision import product_dtype

if TYPE_CHECKING:
    from .config import PretrainConfig


class _Trained(nn.Module):
    """All that training changes: the event model and the estimate of how often batches hold an item."""

    def __init__(self, events: EventModel, loss: LossConfig) -> None:
        super().__init__()
        self.events = events
        self.frequency = FrequencyEstimate(loss.estimate_slots, loss.estimate_rate)


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
        self.data = TrainingBatches(
            prepared,
            config.model.window,
            config.optim.batch_tokens,
            config.run.seed,
            every=config.loss.targets == "all",
        )
        if len(self.data) == 0:
            raise ConfigError(
                "data: no training target; check data.target and data.split against the log (`recgpt data check`)"
            )
        self.model = _Trained(events, config.loss)
        self.dtype = product_dtype(config.optim.precision)
        trained = prepared.items.hash[prepared.items.n_train_events > 0]
        self.catalogue = torch.from_numpy(trained)

    def batches(self, epoch: int, skip: int) -> Iterator[EventBatch]:
        """The batches of an epoch, a pure function of (seed, epoch)."""
        return self.data.epoch(epoch, skip)

    def steps_in_epoch(self, epoch: int) -> int:
        """Batches of an epoch."""
        return len(self.data)

    def step(self, batch: EventBatch) -> StepResult:
        """The next-item loss of one batch."""
        events, loss = self.model.events, self.loss
        with torch.autocast(batch.item.device.type, self.dtype, enabled=self.dtype != torch.float32):
            encoded = events.encode_items(batch)
            hidden = events(batch, encoded).flatten(0, 1)
            q = events.queries(hidden.index_select(0, batch.position))
            v, positive, hashes = self._columns(batch, encoded)
        value = next_item_loss(
            q,
            v,
            positive,
            temperature=loss.temperature,
            offset=self._offset(hashes, positive),
            mask=self._user_mask(batch, positive, len(v)),
            dtype=self.dtype,
        )
        return StepResult(value, len(q), {"columns": float(len(v))})

    def _columns(self, batch: EventBatch, encoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors [U, D] of the loss columns, each row's positive column, and the columns' hashes."""
        events, detach = self.model.events, self.loss.detach
        if self.loss.columns == "catalogue":
            features, content = item_columns(self.prepared.items, self.catalogue.numpy())
            encoded = events.items(self.catalogue, features, content)
            hashes = self.catalogue
            positive = torch.searchsorted(hashes.sort().values, batch.items[batch.target])
            positive = hashes.argsort()[positive]
        else:
            wanted, positive = batch.target.unique(return_inverse=True)
            encoded, hashes = encoded.index_select(0, wanted), batch.items[wanted]
        v = events.vectors(encoded.detach() if detach == "table" else encoded)
        return (v.detach() if detach == "all" else v), positive, hashes

    def _offset(self, hashes: Tensor, positive: Tensor) -> Tensor | None:
        """What is added to negatives' logits, [U]."""
        if self.loss.columns == "catalogue":
            return None
        if self.loss.multiplicity:
            return multiplicity_offset(positive, len(hashes))
        if not self.loss.correction:
            return None
        self.model.frequency.update(hashes)
        return -self.model.frequency.log_probability(hashes)

    def _user_mask(self, batch: EventBatch, positive: Tensor, n_columns: int) -> Mask:
        if self.loss.mask_user == "none":
            return None
        sequence = batch.position // (batch.item.shape[1] + 1)
        mask = torch.zeros(len(batch.length), n_columns, dtype=torch.bool)
        mask[sequence, positive] = True
        return mask, sequence

    def recgpt(self) -> RecGPT:
        """The model as callers hold it (in eval mode)."""
        return RecGPT(self.model.events, self.prepared.items)

    def evaluate(self) -> dict[str, float]:
        """NDCG@10 and recall@10 on the validation part; empty where it has no user."""
        if len(split_users(self.prepared, "valid")[0]) == 0:
            return {}
        self.model.eval()
        rankings, _ = rank_users(self.prepared, "valid", {"model": model_scorer(self.recgpt())}, (10,))
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
