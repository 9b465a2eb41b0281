"""What a batch's rows are compared with: counted columns, hits, the user's own items, every choice of columns."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recgpt.config import load_config
from recgpt.data.batch import EventBatch
from recgpt.data.items import ItemTable
from recgpt.data.negatives import DrawnNegatives
from recgpt.losses.config import LossConfig
from recgpt.losses.contrast import Contrast, make_negatives
from recgpt.losses.frequency import CountMinEstimate, ExactEstimate, FrequencyEstimate
from tests.recgpt.builders import items as item_table

DIM = 6


def batch(sequences: list[list[int]], negative: list[int] | None = None) -> EventBatch:
    """Sequences of target ids (0 = no target at that position) as a batch; `negative` are drawn ids."""
    ids = [each for sequence in sequences for each in sequence if each]
    distinct, inverse = np.unique(np.array(ids + (negative or [])), return_inverse=True)
    width = max(map(len, sequences))
    position = [
        row * (width + 1) + t for row, sequence in enumerate(sequences) for t, each in enumerate(sequence) if each
    ]
    rows = torch.from_numpy(inverse)
    return EventBatch(
        items=torch.from_numpy(distinct),
        item=torch.zeros(len(sequences), width, dtype=torch.int64),
        length=torch.tensor([len(each) for each in sequences]),
        gap=torch.zeros(len(sequences), width, dtype=torch.int64),
        position=torch.tensor(position),
        target=rows[: len(ids)],
        negative=None if negative is None else rows[len(ids) :],
    )


def table(ids: list[int]) -> ItemTable:
    """A catalogue whose hashes are the ids; id i has i training events."""
    whole = item_table(len(ids))
    changes = {"hash": np.array(ids), "n_train_events": np.array(ids)}
    return ItemTable(**{**vars(whole), **changes})


def contrast(ids: list[int], frequency: Any = None, **values: Any) -> Contrast:
    config = load_config(LossConfig, {"temperature": 1.0} | values)
    items = table(ids)
    return Contrast(config, items, frequency or FrequencyEstimate(64, 0.05), make_negatives(config, items))


def vectors(ids: Tensor) -> Tensor:
    """A vector for each id."""
    angle = ids.double()[:, None] * torch.arange(1, DIM + 1)
    return torch.sin(angle)


def cost(made: Contrast, given: EventBatch, q: Tensor) -> Tensor:
    """The loss of a batch."""
    columns = made.columns(given)
    own = None if columns.own is None else vectors(given.items[columns.own[0]])
    return made.loss(q, vectors(columns.hashes), own, columns, given)


def queries(n: int) -> Tensor:
    return torch.linspace(-1, 1, n * DIM, dtype=torch.float64).view(n, DIM)


# -- how many negatives ------------------------------------------------------------------------------------------------

SEQUENCES = [[0, 5, 7, 5], [9, 7, 5, 8]]
COUNTS = {
    "id": [4, 5, 4, 6, 5, 4, 6],
    "user": [4, 4, 4, 3, 3, 3, 3],
    "both": [3, 3, 3, 3, 2, 1, 3],
}


def negatives_of_each_row(made: Contrast, given: EventBatch) -> list[float]:
    """By the gradient of the positive's score, which is -m / (1 + m) for m negatives and scores of 0."""
    columns = made.columns(given)
    n = len(given.target)
    v = torch.eye(len(columns.hashes), dtype=torch.float64)  # a query's gradient is that of its scores
    q = torch.zeros(n, len(v), dtype=torch.float64, requires_grad=True)
    made.loss(q, v, None, columns, given).backward()
    assert q.grad is not None
    slope = -q.grad[torch.arange(n), columns.positive] * n
    return [float(each / (1 - each)) for each in slope]


@pytest.mark.parametrize("masks", ["id", "user", "both"])
def test_negative_counts_of_the_plain_form(masks: str) -> None:
    made = contrast(
        [5, 7, 8, 9],
        multiplicity=True,
        mask_id=masks in ("id", "both"),
        mask_user="sequence" if masks in ("user", "both") else "none",
    )
    given = batch(SEQUENCES)
    columns = made.columns(given)
    n = len(given.target)
    expected = torch.tensor(COUNTS[masks], dtype=torch.float64)
    q = torch.zeros(n, DIM, dtype=torch.float64)
    loss = made.loss(q, vectors(columns.hashes), None, columns, given)
    assert loss.item() == pytest.approx(float((1 + expected).log().mean()), rel=1e-6)
    if masks in ("id", "both"):  # no hits, so each row can be told apart
        assert negatives_of_each_row(made, given) == pytest.approx(COUNTS[masks], rel=1e-5)


