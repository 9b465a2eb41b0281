"""Contract of every embedding of numbers, and each one's own arithmetic."""

import math

import pytest
import torch

from recgpt.nn.numbers import (
    NUMERIC_EMBEDDINGS,
    BucketEmbedding,
    KnotEmbedding,
    LogEmbedding,
    NumeralEmbedding,
    numeral_rows,
)
from recgpt.train.optim import table_parameters

NAN = math.nan
SPREAD = [0.0, -0.0, 1e-30, 0.25, 1.0, -1.0, 3.5, 63.0, 64.0, 1e6, -7e8, 1e12, -1e15, 3.4e38, -3.4e38]


@pytest.fixture(params=sorted(NUMERIC_EMBEDDINGS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def build(kind: str, dim: int = 8, std: float = 0.02) -> torch.nn.Module:
    torch.manual_seed(0)
    return NUMERIC_EMBEDDINGS[kind](dim, std=std)


def test_contract_shape_and_unknown(kind: str) -> None:
    embed = build(kind)
    values = torch.tensor([[NAN, 2.0, -5.0], [2.0, NAN, 0.0]])
    vectors = embed(values)
    assert vectors.shape == (2, 3, 8)
    assert vectors[0, 0].abs().max() == vectors[1, 1].abs().max() == 0
    assert torch.allclose(vectors[0, 1], vectors[1, 0], atol=1e-7)
    assert vectors[0, 2].abs().max() > 0
    assert vectors[1, 2].abs().max() > 0  # the number 0 is known
    assert embed(torch.zeros(0, 3)).shape == (0, 3, 8)


def test_contract_unknown_gives_no_gradient(kind: str) -> None:
    embed = build(kind)
    embed(torch.full((4,), NAN)).square().sum().backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in embed.parameters())
    embed(torch.tensor([3.0])).sum().backward()
    assert any(p.grad.abs().max() > 0 for p in embed.parameters() if p.grad is not None)


def test_contract_every_finite_number_has_a_finite_vector(kind: str) -> None:
    vectors = build(kind)(torch.tensor(SPREAD))
    assert vectors.isfinite().all()
    assert torch.allclose(vectors[0], vectors[1], atol=1e-7)  # -0 is 0


def test_contract_a_vector_depends_on_its_number_alone(kind: str) -> None:
    embed = build(kind)
    values = torch.tensor([*SPREAD, NAN])
    alone = torch.stack([embed(value) for value in values])
    assert torch.allclose(embed(values), alone, atol=1e-6)
    assert torch.allclose(embed(values.flip(0)).flip(0), alone, atol=1e-6)


def test_contract_sign_and_size_are_told_apart(kind: str) -> None:
    vectors = build(kind)(torch.tensor([-30.0, -1.0, -0.2, 0.0, 0.2, 1.0, 30.0, 30000.0]))
    distance = torch.cdist(vectors, vectors) + torch.eye(8)
    assert distance.min() > 1e-4


def test_contract_scale_at_the_start(kind: str) -> None:
    """Entries of common sizes start near the asked deviation."""
    embed = build(kind, dim=512, std=0.05)
    assert embed(torch.tensor([1.0, 20.0, 400.0])).std().item() == pytest.approx(0.05, rel=0.35)


def test_contract_tables_are_known_to_the_optimiser(kind: str) -> None:
    """No matrix decays: every parameter is a vector or the table of an embedding."""
    embed = build(kind)
    tables = table_parameters(embed)
    assert all(p.ndim < 2 or id(p) in tables for p in embed.parameters())


def test_knots_are_a_straight_line_at_the_start_and_continuous() -> None:
    embed = KnotEmbedding(4)
    x = torch.sinh(torch.tensor([-3.0, -1.0, 1.0, 3.0, 5.0]))
    line = embed(x)
    assert torch.allclose((line[1:] - line[:-1]), (line[1] - line[0]).expand(4, 4), atol=1e-6)
    with torch.no_grad():
        embed.table.weight.normal_()
    knots = torch.sinh((torch.arange(163) - 81) * KnotEmbedding.STEP)[60:100]
    assert torch.allclose(embed(knots * 0.9999), embed(knots * 1.0001), atol=5e-3)
    assert torch.allclose(embed(knots), embed.table.weight[60:100], atol=1e-3)


def test_log_by_hand() -> None:
    embed = LogEmbedding(2)
    with torch.no_grad():
        embed.level.copy_(torch.tensor([1.0, 0.0]))
        embed.slope.copy_(torch.tensor([0.0, 1.0]))
    vectors = embed(torch.tensor([0.0, 999.0, -999.0, 999_999.0, NAN]))
    expected = [[1.0, 0.0], [1.0, 1.0], [1.0, -1.0], [1.0, 2.0], [0.0, 0.0]]
    assert torch.allclose(vectors, torch.tensor(expected), atol=1e-6)


def test_buckets_by_hand() -> None:
    embed = BucketEmbedding(4)
    values = torch.tensor([0.0, 1.0, 1.4, 1.42, 1.99, 2.0, -1.0, -2.0, 2.0**-10, 1e-20, 2.0**40, 3e38])
    rows = embed.rows(values).tolist()
    one = 100 + 1 + 20  # zero, then ten octaves below 1, two buckets each
    assert rows == [100, one, one, one + 1, one + 1, one + 2, 200 - one, 198 - one, 101, 101, 200, 200]


def test_numeral_rows_of_51() -> None:
    """The paper's example (Pan et al. 2024): 110011, 001220, 000051, the highest digit first."""
    value = torch.tensor(51)
    assert numeral_rows(value, 2, 6).flip(0).tolist() == [11, 9, 6, 4, 3, 1]
    assert numeral_rows(value, 3, 6).flip(0).tolist() == [15, 12, 10, 8, 5, 0]
    assert numeral_rows(value, 10, 6).flip(0).tolist() == [50, 40, 30, 20, 15, 1]


@pytest.mark.parametrize(("base", "length"), [(2, 9), (3, 6), (10, 3)])
def test_numerals_are_injective(base: int, length: int) -> None:
    values = torch.arange(base**length)
    rows = numeral_rows(values, base, length)
    assert len(rows.unique(dim=0)) == len(values)
    assert (rows // base == torch.arange(length)).all()  # every place has rows of its own
    assert torch.equal((rows % base * base ** torch.arange(length)).sum(-1), values)
    assert torch.equal(numeral_rows(values.int(), base, length), rows)


def test_neighbours_share_digits_in_some_base() -> None:
    """63 -> 64 flips seven binary digits and one ternary digit."""
    rows = [numeral_rows(torch.tensor([63, 64]), base, 7) for base in (2, 3)]
    assert [(each[0] != each[1]).sum().item() for each in rows] == [7, 1]


def digits(rows: torch.Tensor, place: int) -> list[list[int]]:
    """Digits of the numeral in the `place`-th base, the highest first, from rows of the whole table."""
    sizes = [(base, whole + fraction) for base, whole, fraction in NumeralEmbedding.BASES]
    start = 1 + sum(length for _, length in sizes[:place])
    base, length = sizes[place]
    first = 2 + sum(b * n for b, n in sizes[:place])
    return [[(row - first) % base for row in each[start : start + length]][::-1] for each in rows.tolist()]


def test_numerals_write_sign_whole_part_and_fraction() -> None:
    rows = NumeralEmbedding(4).rows(torch.tensor([5.25, -5.25, 2e12, -3e38, 0.0]))
    assert rows[:, 0].tolist() == [0, 1, 0, 1, 0]
    binary, decimal = digits(rows, 0), digits(rows, 2)
    assert binary[0] == [0] * 37 + [1, 0, 1] + [0, 1] + [0] * 8  # 101.01
    assert binary[1] == binary[0]
    assert decimal[0] == [0] * 11 + [5, 2, 5, 0]
    # 5.25 = 12.0202020 in base 3, rounded at the sixth digit
    assert digits(rows, 1)[0] == [0] * 24 + [1, 2] + [0, 2, 0, 2, 0, 2]
    assert decimal[2] == decimal[3] == [9] * 12 + [0] * 3  # beyond the limit
    assert decimal[4] == [0] * 15
    assert rows.max() < NumeralEmbedding(4).table.num_embeddings
    assert rows.min() == 0


@pytest.mark.parametrize(("kind", "bends"), [("knots", True), ("buckets", True), ("numerals", True), ("log", False)])
def test_which_kinds_can_bend(kind: str, bends: bool) -> None:
    """A straight line explains nothing of a U over the logarithm; the others learn its shape from 300 numbers."""
    embed = build(kind, dim=16)
    torch.manual_seed(1)
    exponent, fresh = 4 * torch.rand(300), 4 * torch.rand(1000)
    values, wanted = 10**exponent, (exponent - 2).abs()
    optimizer = torch.optim.Adam(embed.parameters(), 0.02)
    for _ in range(100):
        error = (embed(values).sum(-1) - wanted).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    error = (embed(10**fresh).sum(-1) - (fresh - 2).abs()).square().mean()
    explained = 1 - error.item() / wanted.var().item()
    assert explained > 0.7 if bends else explained < 0.2


def test_a_numeral_is_the_sum_of_its_rows() -> None:
    embed = NumeralEmbedding(4)
    values = torch.tensor([[51.5, -0.001], [123_456.0, 0.0]])
    assert torch.allclose(embed(values), embed.table.weight[embed.rows(values)].sum(-2), atol=1e-6)


def test_numerals_tell_a_number_better_than_as_many_bins() -> None:
    """A linear probe on random tables: digits add up to the number, equal-width bins cut it into steps."""
    torch.manual_seed(0)
    values = torch.arange(4096.0)
    embed = NumeralEmbedding(64, std=1.0)
    bins = torch.nn.Embedding(embed.table.num_embeddings, 64)

    def error(vectors: torch.Tensor) -> float:
        x = torch.cat((vectors, torch.ones(len(vectors), 1)), 1).detach().double()
        y = (values / 4096).double().unsqueeze(1)
        return (y - x @ torch.linalg.lstsq(x[::2], y[::2]).solution)[1::2].square().mean().item()

    equal_width = (values * bins.num_embeddings / 4096).long()
    assert error(embed(values)) < 0.5 * error(bins(equal_width))
