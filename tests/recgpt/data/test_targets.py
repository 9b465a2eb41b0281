"""The rules that choose targets, on timelines small enough to enumerate."""

import numpy as np
import pytest

from recgpt.data.events import NO_TIME, Events
from recgpt.data.masked import MaskedItems
from recgpt.data.prepare import prepare
from recgpt.data.prepared import Prepared
from recgpt.data.sampler import Predicted, TrainingBatches
from recgpt.data.schema import DataConfig
from recgpt.data.targets import Chosen, LookAhead, NextItem, WithinHorizon, microseconds
from recgpt.data.window import WindowConfig
from tests.recgpt.builders import write_log

WINDOW = WindowConfig(length=16, stride=8, chunk=4)
Rule = NextItem | LookAhead | WithinHorizon | MaskedItems
RULES: dict[str, Rule] = {
    "next": NextItem(),
    "next of all": NextItem(every=True),
    "look ahead": LookAhead((0, 3, 7)),
    "look ahead to all": LookAhead((0, 3, 7), every=True),
    "horizon": WithinHorizon(50),
    "horizon, two positions": WithinHorizon(50, positions=2, every=True),
    "masked": MaskedItems(),
    "masked of all": MaskedItems(0.6, 0.3, every=True),
}


def timeline(times: list[int], target: list[int] | None = None) -> Events:
    """Events of items 100, 101, ... whose outcome is their number."""
    n = len(times)
    return Events(
        item=np.arange(100, 100 + n),
        time=np.array(times, np.int64),
        outcomes={"stars": np.arange(n, dtype=np.float32)},
        target=np.ones(n, bool) if target is None else np.array(target, bool),
    )


def pairs(rule: Rule, events: Events, length: int, skip: int = 0, seeds: int = 200) -> dict[int, set[int]]:
    """Every event that each position was seen to predict."""
    seen: dict[int, set[int]] = {}
    for seed in range(seeds):
        chosen = rule.choose(events, length, skip, np.random.default_rng(seed))
        for position, item in zip(chosen.position.tolist(), chosen.item.tolist(), strict=True):
            seen.setdefault(position, set()).add(item - 100)
    return seen


@pytest.mark.parametrize("name", RULES)
def test_every_rule_keeps_the_contract(name: str) -> None:
    rule, rng = RULES[name], np.random.default_rng(0)
    for _ in range(100):
        length, skip = int(rng.integers(0, 9)), 0
        if length > 4:
            skip = int(rng.integers(0, length))
        n = length + 1 + min(rule.reach, int(rng.integers(0, 9)))
        events = timeline(np.sort(rng.integers(0, 200, n)).tolist(), (rng.random(n) < 0.7).tolist())
        chosen = rule.choose(events, length, skip, np.random.default_rng(1))
        again = rule.choose(events, length, skip, np.random.default_rng(1))
        assert chosen.position.tolist() == again.position.tolist()  # the generator decides, nothing else
        assert chosen.item.tolist() == again.item.tolist()
        assert len(chosen.position) == len(chosen.item) == len(chosen.head)
        assert chosen.position.dtype == chosen.item.dtype == chosen.head.dtype == np.int64
        assert ((chosen.position >= skip) & (chosen.position <= length)).all()
        index = chosen.item - 100
        assert (index >= chosen.position).all()  # nothing that the position has seen
        assert rule.every or events.target[index].all()
        np.testing.assert_array_equal(chosen.outcomes["stars"], index)  # the target's own
        assert set(chosen.outcomes) == {"stars"}


# -- look-ahead --------------------------------------------------------------------------------------------------------


def test_look_ahead_by_hand() -> None:
    # offsets 0; 1 or 2; the next above it, up to 3. Three inputs, four events more.
    rule = LookAhead((0, 2, 3))
    seen = set()
    for seed in range(200):
        chosen = rule.choose(timeline([0] * 7, [1, 1, 1, 0, 1, 1, 1]), 3, 1, np.random.default_rng(seed))
        offsets = []
        for head in range(3):
            rows = chosen.head == head
            apart = set((chosen.item[rows] - 100 - chosen.position[rows]).tolist())
            assert len(apart) == 1  # one offset a window
            offsets.append(apart.pop())
            expected = [t for t in (1, 2, 3) if t + offsets[-1] != 3]  # event 3 is no target
            assert chosen.position[rows].tolist() == expected
        seen.add(tuple(offsets))
    assert seen == {(0, 1, 2), (0, 1, 3), (0, 2, 3)}


def test_look_ahead_offsets_are_uniform() -> None:
    rule = LookAhead((0, 4))
    rng = np.random.default_rng(0)
    counts = np.zeros(5)
    for _ in range(4000):
        chosen = rule.choose(timeline([0] * 9), 4, 0, rng)
        counts[chosen.item[-1] - 100 - chosen.position[-1]] += 1
    assert counts[0] == 0
    assert ((counts[1:] - 1000) ** 2 / 1000).sum() < 16.3  # chi-square, 3 degrees, .001