def test_the_whole_plain_form_has_every_other_row() -> None:
    made = contrast([5, 7, 8, 9], multiplicity=True, mask_id=False)
    given = batch(SEQUENCES)
    columns = made.columns(given)
    loss = made.loss(torch.zeros(7, DIM, dtype=torch.float64), vectors(columns.hashes), None, columns, given)
    assert loss.item() == pytest.approx(math.log(7), rel=1e-6)


def test_masking_the_user_s_items_takes_them_from_every_sequence() -> None:
    """Row 5 of the first user: of 9, 7, 5, 8 only 9 and 8 are left; distinct columns count once."""
    made = contrast([5, 7, 8, 9], correction="none", mask_user="items")
    assert negatives_of_each_row(made, batch(SEQUENCES)) == pytest.approx([2, 2, 2, 0, 0, 0, 0], abs=1e-6)
    made = contrast([5, 7, 8, 9], correction="none")
    assert negatives_of_each_row(made, batch(SEQUENCES)) == pytest.approx([3] * 7, rel=1e-6)


@pytest.mark.parametrize("multiplicity", [False, True])
def test_a_batch_of_one_item_has_no_usable_row(multiplicity: bool) -> None:
    made = contrast([5, 7], multiplicity=multiplicity)
    given = batch([[5, 5, 5], [5, 5]])
    columns = made.columns(given)
    q = queries(5).requires_grad_()
    loss = made.loss(q, vectors(columns.hashes), None, columns, given)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert q.grad is not None
    assert q.grad.abs().max() < 1e-12


# -- every choice of columns beside a slow form ------------------------------------------------------------------------

IDS = [1, 2, 3, 4, 5, 6, 7, 8]
TARGETS = [[3, 1, 3], [0, 8], [5]]
DRAWN = [3, 7, 7, 2]


def slow(given: EventBatch, drawn: dict[int, list[int]], removed: dict[int, set[int]], shift: Any) -> float:
    """Mean softmax loss, row by row: each row's draws, those removed, and what is added to a negative's logit."""
    rows = given.items[given.target].tolist()
    q, total = queries(len(rows)), 0.0
    for row, own in enumerate(rows):
        score = {item: float(q[row] @ vectors(torch.tensor([item]))[0]) for item in IDS}
        negative = [item for item in drawn[row] if item != own and item not in removed.get(row, set())]
        mass = sum(math.exp(score[item] + shift(item, row, len(negative))) for item in negative)
        total += math.log(math.exp(score[own]) + mass) - score[own]
    return total / len(rows)


def uniform_or_popular(kind: str) -> dict[int, float]:
    weights = {item: 1.0 if kind == "uniform" else item**0.75 for item in IDS}
    return {item: weight / sum(weights.values()) for item, weight in weights.items()}


