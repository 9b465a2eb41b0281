"""Expected and found collisions, over every kind."""

from typing import Any

import numpy as np
import pytest

from recgpt.nn.ids import ID_EMBEDDINGS, IdEmbeddingConfig
from recgpt.nn.ids.collisions import confused, expected_confused, id_collisions, n_bytes, without_weights

SMALL: dict[str, dict[str, Any]] = {
    "hash": {"rows": 60},
    "weighted_hash": {"rows": 60, "n_hashes": 1},
    "qr": {"rows": 90},
    "robe": {"rows": 250, "block": 99},
    "kshift": {"rows": 67, "shifts": 5},
    "factorized": {"rows": 60},
    "unified": {"rows": 23},
}
"""Tables so small that hundreds of 1,000 ids collide."""


def ids(n: int, seed: int = 0) -> np.ndarray:
    return np.unique(np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, n))


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_found_collisions_are_as_expected(kind: str) -> None:
    """Over ten seeds, within four standard deviations of their mean."""
    found, expected = [], 0.0
    for seed in range(10):
        config = IdEmbeddingConfig.model_validate({"kind": kind, "seed": seed} | SMALL[kind])
        log = id_collisions(config, 8, ids(1000, seed))["log"]
        found.append(log["actual"])
        expected = log["expected"]
    assert 100 < expected < 900
    assert abs(np.mean(found) - expected) < 4 * np.std(found, ddof=1) / 10**0.5


def test_a_full_table_confuses_no_two_known_ids() -> None:
    log = id_collisions(IdEmbeddingConfig(kind="full"), 8, ids(1000))["log"]
    assert (log["actual"], log["bytes"]) == (0, 1000 * (8 * 4 + 8))
    small = id_collisions(IdEmbeddingConfig(kind="full", bits=4), 9, ids(1000))
    assert small["log"]["bytes"] == 1000 * (5 + 4 + 8)  # 9 numbers of 4 bits, a scale, the hash
    assert small["sizes"][0]["bytes"] == 10**6 * (5 + 4 + 8)
    assert log["expected"] == pytest.approx(1000**2 / 2**64, rel=0.01)


def test_confused_ids_are_those_whose_addresses_agree() -> None:
    hashes = ids(300)
    table = without_weights(IdEmbeddingConfig(rows=12), 4, hashes)
    import torch

    pairs = [tuple(row) for row in table.addresses(torch.from_numpy(hashes)).tolist()]
    assert confused(table, hashes).tolist() == [pairs.count(pair) > 1 for pair in pairs]


def test_expected_of_few_and_of_many() -> None:
    assert expected_confused(0, 0.5) == expected_confused(1, 0.5) == 0
    assert expected_confused(2, 0.25) == pytest.approx(0.5)  # both or none
    assert expected_confused(3, 1.0) == 3
    assert expected_confused(10**9, 1e-30) == pytest.approx(1e-12)


@pytest.mark.parametrize("kind", sorted(ID_EMBEDDINGS))
def test_bytes_without_weights_are_those_with(kind: str) -> None:
    config, hashes = IdEmbeddingConfig.model_validate({"kind": kind, "rows": 300}), ids(50)
    built = ID_EMBEDDINGS[kind](config, 8, hashes)
    stored = sum(value.numel() * value.element_size() for value in built.state_dict().values())
    assert n_bytes(without_weights(config, 8, hashes)) == n_bytes(built) == stored


def test_sizes_from_a_million_to_a_billion() -> None:
    """Two hashes into 65,536 rows: pairs n^2 / 2 x 2 / rows^2, so 233 of a million ids; nearly all of a billion."""
    found = id_collisions(IdEmbeddingConfig(), 64, ids(10))
    assert [row["ids"] for row in found["sizes"]] == [10**6, 10**7, 10**8, 10**9]
    assert found["sizes"][0]["expected"] == pytest.approx(2 * 10**12 / 65_536**2, rel=0.01)
    assert {row["bytes"] for row in found["sizes"]} == {65_536 * 64 * 4}
    million = id_collisions(IdEmbeddingConfig(kind="full"), 64, ids(10))["sizes"][0]
    assert million["bytes"] == 10**6 * (64 * 4 + 8)
    assert found["sizes"][0]["readers"] == pytest.approx(2 * 10**6 / 65_536)
    assert million["readers"] == 1
    assert (found["kind"], found["rows"], found["dim"]) == ("hash", 65_536, 64)
