"""The transformer as a whole: caches, causality, padding, positions, attention weights; every block and position."""

import itertools

import pytest
import torch
from torch import Tensor

from recgpt.data.events import NO_TIME
from recgpt.nn.attention import ATTENTION
from recgpt.nn.blocks import BLOCKS
from recgpt.nn.dropout import dropout
from recgpt.nn.transformer import KeyValue, Transformer, TransformerConfig

BOTH = {"distance": True, "time": True}
FORMS = [
    {"block": block, "positions": positions, "bias": bias}
    for block, (positions, bias) in itertools.product(
        sorted(BLOCKS), [("rotary", {}), ("learned", BOTH), ("none", {"distance": True}), ("reverse", BOTH)]
    )
]
INCREMENTAL = [form for form in FORMS if form["positions"] != "reverse"]


def heads(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def times(n_sequences: int, n_positions: int, seed: int = 0) -> Tensor:
    """The first token's is unknown, and one more."""
    gaps = torch.randint(0, 10**9, (n_sequences, n_positions), generator=torch.Generator().manual_seed(seed))
    time = 1_600_000_000_000_000 + (gaps**2 // 10**4).cumsum(1)
    time[:, [0, 4]] = NO_TIME
    return time


def model(**changes: object) -> Transformer:
    torch.manual_seed(0)
    transformer = Transformer(TransformerConfig.model_validate({"dim": 16, "heads": 2} | changes), 32).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return transformer


def name(form: dict) -> str:
    return "-".join([str(form["block"]), str(form["positions"]), *form["bias"]])


def longer(past: list[KeyValue] | None, own: list[KeyValue]) -> list[KeyValue]:
    if past is None:
        return own
    return [(torch.cat((k, a), 2), torch.cat((v, b), 2)) for (k, v), (a, b) in zip(past, own, strict=True)]


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
    assert dropout(x, 0.999, True).mean().item() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("form", INCREMENTAL, ids=name)
def test_cached_pieces_equal_one_pass(form: dict) -> None:
    transformer, x, time = model(**form), heads(2, 20, 16), times(2, 20)
    whole, _ = transformer(x, time=time)
    parts: list[Tensor] = []
    past: list[KeyValue] | None = None
    for start, stop in ((0, 1), (1, 8), (8, 9), (9, 20)):
        hidden, own = transformer(x[:, start:stop], past, start, time=time[:, :stop])
        past = longer(past, own)
        parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS, ids=name)
def test_no_output_looks_ahead(form: dict) -> None:
    transformer, x = model(**form), heads(1, 9, 16).requires_grad_()
    hidden, _ = transformer(x, time=times(1, 9))
    for t in range(9):
        (gradient,) = torch.autograd.grad(hidden[0, t, :5].sum(), x, retain_graph=True)
        assert gradient[0, t + 1 :].abs().sum() == 0
        assert (gradient[0, : t + 1].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", FORMS, ids=name)
def test_one_position_asked_for_is_that_of_the_whole_pass(form: dict, causal: bool) -> None:
    transformer, x, time = model(**form, causal=causal), heads(4, 9, 16), times(4, 9)
    whole, _ = transformer(x, time=time)
    at = torch.tensor([8, 0, 3, 5])
    asked, _ = transformer(x, time=time, at=at)
    torch.testing.assert_close(asked[:, 0], whole[torch.arange(4), at], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="attention weights are of all positions"):
        transformer(x, time=time, at=at, weights=[])


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_both_ways_every_output_sees_every_input(block: str) -> None:
    transformer, x = model(block=block, causal=False), heads(1, 6, 16).requires_grad_()
    hidden, _ = transformer(x)
    for t in range(6):
        (gradient,) = torch.autograd.grad(hidden[0, t, :5].sum(), x, retain_graph=True)
        assert (gradient[0].abs().sum(-1) > 0).all()


def padded(x: Tensor, left: int, right: int, seed: int) -> tuple[Tensor, Tensor]:
    """x with random content around it, and where it is real."""
    B, T, D = x.shape
    parts = heads(B, left, D, seed=seed) * 10, x, heads(B, right, D, seed=seed + 1) * 10
    real = torch.zeros(B, left + T + right, dtype=torch.bool)
    real[:, left : left + T] = True
    return torch.cat(parts, 1), real


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", [form for form in FORMS if form["positions"] != "learned"], ids=name)
def test_padding_changes_no_output(form: dict, causal: bool) -> None:
    """On the left or the right: with a key mask, and positions that count later events or distances."""
    transformer, x, time = model(causal=causal, **form), heads(2, 7, 16), times(2, 7)
    alone, _ = transformer(x, time=time)
    for left, right in ((1, 0), (5, 0), (0, 4), (3, 2)):
        wide, real = padded(x, left, right, seed=left)
        around = torch.full((2, left), NO_TIME), time, times(2, 9)[:, :right]
        hidden, _ = transformer(wide, real=real, time=torch.cat(around, 1))
        torch.testing.assert_close(hidden[:, left : left + 7], alone, atol=3e-6, rtol=1e-5)
        assert hidden.isfinite().all()


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_reverse_positions_survive_left_padding_and_forward_ones_do_not(block: str) -> None:
    x = heads(2, 7, 16)
    wide, real = padded(x, 5, 0, seed=3)
    for positions in ("reverse", "learned"):
        transformer = model(block=block, positions=positions)
        alone, shifted = transformer(x, real=torch.ones(2, 7).bool())[0], transformer(wide, real=real)[0][:, 5:]
        if positions == "reverse":
            torch.testing.assert_close(shifted, alone, atol=1e-6, rtol=1e-6)
        else:
            assert ((shifted - alone).abs().amax(-1) > 1e-3).all()


def test_reverse_positions_move_old_events_and_only_they() -> None:
    x = heads(1, 7, 16)
    for positions, moves in (("reverse", True), ("learned", False), ("rotary", False), ("none", False)):
        transformer = model(positions=positions)
        moved = (transformer(x)[0][:, :6] - transformer(x[:, :6])[0]).abs().amax(-1)
        assert bool((moved[:, 1:] > 1e-3).all()) == moves  # the first token has a row of its own
        assert moved[:, 0].max() < 1e-6
        assert transformer.incremental != moves
    assert not model(causal=False).incremental


def test_hidden_padding_is_not_read_where_it_comes_first_in_part_of_a_batch() -> None:
    """One row padded on the left is enough for the mask to be used."""
    transformer, x = model(), heads(2, 8, 16)
    real = torch.ones(2, 8).bool()
    real[1, :3] = False
    spoilt = x.masked_fill(~real[..., None], 1e3)
    torch.testing.assert_close(transformer(spoilt, real=real)[0][real], transformer(x, real=real)[0][real])


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_time_bias_reads_the_gaps_and_not_the_moment(block: str) -> None:
    transformer, x, time = model(block=block, bias={"time": True}), heads(1, 8, 16), times(1, 8)
    later = time.where(time == NO_TIME, time + 86_400 * 10**6)
    assert torch.equal(transformer(x, time=time)[0], transformer(x, time=later)[0])
    stretched = time.where(time == NO_TIME, time + torch.arange(8) * 86_400 * 10**6)
    moved = (transformer(x, time=time)[0] - transformer(x, time=stretched)[0]).abs().amax(-1)[0]
    assert moved[0] == 0
    assert (moved[[2, 3, 5, 6, 7]] > 1e-4).all()
    unknown = torch.full_like(time, NO_TIME)
    assert (transformer(x, time=time)[0] - transformer(x, time=unknown)[0]).abs().max() > 1e-4


@pytest.mark.parametrize("block", sorted(set(BLOCKS) - {"hstu"}))
@pytest.mark.parametrize("backend", ["auto", "matmul", "sdpa"])
def test_backends_give_one_model(block: str, backend: str) -> None:
    x, time = heads(2, 12, 16), times(2, 12)
    form = {"block": block, "bias": BOTH}
    torch.testing.assert_close(
        model(attention=backend, **form)(x, time=time)[0],
        model(attention="reference", **form)(x, time=time)[0],
        atol=1e-5,
        rtol=1e-5,
    )
    assert backend in ATTENTION


@pytest.mark.parametrize("form", FORMS, ids=name)
def test_attention_weights_are_what_the_blocks_use(form: dict) -> None:
    """One entry a layer, causal, and rows of softmax blocks sum to 1; a planted distance bias is found."""
    transformer, x, time = model(**form), heads(2, 10, 16), times(2, 10)
    found = transformer.attention_weights(x, time=time)
    assert [tuple(w.shape) for w in found] == [(2, 2, 10, 10)] * 2
    for w in found:
        assert (w.triu(1) == 0).all()
        if form["block"] != "hstu":
            torch.testing.assert_close(w.sum(-1), torch.ones(2, 2, 10))
    if "distance" in form["bias"]:
        planted = transformer.blocks[0].bias.distance
        with torch.no_grad():
            planted.fill_(-30.0)
            planted[:, 32 - 1 - 3] = 30.0  # a key three positions before the query
        w = transformer.attention_weights(x, time=time)[0]
        largest = w[:, :, 3:].argmax(-1)
        assert torch.equal(largest, torch.arange(7).expand(2, 2, 7))


def test_parts_that_are_off_have_no_parameters() -> None:
    """The default model's parameters, by name: those that the model folders of earlier releases hold."""
    block = ["norm_attention", "norm_feed_forward", "qkv", "out", "up", "down"]
    expected = [f"blocks.{layer}.{part}.weight" for layer in range(2) for part in block] + ["norm.weight"]
    assert [each for each, _ in model().named_parameters()] == expected
    assert sorted(model().state_dict()) == sorted(expected)


def test_every_form_trains() -> None:
    """Every parameter gets a gradient, in bfloat16 products as well, dropout on."""
    for form in FORMS:
        for dtype in (torch.float32, torch.bfloat16):
            transformer = model(**form).train()
            with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
                hidden, _ = transformer(heads(2, 9, 16), time=times(2, 9))
            (hidden.float() * heads(2, 9, 16, seed=1)).sum().backward()
            for each, parameter in transformer.named_parameters():
                assert parameter.grad is not None, (form, each)
                assert parameter.grad.isfinite().all(), (form, each)
                assert parameter.grad.abs().sum() > 0, (form, each)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads: 3 must divide dim 16"):
        TransformerConfig(dim=16, heads=3)
    with pytest.raises(ValueError, match="heads: 2 must divide dim 50 into an even width"):
        TransformerConfig(dim=50, heads=2)
    assert TransformerConfig(dim=50, heads=2, positions="learned").incremental
    with pytest.raises(ValueError, match="heads: 3 must divide dim 50"):
        TransformerConfig(dim=50, heads=3, positions="learned")
