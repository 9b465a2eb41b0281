"""Contract of every id embedding."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from recgpt.errors import ConfigError
from recgpt.nn.hashing import mix64
from recgpt.nn.ids import ID_EMBEDDINGS, IdEmbedding, IdEmbeddingConfig
from recgpt.train.optim import table_parameters

IDS = mix64(torch.arange(1, 4001))  # half of them negative
KINDS: list[dict[str, Any]] = [{"kind": kind} for kind in sorted(ID_EMBEDDINGS)]
KINDS += [{"kind": "qr", "combine": "add"}, {"kind": "qr", "combine": "concat"}]
KINDS += [{"kind": "robe", "block": 1}, {"kind": "robe", "block": 5}, {"kind": "robe", "block": 99}]
KINDS += [
    {"kind": "factorized", "width": 7},
    {"kind": "unified", "lookups": 3},
    {"kind": "weighted_hash", "n_hashes": 3},
]
GROWS = {"full"}
STATED = {
    "unified": lambda dim, config: dim * config.lookups * -(-dim // config.lookups),
    "factorized": lambda dim, config: dim * min(dim, config.width),
}
"""Weights beyond rows x dim: the linear maps."""


def make(values: dict[str, Any], rows: int = 997, dim: int = 8, **arguments: Any) -> IdEmbedding:
    torch.manual_seed(0)
    config = IdEmbeddingConfig.model_validate({"rows": rows} | values)
    return ID_EMBEDDINGS[config.kind](config, dim, **({"known": IDS.numpy()} | arguments))


@pytest.fixture(params=KINDS, ids=lambda values: "-".join(str(value) for value in values.values()))
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def test_shape_and_padding(values: dict[str, Any]) -> None:
    embedding = make(values, known=np.array([5, -9, 2**63 - 1, -(2**63)]))
    vectors = embedding(torch.tensor([[5, 0, -9], [2**63 - 1, -(2**63), 5]]))
    assert vectors.shape == (2, 3, 8)
    assert vectors.dtype == torch.float32
    assert vectors[0, 1].abs().max() == 0
    same = (vectors.reshape(6, 1, 8) - vectors.reshape(1, 6, 8)).abs().amax(-1) < 1e-7
    assert same.sum() == 8  # each is itself, and the two fives are one
    assert same[0, 5]
    assert embedding(torch.zeros(0, dtype=torch.int64)).shape == (0, 8)


def test_padding_has_no_gradient_and_ids_have(values: dict[str, Any]) -> None:
    embedding = make(values)
    embedding(torch.tensor([0, 0])).sum().backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in embedding.parameters())
    embedding(IDS[:2]).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in embedding.parameters())


def test_order_and_neighbours_do_not_matter(values: dict[str, Any]) -> None:
    embedding, shuffle = make(values), torch.randperm(49)
    vectors = embedding(IDS[:49])
    for ids, expected in (
        (IDS[:49][shuffle], vectors[shuffle]),
        (IDS[:49].reshape(7, 7), vectors.reshape(7, 7, 8)),
        (IDS[:49].reshape(7, 7).t(), vectors.reshape(7, 7, 8).transpose(0, 1)),
    ):
        torch.testing.assert_close(embedding(ids), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("std", [0.02, 0.5])
def test_start_has_the_asked_spread(values: dict[str, Any], std: float) -> None:
    vectors = make(values, rows=4096, dim=30, std=std)(IDS)
    assert vectors.std().item() == pytest.approx(std, rel=0.1)
    assert abs(vectors.mean().item()) < 0.05 * std


@pytest.mark.parametrize(("rows", "dim"), [(997, 8), (65_536, 30), (64, 7)])
def test_rows_are_the_memory(values: dict[str, Any], rows: int, dim: int) -> None:
    if values["kind"] in GROWS:
        return
    embedding = make(values, rows, dim)
    stated = STATED.get(values["kind"], lambda dim, config: 0)(dim, embedding.config)
    n_weights = sum(p.numel() for p in embedding.parameters()) - stated
    assert n_weights <= rows * dim
    assert n_weights >= 0.9 * rows * dim if rows < 997 else n_weights > 0.98 * rows * dim


def test_reach_is_the_part_of_the_table_that_an_id_reads(values: dict[str, Any]) -> None:
    """Counted as the table's weights that have a gradient, over single ids."""
    embedding = make(values, rows=300, dim=12, known=IDS[:200].numpy())
    tables = [p for name, p in embedding.named_parameters() if "linear" not in name and name != "weights.weight"]
    parts = []
    for hashes in IDS[:60]:
        embedding.zero_grad()
        embedding(hashes[None]).sum().backward()
        read = sum(int((p.grad != 0).sum()) for p in tables if p.grad is not None)
        parts.append(read / sum(p.numel() for p in tables))
    assert np.mean(parts) == pytest.approx(embedding.reach, rel=0.03)  # a row met twice counts once here


