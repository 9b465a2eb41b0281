"""The contrastive loss of a batch as its config says: the columns, how often each counts, what is no negative.

N targets (rows), U columns, K negatives of a row's own, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recgpt.data.batch import EventBatch, tensor
from recgpt.data.items import ItemTable
from recgpt.data.negatives import DrawnNegatives, target_counts
from recgpt.data.prepared import Prepared
from recgpt.losses.config import LossConfig
from recgpt.losses.corrections import CORRECTIONS, Draws, log_inclusion, log_mixture
from recgpt.losses.frequency import CountMinEstimate, Estimate, ExactEstimate, FrequencyEstimate
from recgpt.losses.next_item import LogWeights, Mask, multiplicity_offset, next_item_loss
from recgpt.losses.objectives import MASKED, Objective

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Columns:
    """What the rows of a batch are compared with.

    Attributes:
        hashes: int64 [U], distinct items.
        positive: int64 [N], each row's column; -1 where drawn columns have none of its item.
        rows: int64 [U], the columns' rows of the batch's items; None = the catalogue.
        own: (int64 [P], int64 [N]): the rows of the distinct targets and each row's place there, where positives have
            no column.
        drawn: int64 [N, K], each row's own negatives as columns.
        count: float32 [U], how many draws each column is, the batch's targets and the drawn negatives alike.
    """

    hashes: Tensor
    positive: Tensor
    rows: Tensor | None = None
    own: tuple[Tensor, Tensor] | None = None
    drawn: Tensor | None = None
    count: Tensor | None = None


class Contrast:
    """The contrastive loss between the queries of a batch and its columns.

    Args:
        config: the loss.
        items: the run's items; those with a training event are the catalogue.
        estimate: how often batches hold an item; updated by every loss that reads it.
        negatives: the drawer of the batches' negatives, for its probabilities.
        device: of the batches.
    """

    def __init__(
        self,
        config: LossConfig,
        items: ItemTable,
        estimate: Estimate,
        negatives: DrawnNegatives | None,
        device: torch.device = _CPU,
    ) -> None:
        self.config, self.estimate = config, estimate
        self.catalogue = torch.from_numpy(items.hash[items.n_train_events > 0]).to(device)
        self._ordered, self._order = self.catalogue.sort()
        self.objective = Objective(
            "khrylchenko" if config.correction == "khrylchenko" else config.kind,
            margin=config.margin,
            calibration=config.calibration,
            catalogue=len(self.catalogue),
            hard=config.hard,
        )
        if negatives is not None:
            self.drawn_hashes = torch.from_numpy(negatives.hashes).to(device)
            self.drawn_log_q = torch.from_numpy(negatives.probability).log().float().to(device)

    def columns(self, batch: EventBatch) -> Columns:
        """The columns of a batch."""
        kind, target = self.config.columns, batch.target
        if kind == "catalogue":
            return Columns(self.catalogue, self._order[torch.searchsorted(self._ordered, batch.items[target])])
        if kind == "batch":
            rows, positive = target.unique(return_inverse=True)
            return Columns(batch.items[rows], positive, rows)
        assert batch.negative is not None
        if self.config.per_row:  # few items of a batch are neither a target nor drawn
            rows, drawn = torch.arange(len(batch.items), device=target.device), batch.negative
            return Columns(batch.items, target, rows, drawn=drawn.view(len(target), self.config.n_negatives))
        if kind == "mixed":
            rows, place = torch.cat((target, batch.negative)).unique(return_inverse=True)
            count = place.bincount(minlength=len(rows)).float()
            return Columns(batch.items[rows], place[: len(target)], rows, count=count)
        rows, count = batch.negative.unique(return_counts=True)
        near = torch.searchsorted(rows, target).clamp(max=len(rows) - 1)
        hit = torch.where(rows[near] == target, near, -1)
        return Columns(batch.items[rows], hit, rows, target.unique(return_inverse=True), count=count.float())

    def loss(
        self,
        q: Tensor,
        v: Tensor,
        own: Tensor | None,
        columns: Columns,
        batch: EventBatch,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The mean loss over a batch's targets.

        Args:
            q: [N, D] queries.
            v: [U, D] vectors of the columns.
            own: [P, D] vectors of `columns.own`.
            columns: of the same batch.
            batch: its targets.
            dtype: of the products.
        """
        mask = self._user_mask(columns, batch)
        return next_item_loss(
            q,
            v,
            columns.positive,
            temperature=self.config.temperature,
            offset=self._weights(columns, batch, mask) if len(q) else None,
            mask=mask,
            own=None if columns.own is None or own is None else (own, columns.own[1]),
            drawn=columns.drawn,
            objective=self.objective,
            dtype=dtype,
        )

    def _user_mask(self, columns: Columns, batch: EventBatch) -> Mask:
        """Columns that are other targets of a row's sequence (negatives of a row's own avoid them when drawn)."""
        if self.config.mask_user != "items" or columns.drawn is not None:
            return None
        sequence = _sequence(batch)
        mask = torch.zeros(len(batch.length), len(columns.hashes), dtype=torch.bool, device=sequence.device)
        there = columns.positive >= 0
        mask[sequence[there], columns.positive[there]] = True
        return mask, sequence

    def _weights(self, columns: Columns, batch: EventBatch, mask: Mask) -> Tensor | LogWeights | None:
        """What is added to logits."""
        config = self.config
        if config.columns == "catalogue":
            return None
        if config.multiplicity:
            return _multiplicity(config, columns, batch)
        if config.correction == "none" and columns.count is None:
            return None
        if config.correction == "none":
            log_q = torch.zeros(len(columns.hashes), device=columns.hashes.device)
        elif config.columns in ("batch", "mixed"):
            log_q = self._log_q_of_targets(columns, batch)
        else:
            log_q = self._log_q_of_draws(columns.hashes)
        return CORRECTIONS[config.correction](self._draws(columns, batch, log_q, mask))

    def _draws(self, columns: Columns, batch: EventBatch, log_q: Tensor, mask: Mask) -> Draws:
        positive, count = columns.positive, columns.count
        if columns.drawn is not None:
            hits = (columns.drawn == positive.unsqueeze(1)).sum(1).float()
            mask = _windows(batch) if self.config.mask_user == "items" else None
            return Draws(None, log_q, log_q[positive], self.config.n_negatives, hits, False, positive, mask)
        if count is None:
            count = positive.bincount(minlength=len(columns.hashes)).float()
        hits = torch.where(positive >= 0, count[positive], 0.0)
        log_q_positive = log_q[positive]
        if columns.own is not None and self.config.correction != "none":
            log_q_positive = self._log_q_of_draws(batch.items[batch.target])
        own = columns.own is None
        return Draws(count, log_q, log_q_positive, float(count.sum()), hits, own, positive, mask)

    def _log_q_of_draws(self, hashes: Tensor) -> Tensor:
        """Log of the probability that a drawn negative is the item, or that the batch's draws hold it."""
        place = torch.searchsorted(self.drawn_hashes, hashes).clamp(max=len(self.drawn_hashes) - 1)
        log_q = self.drawn_log_q[place]
        return log_inclusion(log_q, self.config.n_negatives) if self.config.correction == "inclusion" else log_q

    def _log_q_of_targets(self, columns: Columns, batch: EventBatch) -> Tensor:
        """The same where the batch's targets are columns, alone or with drawn negatives."""
        estimate, n, form = self.estimate, len(batch.target), self.config.correction
        seen, counts = batch.target.unique(return_counts=True)
        seen = batch.items[seen]
        if isinstance(estimate, FrequencyEstimate):
            estimate.update(seen)
            log_q = estimate.log_probability(columns.hashes)
        else:
            estimate.update(seen, counts)
            log_q = estimate.log_draw(columns.hashes)
            if form == "inclusion":
                log_q = log_inclusion(log_q, n)
        if self.config.columns != "mixed":
            return log_q
        uniform = 1 / len(self.catalogue)
        if form == "inclusion":
            absent = (1 - log_q.exp()) * (1 - uniform) ** self.config.n_negatives
            return (1 - absent).clamp(min=1e-12).log()
        return log_mixture(log_q, n, uniform, self.config.n_negatives)


