"""Every objective against its plain form under autograd, and what none of them may do."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recgpt.losses.next_item import LogWeights, next_item_loss
from recgpt.losses.objectives import OBJECTIVES, Objective

KINDS = sorted(OBJECTIVES)


def objective(kind: str, hard: int = 0) -> Objective:
    return Objective(kind, margin=0.7, calibration=0.6, catalogue=4000, hard=hard)  # type: ignore[arg-type]


def plain(
    kind: str, s: Tensor, positive: Tensor, weight: Tensor, removed: Tensor, top: Tensor | None, bottom: Tensor | None
) -> Tensor:
    """The mean loss from whole matrices: scores, log-weights and removed columns, all [N, C]."""
    rows = torch.arange(len(s))
    own = s[rows, positive]
    removed = removed.clone()
    removed[rows, positive] = True
    if kind in ("softmax", "khrylchenko"):
        negative = (s + weight).masked_fill(removed, -math.inf)
        inside = own if bottom is None else own + bottom
        told = own if top is None else own + top
        everything = torch.cat((inside[:, None], negative), 1).logsumexp(1)
        if kind == "softmax":
            return (everything - told).mean()
        share = (inside - everything).exp().detach()
        return ((1 - share) * (negative.logsumexp(1) - told)).mean()
    count = (weight.exp() * ~removed).sum(1)

    def total(cost: Tensor) -> Tensor:
        return (weight.exp() * cost).masked_fill(removed, 0).sum(1)

    if kind in ("bce", "gbce"):
        alpha = (count / 3999).clamp(max=1)  # counts are of draws, and may exceed the catalogue
        beta = alpha * (0.6 * (1 - 1 / alpha) + 1 / alpha) if kind == "gbce" else 1.0
        return ((total(-F.logsigmoid(-s)) - beta * F.logsigmoid(own)) / (1 + count)).mean()
    difference = own[:, None] - s
    cost = (0.7 - difference).clamp(min=0) if kind == "hinge" else -F.logsigmoid(difference)
    return (total(cost) / count).mean()


def setting(n: int, u: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    draw = {"q": torch.randn(n, 8, generator=g), "v": torch.randn(u, 8, generator=g)}
    return {name: F.normalize(each, dim=-1).to(dtype) for name, each in draw.items()} | {
        "positive": torch.randint(u, (n,), generator=g),
        "weight": torch.rand(u, generator=g).to(dtype) * 2,
        "mask": torch.rand(5, u, generator=g) < 0.2,
        "group": torch.randint(5, (n,), generator=g),
        "top": torch.rand(n, generator=g).to(dtype),
        "bottom": torch.rand(n, generator=g).to(dtype),
    }


def both(*tensors: Tensor) -> list[Tensor]:
    return [each.detach().clone().requires_grad_() for each in tensors]


def assert_same(found: Tensor, expected: Tensor, leaves: list[Tensor], others: list[Tensor], tol: float) -> None:
    assert found.item() == pytest.approx(expected.item(), rel=tol)
    found.backward()
    expected.backward()
    for one, other in zip(leaves, others, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).norm() <= tol * other.grad.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_the_chunked_form_is_the_plain_form_at_2000_x_2000(kind: str) -> None:
    at = setting(2000, 2000, torch.float32)
    (q, v), (plain_q, plain_v) = both(at["q"], at["v"]), both(at["q"], at["v"])
    found = next_item_loss(q, v, at["positive"], temperature=0.1, offset=at["weight"], objective=objective(kind))
    weight = at["weight"].expand(2000, -1)
    scores = plain_q @ plain_v.t() / 0.1
    expected = plain(kind, scores, at["positive"], weight, torch.zeros(2000, 2000, dtype=torch.bool), None, None)
    assert_same(found, expected, [q, v], [plain_q, plain_v], 2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_masks_and_weights(kind: str, masked: bool, weighted: bool) -> None:
    at = setting(40, 23)
    (q, v), (plain_q, plain_v) = both(at["q"], at["v"]), both(at["q"], at["v"])
    weights = LogWeights(at["weight"], None, at["top"], at["bottom"]) if weighted else None
    mask = (at["mask"], at["group"]) if masked else None
    found = next_item_loss(
        q, v, at["positive"], temperature=0.2, offset=weights, mask=mask, objective=objective(kind), chunk=7
    )
    removed = at["mask"][at["group"]] if masked else torch.zeros(40, 23, dtype=torch.bool)
    weight = at["weight"].expand(40, -1) if weighted else torch.zeros(40, 23, dtype=torch.float64)
    top, bottom = (at["top"], at["bottom"]) if weighted else (None, None)
    expected = plain(kind, plain_q @ plain_v.t() / 0.2, at["positive"], weight, removed, top, bottom)
    assert_same(found, expected, [q, v], [plain_q, plain_v], 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_derivative(kind: str) -> None:
    """Of the value too, but for the weight that Khrylchenko's form takes as a constant."""
    at = setting(6, 5)
    q, v = both(at["q"], at["v"])

    def loss(q: Tensor, v: Tensor) -> Tensor:
        return next_item_loss(
            q, v, at["positive"], temperature=0.5, offset=at["weight"], objective=objective(kind), chunk=4
        )

    if kind != "khrylchenko":
        assert torch.autograd.gradcheck(loss, (q, v))
        return
    found = torch.autograd.grad(loss(q, v), (q, v))
    softmax = next_item_loss(q, v, at["positive"], temperature=0.5, offset=at["weight"])
    for one, other in zip(found, torch.autograd.grad(softmax, (q, v)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep_hits", [False, True])
def test_drawn_columns_beside_positives_of_their_own(kind: str, keep_hits: bool) -> None:
    """Rows whose item was drawn, and rows whose item was not; the plain form has the positive as a further column."""
    at = setting(40, 23)
    g = torch.Generator().manual_seed(1)
    items = torch.arange(30)  # columns hold items 0 .. 22; the rows' items are among all 30
    own = torch.randint(30, (40,), generator=g)
    w = torch.cat((at["v"], F.normalize(torch.randn(7, 8, generator=g, dtype=torch.float64), dim=-1)))
    hit = torch.where(own < 23, own, -1)
    assert (hit >= 0).any()
    assert (hit < 0).any()
    (q, v, w1), (plain_q, plain_v, plain_w) = both(at["q"], at["v"], w), both(at["q"], at["v"], w)
    mask = (at["mask"], at["group"])
    found = next_item_loss(
        q,
        v,
        hit,
        temperature=0.2,
        offset=LogWeights(at["weight"], None, at["top"], at["bottom"], keep_hits),
        mask=mask,
        own=(w1, own),
        objective=objective(kind),
        chunk=7,
    )
    scores = torch.cat((plain_q @ plain_v.t(), (plain_q * plain_w[own]).sum(1, keepdim=True)), 1) / 0.2
    removed = at["mask"][at["group"]]
    if not keep_hits:
        removed = removed | (items[:23] == own[:, None])
    removed = F.pad(removed, (0, 1))
    weight = F.pad(at["weight"], (0, 1)).expand(40, -1)
    expected = plain(kind, scores, torch.full((40,), 23), weight, removed, at["top"], at["bottom"])
    assert_same(found, expected, [q, v, w1], [plain_q, plain_v, plain_w], 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep_hits", [False, True])
@pytest.mark.parametrize("u", [23, 230])  # few enough for products with all of them, and too many
def test_negatives_of_a_row_s_own(kind: str, keep_hits: bool, u: int) -> None:
    at = setting(40, u)
    drawn = torch.randint(u, (40, 6), generator=torch.Generator().manual_seed(1))
    drawn[3, 2] = at["positive"][3]
    (q, v), (plain_q, plain_v) = both(at["q"], at["v"]), both(at["q"], at["v"])
    found = next_item_loss(
        q,
        v,
        at["positive"],
        temperature=0.2,
        offset=LogWeights(at["weight"], None, at["top"], at["bottom"], keep_hits),
        drawn=drawn,
        objective=objective(kind),
        chunk=7,
    )
    place = torch.cat((drawn, at["positive"][:, None]), 1)
    scores = (plain_q @ plain_v.t()).gather(1, place) / 0.2
    removed = torch.zeros_like(place, dtype=torch.bool) if keep_hits else place == at["positive"][:, None]
    expected = plain(kind, scores, torch.full((40,), 6), at["weight"][place], removed, at["top"], at["bottom"])
    assert_same(found, expected, [q, v], [plain_q, plain_v], 1e-9)


def test_a_mask_of_a_row_s_own_negatives_is_refused() -> None:
    at = setting(4, 5)
    mask = (at["mask"], torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="mask: with `drawn`"):
        next_item_loss(
            at["q"], at["v"], at["positive"], temperature=1.0, mask=mask, drawn=torch.zeros(4, 2, dtype=torch.int64)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_negatives_moves_nothing_but_a_pointwise_positive(kind: str) -> None:
    at = setting(4, 5)
    q, v = both(at["q"], at["v"])
    everything = (torch.ones(1, 5, dtype=torch.bool), torch.zeros(4, dtype=torch.int64))
    loss = next_item_loss(q, v, at["positive"], temperature=0.2, mask=everything, objective=objective(kind))
    loss.backward()
    assert q.grad is not None
    if kind in ("bce", "gbce"):
        assert loss.item() > 0
    else:
        assert loss.item() == 0
        assert q.grad.abs().max() == 0


@pytest.mark.parametrize("kind", ["softmax", "khrylchenko", "bpr", "logistic"])
def test_a_constant_added_to_all_scores_changes_nothing(kind: str) -> None:
    at = setting(20, 9)
    one = torch.ones(20, 1, dtype=torch.float64)
    losses = []
    for shift in (0.0, 3.0):
        q = torch.cat((at["q"], one), 1)
        v = torch.cat((at["v"], torch.full((9, 1), shift, dtype=torch.float64)), 1)
        losses.append(next_item_loss(q, v, at["positive"], temperature=1.0, objective=objective(kind)).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_hard_keeps_the_highest_corrected_logits(kind: str) -> None:
    """Three negatives of each row: the same as masking all others by hand, after weights and masks."""
    at = setting(30, 17)
    (q, v), (plain_q, plain_v) = both(at["q"], at["v"]), both(at["q"], at["v"])
    found = next_item_loss(
        q,
        v,
        at["positive"],
        temperature=0.2,
        offset=at["weight"],
        mask=(at["mask"], at["group"]),
        objective=objective(kind, hard=3),
        chunk=7,
    )
    scores = plain_q @ plain_v.t() / 0.2
    removed = at["mask"][at["group"]].clone()
    for row in range(30):
        logits = (scores[row] + at["weight"]).detach()
        order = [
            j for j in logits.argsort(descending=True).tolist() if not removed[row, j] and j != at["positive"][row]
        ]
        removed[row, order[3:]] = True
    expected = plain(kind, scores, at["positive"], at["weight"].expand(30, -1), removed, None, None)
    assert_same(found, expected, [q, v], [plain_q, plain_v], 1e-9)


def test_more_hard_negatives_than_there_are_is_all_of_them() -> None:
    at = setting(30, 17)
    losses = [
        next_item_loss(at["q"], at["v"], at["positive"], temperature=0.2, objective=Objective(hard=hard)).item()
        for hard in (0, 16, 500)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-12)
    assert losses[2] == pytest.approx(losses[0], abs=1e-12)


# -- by hand -----------------------------------------------------------------------------------------------------------


def one_row(kind: str, **settings: float) -> float:
    """Scores: positive 2, negatives 1 and 0."""
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    v = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    made = Objective(kind, **settings)  # type: ignore[arg-type]
    return next_item_loss(q, v, torch.tensor([0]), temperature=1.0, objective=made).item()


def test_by_hand() -> None:
    # log(1 + e^-2) = .126928, log(1 + e^1) = 1.313262, log(1 + e^0) = .693147
    assert one_row("bce") == pytest.approx((0.126928 + 1.313262 + 0.693147) / 3, abs=1e-6)
    # differences 1 and 2: log(1 + e^-1) = .313262, log(1 + e^-2) = .126928
    assert one_row("bpr") == pytest.approx((0.313262 + 0.126928) / 2, abs=1e-6)
    assert one_row("logistic") == one_row("bpr")
    assert one_row("hinge", margin=1.5) == pytest.approx((0.5 + 0.0) / 2, abs=1e-9)


def test_gbce_by_hand_and_at_its_ends() -> None:
    """ML-1M: 256 negatives of 3416 items give alpha = .07496 and, at t = .75, beta = .30622."""
    k = 256
    v = torch.zeros(k + 1, 2, dtype=torch.float64)
    v[0, 0] = 1
    q = torch.tensor([[3.0, 0.0]], dtype=torch.float64)  # positive 3, negatives 0

    def loss(t: float) -> float:
        made = Objective("gbce", calibration=t, catalogue=3416)
        return next_item_loss(q, v, torch.tensor([0]), temperature=1.0, objective=made).item() * (k + 1)

    own, others = math.log1p(math.exp(-3)), k * math.log(2)
    assert loss(0.75) == pytest.approx(0.30622 * own + others, rel=1e-6)
    assert loss(1.0) == pytest.approx(0.07496 * own + others, rel=1e-6)
    assert loss(0.0) == pytest.approx(own + others, rel=1e-12)
    # the published transform of the positive's logit: sigma(gamma) = sigma(s)^beta
    beta = 256 / 3415 * (0.75 * (1 - 3415 / 256) + 3415 / 256)
    gamma = -math.log(math.expm1(-beta * math.log(1 / (1 + math.exp(-3)))))
    assert loss(0.75) == pytest.approx(math.log1p(math.exp(-gamma)) + others, rel=1e-9)
