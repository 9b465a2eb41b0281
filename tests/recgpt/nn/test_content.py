"""Content vectors: the linear path, the cascade of cosine hashes, the histogram of lengths."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from recgpt.api import RecGPT
from recgpt.config import load_config
from recgpt.errors import ConfigError
from recgpt.model import ModelConfig
from recgpt.nn.content import ContentConfig, ContentEmbedding, CosineCascade, NormHistogram
from recgpt.train.optim import table_parameters
from tests.recgpt.builders import columns, cut, recgpt


def cascade(width: int, **changes: object) -> CosineCascade:
    torch.manual_seed(0)
    config = ContentConfig.model_validate({"bins": [4, 8, 20], "projections": 6, "grid": "isotropic"} | changes)
    return CosineCascade(width, 8, config)


def vectors(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def mean_bits(rows: torch.Tensor) -> float:
    """Entropy of the interval that a vector falls into, over the projections."""

    def bits(column: list[int]) -> float:
        shares = [count / len(column) for count in Counter(column).values()]
        return -sum(share * math.log2(share) for share in shares)

    return sum(bits(column) for column in rows.T.tolist()) / rows.shape[1]


def test_without_settings_it_is_the_linear_map_alone() -> None:
    torch.manual_seed(3)
    module = ContentEmbedding(5, 8)
    torch.manual_seed(3)
    linear = torch.nn.Linear(5, 8, bias=False)
    torch.nn.init.normal_(linear.weight, std=0.02)
    assert list(module.state_dict()) == ["linear.weight"]
    x = vectors(4, 5)
    assert torch.equal(module(x), linear(torch.nn.functional.normalize(x, dim=-1)))


def test_directions_are_drawn_from_a_generator_of_their_own() -> None:
    torch.manual_seed(0)
    first = CosineCascade(5, 8, ContentConfig(bins=[4], seed=7))
    torch.manual_seed(1)
    again = CosineCascade(5, 8, ContentConfig(bins=[4], seed=7))
    assert torch.equal(first.directions, again.directions)
    assert not torch.equal(first.table.weight, again.table.weight)
    assert not torch.equal(first.directions, CosineCascade(5, 8, ContentConfig(bins=[4], seed=8)).directions)


def test_the_sum_over_the_projections_by_a_slow_reference() -> None:
    module = cascade(5)
    x = vectors(3, 5)
    table = module.table.weight.detach().numpy().astype(np.float64)
    directions, grid = module.directions.numpy().astype(np.float64), module.grid.numpy()
    for row in range(3):
        unit = x[row].numpy().astype(np.float64) / np.linalg.norm(x[row].numpy())
        total, first, point = np.zeros(8), 0, 0
        for resolution, bins in enumerate((4, 8, 20)):
            for j in range(6):
                cosine = unit @ directions[:, 6 * resolution + j]
                code = sum(cosine > g for g in grid[j, point : point + bins])
                total += table[first + code + j * (bins + 1)]
            first, point = first + 6 * (bins + 1), point + bins
        np.testing.assert_allclose(module(x)[row].detach(), total / math.sqrt(18), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1, atol=1e-5)


def test_entries_start_at_the_standard_deviation_asked_for() -> None:
    torch.manual_seed(0)
    module = CosineCascade(16, 64, ContentConfig(bins=[4, 8, 20], projections=32, grid="isotropic"), std=0.02)
    assert module(vectors(200, 16)).std().item() == pytest.approx(0.02, rel=0.1)


def test_only_the_direction_matters() -> None:
    module, x = cascade(5), vectors(50, 5)
    for factor in (0.5, 3.0, 1e-6, 1e6):
        assert torch.equal(module(factor * x), module(x))
    assert not torch.equal(module(-x), module(x))


def test_constant_between_the_grid_points_and_without_gradient() -> None:
    module = cascade(5)
    x = vectors(20, 5).requires_grad_()
    gradient = torch.autograd.grad(module(x).square().sum(), x, allow_unused=True)[0]
    assert gradient is None or not gradient.any()
    turn = torch.linspace(0, 1, 2001).unsqueeze(1)
    path = module.rows(vectors(1, 5, seed=1) * (1 - turn) + vectors(1, 5, seed=2) * turn)
    changes = int((path[1:] != path[:-1]).any(1).sum())
    assert 10 < changes <= 6 * (4 + 8 + 20)  # each grid point is crossed once, on a great circle's half


def test_one_row_in_the_block_of_every_projection() -> None:
    module = cascade(16)
    rows = module.rows(vectors(300, 16))
    first = 0
    for resolution, bins in enumerate((4, 8, 20)):
        for j in range(6):
            column = rows[:, 6 * resolution + j]
            assert first <= int(column.min())
            assert int(column.max()) < first + bins + 1
            assert len(column.unique()) == bins + 1  # every interval is used
            first += bins + 1
    assert first == module.table.num_embeddings


def angled(angle: float, n: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """n pairs of unit vectors at an angle."""
    a, b = vectors(n, width, 1), vectors(n, width, 2)
    a = torch.nn.functional.normalize(a, dim=-1)
    b = torch.nn.functional.normalize(b - (a * b).sum(-1, keepdim=True) * a, dim=-1)
    return a, math.cos(angle) * a + math.sin(angle) * b


@pytest.mark.parametrize(("bins", "widest"), [(8, math.pi / 2), (7, math.pi)])
def test_the_chance_of_one_interval_falls_with_the_angle(bins: int, widest: float) -> None:
    """With an even number of points one interval holds 0, and so a cosine and its opposite: beyond pi / 2 it rises."""
    module = cascade(16, bins=[bins], projections=64)
    same = []
    for part in (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0):
        a, b = angled(part * widest, 500, 16)
        same.append(float((module.rows(a) == module.rows(b)).float().mean()))
    assert same[0] > 0.999  # a and its rounded copy
    assert all(b < a for a, b in pairwise(same))


@pytest.mark.parametrize("angle", [0.2, 0.8, 1.6, 2.8])
@pytest.mark.parametrize("grid", ["uniform", "isotropic"])
def test_one_point_is_the_sign_hash(angle: float, grid: str) -> None:
    """P(equal) = 1 - angle / pi (Goemans and Williamson 1995; Charikar 2002)."""
    module = cascade(8, bins=[1], projections=256, grid=grid)
    a, b = angled(angle, 400, 8)
    equal = float((module.rows(a) == module.rows(b)).float().mean())
    assert equal == pytest.approx(1 - angle / math.pi, abs=0.02)


@pytest.mark.parametrize(
    ("width", "bins", "bits"),
    [(512, 4, 0.00), (512, 20, 1.1), (512, 64, 2.6), (16, 4, 1.26), (16, 20, 3.4), (16, 64, 5.0)],
)
def test_bits_of_an_interval_on_the_published_grid_and_on_ours(width: int, bins: int, bits: float) -> None:
    x = vectors(4000, width)
    published = cascade(width, bins=[bins], projections=8, grid="uniform")
    assert mean_bits(published.rows(x)) == pytest.approx(bits, abs=0.07)
    isotropic = cascade(width, bins=[bins], projections=8)
    assert mean_bits(isotropic.rows(x)) == pytest.approx(math.log2(bins + 1), abs=0.03)
    if (width, bins) == (512, 20):
        held = Counter((published.rows(x) - published.first).flatten().tolist()).most_common(3)
        assert sorted(interval for interval, _ in held) == [9, 10, 11]  # 3 of 21 intervals hold nearly all
        assert sum(count for _, count in held) > 0.998 * x.shape[0] * 8


def test_fitted_points_serve_vectors_that_share_a_direction() -> None:
    x = vectors(3000, 32) + 3.0  # cosines of .9 among them, as sentence encoders give
    module = cascade(32, bins=[20], projections=8, grid="fitted")
    assert mean_bits(module.rows(x)) < 3.0
    module.fit(x)
    assert mean_bits(module.rows(x)) == pytest.approx(math.log2(21), abs=0.01)


def test_isotropic_points_by_hand() -> None:
    """A random direction's cosine is uniform on the sphere in three dimensions (Archimedes), an arcsine law in two."""
    quarter = cascade(3, bins=[3], projections=1).grid[0]
    np.testing.assert_allclose(quarter, [-0.5, 0.0, 0.5], atol=1e-5)
    third = cascade(2, bins=[2], projections=1).grid[0]
    np.testing.assert_allclose(third, [-0.5, 0.5], atol=1e-5)  # sin of -30 and 30 degrees
    uniform = cascade(2, bins=[4], projections=1, grid="uniform").grid[0]
    np.testing.assert_allclose(uniform, [-0.75, -0.25, 0.25, 0.75])