def _sequence(batch: EventBatch) -> Tensor:
    return batch.position // (batch.item.shape[1] + 1)


def _windows(batch: EventBatch) -> tuple[Tensor, Tensor]:
    """What each sequence holds, its inputs and its targets, bool [B, U], and each row's sequence."""
    sequence, (B, T) = _sequence(batch), batch.item.shape
    held = torch.zeros(B, len(batch.items), dtype=torch.bool, device=sequence.device)
    row, place = (torch.arange(T, device=sequence.device) < batch.length[:, None]).nonzero(as_tuple=True)
    held[row, batch.item[row, place]] = True
    held[sequence, batch.target] = True
    return held, sequence


def _multiplicity(config: LossConfig, columns: Columns, batch: EventBatch) -> LogWeights:
    """The plain N x N form: a column counts once for every row that it is the target of.

    With hits kept, the other rows' columns of a row's own item are mass that its positive has in the denominator.
    """
    positive, n = columns.positive, len(columns.hashes)
    if config.mask_user != "sequence":
        column = multiplicity_offset(positive, n)
        return LogWeights(column, bottom=None if config.mask_id else column[positive])
    group = _sequence(batch)
    count = positive.bincount(minlength=n)
    others = count - (group * n + positive).bincount(minlength=len(batch.length) * n).view(-1, n)
    column = torch.where(others > 0, others.clamp(min=1).log(), MASKED)
    kept = None if config.mask_id else (1 + others[group, positive]).log()
    return LogWeights(column, group, bottom=kept)


def make_estimate(config: LossConfig, prepared: Prepared) -> Estimate:
    """The estimate that a config asks for."""
    if config.estimate == "count_min":
        return CountMinEstimate(config.sketch_error, config.sketch_failure)
    if config.estimate == "exact":
        counts = target_counts(prepared, config.targets == "all")
        return ExactEstimate(tensor(prepared.items.hash), tensor(counts))
    return FrequencyEstimate(config.estimate_slots, config.estimate_rate)


def make_negatives(config: LossConfig, items: ItemTable) -> DrawnNegatives | None:
    """The drawer of a config's negatives; None where batches need none."""
    if not config.draws:
        return None
    trained = items.n_train_events > 0
    counts = items.n_train_events[trained] if config.columns == "popularity" else None
    return DrawnNegatives(
        items.hash[trained],
        config.n_negatives,
        counts=counts,
        power=config.power,
        per_row=config.per_row,
        avoid=config.per_row and config.mask_user == "items",
    )
