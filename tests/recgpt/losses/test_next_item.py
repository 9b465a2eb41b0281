"""The next-item loss by hand, against plain cross-entropy, and its corrections on a toy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recgpt.losses.frequency import FrequencyEstimate
from recgpt.losses.next_item import multiplicity_offset, next_item_loss
from recgpt.losses.objectives import Objective


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def test_by_hand() -> None:
    # scores of the row: positive 2, others 1 and 0; temperature 1
    # -log(e^2 / (e^2 + e^1 + e^0)) = log(1 + e^-1 + e^-2) = 0.4076059644
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    v = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    loss = next_item_loss(q, v, torch.tensor([0]), temperature=1.0)
    assert loss.item() == pytest.approx(0.4076059644, abs=1e-9)
    # the second column is held by half of all batches: its mass counts twice
    offset = torch.tensor([math.log(3.0), math.log(2.0), 0.0])  # the positive's own offset must not matter
    loss = next_item_loss(q, v, torch.tensor([0]), temperature=1.0, offset=offset)
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-1) + math.exp(-2)), abs=1e-9)


@pytest.mark.parametrize("chunk", [3, 8, 512])
def test_whole_catalogue_is_cross_entropy(chunk: int) -> None:
    q, v = unit(20, 8).requires_grad_(), unit(13, 8, seed=1).requires_grad_()
    positive = torch.arange(20) % 13
    loss = next_item_loss(q, v, positive, temperature=0.05, chunk=chunk)
    loss.backward()
    plain_q, plain_v = q.detach().clone().requires_grad_(), v.detach().clone().requires_grad_()
    plain = F.cross_entropy(plain_q @ plain_v.T / 0.05, positive)
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), abs=1e-6)
    torch.testing.assert_close(q.grad, plain_q.grad, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(v.grad, plain_v.grad, atol=1e-6, rtol=1e-6)


def test_gradient_is_the_derivative() -> None:
    offset = torch.randn(6, dtype=torch.float64)
    mask = (torch.tensor([[False, True, False, False, True, False], [False] * 6]), torch.tensor([0, 1, 0, 1]))
    positive = torch.tensor([1, 0, 5, 5])

    def loss(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return next_item_loss(q, v, positive, temperature=0.5, offset=offset, mask=mask, chunk=3)

    assert torch.autograd.gradcheck(loss, (unit(4, 3).requires_grad_(), unit(6, 3, seed=1).requires_grad_()))


def test_plain_in_batch_form_with_hits_removed() -> None:
    # five rows, targets a b a c b: N x N logits, and a column of the row's own id counts once, as the positive
    positive = torch.tensor([0, 1, 0, 2, 1])
    q, v = unit(5, 4), unit(3, 4, seed=1)
    logits = q @ v[positive].T / 0.1
    hit = (positive[:, None] == positive[None]) & ~torch.eye(5, dtype=torch.bool)
    plain = F.cross_entropy(logits.masked_fill(hit, -math.inf), torch.arange(5))
    loss = next_item_loss(q, v, positive, temperature=0.1, offset=multiplicity_offset(positive, 3))
    assert loss.item() == pytest.approx(plain.item(), abs=1e-6)


def test_a_hit_has_no_mass_and_no_gradient() -> None:
    """All rows share one target: its column is every row's positive, so there is nothing to push away."""
    q, v = unit(6, 4).requires_grad_(), unit(1, 4, seed=1).requires_grad_()
    loss = next_item_loss(q, v, torch.zeros(6, dtype=torch.int64), temperature=0.05)
    loss.backward()
    assert loss.item() == 0
    assert q.grad.abs().max() == 0
    assert v.grad.abs().max() == 0


def test_masked_columns_have_no_mass_and_no_gradient() -> None:
    q, v = unit(2, 4).requires_grad_(), unit(4, 4, seed=1).requires_grad_()
    everyone_but_3 = torch.tensor([[True, True, True, False]])
    groups = torch.zeros(2, dtype=torch.int64)
    loss = next_item_loss(q, v, torch.tensor([0, 1]), temperature=0.05, mask=(everyone_but_3, groups))
    loss.backward()
    assert v.grad[2].abs().max() == 0
    assert v.grad[3].abs().max() > 0
    alone = next_item_loss(q[:1], v[[0, 3]], torch.tensor([0]), temperature=0.05)
    other = next_item_loss(q[1:], v[[1, 3]], torch.tensor([0]), temperature=0.05)
    assert loss.item() == pytest.approx((alone.item() + other.item()) / 2, abs=1e-9)