def test_look_ahead_ends_with_the_training_events() -> None:
    # three inputs and one event more: head 1 looks one or two events on
    seen = pairs(LookAhead((0, 2)), timeline([0] * 4), 3)
    assert seen == {0: {0, 1, 2}, 1: {1, 2, 3}, 2: {2, 3}, 3: {3}}


def test_look_ahead_of_nothing_is_the_next_item() -> None:
    events = timeline([0] * 6, [1, 0, 1, 1, 0, 1])
    rng = np.random.default_rng(0)
    plain, ahead = NextItem().choose(events, 5, 1, rng), LookAhead((0,)).choose(events, 5, 1, rng)
    for name in ("position", "item", "head"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(ahead, name))


# -- horizon -----------------------------------------------------------------------------------------------------------


def test_horizon_on_a_toy_timeline() -> None:
    #           0  1  2   3   4   5   6    7
    times = [0, 5, 5, 10, 14, 15, 40, 1000]
    target = [1, 1, 1, 1, 0, 1, 1, 1]
    expected = {
        1: {1, 2, 3},  # now 0: (0, 10]
        2: {3, 5},  # now 5, the time of event 1: event 2 is at once with it; (5, 15] without event 4
        3: {3, 5},  # now 5
        4: {5},  # now 10: (10, 20], event 4 is no target
        # position 5, now 14: event 5; 6, now 15: (15, 25] is empty; 7, now 40: (40, 50] is empty
        5: {5},
    }
    events = timeline(times, target)
    assert pairs(WithinHorizon(10), events, 7) == expected
    chosen = WithinHorizon(10).choose(events, 7, 0, np.random.default_rng(0))
    assert chosen.position.tolist() == [1, 2, 3, 4, 5]
    assert chosen.dropped == 3  # 0 (no time yet), 6, 7
    assert WithinHorizon(10).choose(events, 7, 4, np.random.default_rng(0)).dropped == 2  # of 4 .. 7
    assert WithinHorizon(10).choose(events, 3, 0, np.random.default_rng(0)).dropped == 1
    everything = pairs(WithinHorizon(10, every=True), events, 7)
    assert everything == expected | {2: {3, 4, 5}, 3: {3, 4, 5}, 4: {4, 5}}


def test_horizon_draws_each_admissible_target_alike() -> None:
    events = timeline([0, 1, 2, 3, 4])
    rng = np.random.default_rng(0)
    counts = np.zeros(5)
    for _ in range(4000):
        counts[WithinHorizon(100).choose(events, 1, 1, rng).item[0] - 100] += 1
    assert counts[0] == 0
    assert ((counts[1:] - 1000) ** 2 / 1000).sum() < 16.3  # chi-square, 3 degrees, .001


def test_unknown_times_are_neither_a_now_nor_a_target() -> None:
    assert pairs(WithinHorizon(10), timeline([0, NO_TIME, 5, NO_TIME, 9]), 4) == {1: {2, 4}, 3: {4}}
    nothing = WithinHorizon(10).choose(timeline([NO_TIME] * 4), 3, 0, np.random.default_rng(0))
    assert len(nothing.position) == 0
    assert nothing.dropped == 4


def test_times_that_go_backwards_are_searched_one_by_one() -> None:
    # now at 1 is 9; event 0 has been seen, so that its later time does not make it a target
    seen = pairs(WithinHorizon(10), timeline([9, 3, 12, 4, 20]), 4)
    assert seen == {1: {2}, 2: {2, 3}, 3: {4}}  # at 4, now = 4: (4, 14] holds events 0 and 2, both seen


def test_both_searches_agree() -> None:
    """A time of 10^6 before the window's own makes the list unsorted, and is no one's target."""
    rng = np.random.default_rng(3)
    for _ in range(30):
        times = np.sort(rng.integers(0, 60, 12)).tolist()
        target = (rng.random(12) < 0.8).tolist()
        ordered = pairs(WithinHorizon(15), timeline(times, target), 11, seeds=60)
        backward = pairs(WithinHorizon(15), timeline([10**6, *times], [1, *target]), 12, skip=2, seeds=60)
        assert backward == {t + 1: {i + 1 for i in found} for t, found in ordered.items()}


def test_some_positions_of_a_window() -> None:
    events = timeline([0, 1, 2, 3, 4, 5, 1000, 2000])
    rule = WithinHorizon(10, positions=2)
    drawn = [rule.choose(events, 7, 0, np.random.default_rng(seed)) for seed in range(300)]
    for chosen in drawn:
        assert len(chosen.position) == 2
        assert chosen.position[0] < chosen.position[1]
        assert chosen.dropped == 3  # 0, 6 and 7; the positions that were not drawn are not counted
    counts = np.bincount(np.concatenate([chosen.position for chosen in drawn]), minlength=8)
    assert counts[[0, 6, 7]].tolist() == [0, 0, 0]
    assert (np.abs(counts[1:6] - 120) < 4 * (300 * 0.4 * 0.6) ** 0.5).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("28d", 28 * 86_400), ("1.5h", 5400), ("30 min", 1800), ("45s", 45), ("2w", 1_209_600), (" 1d ", 86_400)],
)
def test_lengths_of_time(text: str, expected: int) -> None:
    assert microseconds(text) == expected * 10**6


