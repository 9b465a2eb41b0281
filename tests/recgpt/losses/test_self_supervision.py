"""Item self-supervision: the views, the masks, mutual information and what the loss does to an encoder."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recgpt.data.items import ItemTable
from recgpt.errors import ConfigError
from recgpt.losses.self_supervision import (
    CONTENT,
    ID,
    SelfSupervision,
    SelfSupervisionConfig,
    feature_classes,
    feature_information,
    info_nce,
    knows_any,
    mutual_information,
    view,
)
from tests.recgpt import builders


def table(n: int = 40, untrained: int = 0, **features: np.ndarray) -> ItemTable:
    """The builders' items with these static features instead of their own."""
    items = builders.items(n, untrained)
    return replace(items, features=features) if features else items


def config(**changes: object) -> SelfSupervisionConfig:
    return SelfSupervisionConfig.model_validate({"weight": 1} | changes)


def unit(n: int, dim: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


# -- mutual information ------------------------------------------------------------------------------------------------


def test_information_of_a_column_with_itself_is_its_entropy() -> None:
    column = np.repeat([0, 1, 2], [2, 1, 1])
    entropy = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert mutual_information(column, column, corrected=False) == pytest.approx(entropy, abs=1e-12)


def test_information_by_hand() -> None:
    # p(0,0) = p(1,1) = 3/8, p(0,1) = p(1,0) = 1/8, every margin 1/2
    u = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    v = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    expected = 2 * 3 / 8 * math.log(3 / 2) + 2 * 1 / 8 * math.log(1 / 2)
    assert mutual_information(u, v, corrected=False) == pytest.approx(expected, abs=1e-12)
    assert mutual_information(v, u, corrected=False) == pytest.approx(expected, abs=1e-12)


def test_independent_columns_show_the_bias_and_the_correction_takes_it_off() -> None:
    rng = np.random.default_rng(0)
    rows, cells = 2000, (10, 6)
    plain, corrected = [], []
    for _ in range(40):
        u, v = rng.integers(0, cells[0], rows), rng.integers(0, cells[1], rows)
        plain.append(mutual_information(u, v, corrected=False))
        corrected.append(mutual_information(u, v))
    bias = (cells[0] - 1) * (cells[1] - 1) / (2 * rows)  # .01125
    assert np.mean(plain) == pytest.approx(bias, rel=0.1)
    # 2N times it is chi-square with 45 degrees: sd .0024, of which the clamp at 0 leaves a mean of .4 sd
    assert np.mean(corrected) == pytest.approx(0.4 * 90**0.5 / (2 * rows), abs=0.0008)
    assert min(corrected) == 0


def test_unknown_values_do_not_count() -> None:
    u, v = np.array([0, 1, -1, 0, 1]), np.array([0, 1, 1, -1, 1])
    assert mutual_information(u, v, corrected=False) == pytest.approx(
        mutual_information(u[[0, 1, 4]], v[[0, 1, 4]], corrected=False)
    )
    assert mutual_information(np.array([-1, -1]), np.array([0, 1])) == 0


def test_feature_classes() -> None:
    number = np.array([0, 1, 2, 3, 4, 5, 6, np.nan], np.float32)
    rare = np.repeat(np.arange(1, 41), 2)[:60]  # 30 values
    items = table(8, price=number, brand=np.array([7, 7, 9, 0, 9, 9, 3, 3]))
    rows = np.arange(8)
    classes = feature_classes(items, "feature:price", rows)
    assert classes[7] == -1
    assert (np.diff(classes[:7]) >= 0).all()
    assert len(set(classes[:7].tolist())) == 7  # eight bins of seven values
    brand = feature_classes(items, "feature:brand", rows)
    assert brand[3] == -1
    assert brand.tolist() == [1, 1, 0, -1, 0, 0, 2, 2] or brand.tolist() == [2, 2, 0, -1, 0, 0, 1, 1]
    tags = table(8, tags=np.array([[5, 6], [6, 5], [5, 0], [0, 0], [5, 6], [5, 6], [5, 0], [7, 5]]))
    assert len(np.unique(feature_classes(tags, "feature:tags", rows), return_index=True)[1]) == 4  # -1 and three sets
    assert feature_classes(tags, "feature:tags", rows)[[0, 1, 3, 4]].tolist() == [0, 0, -1, 0]
    many = table(60, brand=rare + 100 * (np.arange(60) % 2))  # 60 values: 32 are told apart, the rest are one class
    assert len(np.unique(feature_classes(many, "feature:brand", np.arange(60)))) == 33


def test_content_classes_follow_the_spread() -> None:
    rng = np.random.default_rng(1)
    side = rng.integers(0, 2, 200)
    vectors = rng.normal(size=(200, 6)).astype(np.float32) * 0.01
    vectors[:, 2] += 1
    vectors[:, 4] += np.where(side, 1.0, -1.0)  # two groups
    vectors[0] = np.nan
    vectors[1] = 0
    items = replace(builders.items(200), embedding=vectors)
    classes = feature_classes(items, CONTENT, np.arange(200))
    assert classes[0] == classes[1] == -1
    assert mutual_information(classes[2:], side[2:]) == pytest.approx(math.log(2), rel=0.05)


def test_information_between_features_finds_what_was_planted() -> None:
    rng = np.random.default_rng(2)
    group = rng.integers(1, 5, 400)
    items = table(
        400, brand=group, maker=(group + 1) // 2 + 50, colour=rng.integers(1, 5, 400), price=group.astype(np.float32)
    )
    items = replace(items, embedding=None)
    names = [ID, "feature:brand", "feature:maker", "feature:colour", "feature:price"]
    shared = feature_information(items, names)
    assert (shared == shared.T).all()
    assert (shared[0] == 0).all()  # an id shares nothing that generalises
    assert shared[1, 4] == pytest.approx(math.log(4), rel=0.05)
    assert shared[1, 2] == pytest.approx(math.log(2), rel=0.1)
    assert shared[1, 3] < 0.02


# -- masks and views ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_features", range(1, 7))
@pytest.mark.parametrize("masking", ["random", "correlated"])
def test_a_split_hides_half_rounded_up(masking: str, n_features: int) -> None:
    columns = {f"f{i}": np.arange(40) % (i + 2) + 1 for i in range(n_features)}
    task = SelfSupervision(config(masking=masking), replace(table(**columns), embedding=None))
    k = n_features + 1
    torch.manual_seed(0)
    for _ in range(20):
        hidden = task.split()
        assert len(hidden) == len(set(hidden)) == math.ceil(k / 2)
        assert 0 < len(hidden) < k  # each view has something to show


def test_random_splits_hide_every_feature_equally_often() -> None:
    task = SelfSupervision(config(), builders.items())  # id, content, brand, tags: two of four are hidden
    torch.manual_seed(0)
    n = 3000
    counts = {name: 0 for name in task.names}
    for _ in range(n):
        for name in task.split():
            counts[name] += 1
    assert set(counts) == {ID, CONTENT, "feature:brand", "feature:tags"}
    for count in counts.values():
        assert count == pytest.approx(n / 2, abs=4 * math.sqrt(n / 4))


def test_correlated_splits_hide_the_seed_and_what_tells_most_about_it() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.integers(1, 6, 500), rng.integers(1, 6, 500)
    items = replace(table(500, a=a, a_again=a * 7, b=b, b_again=b * 3), embedding=None)
    task = SelfSupervision(config(masking="correlated"), items)
    torch.manual_seed(0)
    seen = set()
    for _ in range(200):
        hidden = task.split()  # of id, a, a_again, b, b_again: the seed and two more
        seen.add(hidden[0])
        if hidden[0] != ID:
            partner = {"a": "a_again", "a_again": "a", "b": "b_again", "b_again": "b"}
            assert hidden[1] == "feature:" + partner[hidden[0].removeprefix("feature:")]
    assert seen == set(task.names)  # every feature is a seed


def test_views_are_complementary_and_say_unknown() -> None:
    items = table(price=np.arange(40, dtype=np.float32), brand=np.arange(40) + 1)
    hashes, content = torch.arange(1, 5), torch.ones(4, 6)
    features = {name: torch.from_numpy(column[:4]) for name, column in items.features.items()}
    shown, hidden = [ID, "feature:price"], [CONTENT, "feature:brand"]
    one, other = view(hashes, features, content, shown), view(hashes, features, content, hidden)
    assert torch.equal(one[0], hashes)
    assert (other[0] == 0).all()
    assert one[2].isnan().all()
    assert torch.equal(other[2], content)
    assert torch.equal(one[1]["price"], features["price"])
    assert other[1]["price"].isnan().all()
    assert (one[1]["brand"] == 0).all()
    assert torch.equal(other[1]["brand"], features["brand"])
    assert torch.equal(content, torch.ones(4, 6))  # the batch itself is untouched


def test_an_item_with_an_empty_view_does_not_count() -> None:
    embedding = builders.items().embedding.copy()
    embedding[:10] = np.nan
    items = replace(builders.items(), embedding=embedding, features={})
    task = SelfSupervision(config(), items)
    seen = []

    def vectors(hashes: torch.Tensor, features: dict, content: torch.Tensor) -> torch.Tensor:
        seen.append((hashes, content))
        return unit(len(hashes), 4, 0)

    _, n = task.loss(vectors)
    assert n == 30
    for hashes, content in seen:
        assert ((hashes != 0) ^ ~content.isnan().any(-1)).all()  # each view has the one or the other
    assert knows_any(torch.tensor([5]), {}, torch.zeros(1, 6), [CONTENT]).tolist() == [False]


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_info_nce_by_hand() -> None:
    one = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    other = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # cosines [[1, .6], [0, .8]]: the own one is ahead by .4 and .8 in the rows, by 1 and .2 in the columns
    expected = sum(math.log1p(math.exp(-x)) for x in (0.4, 0.8, 1.0, 0.2)) / 4
    assert info_nce(one, other, 1.0).item() == pytest.approx(expected, abs=1e-6)
    assert info_nce(other, one, 1.0).item() == pytest.approx(expected, abs=1e-6)


def test_info_nce_of_unrelated_views_is_about_log_n() -> None:
    n = 512
    loss = info_nce(unit(n, 256, 0), unit(n, 256, 1), 1.0).item()
    # cosines have variance 1/256: the log of the mean of their exponentials is 1/512 above their mean, which is 0
    assert loss == pytest.approx(math.log(n), abs=0.01)
    matched = unit(n, 256, 2)
    assert info_nce(matched, matched, 0.1).item() < 0.2


def test_an_untrained_model_starts_near_log_n_and_learns_to_match_the_views() -> None:
    torch.manual_seed(0)
    model = builders.recgpt().model.train()
    task = SelfSupervision(config(n_items=64), builders.items())
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss, n = task.loss(lambda *item: model.vectors(model.items(*item)))
        assert n == 40
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[:3]) > 0.8 * math.log(40)
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:3])  # views of a brand alone cannot tell its items apart


