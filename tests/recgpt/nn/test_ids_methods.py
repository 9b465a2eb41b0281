"""Each kind of id embedding against its definition."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from recgpt.config import validate
from recgpt.errors import ConfigError
from recgpt.nn.hashing import mix64
from recgpt.nn.ids import ID_EMBEDDINGS, FullEmbedding, IdEmbedding, IdEmbeddingConfig
from recgpt.nn.ids.kshift import CYCLE, good_rows, kshift_rows
from recgpt.nn.ids.quotient import quotient_remainder
from recgpt.nn.ids.robe import block_indices

IDS = mix64(torch.arange(1, 4001))


def make(kind: str, dim: int = 8, **values: Any) -> Any:
    torch.manual_seed(0)
    config = IdEmbeddingConfig.model_validate({"kind": kind, "rows": 1000} | values)
    return ID_EMBEDDINGS[kind](config, dim)


# -- quotient and remainder ----------------------------------------------------------------------------------------


def test_quotient_and_remainder_are_exact_for_big_ids() -> None:
    """Through float32 10^9 + 7 becomes 10^9, and (2^25 + 3) div 7 is off by one."""
    ids = [2**24 + 1, 10**9 + 7, 2**25 + 3, 2**53 + 1, 2**62 - 1]
    for divisor in (1, 7, 1000):
        quotient, remainder = quotient_remainder(torch.tensor(ids), divisor)
        assert quotient.tolist() == [i // divisor for i in ids]
        assert remainder.tolist() == [i % divisor for i in ids]


def test_dense_ids_share_no_pair_of_rows() -> None:
    n, divisor = 10_007, 101
    pairs = torch.stack(quotient_remainder(torch.arange(n), divisor), -1)
    assert len(torch.unique(pairs, dim=0)) == n
    assert pairs.amax(0).tolist() == [n // divisor, divisor - 1]


@pytest.mark.parametrize("combine", ["mult", "add", "concat"])
def test_qr_combines_the_rows_of_the_folded_hash(combine: str) -> None:
    """Item by item: a bag's mean is the mean of products, not the product of means."""
    qr = make("qr", dim=7, rows=21, combine=combine)
    tables = qr.quotients.weight, qr.remainders.weight
    shapes = {"concat": [(21, 4), (21, 3)]}.get(combine, [(11, 7), (10, 7)])
    assert [tuple(table.shape) for table in tables] == shapes
    number = qr.fold(IDS)
    size = shapes[0][0] * shapes[1][0]
    assert set(number.tolist()) == set(range(size))  # 4,000 ids reach each of 110 or 441
    expected = []
    for x in number[:300].tolist():
        a, b = tables[0][x // shapes[1][0]], tables[1][x % shapes[1][0]]
        expected.append(torch.cat((a, b)) if combine == "concat" else a * b if combine == "mult" else a + b)
    torch.testing.assert_close(qr(IDS[:300]), torch.stack(expected))
    torch.testing.assert_close(qr(IDS[None, :50]).mean(1)[0], torch.stack(expected)[:50].mean(0))


@pytest.mark.parametrize(("combine", "std"), [("mult", 0.02), ("add", 0.02 / 2**0.5), ("concat", 0.02)])
def test_qr_starts_on_both_sides_of_zero(combine: str, std: float) -> None:
    """A product of two positive factors would start with one sign and a mean of .25."""
    qr = make("qr", dim=16, combine=combine)
    tables = [qr.quotients.weight, qr.remainders.weight - float(combine == "mult")]
    for table, spread in zip(tables, (std, 0.1 if combine == "mult" else std), strict=True):
        assert abs((table > 0).float().mean() - 0.5) < 0.03
        assert table.std().item() == pytest.approx(spread, rel=0.05)


def test_qr_needs_two_rows() -> None:
    with pytest.raises(ConfigError, match="rows: 1; qr divides them between two tables"):
        validate(IdEmbeddingConfig, {"kind": "qr", "rows": 1}, "config")


# -- ROBE ----------------------------------------------------------------------------------------------------------


def test_robe_blocks_wrap_around() -> None:
    places = block_indices(torch.tensor([1, 3, 6]), 3, 8)
    assert torch.arange(8)[places].tolist() == [[1, 2, 3], [3, 4, 5], [6, 7, 0]]


@pytest.mark.parametrize("block", [1, 3, 8, 99])
def test_robe_reads_signed_blocks_of_the_array(block: int) -> None:
    """Z = 3 leaves two floats for the last of three blocks; a Z beyond the width is one slice."""
    robe = make("robe", rows=5, block=block)
    memory = robe.memory.tolist()
    z = min(block, 8)
    vectors = robe(IDS[:50])
    for address, vector in zip(robe.addresses(IDS[:50]).tolist(), vectors.tolist(), strict=True):
        assert len(address) == math.ceil(8 / z)
        for i, value in enumerate(vector):
            start, sign = divmod(address[i // z], 2)
            assert value == (-1) ** sign * memory[(start + i % z) % 40]


def test_robe_gradient_adds_up_where_memory_is_shared() -> None:
    robe = make("robe", rows=3, block=4)
    ids, upstream = torch.cat((IDS[:20], IDS[:5])), torch.randn(25, 8)
    robe(ids).backward(upstream)
    expected = np.zeros(24)
    for address, row in zip(robe.addresses(ids).tolist(), upstream.tolist(), strict=True):
        for i, value in enumerate(row):
            start, sign = divmod(address[i // 4], 2)
            expected[(start + i % 4) % 24] += (-1) ** sign * value
    np.testing.assert_allclose(robe.memory.grad, expected, rtol=1e-5, atol=1e-6)


def test_robe_collisions_come_in_blocks() -> None:
    """Two ids share neighbours: with one slice an id, an overlap of m floats is one run of m."""
    robe = make("robe", dim=16, rows=20, block=16)
    starts = robe.addresses(IDS[:200])[:, 0] // 2
    places = block_indices(starts, 16, 320)
    gap = (starts[:, None] - starts).remainder(320)
    shared = torch.stack([torch.isin(places, row).sum(1) for row in places])
    expected = (16 - gap).clamp(min=0) + (gap - 304).clamp(min=0)
    assert torch.equal(shared, torch.where(gap == 0, 16, expected))
    assert (shared > 0).float().mean() == pytest.approx(31 / 320, rel=0.1)


def test_robe_inner_products_are_unbiased_over_the_hash_functions() -> None:
    """Vectors sketched into the array come out with their inner products, on average over seeds."""
    theta = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    found = []
    robe = make("robe", dim=6, rows=8, block=2)
    for seed in range(600):
        robe.config = robe.config.model_copy(update={"seed": seed})
        robe.memory.grad = None
        robe(IDS[:3]).backward(theta)  # the gradient is the sketch
        robe.memory.data = robe.memory.grad
        vectors = robe(IDS[:3]).detach()
        found.append(vectors @ vectors.t())
    products = torch.stack(found)[:, [0, 0, 1], [1, 2, 2]]
    expected = (theta @ theta.t())[[0, 0, 1], [1, 2, 2]]
    error = products.std(0) / len(products) ** 0.5
    assert (products.mean(0) - expected).abs().max() < 4 * error.max()
    assert error.max() < 0.2  # four errors tell the products from zero
    assert expected.abs().max() > 1


# -- several hashes ------------------------------------------------------------------------------------------------


def test_weighted_hash_weighs_each_row() -> None:
    embedding = make("weighted_hash", n_hashes=3, rows=300)
    assert embedding.weights.weight.mean().item() == pytest.approx(1, abs=0.02)
    n_rows = embedding.n_rows
    assert n_rows == 300 * 8 // (8 + 30)
    expected = []
    for *rows, row in embedding.addresses(IDS[:100]).tolist():
        weights = embedding.weights.weight[row - n_rows]
        expected.append(sum(w * embedding.table.weight[r] for w, r in zip(weights, rows, strict=True)))
    torch.testing.assert_close(embedding(IDS[:100]), torch.stack(expected))


def test_weighted_hash_tells_ids_of_the_same_rows_apart() -> None:
    embedding = make("weighted_hash", n_hashes=1, rows=40)
    rows = embedding.addresses(IDS)
    same = torch.nonzero(rows[:, 0] == rows[0, 0]).flatten()
    assert len(torch.unique(rows[same, 1])) > 10
    unit = torch.nn.functional.normalize(embedding(IDS[same]), dim=-1)
    assert (unit @ unit[0]).abs().min() > 0.999  # one direction, weights of their own
    assert len(torch.unique(embedding(IDS[same]), dim=0)) == len(torch.unique(rows[same, 1]))


# -- KShift --------------------------------------------------------------------------------------------------------


def test_kshift_rows_are_rotations() -> None:
    """Against Python's integers, negative ids among them; a signed number modulo P."""
    ids = [-1, -(2**63), 2**63 - 1, 1, 123456789123456789]
    for row, x in zip(kshift_rows(torch.tensor(ids), 8, 997).tolist(), ids, strict=True):
        turned = [((x % 2**64) << c | (x % 2**64) >> (64 - c)) % 2**64 if c else x % 2**64 for c in range(8)]
        assert row == [(r - 2**64 if r >= 2**63 else r) % 997 for r in turned]


def test_every_rotation_reaches_as_many_rows_as_chance() -> None:
    """P (1 - e^(-n/P)) rows; an arithmetic shift would leave negative ids 2^(c-1) rows."""
    ids = IDS[IDS < 0]
    n, rows = len(ids), 2001
    for c in range(8):
        distinct = len(torch.unique(kshift_rows(ids, 8, rows)[:, c]))
        assert distinct == pytest.approx(rows * (1 - math.exp(-n / rows)), rel=0.05)


@pytest.mark.parametrize(("rows", "bits"), [(9997, 8), (8192, 7)])
def test_full_collisions_of_rotations(rows: int, bits: int) -> None:
    """n^2 / (2 P) 2^-k pairs for an odd P, 2^-(k-1) for a power of two (k = 8): 781 and 1,907 of 63,246 ids."""
    n = 63_246
    addresses = kshift_rows(mix64(torch.arange(n)), 8, rows)
    _, counts = np.unique(addresses.numpy().astype(np.int16).view(np.dtype("V16")), return_counts=True)
    expected = n * n / (2 * rows) / 2**bits
    assert abs((counts * (counts - 1) // 2).sum() - expected) < 3 * expected**0.5


def test_kshift_takes_a_good_size() -> None:
    """Odd, and no multiple of 3, 5, 17, 257, 641, 65537 or 6700417."""
    for rows in range(1, 3000):
        good = good_rows(rows)
        assert good <= rows
        assert all(good % factor for factor in (2, 3, 5, 17, 257, 641))
        assert rows - good <= 12
    assert math.prod((3, 5, 17, 257, 641, 65537, 6700417)) == CYCLE
    assert (good_rows(65_536), good_rows(65_537), good_rows(6_700_417)) == (65_533, 65_533, 6_700_411)
    assert make("kshift", rows=1000).table.num_embeddings == 998 - 1


def test_kshift_sums_its_rows() -> None:
    embedding = make("kshift", shifts=3)
    expected = embedding.table.weight[embedding.rows(IDS[:50])].sum(1)
    torch.testing.assert_close(embedding(IDS[:50]), expected)


def test_kshift_norms_start_alike() -> None:
    """std sqrt(D) and little spread, whatever the number of shifts."""
    for shifts in (1, 8):
        norms = make("kshift", dim=256, shifts=shifts)(IDS).norm(dim=-1)
        assert norms.mean().item() == pytest.approx(0.02 * 16, rel=0.02)
        assert norms.std() < 0.06 * norms.mean()  # 1 / sqrt(2 D) is .044


# -- full table ----------------------------------------------------------------------------------------------------


def full(known: list[int], dim: int = 4, seed: int = 0) -> FullEmbedding:
    torch.manual_seed(seed)
    return FullEmbedding(IdEmbeddingConfig(kind="full"), dim, np.array(known, np.int64))


def test_full_gives_each_known_id_a_row() -> None:
    table = full([7, -3, 2**63 - 1, 7, 0])
    assert table.known.tolist() == [-3, 7, 2**63 - 1]
    assert table.table.weight.shape == (3, 4)
    vectors = table(torch.tensor([[7, -3], [2**63 - 1, 8]]))
    torch.testing.assert_close(vectors[0], table.table.weight[[1, 0]])
    torch.testing.assert_close(vectors[1, 0], table.table.weight[2])
    assert vectors[1, 1].abs().max() == 0
    assert torch.equal(table(torch.tensor([-(2**63), 100])), torch.zeros(2, 4))


def test_full_of_no_item_knows_none() -> None:
    assert torch.equal(full([])(torch.tensor([0, 5])), torch.zeros(2, 4))


def test_full_takes_the_rows_of_shared_ids() -> None:
    old, new = full([1, 2, 3]), full([3, 4, 1], seed=1)
    before = new.table.weight.clone()
    new.take_rows(old)
    ids = torch.tensor([1, 3])
    assert torch.equal(new(ids), old(ids))
    assert torch.equal(new(torch.tensor([4]))[0], before[2])


# -- unified -------------------------------------------------------------------------------------------------------


def test_unified_concatenates_and_maps() -> None:
    """Rows in order: two values with each other's rows differ, which a sum would not tell."""
    embedding = make("unified", lookups=2)
    assert embedding.table.table.weight.shape == (2000, 4)
    rows = embedding.addresses(IDS[:50])
    joined = torch.cat((embedding.table.table.weight[rows[:, 0]], embedding.table.table.weight[rows[:, 1]]), -1)
    torch.testing.assert_close(embedding(IDS[:50]), joined @ embedding.feature.linear.weight.t())


def test_unified_features_have_hash_functions_and_maps_of_their_own() -> None:
    """Two features over the same values: as many pairs of values share a row as chance has it, n^2 / M."""
    ids: IdEmbedding = make("unified", dim=8, rows=5000)
    share = ids.share("context")
    assert share is not None
    features: list[Any] = [share("device", 8), share("brand", 8)]
    values = IDS[:1000]
    rows = [ids.addresses(values), *(feature.rows(values) for feature in features)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        pairs = int((rows[a][:, :1] == rows[b][:, 0]).sum())
        assert abs(pairs - 1000**2 / 10_000) < 4 * 10
        assert (rows[a] == rows[b]).all(-1).sum() == 0
    assert not torch.equal(features[0](values), features[1](values))
    other: Any = share("device", 8)
    assert torch.equal(other.rows(values), rows[1])  # a feature's rows follow from its name alone
    assert features[0](torch.tensor([0])).abs().max() == 0


def test_unified_table_does_not_grow_with_features() -> None:
    ids: IdEmbedding = make("unified")
    share = ids.share("feature")
    assert share is not None
    for n in (1, 5):
        features = [share(f"f{i}", 8) for i in range(n)]
        assert sum(p.numel() for f in features for p in f.parameters()) == n * 64
    assert sum(p.numel() for name, p in ids.named_parameters() if "linear" not in name) == 8000


def test_only_unified_shares() -> None:
    for kind in set(ID_EMBEDDINGS) - {"unified", "full"}:
        assert make(kind).share("context") is None


# -- collisions of sums --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "k"), [(4, 1), (4, 2), (3, 3), (2, 4)])
def test_probability_of_the_same_rows_in_any_order(rows: int, k: int) -> None:
    draws = [tuple(sorted(draw)) for draw in product(range(rows), repeat=k)]
    expected = sum(a == b for a in draws for b in draws) / len(draws) ** 2
    assert make("hash", rows=rows, n_hashes=k).confusion == pytest.approx(expected)


def test_probability_tends_to_factorial() -> None:
    """k! rows^-k for many rows, not rows^-k."""
    assert make("hash", rows=10_000, n_hashes=3).confusion == pytest.approx(6 / 1e12, rel=1e-3)
