"""The behaviour heads against their definitions, and what every head must hold to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recgpt.ranking.behaviour import BEHAVIOUR_HEADS, BehaviourHead, DinHead, PoolHead

DIM, ATTENTION, POSITIONS, STATES, REQUESTS = 8, 6, 9, 4, 13


def head(name: str, softmax: bool = True) -> BehaviourHead:
    torch.manual_seed(0)
    return BEHAVIOUR_HEADS[name](DIM, ATTENTION, softmax)


def inputs(seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    hidden = torch.randn(STATES, POSITIONS, DIM)
    state = torch.randint(STATES, (REQUESTS,))
    visible = torch.randint(1, POSITIONS + 1, (REQUESTS,))
    return hidden, state, visible, torch.randn(REQUESTS, DIM)


every_head = pytest.mark.parametrize(
    ("name", "softmax"), [(name, softmax) for name in sorted(BEHAVIOUR_HEADS) for softmax in (True, False)]
)


@every_head
def test_a_request_reads_its_own_prefix_and_nothing_else(name: str, softmax: bool) -> None:
    module, (hidden, state, visible, candidate) = head(name, softmax), inputs()
    at_once = module(module.read(hidden), state, visible, candidate)
    for row in range(REQUESTS):
        own = hidden[state[row], : visible[row]][None]
        alone = module(
            module.read(own), torch.zeros(1, dtype=torch.int64), visible[row : row + 1], candidate[row][None]
        )
        torch.testing.assert_close(at_once[row], alone[0], rtol=1e-5, atol=1e-6)


@every_head
def test_what_comes_later_gets_no_gradient(name: str, softmax: bool) -> None:
    module, (hidden, _, _, candidate) = head(name, softmax), inputs()
    hidden.requires_grad_()
    visible = torch.tensor([3])
    module(module.read(hidden), torch.tensor([2]), visible, candidate[:1]).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[2, :3].abs().sum() > 0
    hidden.grad[2, :3] = 0
    assert hidden.grad.abs().sum() == 0


@every_head
def test_the_order_of_requests_does_not_matter(name: str, softmax: bool) -> None:
    module, (hidden, state, visible, candidate) = head(name, softmax), inputs()
    order = torch.randperm(REQUESTS)
    reading = module.read(hidden)
    torch.testing.assert_close(
        module(reading, state, visible, candidate)[order],
        module(reading, state[order], visible[order], candidate[order]),
        rtol=1e-6,
        atol=1e-6,
    )


def test_pool_is_the_mean_of_the_visible_values() -> None:
    module = PoolHead(2, 1)
    module.value.weight.data = torch.eye(2)
    hidden = torch.tensor([[[1.0, 10.0], [3.0, 20.0], [8.0, -3.0]]])
    zeros = torch.zeros(3, dtype=torch.int64)
    out = module(module.read(hidden), zeros, torch.tensor([1, 2, 3]), torch.zeros(3, 2))
    torch.testing.assert_close(out, torch.tensor([[1.0, 10.0], [2.0, 15.0], [4.0, 9.0]]))


@pytest.mark.parametrize("softmax", [True, False])
def test_din_with_a_split_first_layer_is_the_plain_one(softmax: bool) -> None:
    """The literal form: an MLP on [q, k, q - k, q * k] and one weight an event."""
    module, (hidden, state, visible, candidate) = head("din", softmax), inputs()
    assert isinstance(module, DinHead)
    w1, w2, w3, w4 = torch.randn(4, ATTENTION, ATTENTION)
    module.from_query.weight.data = w1 + w3
    module.from_key.weight.data = w2 - w3
    module.from_product.weight.data = w4
    whole = torch.cat((w1, w2, w3, w4), 1)
    result = module(module.read(hidden), state, visible, candidate)
    for row in range(REQUESTS):
        q, weights = module.query.weight @ candidate[row], []
        events = hidden[state[row], : visible[row]]
        for event in events:
            k = module.key.weight @ event
            inner = F.silu(whole @ torch.cat((q, k, q - k, q * k)) + module.from_query.bias)
            weights.append(module.weight.weight[0] @ inner + module.weight.bias[0])
        a = torch.stack(weights)
        expected = (a.softmax(0) if softmax else a) @ (events @ module.value.weight.T)
        torch.testing.assert_close(result[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("softmax", "factor"), [(True, 1), (False, 2)])
def test_the_same_events_twice(softmax: bool, factor: int) -> None:
    """Without a softmax the strength of an interest counts: twice the events, twice the output."""
    module, (hidden, _, _, candidate) = head("din", softmax), inputs()
    once, twice = hidden[:1, :4], hidden[:1, :4].repeat(1, 2, 1)
    zero = torch.zeros(1, dtype=torch.int64)
    a = module(module.read(once), zero, torch.tensor([4]), candidate[:1])
    b = module(module.read(twice), zero, torch.tensor([8]), candidate[:1])
    torch.testing.assert_close(factor * a, b)
