"""A finished fine-tuned run, and its probabilities on the impressions of its log."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recgpt.data.batch import on_device
from recgpt.data.impression_batches import ImpressionBatches, Track
from recgpt.data.items import ItemTable
from recgpt.data.prepared import Prepared
from recgpt.progress import progress_bar
from recgpt.ranker import Ranker, RankingModel
from recgpt.runs import TrainedRun
from recgpt.state import known_only

TOKENS = 12_800
"""Padded events of a batch."""


class ImpressionScores(NamedTuple):
    """N impressions in the order of the log.

    Attributes:
        user: int64 [N] user rows.
        item: int64 [N] rows of the prepared log's items.
        history: int64 [N] events that each reads.
        y: outcome -> float32 [N], NaN = unknown.
        p: outcome -> float32 [N], predicted.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    history: NDArray[np.int64]
    y: dict[str, NDArray[np.float32]]
    p: dict[str, NDArray[np.float32]]


@torch.no_grad()
def predict(
    model: RankingModel,
    items: ItemTable,
    data: ImpressionBatches,
    told: Callable[[int], None] = lambda done: None,
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float32]]]:
    """Probabilities [N, K] of all impressions and their labels by outcome [N], in the sampler's order.

    Ids that have no training event in `items` are hidden; `told` is called with the number of impressions done.
    """
    done = 0
    p = np.zeros((len(data), len(model.network.outcomes)))
    labels = {name: np.full(len(data), np.nan, np.float32) for name in model.network.outcomes}
    for batch in itertools.chain.from_iterable(data.epoch(None)):
        known = replace(batch, events=known_only(batch.events, items.trained))
        rows = batch.row.numpy()
        p[rows] = torch.sigmoid(model(on_device(known, model.events.device)).double()).cpu().numpy()
        for name, column in labels.items():
            column[rows] = batch.labels[name].numpy()
        done += len(rows)
        told(done)
    return p, labels


@dataclass(frozen=True)
class RankingRun:
    """A fine-tuned run with its log.

    Attributes:
        path: the run's folder.
        ranker: what it trained.
        prepared: the log it was trained on.
        history: the track that its config asks for.
        fit_on: the parts that it learned from.
    """

    path: Path
    ranker: Ranker
    prepared: Prepared
    history: Track
    fit_on: str

    @property
    def fingerprint(self) -> str:
        """Of the event model and its heads."""
        return self.ranker.fingerprint

    @property
    def outcomes(self) -> tuple[str, ...]:
        """The outcomes that it predicts."""
        return self.ranker.outcomes

    @classmethod
    def open(cls, path: str | Path) -> RankingRun:
        """Open a run folder and its log.

        Raises:
            ConfigError: no finished fine-tuned run, or its prepared log is gone or another one.
        """
        ranker = Ranker.from_pretrained(path)
        opened = TrainedRun.open(path)
        settings = opened.settings
        return cls(opened.path, ranker, opened.prepared, settings["data.impressions.history"], settings["tasks.fit_on"])

    def scores(self, part: str, track: Track) -> ImpressionScores:
        """Labels and probabilities of a part's impressions: "train", "valid" or "test"."""
        data = self._data(part, track)
        model = RankingModel(self.ranker.recgpt.model, self.ranker.network).eval()
        with progress_bar() as told:
            what = f"predicting impressions ({track} histories)"
            p, labels = predict(model, self.ranker.recgpt.items, data, lambda done: told(what, done, len(data)))
        columns = {name: p[:, column].astype(np.float32) for column, name in enumerate(self.outcomes)}
        return ImpressionScores(data.user, self._item_rows(data), data.history, labels, columns)

    def labels(self, part: str) -> ImpressionScores:
        """Labels of a part's impressions, without probabilities."""
        data = self._data(part, "online")
        place = data.impressions.place
        labels = {name: np.zeros(len(data), np.float32) for name in self.outcomes}
        step = 1 << 20
        for first in range(0, self.prepared.n_events, step):
            here = np.flatnonzero((place >= first) & (place < first + step))
            if len(here):
                outcomes = self.prepared.events(first, min(first + step, self.prepared.n_events)).outcomes
                for name, column in labels.items():
                    column[here] = outcomes[name][place[here] - first]
        return ImpressionScores(data.user, self._item_rows(data), data.history, labels, {})

    def _data(self, part: str, track: Track) -> ImpressionBatches:
        return ImpressionBatches(self.prepared, self.ranker.recgpt.config.window, TOKENS, (part,), track)

    def _item_rows(self, data: ImpressionBatches) -> NDArray[np.int64]:
        return self.prepared.item_rows(0, self.prepared.n_events)[data.impressions.place]
