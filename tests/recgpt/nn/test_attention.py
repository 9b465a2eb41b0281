"""Attention backends against the reference: causal, cached, with a bias, with padding, looking both ways."""

import sys
import types

import pytest
import torch
from torch.nn import functional as F

from recgpt.errors import ConfigError
from recgpt.nn import attention
from recgpt.nn.attention import ATTENTION, backend, missing, reference, visible, weights
from recgpt.nn.transformer import TransformerConfig

CPU_BACKENDS = ["auto", "matmul", "sdpa", "xformers"]
HERE = ["", "bias", "bias per head", "padding", "both ways", "all"]


def heads(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def options(case: str, n_queries: int) -> tuple[torch.Tensor | None, torch.Tensor | None, bool]:
    bias = {"bias": heads(1, 1, n_queries, 7, seed=3), "bias per head": heads(2, 3, n_queries, 7, seed=4)}.get(
        case, heads(2, 1, n_queries, 7, seed=5) if case == "all" else None
    )
    real = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]]).bool() if case in ("padding", "all") else None
    return bias, real, case not in ("both ways", "all")


def operands(n_queries: int) -> list[torch.Tensor]:
    return [heads(2, 3, n_queries, 4), heads(2, 3, 7, 4, seed=1), heads(2, 3, 7, 4, seed=2)]


@pytest.mark.parametrize("case", HERE)
@pytest.mark.parametrize("name", CPU_BACKENDS)
@pytest.mark.parametrize("n_queries", [1, 3, 7])
def test_backends_equal_the_reference(name: str, n_queries: int, case: str) -> None:
    """Values, and gradients of queries, keys, values and bias."""
    _equals(name, n_queries, case)


