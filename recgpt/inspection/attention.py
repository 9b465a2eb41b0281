"""Where a model looks: its attention by how many events ago and by how long ago, for each layer and head.

T events, H heads, K = T + 1 positions, the first token's among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from recgpt.data.batch import collate
from recgpt.data.events import NO_TIME, Events
from recgpt.data.items import ItemTable
from recgpt.model import EventModel

UPPER = (60, 600, 3600, 21_600, 86_400, 604_800, 2_419_200, 31_536_000)
"""Bins of time gaps end before so many seconds: a minute, ten, an hour, six, a day, a week, four weeks, a year."""


def _most_events(model: EventModel) -> int:
    """Events of one pass at most, a [MASK] behind them among them."""
    return model.config.window.length + (0 if model.config.causal else 1)


def distance_bins(length: int) -> list[int]:
    """The first distance of each bin, for windows of `length` events: 0 (the event itself), 1, 2, 3, 5, 9, 17, ..."""
    return [0, 1, *(2**k + 1 for k in range(max(0, math.ceil(math.log2(max(1, length - 1))))))]


def _distance_bin(distance: Tensor) -> Tensor:
    """int64, the bin of each distance: 0 -> 0, 1 -> 1, 2 -> 2, 3 and 4 -> 3, 5 to 8 -> 4, ..."""
    return torch.where(distance > 0, 1 + torch.ceil(torch.log2(distance.clamp(min=1).double())).long(), 0)


def _time_bin(time: Tensor) -> Tensor:
    """int64 [T, T], the bin of the time between two events: that of `UPPER`, one for longer, one for unknown."""
    known = (time[:, None] != NO_TIME) & (time != NO_TIME)
    safe = torch.where(time == NO_TIME, 0, time)
    seconds = (safe[:, None] - safe).abs() // 1_000_000
    place = torch.bucketize(seconds, torch.tensor(UPPER), right=True)
    return torch.where(known, place, len(UPPER) + 1)


@dataclass
class Profile:
    """Sums over users of what one layer's heads, or even attention, do.

    Attributes:
        parts: name -> [H, bins] or [H].
    """

    parts: dict[str, Tensor] = field(default_factory=dict)

    def add(self, weights: Tensor, bins: dict[str, tuple[Tensor, int]], distance: Tensor) -> None:
        """Take one user in: the mean over the user's events.

        Args:
            weights: [H, T, K], what each event gives to each position; sums to 1 over K.
            bins: name -> (int64 [T, K] the bin of each pair, number of bins).
            distance: int64 [T, K], how many events lie between; 0 for the first token.
        """
        for name, (place, n) in bins.items():
            shares = weights.new_zeros(*weights.shape[:2], n)
            shares.scatter_add_(2, place.expand(len(weights), -1, -1), weights)
            self._sum(name, shares.mean(1))
        events = weights[:, :, 1:].sum(2).clamp(min=1e-12)
        self._sum("mean_distance", ((weights * distance).sum(2) / events).mean(1))
        self._sum("effective_positions", torch.special.entr(weights).sum(2).exp().mean(1))

    def _sum(self, name: str, value: Tensor) -> None:
        self.parts[name] = self.parts[name] + value if name in self.parts else value

    def means(self, users: int) -> list[dict[str, Any]]:
        """What each head does, mean over the users."""
        return [
            {name: (value[head] / users).tolist() for name, value in self.parts.items()}
            for head in range(len(self.parts["mean_distance"]))
        ]


@torch.no_grad()
def look_at_attention(model: EventModel, items: ItemTable, windows: Iterable[Events]) -> dict[str, Any] | None:
    """Attention by distance and by time gap: the mean over a user's events, then over the users.

    Users pass one at a time, so that nothing is padding. The weights that an event gives itself, the first token and
    other events are told apart. Weights that do not sum to 1 (HSTU) are divided by the sum of their sizes. In a model
    that looks ahead, distance and gap count both ways, and the [MASK] behind the newest event counts as an event of
    unknown time.

    Args:
        model: in evaluation mode.
        items: where features and content vectors come from.
        windows: of the users to look at, each of an event or more.

    Returns:
        `users`, `events`, `normalised` (whether the weights sum to 1 by themselves), `distance_from` (the first
        distance of each bin), `gap_below` (seconds; then come longer and unknown gaps), `layers`: for each a list of
        heads with `first_token`, `distance` and `gap` (shares of the attention, the event itself being the first bin
        of both), `mean_distance` (over the events alone) and `effective_positions` (the entropy's exponential); `even`
        is such a head that looks at all it may see alike. None where no user has an event.
    """
    starts = distance_bins(_most_events(model))
    layers = [Profile() for _ in range(model.config.layers)]
    even = Profile()
    users = events = 0
    normalised = True
    for window in windows:
        batch = collate([window], items)
        found = model.attention_weights(batch)
        bins, distance = _pairs(_times(batch.time[0], found[0].shape[-1]), len(starts))
        visible = torch.ones(distance.shape)
        visible = visible.tril(1) if model.config.causal else visible
        even.add((visible / visible.sum(-1, keepdim=True))[None], bins, distance)
        for layer, weights in zip(layers, found, strict=True):
            sizes = weights[0, :, 1:].double().abs()
            total = sizes.sum(-1, keepdim=True)
            normalised &= bool((total - 1).abs().max() < 1e-3)
            layer.add((sizes / total.clamp(min=1e-12)).float(), bins, distance)
        users, events = users + 1, events + len(window)
    if not users:
        return None
    return {
        "users": users,
        "events": events,
        "normalised": normalised,
        "distance_from": starts,
        "gap_below": list(UPPER),
        "even": _named(even.means(users)[0]),
        "layers": [[_named(head) for head in layer.means(users)] for layer in layers],
    }


def _times(time: Tensor, positions: int) -> Tensor:
    """The times of all positions but the first token: the events' own and, of a [MASK] after them, an unknown one."""
    return torch.cat((time, time.new_full((positions - 1 - len(time),), NO_TIME)))


def _pairs(time: Tensor, n_distances: int) -> tuple[dict[str, tuple[Tensor, int]], Tensor]:
    """Bins [T, T + 1] of every (event, position), the first token in a bin of its own at the end; and distances."""
    length = len(time)
    place = torch.arange(length)
    apart = (place[:, None] - place).abs()
    gap = torch.where(apart == 0, 0, 1 + _time_bin(time))
    n_gaps = len(UPPER) + 3

    def with_first(bins: Tensor, own: int) -> Tensor:
        return torch.cat((torch.full((length, 1), own), bins), 1)

    return {
        "distance": (with_first(_distance_bin(apart), n_distances), n_distances + 1),
        "gap": (with_first(gap, n_gaps), n_gaps + 1),
    }, with_first(apart, 0)


def _named(head: dict[str, Any]) -> dict[str, Any]:
    *distance, first = head["distance"]
    return head | {"first_token": first, "distance": distance, "gap": head["gap"][:-1]}


def look_at_biases(model: EventModel) -> dict[str, Any]:
    """The learned biases of the scores, mean over bins; what matters is how they differ.

    Returns:
        `distance` (bins as `distance_from`) and `gap` (bins as `gap_below`, then longer): for each layer a list of
        heads, one where they share a bias. A kind that the model lacks is not there.
    """
    found: dict[str, Any] = {}
    for block in model.transformer.blocks:
        bias: Any = block.bias
        if bias is not None and bias.distance is not None:
            back = bias.distance.detach()[:, : (bias.distance.shape[1] + 1) // 2].flip(1)  # by distance, from 0
            back = back[:, : _most_events(model)]
            found.setdefault("distance", []).append(_bin_means(back, _distance_bin(torch.arange(back.shape[1]))))
        if bias is not None and bias.time is not None:
            least = torch.exp(0.301 * torch.arange(bias.time.shape[1]))  # seconds of each bucket
            place = torch.bucketize(least, torch.tensor(UPPER, dtype=least.dtype), right=True)
            found.setdefault("gap", []).append(_bin_means(bias.time.detach(), place))
    return found


def _bin_means(values: Tensor, place: Tensor) -> list[list[float]]:
    """Means of [H, N] over the entries of each bin, [H][bins]."""
    return [[float(row[place == bin].mean()) for bin in range(int(place.max()) + 1)] for row in values]
