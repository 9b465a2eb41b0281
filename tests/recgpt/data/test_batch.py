"""Batches by hand: padding, distinct items, gaps, unknown values."""

import numpy as np
import pytest
import torch

from recgpt.data.batch import N_GAP_BUCKETS, chunk_batch, collate, gap_buckets
from recgpt.data.events import NO_TIME, Events
from recgpt.data.targets import Chosen
from tests.recgpt.builders import events, items

SECOND = 1_000_000


def test_gap_buckets_by_hand() -> None:
    # gaps 0 s, 1 s, 3 s, 8 s (log2 9 = 3.17), unknown, unknown, backwards (0 s), 100 years (log2 = 31.55)
    seconds = [10, 10, 11, 14, 22, None, 22, 21, 21 + 3_155_760_000]
    time = np.array([NO_TIME if s is None else s * SECOND for s in seconds])
    assert gap_buckets(time).tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 32]
    assert gap_buckets(np.array([0, 2**62])).tolist() == [0, N_GAP_BUCKETS - 1]
    assert gap_buckets(time[:1]).tolist() == [0]
    assert gap_buckets(time[:0]).tolist() == []


def test_collate_by_hand() -> None:
    def run(*hashes: int) -> Events:
        click = np.full(len(hashes), 1, np.float32)
        return Events(np.array(hashes, np.int64), np.full(len(hashes), NO_TIME), {"click": click})

    batch = collate(
        [run(7, 5, 7), run(9)],
        items(1),
        targets=[Chosen(np.array([1, 3]), np.array([5, 9])), Chosen(np.array([0]), np.array([4]))],
    )
    assert batch.items.tolist() == [4, 5, 7, 9]
    assert batch.items[batch.item[0]].tolist() == [7, 5, 7]
    assert batch.items[batch.item[1, 0]] == 9
    assert batch.length.tolist() == [3, 1]
    assert batch.position.tolist() == [1, 3, 4]  # four positions a sequence
    assert batch.items[batch.target].tolist() == [5, 9, 4]
    assert batch.outcomes["click"][0].tolist() == [1, 1, 1]
    assert batch.outcomes["click"][1, 1:].isnan().all()


def test_item_columns_of_unknown_items_are_unknown() -> None:
    run = Events(np.array([12345, items().hash[3]]), np.full(2, NO_TIME))
    batch = collate([run], items())
    row = {int(hash): i for i, hash in enumerate(batch.items)}
    assert batch.content is not None
    assert batch.content[row[12345]].isnan().all()
    assert batch.features["brand"][row[12345]] == 0
    torch.testing.assert_close(batch.content[row[int(items().hash[3])]], torch.from_numpy(items().embedding[3]))


def test_chunk_batch_has_one_shape() -> None:
    run = events(3)
    batch = chunk_batch(run, gap_buckets(run.time), items(), 8)
    assert batch.items[batch.item[0, :3]].tolist() == run.item.tolist()
    assert batch.items.shape == (8,)
    assert batch.items[3:].abs().max() == 0


def test_empty_histories_make_a_batch() -> None:
    batch = collate([events(0), events(0)], items())
    assert batch.item.shape == (2, 1)
    assert batch.length.tolist() == [0, 0]


def test_columns_of_one_run_have_one_length() -> None:
    with pytest.raises(ValueError, match="time: 1 values for 2 events"):
        Events(np.zeros(2, np.int64), np.zeros(1, np.int64))