def test_no_target_gives_zero() -> None:
    q, v = torch.zeros(0, 4, requires_grad=True), unit(3, 4).float().requires_grad_()
    loss = next_item_loss(q, v, torch.zeros(0, dtype=torch.int64), temperature=0.05)
    loss.backward()
    assert loss.item() == 0
    assert v.grad.abs().max() == 0


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_bf16_products_stay_close(masked: bool, weighted: bool) -> None:
    """Loss and gradients of the fused form, against float32: as near as rounding lets the general form be."""
    generator = torch.Generator().manual_seed(2)
    positive = torch.arange(600) % 300
    mask = (torch.rand(5, 300, generator=generator) < 0.2, torch.arange(600) % 5) if masked else None
    offset = -torch.rand(300, generator=generator).log() if weighted else None

    def learned(dtype: torch.dtype, objective: Objective) -> tuple[float, torch.Tensor, torch.Tensor]:
        q, v = (unit(n, 64, seed=n).float().requires_grad_() for n in (600, 300))
        options: dict[str, Any] = {"offset": offset, "mask": mask, "objective": objective, "dtype": dtype}
        loss = next_item_loss(q, v, positive, temperature=0.05, **options)
        loss.backward()
        return loss.item(), q.grad, v.grad

    exact = learned(torch.float32, Objective())
    for objective in (Objective(), Objective(hard=299)):  # the second is the general form
        rough = learned(torch.bfloat16, objective)
        assert rough[0] == pytest.approx(exact[0], rel=1e-3)
        for ours, theirs in zip(rough[1:], exact[1:], strict=True):
            assert (ours - theirs).norm() < 0.008 * theirs.norm()


@pytest.mark.parametrize("kind", ["softmax", "gbce"])
def test_bf16_products_of_a_row_s_own_negatives_stay_close(kind: str) -> None:
    drawn = torch.randint(0, 300, (600, 64), generator=torch.Generator().manual_seed(3))
    objective = Objective(kind, calibration=0.75, catalogue=300)

    def learned(dtype: torch.dtype) -> tuple[float, torch.Tensor, torch.Tensor]:
        q, v = (unit(n, 64, seed=n).float().requires_grad_() for n in (600, 300))
        positive = torch.arange(600) % 300
        loss = next_item_loss(q, v, positive, temperature=0.05, drawn=drawn, objective=objective, dtype=dtype)
        loss.backward()
        return loss.item(), q.grad, v.grad

    exact, rough = learned(torch.float32), learned(torch.bfloat16)
    assert rough[0] == pytest.approx(exact[0], rel=1e-3)
    for ours, theirs in zip(rough[1:], exact[1:], strict=True):
        assert 0 < (ours - theirs).norm() < 0.008 * theirs.norm()


def test_rows_that_are_nearly_learned_still_learn_in_bf16() -> None:
    """Next to P = .998 bfloat16 has 1; next to what it lacks to 1 there are many numbers."""
    generator = torch.Generator().manual_seed(4)
    v = unit(50, 64).float()
    positive = torch.arange(200) % 50
    q = F.normalize(v[positive] + 0.05 * torch.randn(200, 64, generator=generator), dim=-1)
    for temperature in (0.12, 0.1, 0.08):
        learned = []
        for dtype in (torch.float32, torch.bfloat16):
            leaves = [q.clone().requires_grad_(), v.clone().requires_grad_()]
            loss = next_item_loss(*leaves, positive, temperature=temperature, dtype=dtype)
            loss.backward()
            learned.append((loss.item(), *(leaf.grad for leaf in leaves)))
        exact, rough = learned
        assert 1e-4 < exact[0] < 0.1
        assert rough[0] == pytest.approx(exact[0], rel=0.02)
        for ours, theirs in zip(rough[1:], exact[1:], strict=True):
            assert (ours - theirs).norm() < 0.03 * theirs.norm()


def test_a_masked_column_learns_nothing_in_bf16_either() -> None:
    q, v = unit(8, 16).float().requires_grad_(), unit(5, 16, seed=1).float().requires_grad_()
    removed = torch.zeros(1, 5, dtype=torch.bool)
    removed[0, 4] = True
    positive = torch.arange(8) % 4
    mask = (removed, torch.zeros(8, dtype=torch.int64))
    next_item_loss(q, v, positive, temperature=0.05, mask=mask, dtype=torch.bfloat16).backward()
    assert v.grad[4].abs().max() == 0
    assert v.grad[:4].abs().amin(0).max() > 0