def test_fitted_points_by_hand() -> None:
    lengths = NormHistogram(4, 4)
    lengths.fit(torch.arange(1.0, 11).unsqueeze(1))
    assert lengths.grid.tolist() == [2.5, 4.5, 6.5, 8.5]  # ten values, two in each of five intervals
    lengths.fit(torch.tensor([[3.0]]))
    assert lengths.grid.tolist() == [3.0] * 4


def test_lengths_in_half_octaves() -> None:
    module = NormHistogram(4, 3)
    np.testing.assert_allclose(module.grid, [2**-0.5, 1, 2**0.5])
    assert module.rows(torch.tensor([[0.1], [0.8], [1.2], [9.0]])).tolist() == [0, 1, 2, 3]
    assert module(torch.tensor([[3.0, 4.0]])).equal(module.table.weight[3:])


def test_the_histogram_tells_lengths_apart() -> None:
    torch.manual_seed(0)
    config = ContentConfig(bins=[4], norm_bins=8)
    whole, alone = ContentEmbedding(5, 8, config), ContentEmbedding(5, 8, ContentConfig(bins=[4]))
    x = vectors(3, 5)
    assert not torch.allclose(whole(8 * x), whole(x), atol=1e-3)
    torch.testing.assert_close(alone(8 * x), alone(x))


