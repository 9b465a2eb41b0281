"""Contract of every id embedding, and the hash functions against Python's own integers."""

import subprocess
import sys

import pytest
import torch

from recgpt.nn.embedding import ID_EMBEDDINGS, HashEmbedding, IdEmbeddingConfig, hash_rows, mix64

EDGES = [-1, -(2**63), 2**63 - 1, 1, 0, 1 << 40, -(1 << 40) - 7]


def splitmix_finalizer(x: int) -> int:
    """splitmix64's published constants, on unsigned integers."""
    mask = 2**64 - 1
    x &= mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_mix64_equals_unsigned_arithmetic() -> None:
    mixed = mix64(torch.tensor(EDGES))
    assert [x % 2**64 for x in mixed.tolist()] == [splitmix_finalizer(x) for x in EDGES]


def test_rows_spread_evenly_over_signed_hashes() -> None:
    hashes = mix64(torch.arange(100_000) - 50_000)
    rows = hash_rows(hashes, 3, 101)
    counts = torch.stack([torch.bincount(rows[:, j], minlength=101) for j in range(3)])
    assert rows.min() >= 0
    assert (counts - 100_000 / 101).abs().max() < 6 * (100_000 / 101) ** 0.5  # six standard deviations


def test_full_collisions_are_as_rare_as_independent_hashes() -> None:
    """n^2 / (2 P^k) pairs share all k rows: 20,000 ids, 100 rows, 3 hashes -> 200 pairs."""
    rows = hash_rows(mix64(torch.arange(1, 20_001)), 3, 100)
    _, counts = torch.unique(rows, dim=0, return_counts=True)
    pairs = int((counts * (counts - 1) // 2).sum())
    assert 200 - 4 * 200**0.5 < pairs < 200 + 4 * 200**0.5


@pytest.fixture(params=sorted(ID_EMBEDDINGS))
def embedding(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    return ID_EMBEDDINGS[request.param](IdEmbeddingConfig(kind=request.param, rows=997), 8)


def test_contract_shape_padding_and_gradient(embedding: torch.nn.Module) -> None:
    hashes = torch.tensor([[5, 0, -9], [2**63 - 1, -(2**63), 5]])
    vectors = embedding(hashes)
    assert vectors.shape == (2, 3, 8)
    assert vectors[0, 1].abs().max() == 0
    assert torch.equal(vectors[0, 0], vectors[1, 2])
    assert not torch.equal(vectors[0, 0], vectors[0, 2])
    embedding(torch.tensor([0])).sum().backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in embedding.parameters())


def test_contract_order_does_not_matter(embedding: torch.nn.Module) -> None:
    hashes = mix64(torch.arange(1, 50))
    shuffle = torch.randperm(49)
    assert torch.equal(embedding(hashes)[shuffle], embedding(hashes[shuffle]))


def test_rows_agree_between_processes() -> None:
    code = (
        "import torch; from recgpt.nn.embedding import hash_rows;"
        "print(hash_rows(torch.tensor([-5, 7]), 2, 1000, 3).tolist())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == str(hash_rows(torch.tensor([-5, 7]), 2, 1000, 3).tolist())


def test_seeds_change_rows() -> None:
    hashes = mix64(torch.arange(1, 1000))
    same = (hash_rows(hashes, 1, 1000, 0) == hash_rows(hashes, 1, 1000, 1)).float().mean()
    assert same < 0.01


def test_start_scale_does_not_depend_on_the_number_of_hashes() -> None:
    torch.manual_seed(0)
    for k in (1, 2, 4):
        vectors = HashEmbedding(IdEmbeddingConfig(rows=10_000, n_hashes=k), 32)(mix64(torch.arange(1, 2000)))
        assert vectors.std().item() == pytest.approx(0.02, rel=0.05)
