"""Training windows: every target once, from exactly what a state reads; the order as a pure function."""

import numpy as np
import pytest

from recgpt.data.prepare import prepare
from recgpt.data.prepared import Prepared
from recgpt.data.sampler import Predicted, TrainingBatches, count_targets, padded_widths
from recgpt.data.schema import DataConfig
from recgpt.data.window import WindowConfig
from tests.recgpt.builders import write_log

WINDOW = WindowConfig(length=16, stride=8, chunk=4)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    lengths = [1, 2, 3, 5, 18, 19, 20, 33, 60, 7, 7, 7]
    data = write_log(tmp_path_factory.mktemp("log"), lengths)
    data["target"] = {"outcome": "click", "min": 1}
    return prepare(DataConfig.model_validate(data), progress=False)


@pytest.mark.parametrize("newest", [None, 1, 5, 20])
@pytest.mark.parametrize("every", [False, True])
def test_every_target_is_predicted_once_from_what_its_state_reads(
    prepared: Prepared, every: bool, newest: int | None
) -> None:
    """Against a loop over users and positions."""
    expected = []
    for row, (offset, end) in enumerate(zip(prepared.users.offset, prepared.users.train_end, strict=True)):
        log = prepared.events(int(offset), int(offset + end))
        for n in np.flatnonzero(log.target | every):
            if newest is not None and n < end - newest:
                continue
            expected.append((row, tuple(log.item[WINDOW.start(int(n)) : n].tolist()), int(log.item[n])))
    found = []
    batches = TrainingBatches(prepared, WINDOW, tokens=200, seed=3, which=Predicted(every, newest))
    for rows in batches.order(0):
        batch = batches.batch(rows)
        width = batch.item.shape[1] + 1
        users = np.searchsorted(prepared.users.offset, batches.windows.first[rows], side="right") - 1
        for position, target in zip(batch.position.tolist(), batch.target.tolist(), strict=True):
            sequence, seen = divmod(position, width)
            history = batch.items[batch.item[sequence, :seen]]
            found.append((int(users[sequence]), tuple(history.tolist()), int(batch.items[target])))
    assert sorted(found) == sorted(expected)
    assert len(found) > (1 if newest == 1 else 10)


def test_batches_hold_at_most_their_tokens_and_little_padding(prepared: Prepared) -> None:
    batches = TrainingBatches(prepared, WINDOW, tokens=64, seed=0)
    for batch in batches.epoch(0):
        assert batch.item.numel() <= 64


def test_order_is_a_function_of_seed_and_epoch(prepared: Prepared) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return [rows.tolist() for rows in TrainingBatches(prepared, WINDOW, 64, seed).order(epoch)]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert sorted(sum(order(0, 1), [])) == sorted(sum(order(5, 2), []))


def test_skipping_continues_the_epoch(prepared: Prepared) -> None:
    batches = TrainingBatches(prepared, WINDOW, 64, 0)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, skip=3))
    assert len(rest) == len(whole) - 3 == len(batches) - 3
    for a, b in zip(whole[3:], rest, strict=True):
        assert a.items.equal(b.items)
        assert a.position.equal(b.position)


def test_ranks_share_the_windows_and_take_equal_steps(prepared: Prepared) -> None:
    whole = TrainingBatches(prepared, WINDOW, 64, 0).order(0)
    shares = [TrainingBatches(prepared, WINDOW, 64, 0, share=(rank, 2)).order(0) for rank in range(2)]
    assert len(shares[0]) == len(shares[1])
    assert {tuple(rows) for share in shares for rows in share} == {tuple(rows) for rows in whole}


def test_counting_targets_in_blocks(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    start, stop = np.array([0, 3, 40]), np.array([5, 3, prepared.n_events])
    target = prepared.events(0, prepared.n_events).target
    expected = [target[a:b].sum() for a, b in zip(start, stop, strict=True)]
    monkeypatch.setattr("recgpt.data.sampler.COUNT_BLOCK", 7)
    np.testing.assert_array_equal(count_targets(prepared, start, stop), expected)


def test_widths_by_hand() -> None:
    lengths = np.array([0, 1, 4, 5, 9, 16, 17, 33, 100, 190, 200])
    assert padded_widths(lengths, 200).tolist() == [4, 4, 4, 8, 12, 16, 20, 40, 112, 192, 200]
    lengths = np.arange(16, 5000)
    assert (padded_widths(lengths, 5000) / lengths).max() < 1.25 + 1e-9


def test_at_most_one_batch_of_an_epoch_is_not_full(prepared: Prepared) -> None:
    batches = TrainingBatches(prepared, WINDOW, 64, 0)
    for epoch in range(3):
        rows = batches.order(epoch)
        shapes = [(len(each), int(batches.widths[each].max())) for each in rows]
        assert sum(count < 64 // width for count, width in shapes) <= 1
        assert len({width for _, width in shapes}) > 1