@pytest.mark.parametrize(("kind", "mask_user"), list(product(["uniform", "popularity"], ["none", "items"])))
def test_drawn_columns(kind: str, mask_user: str) -> None:
    given = batch(TARGETS, DRAWN)
    removed = {0: {3, 1}, 1: {3, 1}, 2: {3, 1}, 3: {8}, 4: {5}} if mask_user == "items" else {}
    q = uniform_or_popular(kind)
    every = {row: DRAWN for row in range(5)}
    distinct = {row: sorted(set(DRAWN)) for row in range(5)}
    common = {"columns": kind, "n_negatives": 4, "mask_user": mask_user}

    made = contrast(IDS, **common, correction="none")
    assert cost(made, given, queries(5)).item() == pytest.approx(slow(given, every, removed, lambda *_: 0.0), rel=1e-6)

    made = contrast(IDS, **common)
    expected = slow(given, distinct, removed, lambda item, *_: -math.log(1 - (1 - q[item]) ** 4))
    assert cost(made, given, queries(5)).item() == pytest.approx(expected, rel=1e-6)

    made = contrast(IDS, **common, correction="renormalised")
    rows = given.items[given.target].tolist()

    def shift(item: int, row: int, n: int) -> float:
        gone = {rows[row]} | removed.get(row, set()) & set(DRAWN)  # columns alone are known to be removed
        return -math.log(n * q[item] / (1 - sum(q[each] for each in gone)))

    assert cost(made, given, queries(5)).item() == pytest.approx(slow(given, every, removed, shift), rel=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_negatives_of_each_row_s_own(kind: str) -> None:
    drawn = [[3, 7], [2, 2], [1, 3], [4, 4], [5, 6]]
    given = batch(TARGETS, [item for row in drawn for item in row])
    every = dict(enumerate(drawn))
    q = uniform_or_popular(kind)
    common = {"columns": kind, "n_negatives": 2, "per_row": True}
    made = contrast(IDS, **common, correction="none")
    assert cost(made, given, queries(5)).item() == pytest.approx(slow(given, every, {}, lambda *_: 0.0), rel=1e-6)
    rows = given.items[given.target].tolist()
    made = contrast(IDS, **common)
    expected = slow(given, every, {}, lambda item, row, n: -math.log(n * q[item] / (1 - q[rows[row]])))
    assert cost(made, given, queries(5)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_items_that_a_row_s_own_negatives_avoid_leave_the_catalogue(kind: str) -> None:
    """The first window holds 3 and 1, the second 2 and its target 8: the draws stand for all items but those."""
    held, drawn = [{3, 1}, {3, 1}, {2, 8}], [[7, 7], [4, 2], [5, 6]]
    given = batch([[3, 1], [8]], [item for row in drawn for item in row])
    place = {item: row for row, item in enumerate(given.items.tolist())}
    given = replace(given, item=torch.tensor([[place[3], place[1]], [place[2], 0]]), length=torch.tensor([2, 1]))
    q = uniform_or_popular(kind)
    made, other = (
        contrast(IDS, columns=kind, n_negatives=2, per_row=True, mask_user="items", correction=form)
        for form in ("renormalised", "khrylchenko")
    )

    def shift(item: int, row: int, n: int) -> float:
        return -math.log(n * q[item] / (1 - sum(q[each] for each in held[row])))

    assert cost(made, given, queries(3)).item() == pytest.approx(
        slow(given, dict(enumerate(drawn)), {}, shift), rel=1e-6
    )
    slopes = []
    for each in (made, other):
        asked = queries(3).requires_grad_()
        slopes += torch.autograd.grad(cost(each, given, asked), asked)
    torch.testing.assert_close(*slopes)


def exact(counts: dict[int, int]) -> ExactEstimate:
    return ExactEstimate(torch.tensor(list(counts)), torch.tensor(list(counts.values())))


TARGET_COUNTS = {1: 4, 2: 1, 3: 9, 4: 2, 5: 3, 6: 2, 7: 1, 8: 6}


def test_mixed_columns_and_the_mixture() -> None:
    """Five targets and four uniform draws: Q = 5/9 q + 4/9 1/8; a row's draws are all but its own."""
    given = batch(TARGETS, DRAWN)
    rows = given.items[given.target].tolist()
    sampled = rows + DRAWN
    every = {row: [item for i, item in enumerate(sampled) if i != row] for row in range(5)}
    total = sum(TARGET_COUNTS.values())
    mixture = {item: 5 / 9 * count / total + 4 / 9 / 8 for item, count in TARGET_COUNTS.items()}

    made = contrast(
        IDS, exact(TARGET_COUNTS), columns="mixed", n_negatives=4, correction="renormalised", estimate="exact"
    )
    expected = slow(given, every, {}, lambda item, row, n: -math.log(n * mixture[item] / (1 - mixture[rows[row]])))
    assert cost(made, given, queries(5)).item() == pytest.approx(expected, rel=1e-5)

    made = contrast(IDS, exact(TARGET_COUNTS), columns="mixed", n_negatives=4, estimate="exact")
    distinct = {row: sorted(set(sampled)) for row in range(5)}

    def inclusion(item: int, *_: Any) -> float:
        return -math.log(1 - (1 - TARGET_COUNTS[item] / total) ** 5 * (1 - 1 / 8) ** 4)

    expected = slow(given, distinct, {}, inclusion)
    assert cost(made, given, queries(5)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("estimate", ["exact", "count_min"])
def test_in_batch_draws(estimate: str) -> None:
    given = batch(TARGETS)
    rows = given.items[given.target].tolist()
    every = {row: [item for i, item in enumerate(rows) if i != row] for row in range(5)}
    if estimate == "exact":
        told, counts = exact(TARGET_COUNTS), TARGET_COUNTS
    else:
        told = CountMinEstimate(1e-4, 0.01)  # type: ignore[assignment]
        counts = {item: rows.count(item) for item in rows}  # what it has seen when the loss is formed
    total = sum(counts.values())
    made = contrast(IDS, told, correction="renormalised", estimate=estimate)
    expected = slow(
        given, every, {}, lambda item, row, n: -math.log(n * counts[item] / total / (1 - counts[rows[row]] / total))
    )
    assert cost(made, given, queries(5)).item() == pytest.approx(expected, rel=1e-5)


def test_yi_lowers_the_positive_too_and_keeps_hits() -> None:
    given = batch(TARGETS)
    rows = given.items[given.target].tolist()
    q = {item: count / sum(TARGET_COUNTS.values()) for item, count in TARGET_COUNTS.items()}
    made = contrast(IDS, exact(TARGET_COUNTS), correction="yi", estimate="exact")
    expected = 0.0
    for row, own in enumerate(rows):
        logit = {i: float(queries(5)[row] @ vectors(torch.tensor([i]))[0]) - math.log(q[i]) for i in rows}
        expected += math.log(sum(math.exp(logit[item]) for item in rows)) - logit[own]
    assert cost(made, given, queries(5)).item() == pytest.approx(expected / 5, rel=1e-5)


def test_three_rows_with_a_duplicate_id_as_in_tensorflow_recommenders() -> None:
    """Each row is cross-entropy over the corrected logits with the duplicate's column deleted."""
    given = batch([[3], [8], [3]])
    logits = queries(3) @ vectors(torch.tensor([3, 8, 3])).t()
    total = sum(TARGET_COUNTS.values())
    logits = logits - torch.tensor([TARGET_COUNTS[item] / total for item in (3, 8, 3)], dtype=torch.float64).log()
    rows = [logits[0, [0, 1]], logits[1, [1, 0, 2]], logits[2, [2, 1]]]
    expected = sum(float(row.logsumexp(0) - row[0]) for row in rows) / 3
    made = contrast(IDS, exact(TARGET_COUNTS), correction="tfrs", estimate="exact")
    assert cost(made, given, queries(3)).item() == pytest.approx(expected, rel=1e-5)


def test_yi_takes_the_streaming_estimate_as_it_is() -> None:
    """Its probability is that of a batch holding the item: of three batches, all hold item 3 and one holds item 8."""
    made = contrast(IDS, FrequencyEstimate(4096, 1e-9), correction="yi")
    for others in ([8], [5], [5]):
        given = batch([[3], others])
        found = cost(made, given, queries(2)).item()
    pi = {3: 1.0, 5: 2 / 3}  # the first gap counts from step 0: 5 is met at steps 2 and 3
    logits = queries(2) @ vectors(torch.tensor([3, 5])).t() - torch.tensor([pi[3], pi[5]], dtype=torch.float64).log()
    assert found == pytest.approx(float((logits.logsumexp(1) - logits.diagonal()).mean()), rel=1e-5)


def test_the_catalogue_size_of_gbce_is_that_of_the_trained_items() -> None:
    made = contrast([1, 2, 3, 0], kind="gbce", columns="uniform", n_negatives=2)
    assert made.objective.catalogue == 3


def test_drawn_negatives_come_as_configured() -> None:
    def made(**values: Any) -> DrawnNegatives:
        found = make_negatives(load_config(LossConfig, values), table([0, 4, 5]))
        assert found is not None
        return found

    assert make_negatives(LossConfig(), table(IDS)) is None
    uniform = made(columns="uniform", n_negatives=7)
    assert (uniform.n, uniform.per_row, uniform.avoid, uniform.hashes.tolist()) == (7, False, False, [4, 5])
    assert made(columns="popularity", power=2).probability.tolist() == pytest.approx([16 / 41, 25 / 41])
    own = made(columns="uniform", per_row=True, mask_user="items")
    assert (own.per_row, own.avoid) == (True, True)
