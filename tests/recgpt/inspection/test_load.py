"""Shared addresses against numbers worked out by hand, and against chance for every kind of id embedding."""

from __future__ import annotations

import numpy as np
import pytest

from recgpt.data.hashing import hash_ids
from recgpt.inspection.load import look_at_load, shared_addresses
from recgpt.nn.ids import ID_EMBEDDINGS, IdEmbeddingConfig


def test_load_by_hand() -> None:
    # Addresses 0..5 of 8. Items 1 and 2 have all in common. Item 3 reads one address twice.
    found = shared_addresses(np.array([[0, 1], [1, 2], [1, 2], [3, 3], [4, 5]]), 8)
    assert found["in_use"] == 6
    assert found["sharing"] == 3  # items 0, 1, 2 meet in 1
    assert (found["confused_items"], found["confused_pairs"]) == (2, 1)
    # Places: 0 alone; 1 with two others (thrice); 2 with one other (twice); 3, 4, 5 alone: nine in all.
    assert found["others"] == pytest.approx([4 / 9, 2 / 9, 3 / 9, 0, 0])
    assert found["items_per_address"]["mean"] == pytest.approx(9 / 6)
    assert found["items_per_address"]["max"] == 3


def test_three_alike_are_three_pairs_and_one_item_shares_nothing() -> None:
    crowded = shared_addresses(np.zeros((4, 1), np.int64), 1)
    assert (crowded["confused_items"], crowded["confused_pairs"], crowded["sharing"]) == (4, 6, 4)
    assert crowded["others"] == [0, 0, 0, 1, 0]
    alone = shared_addresses(np.array([[2, 5]]), 8)
    assert (alone["confused_items"], alone["sharing"], alone["in_use"]) == (0, 0, 2)


@pytest.mark.parametrize("kind", ID_EMBEDDINGS)
def test_items_of_a_log_load_every_kind_as_chance_does(kind: str) -> None:
    hashes = hash_ids(list(range(2000)))
    embedding = ID_EMBEDDINGS[kind](IdEmbeddingConfig(kind=kind, rows=200, n_hashes=2, shifts=3), 8, known=hashes)
    found = look_at_load(embedding, hashes)
    assert (found["kind"], found["items"], found["slots"]) == (kind, 2000, embedding.slots)
    here, chance = found["here"], found["chance"]
    assert here["in_use"] <= embedding.slots
    assert sum(here["others"]) == pytest.approx(1)
    if kind == "full":
        assert chance is None
        assert (here["sharing"], here["confused_items"]) == (0, 0)
        return
    assert here["in_use"] == pytest.approx(chance["in_use"], rel=0.05)
    assert here["sharing"] == pytest.approx(chance["sharing"], rel=0.05)
    assert here["others"] == pytest.approx(chance["others"], abs=0.05)
    assert chance["confused_pairs"] == pytest.approx(1000 * 1999 * embedding.confusion)
    assert chance["confused_items"] <= 2 * chance["confused_pairs"]  # a pair is two items, but items may be in several
    spread = 5 * chance["confused_pairs"] ** 0.5 + 3
    assert here["confused_pairs"] == pytest.approx(chance["confused_pairs"], abs=spread)
    if kind in ("hash", "qr", "kshift"):  # 2,000 items in so little memory: some are one item to the model
        assert here["confused_items"] > 10
