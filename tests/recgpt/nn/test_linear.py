"""Linear layers through oneDNN: the same numbers as torch's own, wherever they are called from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recgpt.nn import linear as module
from recgpt.nn.linear import Linear, few_sizes, linear, swiglu

ROWS = 1024  # from here on oneDNN computes, where sizes are few and nothing is differentiated


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What oneDNN was asked for, in order."""
    if not module._types():
        pytest.skip("torch is built without oneDNN's named products")
    calls: list[str] = []
    whole = torch.ops.mkldnn._linear_pointwise

    class Watched:
        def __call__(self, *arguments: object) -> Tensor:
            calls.append(str(arguments[3]))
            return whole(*arguments)

        def binary(self, *arguments: object) -> Tensor:
            calls.append(str(arguments[4]))
            return whole.binary(*arguments)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", Watched())
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(ROWS, 24), (8, ROWS // 8, 24), (8, ROWS // 8 - 1, 24), (0, 24), (5, 0, 24)])
def test_a_layer_is_x_w_plus_b(shape: tuple[int, ...], bias: bool) -> None:
    layer = Linear(24, 40, bias=bias)
    x = drawn(*shape)
    exact = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    with few_sizes(), torch.no_grad():
        torch.testing.assert_close(layer(x).double(), exact, rtol=0, atol=2e-6)


def test_float32_products_of_many_rows_are_onednns(called: list[str]) -> None:
    layer, x = Linear(24, 40), drawn(8, ROWS // 8, 24)
    with few_sizes(), torch.no_grad():
        layer(x)
        assert called == ["none"]
        layer(x[:, :-1])  # fewer rows
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)  # torch's own call of oneDNN
    assert called == ["none"]
    with torch.no_grad():
        layer(x)  # sizes need not be few here
    assert called == ["none"]


def test_a_product_of_a_slice_of_the_weights_over_strided_rows() -> None:
    weight, x = drawn(72, 24), drawn(24, ROWS, seed=1).T
    with few_sizes(), torch.no_grad():
        torch.testing.assert_close(linear(x, weight[24:]), x @ weight[24:].T, rtol=0, atol=2e-5)


def test_gradients_pass_through_many_rows(called: list[str]) -> None:
    layer, x = Linear(24, 40), drawn(ROWS, 24).requires_grad_()
    with few_sizes():
        layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(ROWS, -1))
    torch.testing.assert_close(layer.weight.grad, x.detach().sum(0).expand(40, -1), rtol=1e-5, atol=1e-4)
    with few_sizes():
        swiglu(x, layer.weight).sum().backward()
    assert called == []


@pytest.mark.parametrize("rows", [3, ROWS])
def test_swiglu_by_hand(rows: int) -> None:
    x, up = drawn(rows, 24), drawn(40, 24, seed=1)
    a, b = x.double() @ up[:20].double().T, x.double() @ up[20:].double().T
    with few_sizes(), torch.no_grad():
        torch.testing.assert_close(swiglu(x, up).double(), a / (1 + (-a).exp()) * b, rtol=1e-5, atol=1e-5)


def test_swiglu_in_autocasts_type(called: list[str]) -> None:
    x, up = drawn(ROWS, 24), drawn(40, 24, seed=1) / 24**0.5
    gate, value = F.linear(x, up).chunk(2, -1)
    with few_sizes(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = swiglu(x, up)
        plain = swiglu(x[:3], up)
    assert called == ["swish", "mul"]
    assert y.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), F.silu(gate) * value, rtol=0.05, atol=0.05)
    torch.testing.assert_close(y[:3], plain, rtol=0.05, atol=0.05)


def test_without_onednn_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(24, 40), drawn(ROWS, 24)
    with few_sizes(), torch.no_grad():
        fast, gated = layer(x), swiglu(x, layer.weight)
        monkeypatch.setattr(module, "_types", tuple)
        torch.testing.assert_close(layer(x), fast, rtol=0, atol=2e-6)
        torch.testing.assert_close(swiglu(x, layer.weight), gated, rtol=1e-5, atol=2e-6)