@pytest.mark.parametrize("config", [{}, {"bins": [2, 4]}, {"bins": [2], "norm_bins": 3}, {"norm_bins": 3}], ids=str)
def test_unknown_content_adds_nothing(config: dict) -> None:
    module = ContentEmbedding(3, 8, ContentConfig.model_validate(config))
    x = torch.tensor([[math.nan, 1, 2], [0.0, 0, 0], [1, 2, 3]])
    assert not module(x)[:2].any()
    assert module(x)[2].any()
    assert module(x[2]).shape == (8,)
    assert module(x.view(3, 1, 3)).shape == (3, 1, 8)
    assert module(x[:0]).shape == (0, 8)
    module.fit(x[:2])  # nothing to lay a grid over
    assert module(x)[2].isfinite().all()


def test_intervals_depend_on_neither_the_batch_nor_autocast() -> None:
    module, x = cascade(48, bins=[64], projections=64), vectors(257, 48)
    whole = module.rows(x)
    assert torch.equal(torch.cat([module.rows(row[None]) for row in x]), whole)
    assert torch.equal(module.rows(x.view(257, 1, 48)).squeeze(1), whole)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.rows(x), whole)


def test_directions_and_grids_are_weights() -> None:
    """Loaded into a model of another seed, they make the same vectors."""
    config = ContentConfig(bins=[4, 8], projections=4, norm_bins=3)
    one, other = ContentEmbedding(6, 8, config), ContentEmbedding(6, 8, config.model_copy(update={"seed": 1}))
    x = vectors(20, 6)
    one.fit(x)
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


def test_tables_are_embedding_tables_to_the_optimiser() -> None:
    module = ContentEmbedding(6, 8, ContentConfig(bins=[4], norm_bins=3))
    assert table_parameters(module) == {id(module.cascade.table.weight), id(module.norm.table.weight)}


def test_the_cascade_bends_where_a_linear_map_cannot() -> None:
    """y = cos(4 angle) of points on a circle: a linear map explains nothing of it, the cascade nearly all."""
    angle = torch.linspace(0, 2 * math.pi, 401)[:-1]
    x = torch.stack((angle.cos(), angle.sin()), 1)
    y = torch.cos(4 * angle)[:, None]
    unexplained = {}
    for name, bins in (("linear", []), ("cascade", [4, 16])):
        torch.manual_seed(0)
        module = ContentEmbedding(2, 1, ContentConfig(bins=bins))
        module.fit(x)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        for _ in range(60):
            optimizer.zero_grad()
            loss = (module(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        unexplained[name] = float(loss.detach()) / 0.5
    assert unexplained["linear"] > 0.95
    assert unexplained["cascade"] < 0.1


# -- in the model ------------------------------------------------------------------------------------------------------

CASCADE = {"content": {"bins": [3, 7], "projections": 5, "norm_bins": 3}}


def test_fit_reads_the_training_items_alone() -> None:
    model = recgpt(untrained=10, **CASCADE)
    items = model.items
    before = model.model.items.content.cascade.grid.clone()
    model.model.items.fit(items)
    fitted = model.model.items.content.cascade.grid.clone()
    assert not torch.equal(fitted, before)
    moved = items.embedding.copy()
    moved[-10:] += 100  # those without a training event
    model.model.items.fit(replace(items, embedding=moved))
    assert torch.equal(model.model.items.content.cascade.grid, fitted)


@pytest.mark.parametrize("grid", ["uniform", "isotropic"])
def test_other_grids_are_not_fitted(grid: str) -> None:
    model = recgpt(content={"bins": [4], "grid": grid})
    before = model.model.items.content.cascade.grid.clone()
    model.model.items.fit(model.items)
    assert torch.equal(model.model.items.content.cascade.grid, before)


def test_a_saved_model_and_grown_states_are_the_same(tmp_path) -> None:
    model = recgpt(**CASCADE)
    model.model.items.fit(model.items)
    model.save_pretrained(tmp_path / "model")
    loaded = RecGPT.from_pretrained(tmp_path / "model")
    table = columns(21)
    whole = loaded.encode(table)
    assert torch.equal(whole.embedding, model.encode(table).embedding)
    grown = loaded.append(loaded.encode(cut(table, 0, 13)), cut(table, 13, 21))
    assert torch.equal(grown.hidden, whole.hidden)
    torch.testing.assert_close(loaded.encode_many([table])[0].embedding, whole.embedding, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"bins": [8, 4]}, "content.bins: resolutions must rise"),
        ({"bins": [4, 4]}, "content.bins: resolutions must rise"),
        ({"bins": [0]}, "content.bins.0"),
        ({"projections": 0}, "content.projections"),
        ({"grid": "even"}, "content.grid"),
        ({"norm_bins": -1}, "content.norm_bins"),
    ],
)
def test_bad_settings(content: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace(".", r"\.")):
        load_config(ModelConfig, {"content": content})