def test_every_kind_learns_what_fits_into_it(values: dict[str, Any]) -> None:
    """Forty random unit vectors into a table five times as large."""
    embedding, ids = make(values, rows=200, known=IDS[:40].numpy()), IDS[:40]
    target = torch.nn.functional.normalize(torch.randn(40, 8), dim=-1)
    optimiser = torch.optim.Adam(embedding.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        ((embedding(ids) - target) ** 2).sum().backward()
        optimiser.step()
    assert (embedding(ids) - target).pow(2).sum() < 0.2 * target.pow(2).sum()  # .1 where weights are shared most


def test_addresses_decide(values: dict[str, Any]) -> None:
    """In range; equal addresses give equal vectors, others other ones, also with weights far from the start."""
    embedding = make({"n_hashes": 1, "shifts": 1, "lookups": 1} | values, rows=30, known=IDS[:300].numpy())
    with torch.no_grad():
        for parameter in embedding.parameters():
            parameter.copy_(torch.randn_like(parameter))
    addresses, vectors = embedding.addresses(IDS), embedding(IDS)
    assert addresses.shape[0] == 4000
    assert addresses.min() >= 0
    assert addresses.max() < embedding.slots
    _, place = torch.unique(addresses, dim=0, return_inverse=True)
    order = place.argsort()
    same = place[order][1:] == place[order][:-1]
    equal = (vectors[order][1:] - vectors[order][:-1]).abs().amax(-1) < 1e-5
    assert torch.equal(same, equal)


def test_seed_changes_vectors(values: dict[str, Any]) -> None:
    if values["kind"] == "full":
        return
    first, second = make(values), make({**values, "seed": 1})
    second.load_state_dict(first.state_dict())
    assert (first(IDS) != second(IDS)).any(-1).float().mean() > 0.95


def test_only_a_full_table_reads_the_list(values: dict[str, Any]) -> None:
    if values["kind"] == "full":
        with pytest.raises(ConfigError, match=r"model.id.kind: full .* no list of items"):
            make(values, known=None)
        return
    assert torch.equal(make(values, known=None)(IDS), make(values)(IDS))


def test_tables_do_not_decay(values: dict[str, Any]) -> None:
    embedding = make(values)
    tables = table_parameters(embedding)
    others = [name for name, p in embedding.named_parameters() if id(p) not in tables]
    assert others == {"unified": ["feature.linear.weight"], "factorized": ["linear.weight"]}.get(values["kind"], [])


def test_saved_weights_bring_all_that_decides(values: dict[str, Any]) -> None:
    first, second = make(values), make(values)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(torch.randn_like(parameter))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(IDS), second(IDS))
    shared = [value.data_ptr() for value in first.state_dict().values()]
    assert len(set(shared)) == len(shared)  # a tensor under two names cannot be saved


def test_addresses_agree_between_processes() -> None:
    code = (
        "import torch; from recgpt.nn.ids import ID_EMBEDDINGS, IdEmbeddingConfig;"
        "known = torch.tensor([-5, 7]);"
        "print({kind: make(IdEmbeddingConfig(kind=kind, rows=100), 8, known.numpy()).addresses(known).tolist()"
        " for kind, make in ID_EMBEDDINGS.items()})"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    known = torch.tensor([-5, 7])
    here = {
        kind: make(IdEmbeddingConfig(kind=kind, rows=100), 8, known.numpy()).addresses(known).tolist()
        for kind, make in ID_EMBEDDINGS.items()
    }
    assert other == str(here)