def test_a_hopeless_row_is_finite_in_bf16() -> None:
    """P = 0, also where other code lets the processor take subnormal numbers for 0: the loss is -log(2e-38)."""
    q, v = torch.tensor([[200.0, 0.0]], requires_grad=True), torch.eye(2)
    for flush in (False, True):
        torch.set_flush_denormal(flush)
        try:
            loss = next_item_loss(q, v, torch.tensor([1]), temperature=1.0, dtype=torch.bfloat16)
        finally:
            torch.set_flush_denormal(False)
        assert loss.item() == pytest.approx(86.8, abs=0.1)
        [slope] = torch.autograd.grad(loss, q)
        assert slope.tolist() == [[1.0, -1.0]]


# -- the correction ----------------------------------------------------------------------------------------------------


def zipf_batches(n: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Item probabilities of a Zipf toy (200 items) and batches of n draws."""
    q = 1.0 / np.arange(1, 201)
    q /= q.sum()
    return q, np.random.default_rng(0).choice(200, size=(steps, n), p=q)


def gradient_error(batches: np.ndarray, log_pi: torch.Tensor | None, multiplicity: bool) -> float:
    """Relative L2 error of the mean gradient with respect to one row's scores, beside the full softmax's.

    The row's positive is item 3; its scores over the 200 items are fixed. Each batch offers its distinct items (and the
    positive) as columns.
    """
    scores = torch.from_numpy(np.random.default_rng(1).normal(size=200))
    full = scores.softmax(0)
    full[3] -= 1
    mean = torch.zeros(200, dtype=torch.float64)
    for batch in batches:
        columns, counts = np.unique(np.append(batch, 3), return_counts=True)
        column = torch.from_numpy(columns)
        v = scores[column][:, None].clone().requires_grad_()
        offset = torch.zeros(len(columns), dtype=torch.float64)
        if multiplicity:
            offset = torch.from_numpy(np.log(counts))
        elif log_pi is not None:
            offset = -log_pi[column]
        positive = torch.from_numpy(np.flatnonzero(columns == 3))
        next_item_loss(torch.ones(1, 1, dtype=torch.float64), v, positive, temperature=1.0, offset=offset).backward()
        mean[column] += v.grad[:, 0] / len(batches)
    return float((mean - full).norm() / full.norm())


def test_correction_leaves_the_full_softmax_gradient() -> None:
    q, batches = zipf_batches(512, 1500)
    exact = torch.from_numpy(np.log1p(-((1 - q) ** 512)))
    assert gradient_error(batches, exact, multiplicity=False) < 0.02
    estimate = FrequencyEstimate(slots=1 << 12, rate=0.01)
    for batch in batches:
        estimate.update(torch.from_numpy(np.unique(batch)) + 1)
    streamed = estimate.log_probability(torch.arange(1, 201)).double()
    assert gradient_error(batches, streamed, multiplicity=False) < 0.02
    assert gradient_error(batches, None, multiplicity=True) > 0.2


def test_streaming_estimate_finds_bernoulli_rates() -> None:
    """Items that appear in a batch with probability .5, .2, .05, .01; 30,000 batches."""
    rng, rates = np.random.default_rng(0), np.array([0.5, 0.2, 0.05, 0.01])
    estimate = FrequencyEstimate(slots=1 << 10, rate=0.01)
    hashes = torch.tensor([11, 22, 33, 44])
    for present in rng.random((30_000, 4)) < rates:
        estimate.update(hashes[torch.from_numpy(present)])
    found = estimate.log_probability(hashes).exp().numpy()
    np.testing.assert_allclose(found, rates, rtol=0.3)  # four standard deviations of the running mean


def test_an_item_of_every_batch_has_probability_one() -> None:
    estimate = FrequencyEstimate(slots=1 << 10, rate=0.05)
    for _ in range(20):
        estimate.update(torch.tensor([5]))
    assert estimate.log_probability(torch.tensor([5])).item() == 0


def test_an_item_never_seen_is_rare() -> None:
    """Drawn beside a batch's targets it stands for the items that batches do not hold; 9 batches without: below 1/9."""
    estimate = FrequencyEstimate(slots=1 << 10, rate=0.05)
    for _ in range(9):
        estimate.update(torch.tensor([5]))
    assert estimate.log_probability(torch.tensor([5, 6])).tolist() == pytest.approx([0, -math.log(10)])
    estimate.update(torch.tensor([5, 6]))  # the estimate of its first gap goes on from there
    assert estimate.log_probability(torch.tensor([6])).item() == pytest.approx(-math.log(10))
