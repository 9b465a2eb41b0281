"""Products of as many rows as there happen to be: the values of the plain product, in few sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from recgpt.losses.next_item import next_item_loss
from recgpt.nn.rows import by_rows


class Sizes(TorchDispatchMode):
    """Remembers the sizes of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.met: set[tuple[torch.Size, ...]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.met.add(tuple(each.shape for each in args if isinstance(each, Tensor)))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(1, 8), (256, 8), (257, 8), (0, 8), (8,), (3, 5, 8), (300, 2, 8)])
def test_values_and_gradients_are_those_of_the_plain_product(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(8, 4).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found, expected = by_rows(linear, x), linear(x)
    torch.testing.assert_close(found, expected)
    g = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, (x, *linear.parameters()), g),
        torch.autograd.grad(expected, (x, *linear.parameters()), g),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_rows_of_many_counts_are_multiplied_in_few_sizes() -> None:
    linear = nn.Linear(8, 4)
    with Sizes() as sizes:
        for n in range(1, 700, 13):
            by_rows(linear, torch.randn(n, 8, requires_grad=True)).sum().backward()
    assert len(sizes.met) == 3 * 3  # three sizes; the product and its two gradients


def test_the_loss_of_batches_of_many_sizes_multiplies_few() -> None:
    with Sizes() as sizes:
        for n, u in ((1030, 130), (1100, 255), (1150, 201), (1027, 256)):
            q, v = torch.randn(n, 8, requires_grad=True), torch.randn(u, 8, requires_grad=True)
            positive = torch.randint(0, u, (n,))
            loss = next_item_loss(q, v, positive, temperature=0.5, offset=torch.zeros(u), dtype=torch.bfloat16)
            loss.backward()
    assert len(sizes.met) == 3 * 2  # whole chunks and the last one; three products each
