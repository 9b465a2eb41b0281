"""Finetuning as a task of the one loop: impressions -> summed log losses; validation; the model folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from recgpt.ahead import read_ahead
from recgpt.api import RecGPT
from recgpt.data.batch import on_device
from recgpt.data.impression_batches import PARTS, ImpressionBatch, ImpressionBatches, Track, read_impressions
from recgpt.data.items import ItemTable
from recgpt.data.prepared import Prepared
from recgpt.errors import ConfigError
from recgpt.model import EventModel
from recgpt.outcome_metrics import auc, logloss
from recgpt.ranker import Ranker, RankingModel
from recgpt.ranking.network import RankingNetwork
from recgpt.ranking_run import predict
from recgpt.state import known_only
from recgpt.train import StepResult
from recgpt.train.device import product_dtype, training_device

if TYPE_CHECKING:
    from .config import FinetuneConfig

CALIBRATE_VALID, CALIBRATE_EXPORT = 20_000, 200_000
"""Training impressions that the intercepts are read from, at a validation and at the end."""
FIT_PARTS = {"train": ("train",), "train_valid": ("train", "valid")}


def log_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Sum over K outcomes of the weighted mean log loss over the impressions whose outcome is known.

    An outcome that no impression of the batch knows adds 0.

    Args:
        logits: float32 [N, K].
        labels: float32 [N, K], NaN = unknown.
        weights: float32 [K].
    """
    known = ~labels.isnan()
    loss = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), reduction="none")
    mean = torch.where(known, loss, 0.0).sum(0) / known.sum(0).clamp(min=1)
    return (mean * weights).sum()


def intercepts(logits: Tensor, labels: Tensor) -> Tensor:
    """What to add to the logits of each outcome, so that the mean probability is the outcome's rate, float64 [K].

    Dropout widens and shifts the logits in training: without it, the same weights are off by a tenth in the logit.
    An outcome of which the labels know one class only stays as it is.

    Args:
        logits: [N, K], without dropout.
        labels: float32 [N, K], NaN = unknown.
    """
    shift = torch.zeros(logits.shape[1], dtype=torch.float64)
    for column in range(logits.shape[1]):
        known = ~labels[:, column].isnan()
        rate, values = labels[known, column].double().mean(), logits[known, column].double()
        if 0 < rate < 1:
            for _ in range(60):  # Newton's steps, held to 1: far from the root the full ones diverge
                p = torch.sigmoid(values + shift[column])
                step = (rate - p.mean()) / (p * (1 - p)).mean().clamp(min=1e-12)
                shift[column] += step.clamp(-1, 1)
    return shift


def fitted_items(prepared: Prepared, start: RecGPT | None, fit_on: str, frozen: bool) -> ItemTable:
    """The candidate list, its training counts telling which ids the model knows.

    A frozen event model knows those of the run that it comes from; a tuned one also those that it learns from.
    """
    items = prepared.items
    counts = np.zeros(len(items), np.int64)
    if start is not None and len(start.items):
        rows = start.items.rows(items.hash)
        counts = np.where(rows >= 0, start.items.n_train_events[rows], 0)
    if not frozen:
        counts = np.maximum(counts, items.n_train_events)  # the two may be of one log
        if fit_on == "train_valid":
            place = read_impressions(prepared, [PARTS["valid"]]).place
            rows = prepared.item_rows(0, prepared.n_events)[place]
            counts = counts + np.bincount(rows, minlength=len(items))
    return replace(items, n_train_events=counts)


