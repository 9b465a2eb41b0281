"""Each block against its publication's formula, written out slowly; what tells it from its look-alikes."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.nn.blocks import BLOCKS, Block, Frame, TransformerConfig
from recgpt.nn.positions import RelativeBias
from recgpt.nn.transformer import Transformer

T, D, H = 6, 8, 2


def heads(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block(name: str, **changes: object) -> Block:
    torch.manual_seed(1)
    config = TransformerConfig.model_validate({"dim": D, "heads": H, "positions": "none", "block": name} | changes)
    made = BLOCKS[name](config, 32).eval()
    made.initialise(config.layers)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return made


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal, head by head and query by query; [T, D] each."""
    out = torch.zeros_like(v)
    width = D // H
    for h in range(H):
        part = slice(h * width, (h + 1) * width)
        for i in range(len(q)):
            scores = torch.stack([q[i, part] @ k[j, part] / math.sqrt(width) for j in range(i + 1)])
            out[i, part] = sum(w * v[j, part] for j, w in enumerate(scores.softmax(0)))
    return out


def thirds(layer: nn.Linear, x: Tensor) -> tuple[Tensor, ...]:
    return layer(x).chunk(3, -1)


def sasrec(m: Block, x: Tensor) -> Tensor:
    normed = m.norm_attention(x)
    key, value = m.key_value(x).chunk(2, -1)
    x = normed + softmax_attention(m.query(normed), key, value)
    y = m.norm_feed_forward(x)
    return y + m.down(torch.relu(m.up(y)))


def ligr(m: Block, x: Tensor) -> Tensor:
    y = m.out(softmax_attention(*thirds(m.qkv, m.norm_attention(x))))
    x = x + torch.sigmoid(m.gate_attention(x)) * y
    gate, linear = m.up(m.norm_feed_forward(x)).chunk(2, -1)
    return x + torch.sigmoid(m.gate_feed_forward(x)) * m.down(gate * torch.sigmoid(gate) * linear)


def bert(m: Block, x: Tensor) -> Tensor:
    x = m.norm_attention(x + m.out(softmax_attention(*thirds(m.qkv, x))))
    return m.norm_feed_forward(x + m.down(F.gelu(m.up(x))))


def standard(m: Block, x: Tensor) -> Tensor:
    x = x + m.out(softmax_attention(*thirds(m.qkv, m.norm_attention(x))))
    gate, linear = m.up(m.norm_feed_forward(x)).chunk(2, -1)
    return x + m.down(gate * torch.sigmoid(gate) * linear)


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def hstu(m: Block, x: Tensor) -> Tensor:
    u, v, q, k = silu(layer_norm(x) @ m.uvqk.weight.T).chunk(4, -1)
    width, y = D // H, torch.zeros_like(x)
    for h in range(H):
        part = slice(h * width, (h + 1) * width)
        for i in range(len(x)):
            y[i, part] = sum(silu(q[i, part] @ k[j, part]) / 32 * v[j, part] for j in range(i + 1))
    return x + m.out(u * layer_norm(y))


@pytest.mark.parametrize(
    ("name", "formula"),
    [("standard", standard), ("sasrec", sasrec), ("ligr", ligr), ("bert", bert), ("hstu", hstu)],
)
def test_blocks_are_their_formulas(name: str, formula: object) -> None:
    made, x = block(name), heads(T, D)
    torch.testing.assert_close(made(x[None], Frame(None), None)[0][0], formula(made, x), atol=1e-5, rtol=1e-5)


def test_bert_norms_the_sum_of_events_and_positions() -> None:
    """So all that the blocks read is of one length, whatever the events' is."""
    config = TransformerConfig(dim=D, heads=H, layers=1, block="bert", positions="learned", dropout=0, causal=False)
    made, x = Transformer(config, T), heads(1, T, D)
    inner = F.layer_norm(x + made.positions.table.weight, (D,), eps=1e-12)
    expected = made.blocks[0](inner, Frame(None, causal=False), None)[0]
    torch.testing.assert_close(made(x)[0], expected)


def test_sasrec_alone_with_one_event() -> None:
    """One key has weight 1, so h = LN x + V x in closed form: no output projection; the residual is normed."""
    made, x = block("sasrec"), heads(1, 1, D)
    h = made.norm_attention(x) + made.key_value(x)[..., D:]
    y = made.norm_feed_forward(h)
    expected = y + made.down(F.relu(made.up(y)))
    torch.testing.assert_close(made(x, Frame(None), None)[0], expected)
    assert not any(each.startswith("out") for each, _ in made.named_parameters())


