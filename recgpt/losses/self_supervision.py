"""Self-supervision of the item encoder: two views of one item should meet, views of different items should not.

The views show complementary halves of what is known of the item (Yao et al. 2021, Self-supervised learning for
large-scale item recommendations).

I items of the run, n items of a step, k features: the id, the content vector, every static feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from recgpt.config import Section
from recgpt.data.batch import item_columns
from recgpt.data.items import ItemTable
from recgpt.errors import ConfigError
from recgpt.nn.content import says_something
from recgpt.nn.features import is_known

ID, CONTENT = "id", "content"
"""Names of the features that are no columns (`feature:` stands before those that are)."""
CLASSES = 32
"""The most frequent values of a categorical feature that mutual information tells apart; the others are one class."""
QUANTILES = 8
"""Equal-count bins of a numeric feature."""
COMPONENTS = 4
"""Principal components of the content vectors whose signs make its classes."""
MEASURED = 100_000
"""Items that mutual information is measured on, at most."""

VectorsOf = Callable[[Tensor, dict[str, Tensor], "Tensor | None"], Tensor]
"""Item hashes int64 [n] (0 = hidden), their features and content vectors -> unit vectors [n, D]."""


class SelfSupervisionConfig(Section):
    """The item encoder's own loss; off at weight 0."""

    weight: float = Field(default=0.0, ge=0)
    """Of this loss beside the next-item loss."""
    masking: Literal["random", "correlated"] = "random"
    """Which half of the features one view hides (the other hides the rest): a random one, or a random feature with
    those that tell most about it (mutual information over the items), so that no view can guess the other."""
    temperature: float = Field(default=0.1, gt=0)
    """Cosines are divided by this."""
    n_items: int = Field(default=1024, ge=2, le=16_384)
    """Items of a step, drawn uniformly (not by their clicks) from those with a training event."""


class SelfSupervision:
    """The contrastive loss between two views of uniformly drawn items.

    One split of the features is drawn for a step, not for each item: with splits of their own, the hidden halves would
    tell which views belong together. An item counts when each of its views knows something.

    Args:
        config: its weight is left to the caller.
        items: the run's items; those without a training event are not drawn.

    Raises:
        ConfigError: nothing is known of the items besides the id, so there are no two halves.
    """

    def __init__(self, config: SelfSupervisionConfig, items: ItemTable) -> None:
        self.config, self.items = config, items
        content = [CONTENT] if items.embedding is not None else []
        self.names = [ID, *content, *(f"feature:{name}" for name in items.features)]
        if len(self.names) < 2:
            raise ConfigError(
                "loss.self_supervision: the items have an id and nothing else; declare data.items.features or "
                "data.items.embedding, or set its weight to 0"
            )
        self.information = None
        if config.masking == "correlated":
            self.information = torch.from_numpy(feature_information(items, self.names))

    def loss(self, vectors: VectorsOf) -> tuple[Tensor, int]:
        """The loss of one step, and how many items it is the mean over (below two: 0, with zero gradients).

        Draws from torch's global generator: items, then the split.
        """
        hashes = self.draw()
        features, content = item_columns(self.items, hashes.numpy())
        hidden = self.split()
        shown = [name for name in self.names if name not in hidden]
        both = knows_any(hashes, features, content, hidden) & knows_any(hashes, features, content, shown)
        rows = both.nonzero()[:, 0]
        hashes, content = hashes[rows], None if content is None else content[rows]
        features = {name: column[rows] for name, column in features.items()}
        one = vectors(*view(hashes, features, content, shown))
        other = vectors(*view(hashes, features, content, hidden))
        if len(rows) < 2:
            return (one.sum() + other.sum()) * 0.0, len(rows)
        return info_nce(one, other, self.config.temperature), len(rows)

    def draw(self) -> Tensor:
        """Hashes of distinct items, each as likely as any other: int64 [n], n at most `n_items`."""
        trained = torch.from_numpy(self.items.trained)
        if len(trained) <= self.config.n_items:
            return trained
        return trained[torch.randint(len(trained), (self.config.n_items,)).unique()]

    def split(self) -> list[str]:
        """The ceil(k / 2) features that the first view hides and the second shows.

        `correlated`: a uniformly drawn seed feature and the ceil(k / 2) - 1 that share most information with it (the
        paper hides one more, which would leave nothing of two features).
        """
        order = torch.randperm(len(self.names))
        if self.information is not None:
            shared = self.information[order[0], order]
            shared[0] = torch.inf  # the seed itself
            order = order[shared.argsort(descending=True, stable=True)]  # ties: as drawn
        half = (len(self.names) + 1) // 2
        return [self.names[int(i)] for i in order[:half]]


def view(
    hashes: Tensor, features: Mapping[str, Tensor], content: Tensor | None, shown: list[str]
) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """Items of which only `shown` is known: everything else has the value that means unknown."""
    masked = {
        name: column if f"feature:{name}" in shown else torch.full_like(column, _unknown(column))
        for name, column in features.items()
    }
    if content is not None and CONTENT not in shown:
        content = torch.full_like(content, torch.nan)
    return (hashes if ID in shown else torch.zeros_like(hashes)), masked, content


