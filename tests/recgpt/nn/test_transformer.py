"""Attention backends against the reference, rotary positions, caches, causality."""

import math

import pytest
import torch

from recgpt.nn.attention import ATTENTION, Rotary, reference
from recgpt.nn.dropout import dropout
from recgpt.nn.transformer import Transformer, TransformerConfig


def heads(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", sorted(ATTENTION))
@pytest.mark.parametrize("n_queries", [1, 3, 7])
def test_backends_equal_the_reference(name: str, n_queries: int) -> None:
    q, k, v = heads(2, 3, n_queries, 4), heads(2, 3, 7, 4, seed=1), heads(2, 3, 7, 4, seed=2)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    slow = [x.clone().double().requires_grad_() for x in (q, k, v)]
    out, expected = ATTENTION[name](*leaves), reference(*slow)
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-5)
    out.square().sum().backward()
    expected.square().sum().backward()
    for leaf, other in zip(leaves, slow, strict=True):
        torch.testing.assert_close(leaf.grad, other.grad.float(), atol=1e-4, rtol=1e-4)


def test_reference_by_hand() -> None:
    """One head of width 1: the second query sees both keys with scores 0 and log 3 -> weights 1/4 and 3/4."""
    q = torch.tensor([[[[5.0], [1.0]]]])
    k = torch.tensor([[[[0.0], [1.0986123]]]])
    v = torch.tensor([[[[8.0], [4.0]]]])
    torch.testing.assert_close(reference(q, k, v)[0, 0, :, 0], torch.tensor([8.0, 0.25 * 8 + 0.75 * 4]))


def test_rotary_scores_depend_on_distance_alone() -> None:
    rotary = Rotary(8, 64)
    q, k = heads(1, 1, 8), heads(1, 1, 8, seed=1)
    near = [(rotary(q, i + 5) * rotary(k, i)).sum() for i in range(0, 50, 7)]
    torch.testing.assert_close(torch.stack(near), near[0].expand(len(near)), atol=1e-5, rtol=1e-5)
    assert abs((rotary(q, 9) * rotary(k, 0)).sum() - near[0]) > 1e-3
    torch.testing.assert_close(rotary(q, 17).norm(), q.norm())


def test_rotary_by_hand() -> None:
    """The first pair turns by one radian a position, whatever the axes between."""
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(1, 3, 2, 5, 4)
    turned = Rotary(4, 8)(x, start=2)
    for t in range(3):
        expected = torch.tensor([math.cos(2 + t), math.sin(2 + t), -math.sin((2 + t) / 100), math.cos((2 + t) / 100)])
        torch.testing.assert_close(turned[0, t], expected.expand(2, 5, 4))


def test_dropout_keeps_the_mean_and_its_share() -> None:
    torch.manual_seed(0)
    x = torch.ones(100_003, requires_grad=True)
    y = dropout(x, 0.2, True)
    assert (y == 0).float().mean().item() == pytest.approx(51 / 256, abs=0.005)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(dropout(x, 0.2, False), x)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, 0.2, True), y)


def model(**changes: object) -> Transformer:
    torch.manual_seed(0)
    transformer = Transformer(TransformerConfig.model_validate({"dim": 16, "heads": 2} | changes), 32).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return transformer


def test_cached_pieces_equal_one_pass() -> None:
    transformer, x = model(), heads(2, 20, 16)
    whole, _ = transformer(x)
    parts, past = [], None
    for start, stop in ((0, 1), (1, 8), (8, 9), (9, 20)):
        hidden, own = transformer(x[:, start:stop], past, start)
        past = (
            own
            if past is None
            else [(torch.cat((k, a), 2), torch.cat((v, b), 2)) for (k, v), (a, b) in zip(past, own, strict=True)]
        )
        parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


def test_backends_give_one_model() -> None:
    x = heads(2, 20, 16)
    torch.testing.assert_close(model(attention="sdpa")(x)[0], model(attention="reference")(x)[0], atol=1e-5, rtol=1e-5)


def test_no_output_looks_ahead() -> None:
    transformer, x = model(), heads(1, 12, 16).requires_grad_()
    hidden, _ = transformer(x)
    for t in range(12):
        (gradient,) = torch.autograd.grad(hidden[0, t].sum(), x, retain_graph=True)
        assert gradient[0, t + 1 :].abs().max() == 0 if t < 11 else True
        assert (gradient[0, : t + 1].abs().sum(-1) > 0).all()


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads: 3 must divide dim 16"):
        TransformerConfig(dim=16, heads=3)