@pytest.mark.parametrize("case", HERE)
@pytest.mark.parametrize("n_queries", [1, 6, 7])
def test_halves_equal_the_reference(n_queries: int, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long causal sequence is computed in two halves; here 6 positions and more are long."""
    monkeypatch.setattr(attention, "_HALVED", 6)
    _equals("matmul", n_queries, case)


def _equals(name: str, n_queries: int, case: str) -> None:
    bias, real, causal = options(case, n_queries)
    given = [*operands(n_queries), *([] if bias is None else [bias])]
    leaves = [x.clone().requires_grad_() for x in given]
    slow = [x.clone().double().requires_grad_() for x in given]
    more, slow_more = (parts[3] if bias is not None else None for parts in (leaves, slow))
    out = ATTENTION[name](*leaves[:3], more, real, causal)
    expected = reference(*slow[:3], slow_more, real, causal)
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-5)
    out.square().sum().backward()
    expected.square().sum().backward()
    for leaf, other in zip(leaves, slow, strict=True):
        torch.testing.assert_close(leaf.grad, other.grad.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("case", HERE)
@pytest.mark.parametrize("n_queries", [1, 7])
def test_flex_equals_the_reference(n_queries: int, case: str) -> None:
    """Values alone: torch has no backward pass for it on CPU."""
    torch.testing.assert_close(
        ATTENTION["flex"](*operands(n_queries), *options(case, n_queries)),
        reference(*operands(n_queries), *options(case, n_queries)),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex and xformers train on a CUDA GPU alone; none is here")
@pytest.mark.parametrize("name", ["flex", "xformers"])
@pytest.mark.parametrize("case", HERE)
def test_gpu_backends_equal_the_reference(name: str, case: str) -> None:
    if missing(name):
        pytest.skip(str(missing(name)))
    given, (bias, real, causal) = [heads(2, 3, 7, 16, seed=i).cuda() for i in range(3)], options(case, 7)
    bias, real = (None if part is None else part.cuda() for part in (bias, real))
    leaves = [x.clone().requires_grad_() for x in given]
    slow = [x.clone().requires_grad_() for x in given]
    out, expected = ATTENTION[name](*leaves, bias, real, causal), reference(*slow, bias, real, causal)
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=1e-3)
    out.square().sum().backward()
    expected.square().sum().backward()
    for leaf, other in zip(leaves, slow, strict=True):
        torch.testing.assert_close(leaf.grad, other.grad, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("case", HERE)
def test_xformers_is_called_as_it_documents(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """A stand-in with its layout [B, T, H, d] and its demand on the bias: rows that start at multiples of 8 entries."""

    def stand_in(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_bias: torch.Tensor | None) -> torch.Tensor:
        if attn_bias is not None:
            assert attn_bias.shape == (len(q), q.shape[2], q.shape[1], k.shape[1])
            assert all(step % 8 == 0 for step in attn_bias.stride()[:-1])
        parts = [part.transpose(1, 2) for part in (q, k, v)]
        return F.scaled_dot_product_attention(*parts, attn_mask=attn_bias).transpose(1, 2)

    module = types.ModuleType("xformers.ops")
    module.memory_efficient_attention = stand_in
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", module)
    (q, k, v), (bias, real, causal) = operands(3), options(case, 3)
    out = attention._xformers(q, k, v, bias, visible(3, real, causal, k))
    torch.testing.assert_close(out, reference(q, k, v, bias, real, causal), atol=1e-5, rtol=1e-5)


def test_reference_by_hand() -> None:
    """One head of width 1: the second query sees both keys with scores 0 and log 3 -> weights 1/4 and 3/4."""
    q = torch.tensor([[[[5.0], [1.0]]]])
    k = torch.tensor([[[[0.0], [1.0986123]]]])
    v = torch.tensor([[[[8.0], [4.0]]]])
    torch.testing.assert_close(reference(q, k, v)[0, 0, :, 0], torch.tensor([8.0, 0.25 * 8 + 0.75 * 4]))


def test_bias_by_hand() -> None:
    """Zero scores and a bias of log 3 on the first key: it weighs 3 of 4; both ways, the first query sees both."""
    q, k = torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 1)
    bias = torch.tensor([[1.0986123, 0.0], [1.0986123, 0.0]])[None, None]
    torch.testing.assert_close(weights(q, k, bias)[0, 0], torch.tensor([[1.0, 0.0], [0.75, 0.25]]))
    torch.testing.assert_close(weights(q, k, bias, causal=False)[0, 0], torch.tensor([[0.75, 0.25], [0.75, 0.25]]))


def test_visible_by_hand() -> None:
    """Padding on the left hides its key from all but its own query."""
    k = torch.zeros(1, 1, 3, 1)
    real = torch.tensor([[False, True, True]])
    assert visible(3, None, False, k) is None
    assert visible(2, None, True, k).tolist() == [[True, True, False], [True, True, True]]
    expected = [[True, False, False], [False, True, False], [False, True, True]]
    assert visible(3, real, True, k)[0, 0].tolist() == expected
    expected = [[True, True, True], [False, True, True], [False, True, True]]
    assert visible(3, real, False, k)[0, 0].tolist() == expected


def test_padding_has_no_say() -> None:
    q, k, v = operands(7)
    real = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]]).bool()
    spoilt = [part.masked_fill(~real[:, None, :, None], 1e4) for part in (k, v)]
    for name in CPU_BACKENDS:
        out, other = ATTENTION[name](q, k, v, None, real), ATTENTION[name](q, *spoilt, None, real)
        rows = real[:, None, :, None].expand_as(out)
        assert torch.equal(out[rows], other[rows])
        assert out.isfinite().all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU says")
@pytest.mark.parametrize("name", ["flex", "xformers"])
def test_a_backend_that_cannot_run_says_so(name: str) -> None:
    with pytest.raises(ConfigError, match=f"model.attention: {name} needs a CUDA GPU .*; set model.attention to auto"):
        backend(name)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"xformers needs the package xformers .*recgpt\[gpu\]"):
        backend("xformers")
    assert backend("flex") is ATTENTION["flex"]


def test_the_config_offers_every_backend() -> None:
    for name in ATTENTION:
        assert TransformerConfig.model_validate({"attention": name}).attention == name
    with pytest.raises(ValueError, match="attention"):
        TransformerConfig.model_validate({"attention": "flash"})


def test_auto_multiplies_in_bfloat16_and_fuses_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for name in ("matmul", "sdpa"):
        monkeypatch.setattr(f"recgpt.nn.attention.{name}", lambda *given, name=name: taken.append(name))
    for dtype in (torch.bfloat16, torch.float32):
        q = torch.zeros(1, 1, 2, 4, dtype=dtype)
        ATTENTION["auto"](q, q, q)
    assert taken == ["matmul", "sdpa"]
