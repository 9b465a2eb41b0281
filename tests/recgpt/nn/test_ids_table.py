"""Tables whose stored rows are small integers: how they round, learn, are stored and found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recgpt.api import RecGPT
from recgpt.config import load_config
from recgpt.errors import ConfigError
from recgpt.nn.ids import ID_EMBEDDINGS, IdEmbedding, IdEmbeddingConfig
from recgpt.nn.ids.collisions import n_bytes, without_weights
from recgpt.nn.ids.table import RoundedTable, learn_tables, store_tables, stored_state
from tests.recgpt.builders import columns, recgpt
from tests.recgpt.nn.test_ids import IDS

BITS = [8, 4]
KINDS = sorted(set(ID_EMBEDDINGS) - {"robe"})


def table(bits: int, rows: int = 50, width: int = 7) -> RoundedTable:
    made = RoundedTable(rows, width, bits)
    torch.manual_seed(0)
    torch.nn.init.normal_(made.weight, std=0.3)
    return made


def embedding(kind: str, bits: int, dim: int = 8) -> IdEmbedding:
    torch.manual_seed(0)
    config = IdEmbeddingConfig.model_validate({"kind": kind, "rows": 101, "bits": bits})
    return ID_EMBEDDINGS[kind](config, dim, IDS[:60].numpy())


def test_rounding_by_hand() -> None:
    """4 bits: 7 steps to each side; the scale of this row is .5 / 7, in bfloat16 .0713 (8 digits of 1.1407 / 16)."""
    made = RoundedTable(1, 4, 4)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[0.5, -0.5, 0.1, 0.0]]))
    scale = 1.140625 / 16
    expected = torch.tensor([[7 * scale, -7 * scale, 1 * scale, 0.0]])  # .1 / scale = 1.40
    assert torch.equal(made(torch.tensor([0])), expected)
    made.store()
    assert made.scale.tolist() == [scale]
    assert made.codes.tolist() == [[15 | 1 << 4, 9 | 8 << 4]]  # codes + 8, two in a byte, the first in the low half
    assert torch.equal(made(torch.tensor([0])), expected)


@pytest.mark.parametrize("bits", BITS)
def test_each_number_is_off_by_half_a_step_at_most(bits: int) -> None:
    made = table(bits)
    rows = torch.arange(50)
    step = made.weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    error = (made(rows) - made.weight).abs() / step
    assert error.max() <= 0.54  # the scale itself has 8 digits
    assert error.mean() > 0.2  # and it is rounded
    made.weight.data[3] = 0
    assert made(torch.tensor([3])).abs().max() == 0


@pytest.mark.parametrize("bits", BITS)
def test_the_gradient_passes_as_if_nothing_were_rounded(bits: int) -> None:
    made, plain = table(bits), torch.nn.Embedding(50, 7)
    rows, weight = torch.tensor([[1, 4], [4, 9]]), torch.randn(2, 2, 7)
    (made(rows) * weight).sum().backward()
    (plain(rows) * weight).sum().backward()
    assert torch.equal(made.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_stored_and_learning_forms_read_the_same(kind: str, bits: int) -> None:
    """Bit for bit, and again after any number of changes of form."""
    made = embedding(kind, bits)
    vectors, state = made(IDS), stored_state(made)
    for _ in range(2):
        store_tables(made)
        assert not any(isinstance(module, RoundedTable) and module.learns for module in made.modules())
        assert torch.equal(made(IDS), vectors)
        assert {name: value.tolist() for name, value in made.state_dict().items()} == {
            name: value.tolist() for name, value in state.items()
        }
        learn_tables(made)
        assert torch.equal(made(IDS), vectors)
        assert stored_state(made).keys() == state.keys()
    assert any(parameter.requires_grad for name, parameter in made.named_parameters() if "table" in name or "q" in name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_that_are_told_are_those_of_the_stored_state(kind: str) -> None:
    for bits in (32, *BITS):
        config = IdEmbeddingConfig.model_validate({"kind": kind, "rows": 101, "bits": bits})
        made = embedding(kind, bits, dim=9)
        stored = sum(value.numel() * value.element_size() for value in stored_state(made).values())
        assert n_bytes(without_weights(config, 9, IDS[:60].numpy())) == n_bytes(made) == stored


@pytest.mark.parametrize("bits", BITS)
def test_it_learns_what_fits_into_it(bits: int) -> None:
    made, ids = embedding("hash", bits), IDS[:20]
    target = torch.nn.functional.normalize(torch.randn(20, 8), dim=-1)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        ((made(ids) - target) ** 2).sum().backward()
        optimiser.step()
    assert (made(ids) - target).pow(2).sum() < (0.01 if bits == 8 else 0.05) * target.pow(2).sum()


@pytest.mark.parametrize("kind", ["hash", "full", "unified"])
def test_a_saved_model_is_small_and_the_same(kind: str, tmp_path: Path) -> None:
    made = recgpt(id={"kind": kind, "rows": 997, "bits": 8})
    made.save_pretrained(tmp_path / "small")
    recgpt(id={"kind": kind, "rows": 997}).save_pretrained(tmp_path / "plain")
    loaded = RecGPT.from_pretrained(tmp_path / "small")
    assert loaded.fingerprint == made.fingerprint
    assert torch.equal(loaded.catalogue, made.catalogue)
    history = columns(9)
    assert torch.equal(loaded.encode(history).embedding, made.encode(history).embedding)
    tables = [module for module in loaded.model.modules() if isinstance(module, RoundedTable)]
    assert tables
    assert not any(module.learns for module in tables)
    loaded.save_pretrained(tmp_path / "again")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("small", "again", "plain")]
    assert files[0] == files[1]
    if kind == "hash":
        saved = 997 * (16 * 4 - 16 - 4)
        assert saved - 1000 < len(files[2]) - len(files[0]) < saved


def test_robe_has_no_rows() -> None:
    with pytest.raises(ConfigError, match="bits: 8 keeps a scale for each row, and robe has no rows; set 32"):
        load_config(IdEmbeddingConfig, {"kind": "robe", "bits": 8})
    with pytest.raises(ConfigError, match="bits"):
        load_config(IdEmbeddingConfig, {"bits": 2})


def test_a_row_knows_nothing_of_its_neighbours() -> None:
    made = table(4)
    before = made(torch.arange(50))
    with torch.no_grad():
        made.weight[7] *= 100
    after = made(torch.arange(50))
    changed: Any = np.flatnonzero((before != after).any(1).numpy())
    assert changed.tolist() == [7]