def test_sasrec_residual_is_normed() -> None:
    """With attention and feed-forward at zero the block is LN(LN x), and forgets the length of x."""
    made, x = block("sasrec"), heads(1, T, D)
    with torch.no_grad():
        for each in (made.query, made.key_value, made.up, made.down):
            each.weight.zero_()
            each.bias.zero_()
    out = made(x, Frame(None), None)[0]
    torch.testing.assert_close(out, made.norm_feed_forward(made.norm_attention(x)))
    torch.testing.assert_close(made(7 * x, Frame(None), None)[0], out)


def test_ligr_gates_read_the_input_before_the_norm() -> None:
    """LN(7 x) = LN x, so a pre-norm gate would add the same to 7 x as to x; a closed gate is the identity."""
    made, x = block("ligr"), heads(1, T, D)
    added, scaled = (made(scale * x, Frame(None), None)[0] - scale * x for scale in (1, 7))
    assert (added - scaled).abs().max() > 0.1
    with torch.no_grad():
        for gate in (made.gate_attention, made.gate_feed_forward):
            gate.weight.zero_()
            gate.bias.fill_(-100.0)
    assert torch.equal(made(x, Frame(None), None)[0], x)


def test_hstu_divides_by_a_constant() -> None:
    """A row's vectors are the same whoever else is in the batch, and however wide it is."""
    made, x = block("hstu"), heads(3, T, D)
    whole = made(x, Frame(None), None)[0]
    for rows, width in ((slice(0, 1), 6), (slice(1, 3), 4), (slice(2, 3), 1)):
        assert (made(x[rows, :width], Frame(None), None)[0] - whole[rows, :width]).abs().max() < 1e-6


def test_hstu_has_no_softmax() -> None:
    """A has no row sum of 1, may be negative, and its scale is undone by the norm that follows (but for its eps)."""
    made, x = block("hstu"), heads(1, T, D)
    collected: list[Tensor] = []
    made(x, Frame(None, weights=collected), None)
    assert (collected[0].sum(-1) - 1).abs().min() > 0.1
    assert collected[0].min() < 0
    assert (collected[0].triu(1) == 0).all()

    def with_scale(n: float) -> Tensor:
        made.length = n
        return made(x, Frame(None), None)[0]

    torch.testing.assert_close(with_scale(0.001), with_scale(0.002), atol=1e-4, rtol=1e-4)
    assert (with_scale(3200) - with_scale(6400)).abs().max() > 0.01


def test_hstu_norms_have_no_weights_and_heads_share_the_bias() -> None:
    made = block("hstu", bias={"distance": True, "time": True})
    shapes = {name: tuple(p.shape) for name, p in made.named_parameters()}
    assert shapes == {
        "bias.distance": (1, 63),
        "bias.time": (1, 129),
        "uvqk.weight": (4 * D, D),
        "out.weight": (D, D),
        "out.bias": (D,),
    }
    assert isinstance(block("standard", bias={"distance": True}).bias, RelativeBias)
    assert block("standard", bias={"distance": True}).bias.distance.shape == (H, 63)


def test_hstu_adds_the_bias_inside_silu() -> None:
    """A hidden key stays at 0 whatever the bias: the mask comes after SiLU."""
    made, x = block("hstu", bias={"distance": True}), heads(1, T, D)
    collected: list[Tensor] = []
    with torch.no_grad():
        made.uvqk.weight.zero_()  # scores are 0
        made.bias.distance.fill_(2.0)
    made(x, Frame(None, weights=collected), None)
    expected = torch.full((T, T), (2 / (1 + math.exp(-2))) / 32).tril()
    torch.testing.assert_close(collected[0][0, 0], expected)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_dropout_acts_in_training_alone(name: str) -> None:
    made, x = block(name, dropout=0.5), heads(1, T, D)
    quiet = made(x, Frame(None), None)[0]
    assert torch.equal(made(x, Frame(None), None)[0], quiet)
    made.train()
    assert (made(x, Frame(None), None)[0] - quiet).abs().max() > 0.01


@pytest.mark.parametrize(
    ("name", "weight", "std"),
    [
        ("hstu", "uvqk.weight", 0.02),
        ("bert", "up.weight", 0.02),
        ("sasrec", "key_value.weight", math.sqrt(2 / 128)),
        ("ligr", "qkv.weight", math.sqrt(2 / 128)),
        ("standard", "down.weight", 0.02 / math.sqrt(6)),
    ],
)
def test_start_values(name: str, weight: str, std: float) -> None:
    torch.manual_seed(0)
    config = TransformerConfig(dim=64, block=name, layers=3, positions="none")
    made = BLOCKS[name](config, 4)
    made.initialise(3)
    assert dict(made.named_parameters())[weight].std().item() == pytest.approx(std, rel=0.05)