def test_gradients_reach_the_encoder_and_nothing_else() -> None:
    model = builders.recgpt().model.train()
    loss, _ = SelfSupervision(config(), builders.items()).loss(lambda *item: model.vectors(model.items(*item)))
    loss.backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"items", "item"}


def test_items_are_drawn_uniformly_whatever_their_clicks() -> None:
    items = builders.items(50, untrained=10)
    items = replace(items, n_train_events=np.where(items.n_train_events > 0, np.arange(50) ** 3 + 1, 0))
    task = SelfSupervision(config(n_items=8), items)
    torch.manual_seed(0)
    draws = [task.draw() for _ in range(4000)]
    for hashes in draws[:50]:
        assert len(hashes.unique()) == len(hashes) <= 8
    drawn, count = torch.cat(draws).unique(return_counts=True)
    assert set(drawn.tolist()) == set(items.trained.tolist())  # the ten without a training event never
    share = 1 - (1 - 1 / 40) ** 8
    assert (count / 4000 - share).abs().max() < 4.5 * math.sqrt(share * (1 - share) / 4000)
    whole = SelfSupervision(config(n_items=100), items)
    assert set(whole.draw().tolist()) == set(items.trained.tolist())


def test_the_generator_alone_decides() -> None:
    task = SelfSupervision(config(n_items=16), builders.items())

    def drawn() -> tuple[list[int], list[str]]:
        torch.manual_seed(5)
        return task.draw().tolist(), task.split()

    assert drawn() == drawn()


def test_too_few_items_give_a_loss_of_zero() -> None:
    model = builders.recgpt().model.train()
    items = builders.items(3, untrained=2)
    loss, n = SelfSupervision(config(), items).loss(lambda *item: model.vectors(model.items(*item)))
    loss.backward()
    assert (loss.item(), n) == (0, 1)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_items_of_which_only_the_id_is_known_are_refused() -> None:
    bare = replace(builders.items(), embedding=None, features={})
    with pytest.raises(ConfigError, match=r"loss.self_supervision: .*data.items.features"):
        SelfSupervision(config(), bare)