@pytest.mark.parametrize("text", ["99999999999d", "28", "d", "0d", "-1d", "1 month", "", "1e3s", "1d 2h"])
def test_no_lengths_of_time(text: str) -> None:
    with pytest.raises(ValueError, match="write a number above 0 and s, min, h, d or w, such as 28d"):
        microseconds(text)


# -- in batches --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    data = write_log(tmp_path_factory.mktemp("log"), [1, 2, 5, 18, 20, 33, 60, 7, 7])
    data["target"] = {"outcome": "click", "min": 1}
    return prepare(DataConfig.model_validate(data), progress=False)


def made(batches: TrainingBatches, epoch: int) -> list[tuple[int, int, int, int]]:
    """(user, position in the user's history, head, item) of every target of an epoch."""
    found = []
    for number, rows in enumerate(batches.order(epoch)):
        batch = batches.batch(rows, (epoch, number))
        width = batch.item.shape[1] + 1
        columns = (column.tolist() for column in (batch.position, batch.head, batch.target))
        for position, head, target in zip(*columns, strict=True):
            sequence, seen = divmod(position, width)
            window = rows[sequence]
            user = int(batches.windows.user[window])
            start = int(batches.windows.first[window] - batches.prepared.users.offset[user])
            found.append((user, start + seen, head, int(batch.items[target])))
    return found


def test_look_ahead_against_a_loop_over_users(prepared: Prepared) -> None:
    """Beyond a window's end, never into the held-out events nor the next user's; each position once for each head."""
    found = made(TrainingBatches(prepared, WINDOW, 200, 3, targets=LookAhead((0, 1, 2))), 0)
    expected = []
    for user, (offset, end) in enumerate(zip(prepared.users.offset, prepared.users.train_end, strict=True)):
        log = prepared.events(int(offset), int(offset + end))
        for n in range(int(end)):
            for head in range(3):  # rising to 0, 1, 2: the offset of head i is i
                if n + head < end and log.target[n + head]:
                    expected.append((user, n, head, int(log.item[n + head])))
    assert sorted(found) == sorted(expected)


def test_horizon_against_a_loop_over_users(prepared: Prepared) -> None:
    """Every position with an admissible target has one, whichever window it is in."""
    rule = WithinHorizon(150_000 * 10**6)
    found = {(user, n): item for user, n, _, item in made(TrainingBatches(prepared, WINDOW, 200, 3, targets=rule), 0)}
    expected: dict[tuple[int, int], set[int]] = {}
    for user, (offset, end) in enumerate(zip(prepared.users.offset, prepared.users.train_end, strict=True)):
        log = prepared.events(int(offset), int(offset + end))
        for n in range(1, int(end)):
            late = log.time[n:] - log.time[n - 1]
            admissible = log.item[n:][log.target[n:] & (late > 0) & (late <= rule.horizon)]
            if len(admissible):
                expected[user, n] = set(admissible.tolist())
    assert found.keys() == expected.keys()
    assert all(found[place] in expected[place] for place in found)


def test_draws_are_a_function_of_seed_epoch_and_number(prepared: Prepared) -> None:
    rule = WithinHorizon(10**6 * 10**6)

    def batches(seed: int = 0) -> TrainingBatches:
        return TrainingBatches(prepared, WINDOW, 64, seed, targets=rule)

    assert made(batches(), 1) == made(batches(), 1)
    assert sorted(made(batches(), 1)) != sorted(made(batches(), 2))
    whole, rest = list(batches().epoch(1)), list(batches().epoch(1, skip=3))
    for a, b in zip(whole[3:], rest, strict=True):
        assert a.target.equal(b.target)
        assert a.items.equal(b.items)


def test_a_batch_tells_what_was_dropped(prepared: Prepared) -> None:
    batches = TrainingBatches(prepared, WINDOW, 200, 3, targets=WithinHorizon(10**6))  # a second
    rows = batches.order(0)[0]
    batch = batches.batch(rows)
    positions = batches.windows.length[rows] + 1 - batches.windows.skip[rows]
    assert batch.dropped is not None
    assert batch.dropped.tolist() == positions.tolist()  # nothing follows within a second
    assert len(batch.position) == 0
    assert TrainingBatches(prepared, WINDOW, 200, 3).batch(rows[:1]).dropped is None


def test_windows_whose_target_lies_after_them_are_kept(prepared: Prepared) -> None:
    """A window is kept if a target is left at or after its first predicting position."""
    every = TrainingBatches(prepared, WINDOW, 200, 0, which=Predicted(every=True)).windows
    offset, end = prepared.users.offset[every.user], prepared.users.train_end[every.user]
    target = prepared.events(0, prepared.n_events).target
    left = [target[a:b].any() for a, b in zip(every.first + every.skip, offset + end, strict=True)]
    kept = TrainingBatches(prepared, WINDOW, 200, 0, targets=WithinHorizon(10**15)).windows
    assert kept.first.tolist() == every.first[left].tolist()


def test_targets_belong_to_the_first_head_unless_told() -> None:
    assert Chosen(np.zeros(2, np.int64), np.zeros(2, np.int64)).head.tolist() == [0, 0]