def knows_any(hashes: Tensor, features: Mapping[str, Tensor], content: Tensor | None, names: list[str]) -> Tensor:
    """Bool [n], whether anything among the features `names` is known of an item."""
    known = hashes != 0 if ID in names else torch.zeros_like(hashes, dtype=torch.bool)
    if content is not None and CONTENT in names:
        known = known | says_something(content)
    for name, column in features.items():
        if f"feature:{name}" in names:
            known = known | is_known(column)
    return known


def _unknown(column: Tensor) -> float:
    return torch.nan if column.is_floating_point() else 0


def info_nce(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Mean of -log( e^{z_i.z'_i / t} / sum_j e^{z_i.z'_j / t} ) over the n items and both directions.

    The paper has one direction; which of the halves is the first is chance here, so the mean of both is the same loss
    with less noise.

    Args:
        one: [n, D] unit vectors z of the first views.
        other: [n, D] unit vectors z' of the second views, of the same items.
        temperature: divides the cosines.
    """
    with torch.autocast(one.device.type, enabled=False):
        cosine = one.float() @ other.float().T / temperature
        own = torch.arange(len(one), device=one.device)
        return (F.cross_entropy(cosine, own) + F.cross_entropy(cosine.T, own)) / 2


# -- mutual information ------------------------------------------------------------------------------------------------


def mutual_information(u: NDArray[np.int64], v: NDArray[np.int64], corrected: bool = True) -> float:
    """Mutual information of two columns of classes, in nats: sum of p(u, v) log(p(u, v) / (p(u) p(v))).

    Counted on N rows it comes out too high, for independent columns by about (|U| - 1)(|V| - 1) / 2N.

    Args:
        u: int64 [N], classes from 0; -1 = unknown. Rows where either is unknown do not count.
        v: the same.
        corrected: take that off (Miller 1955, with the cells that occur); never below 0.
    """
    known = (u >= 0) & (v >= 0)
    n = int(known.sum())
    if n == 0:
        return 0.0
    _, a = np.unique(u[known], return_inverse=True)
    _, b = np.unique(v[known], return_inverse=True)
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1 / n)
    independent = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
    cells = table > 0
    information = float((table[cells] * np.log(table[cells] / independent[cells])).sum())
    if not corrected:
        return information
    return max(0.0, information - (int(cells.sum()) - table.shape[0] - table.shape[1] + 1) / (2 * n))


def feature_information(items: ItemTable, names: list[str]) -> NDArray[np.float64]:
    """Mutual information [k, k] of an item's features, over at most `MEASURED` of the trained items.

    The id is told apart by itself: counted, it would share all of every feature's entropy, all of which is the
    estimate's bias. It shares nothing here.
    """
    rows = np.flatnonzero(items.n_train_events > 0)
    rows = rows[:: max(1, -(-len(rows) // MEASURED))]
    classes = {name: feature_classes(items, name, rows) for name in names if name != ID}
    shared = np.zeros((len(names), len(names)))
    for i, first in enumerate(names):
        for j, second in enumerate(names[:i]):
            if ID not in (first, second):
                shared[i, j] = shared[j, i] = mutual_information(classes[first], classes[second])
    return shared


def feature_classes(items: ItemTable, name: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """One feature of the items `rows` as at most `CLASSES` + 1 classes, int64 [N], -1 = unknown."""
    if name == CONTENT:
        assert items.embedding is not None
        return _content_classes(items.embedding[rows])
    column = items.features[name.removeprefix("feature:")][rows]
    if np.issubdtype(column.dtype, np.floating):
        known = ~np.isnan(column)
        if not known.any():
            return np.full(len(column), -1)
        edges = np.unique(np.quantile(column[known], np.arange(1, QUANTILES) / QUANTILES))
        return np.where(known, np.searchsorted(edges, column, side="right"), -1)
    if column.ndim == 2:  # of several categories, all of them together are one value
        column = column.sum(1)
    values, place, count = np.unique(column, return_inverse=True, return_counts=True)
    count[values == 0] = 0
    code = np.full(len(values), CLASSES)
    frequent = np.argsort(-count, kind="stable")[:CLASSES]
    code[frequent] = np.arange(len(frequent))
    code[values == 0] = -1
    return code[place]


def _content_classes(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """The signs of a content vector along the directions in which the vectors spread most."""
    known = ~np.isnan(vectors).any(1) & vectors.any(1)
    classes = np.full(len(vectors), -1)
    if known.any():
        unit = vectors[known] / np.linalg.norm(vectors[known], axis=1, keepdims=True)
        centred = unit - unit.mean(0)
        spread, directions = np.linalg.eigh(centred.T @ centred)  # by rising variance
        directions = directions[:, spread > 1e-5 * spread[-1]][:, -COMPONENTS:]  # beyond these there is rounding alone
        signs = centred @ directions > 0
        classes[known] = signs @ (1 << np.arange(signs.shape[1]))
    return classes
