"""The masked objective's choice of events, by effect."""

import numpy as np
import pytest

from recgpt.data.events import Events
from recgpt.data.masked import MaskedConfig, MaskedItems


def timeline(n: int, target: list[int] | None = None) -> Events:
    """Items 100, 101, ... whose outcome is their number."""
    return Events(
        item=np.arange(100, 100 + n),
        time=np.arange(n),
        outcomes={"stars": np.arange(n, dtype=np.float32)},
        target=np.ones(n, bool) if target is None else np.array(target, bool),
    )


def test_a_position_predicts_the_event_that_it_hides() -> None:
    for seed in range(50):
        chosen = MaskedItems(0.4, 0.0).choose(timeline(11), 10, 0, np.random.default_rng(seed))
        again = MaskedItems(0.4, 0.0).choose(timeline(11), 10, 0, np.random.default_rng(seed))
        assert chosen.position.tolist() == again.position.tolist()
        assert len(chosen.position) > 0
        assert (chosen.item - 100).tolist() == chosen.position.tolist()
        assert chosen.outcomes["stars"].tolist() == chosen.position.tolist()
        assert (chosen.head == 0).all()
        assert chosen.masked is not None
        assert np.flatnonzero(chosen.masked).tolist() == chosen.position[chosen.position < 10].tolist()


def test_the_share_hidden() -> None:
    """Every event alike, the one after the inputs too: 4 standard deviations of 4,000 draws."""
    count = np.zeros(21)
    for seed in range(4000):
        count[MaskedItems(0.25, 0.0).choose(timeline(21), 20, 0, np.random.default_rng(seed)).position] += 1
    assert abs(count / 4000 - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 4000)


def test_the_newest_alone() -> None:
    rng, rule = np.random.default_rng(0), MaskedItems(1.0, 0.3)
    sizes = [len(rule.choose(timeline(6), 5, 0, rng).position) for _ in range(2000)]
    assert set(sizes) == {1, 6}
    assert abs(sizes.count(1) / 2000 - 0.3) < 0.05
    chosen = MaskedItems(1.0, 1.0).choose(timeline(6), 5, 0, rng)
    assert chosen.position.tolist() == [5]
    assert not chosen.masked.any()


def test_the_newest_alone_needs_a_target_there() -> None:
    """Where the event after the inputs is no target, hiding an older one alone would be no state to read."""
    chosen = MaskedItems(1.0, 1.0).choose(timeline(6, [1, 1, 1, 1, 1, 0]), 5, 0, np.random.default_rng(0))
    assert chosen.position.tolist() == [0, 1, 2, 3, 4]


def test_something_is_hidden_always() -> None:
    rng = np.random.default_rng(0)
    places = {tuple(MaskedItems(1e-9, 0.0).choose(timeline(4), 3, 0, rng).position.tolist()) for _ in range(200)}
    assert places == {(0,), (1,), (2,), (3,)}


def test_only_targets_that_no_earlier_window_predicts() -> None:
    rng, rule = np.random.default_rng(0), MaskedItems(1.0, 0.0)
    assert rule.choose(timeline(9), 8, 5, rng).position.tolist() == [5, 6, 7, 8]
    declared = timeline(9, [1, 0, 1, 0, 1, 0, 1, 0, 1])
    assert rule.choose(declared, 8, 3, rng).position.tolist() == [4, 6, 8]
    assert MaskedItems(1.0, 0.0, every=True).choose(declared, 8, 3, rng).position.tolist() == [3, 4, 5, 6, 7, 8]
    nothing = rule.choose(timeline(4, [1, 0, 0, 0]), 3, 1, rng)
    assert len(nothing.position) == len(nothing.item) == 0
    assert nothing.masked.tolist() == [False] * 3


def test_the_config() -> None:
    assert MaskedConfig().probability == 0.2
    for wrong in ({"probability": 0}, {"probability": 1.1}, {"last_only": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MaskedConfig.model_validate(wrong)
