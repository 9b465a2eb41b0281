import numpy as np
import pytest
import xxhash

from recgpt.data.hashing import distinct_hashes, hash_id, hash_ids, padded_hashes
from recgpt.errors import ConfigError


def test_published_vectors_of_xxh64():
    # xxHash's own sanity values: XXH64("abc", 0) = 44BC2CF5AD770999; the second is above 2^63, so
    # negative here
    assert hash_id("abc") == 0x44BC2CF5AD770999
    assert hash_id("a") == 0xD24EC4F1A98C6E5B - 2**64


def test_integers_are_hashed_in_decimal_and_text_unchanged():
    assert hash_id(-5) == hash_id("-5")
    assert hash_id(2**63 - 1) == hash_id("9223372036854775807")
    assert hash_id("007") != hash_id(7)
    composed, decomposed = "\u00e9", "e\u0301"
    assert hash_id(composed) != hash_id(decomposed)
    assert hash_id("日本") == xxhash.xxh64("日本".encode(), seed=0).intdigest() - 2**64 * (
        xxhash.xxh64("日本".encode(), seed=0).intdigest() >= 2**63
    )


def test_arrays_hash_like_their_values():
    assert hash_ids(np.array([1, -2])).tolist() == [hash_id(1), hash_id(-2)]
    assert hash_ids([]).dtype == np.int64


@pytest.mark.parametrize(("bad", "told"), [(1.0, "1.0 is a float"), ("", "empty"), (None, "NoneType"), (True, "bool")])
def test_bad_ids_are_refused(bad, told):
    with pytest.raises(ConfigError, match=told):
        hash_ids([1, bad])


def test_lists_of_hashes_as_rows():
    rng = np.random.default_rng(0)
    for n in (0, 1, 5, 40):
        lists = [rng.integers(-3, 4, rng.integers(0, 6)).tolist() for _ in range(n)]
        row = np.repeat(np.arange(n), [len(values) for values in lists])
        row, hashes = distinct_hashes(row, np.array(sum(lists, []), np.int64))
        found = padded_hashes(row, hashes, np.bincount(row, minlength=n))
        kept = [list(dict.fromkeys(value for value in values if value)) for values in lists]
        width = max([1, *map(len, kept)])
        assert found.shape == (n, width)
        assert found.tolist() == [values + [0] * (width - len(values)) for values in kept]