class FinetuneTask:
    """Ranking heads over the states of an event model.

    Args:
        config: the resolved config.
        prepared: the log.
        events: the event model.
        items: its items, as `fitted_items` gives them.
        network: the ranking network.
    """

    selection = "-logloss"

    def __init__(
        self, config: FinetuneConfig, prepared: Prepared, events: EventModel, items: ItemTable, network: RankingNetwork
    ) -> None:
        self.config, self.items = config, items
        tasks, window, tokens = config.tasks, config.model.window, config.optim.batch_tokens
        frozen = tasks.backbone_lr == 0
        self.model = RankingModel(events, network, frozen)
        self.lr_factors: Mapping[str, float] = {} if frozen else {"events.": float(tasks.backbone_lr or 0)}
        self.data = ImpressionBatches(
            prepared, window, tokens, FIT_PARTS[tasks.fit_on], seed=config.run.seed, stale=tasks.stale
        )
        shown = config.data.impressions
        track: Track = "online" if shown is None else shown.history
        validated = () if tasks.fit_on == "train_valid" else ("valid",)
        self.valid = ImpressionBatches(prepared, window, tokens, validated, track)
        if len(self.data) == 0:
            raise ConfigError(
                "data.impressions: none is in the training part; check data.impressions.where and data.split "
                "(`recgpt data check`)"
            )
        if config.run.select == "best" and len(self.valid) == 0:
            raise ConfigError(
                "run.select: best, but the validation part holds no impression to choose by; check data.split "
                "(`recgpt data check`), or set run.select=last"
            )
        self.device = training_device(config.run.device)
        self.model.to(self.device)
        self.dtype = product_dtype(config.optim.precision, self.device)
        self.weights = torch.tensor([tasks.weights.get(name, 1.0) for name in tasks.outcomes], device=self.device)

    def batches(self, epoch: int, skip: int) -> Iterator[list[ImpressionBatch]]:
        """The batches of an epoch in parts of like width, a pure function of (seed, epoch)."""
        batches = self.data.epoch(epoch, skip)
        return batches if self.device.type == "cpu" else read_ahead(batches)

    def steps_in_epoch(self, epoch: int) -> int:
        """Batches of an epoch."""
        return len(self.data.order(epoch))

    def labels(self, batch: ImpressionBatch) -> Tensor:
        """Outcomes of the batch's impressions, float32 [N, K], NaN = unknown."""
        return torch.stack([batch.labels[name] for name in self.config.tasks.outcomes], 1)

    def step(self, batch: list[ImpressionBatch]) -> StepResult:
        """The summed log losses of one batch."""
        parts = [self._known(part) for part in batch]
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = torch.cat([self.model(part) for part in parts])
        labels = torch.cat([self.labels(part) for part in parts])
        return StepResult(log_loss(logits, labels, self.weights), len(labels))

    def _known(self, batch: ImpressionBatch) -> ImpressionBatch:
        """The batch on the model's device, without the ids that it is not to know."""
        return on_device(replace(batch, events=known_only(batch.events, self.items.trained)), self.device)

    def evaluate(self) -> dict[str, float]:
        """Summed log loss, and log loss and auc of each outcome, on the validation impressions.

        What is undefined is left out: auc where only one class is there, all of an outcome that is never known.
        """
        if len(self.valid) == 0:
            return {}
        p, labels = predict(self.model, self.items, self.valid)
        factor = self._intercepts(CALIBRATE_VALID).exp().numpy()
        p = p * factor / (1 - p + p * factor)
        metrics, total = {}, 0.0
        for column, name in enumerate(self.config.tasks.outcomes):
            y = labels[name]
            if np.isnan(y).all():
                continue
            metrics[f"logloss.{name}"] = logloss(y, p[:, column])
            total += float(self.weights[column]) * metrics[f"logloss.{name}"]
            if not np.isnan(area := auc(y, p[:, column])):
                metrics[f"auc.{name}"] = area
        return {"logloss": total} | metrics if metrics else {}

    @torch.no_grad()
    def _intercepts(self, impressions: int) -> Tensor:
        """`intercepts` on a sample of what is learned from, float64 [K]; the model is in evaluation mode."""
        logits, labels = [], []
        for batch in self.data.sample(impressions):
            logits.append(self.model(self._known(batch)).cpu())
            labels.append(self.labels(batch))
        return intercepts(torch.cat(logits), torch.cat(labels))

    def dump_batch(self, batch: list[ImpressionBatch], path: Path) -> None:
        """Write a batch's tensors, for the non-finite guard."""
        tensors: dict[str, Tensor] = {}
        for number, part in enumerate(batch):
            tensors |= dict(_tensors(vars(part), f"{number}."))
            tensors |= dict(_tensors(vars(part.events), f"{number}.events."))
        safetensors.torch.save_file(tensors, path)

    def export(self, path: Path) -> None:
        """Write the model folder's files, the intercepts fitted without dropout."""
        with torch.no_grad():
            self.model.network.out.bias.add_(self._intercepts(CALIBRATE_EXPORT).float().to(self.device))
        config, recgpt = self.config, RecGPT(self.model.events, self.items)
        Ranker(recgpt, self.model.network, config.heads, config.tasks.score).save_pretrained(path)


def _tensors(values: Mapping[str, object], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{name}", value.contiguous()
