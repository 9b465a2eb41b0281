"""Embeddings of categories and yes/no values, and the modules that a schema asks for."""

import math

import pytest
import torch

from recgpt.nn.features import BinaryEmbedding, CategoricalEmbedding, feature_modules, is_known
from recgpt.nn.numbers import NUMERIC_EMBEDDINGS

KINDS = {"a": "categorical", "b": "binary", "c": "numeric", "d": "regression", "e": "watch_time"}
VALUES = {
    "categorical": (torch.tensor([7, 0, -7, 7]), 1),
    "number": (torch.tensor([1.0, math.nan, 0.0, 1.0]), 1),
}


@pytest.mark.parametrize("numeric", sorted(NUMERIC_EMBEDDINGS))
def test_every_kind_keeps_the_contract(numeric: str) -> None:
    modules = feature_modules(KINDS, 8, numeric, std=0.5)
    assert list(modules) == list(KINDS)
    for name, kind in KINDS.items():
        values, unknown = VALUES["categorical" if kind == "categorical" else "number"]
        vectors = modules[name](values)
        assert vectors.shape == (4, 8)
        assert vectors[unknown].abs().max() == 0
        assert torch.allclose(vectors[0], vectors[3], atol=1e-6)
        assert (vectors[0] - vectors[2]).abs().max() > 1e-3
        assert 0.1 < vectors[0].std() < 1.5  # the asked deviation
    for name in ("c", "d", "e"):
        assert type(modules[name]) is NUMERIC_EMBEDDINGS[numeric]


def test_categories_of_both_signs_spread_over_the_table() -> None:
    embed = CategoricalEmbedding(4, rows=64)
    vectors = embed(torch.arange(-500, 500))
    assert vectors[500].abs().max() == 0
    distinct = len(vectors.round(decimals=6).unique(dim=0))
    # 999 draws of 2,016 pairs (1 in 2,048 each) and 64 twins (1 in 4,096): 792 different ones, and zero
    assert distinct == pytest.approx(793, abs=50)


def test_several_categories_are_a_sum_over_the_root_of_their_number() -> None:
    one, several = (feature_modules({"tags": kind}, 8, std=0.5)["tags"] for kind in ("categorical", "categories"))
    several.load_state_dict({f"one.{name}": value for name, value in one.state_dict().items()})
    a, b, c = one(torch.tensor([7, -8, 9]))
    vectors = several(torch.tensor([[7, 0, 0], [7, -8, 0], [9, 7, -8], [0, 0, 0]]))
    torch.testing.assert_close(vectors, torch.stack((a, (a + b) / 2**0.5, (a + b + c) / 3**0.5, torch.zeros(8))))
    slope = torch.randn(4, 8)
    (vectors * slope).sum().backward()
    (torch.stack((a, (a + b) / 2**0.5, (a + b + c) / 3**0.5)) * slope[:3]).sum().backward()
    torch.testing.assert_close(several.one.table.weight.grad, one.table.weight.grad)
    assert torch.equal(several(torch.zeros(2, 3, dtype=torch.int64)), torch.zeros(2, 8))
    lists = torch.randint(-5, 5, (50, 6))
    torch.testing.assert_close(several.sum_of_known(lists), several.one(lists).sum(1))  # as on other devices
    assert is_known(torch.tensor([[0, 0], [0, 3], [4, 0]])).tolist() == [False, True, True]


def test_binary_values_have_a_vector_each() -> None:
    embed = BinaryEmbedding(4)
    vectors = embed(torch.tensor([0.0, 1.0, math.nan]))
    assert torch.equal(vectors[:2], embed.table.weight[1:])
    vectors.sum().backward()
    assert embed.table.weight.grad[0].abs().max() == 0
