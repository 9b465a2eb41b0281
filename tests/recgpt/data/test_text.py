"""Texts as vectors: hashed n-grams, and a sentence encoder behind an optional extra."""

import math
import subprocess
import sys
import types

import numpy as np
import pytest
import xxhash

from recgpt.data import text as text_module
from recgpt.data.text import encoder_vectors, ngram_vectors
from recgpt.errors import ConfigError

TEXTS = ["red nail polish", "red nail lacquer", "charcoal mask", None, "", " -- ", "Red  Nail-Polish!"]


def pieces(text: str) -> list[str]:
    """Word by word, two words in a row, runs of 3 to 5 of the letters between < and >: written anew."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    found = [f"{a} {b}" for a, b in zip(words, words[1:], strict=False)]
    for word in words:
        framed = f"<{word}>"
        runs = {framed[i:j] for i in range(len(framed)) for j in range(i + 3, i + 6) if j <= len(framed)}
        found += [f" {word}", *runs]
    return found


def slow_vectors(texts: list[str], width: int) -> np.ndarray:
    counts = [{piece: pieces(text).count(piece) for piece in pieces(text)} for text in texts]
    vectors = np.zeros((len(texts), width))
    for row, count in enumerate(counts):
        for piece, n in count.items():
            df = sum(piece in other for other in counts)
            number = xxhash.xxh3_64_intdigest(piece.encode())
            sign = 1 if number % 2 else -1
            vectors[row, (number // 2) % width] += sign * (1 + math.log(n)) * math.log(1 + len(texts) / df)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_vectors_by_a_slow_reference() -> None:
    texts = ["red nail polish", "a mask, a mask, a mask", "red nail lacquer 5", "x", "Été"]
    np.testing.assert_allclose(ngram_vectors(texts, 64), slow_vectors(texts, 64), atol=1e-6)


def test_no_letter_or_digit_is_no_vector() -> None:
    vectors = ngram_vectors(TEXTS, 32)
    assert np.isnan(vectors).all(1).tolist() == [False, False, False, True, True, True, False]
    np.testing.assert_allclose(np.linalg.norm(vectors[[0, 1, 2, 6]], axis=1), 1, atol=1e-6)
    assert vectors.dtype == np.float32
    assert ngram_vectors([], 8).shape == (0, 8)
    assert np.isfinite(ngram_vectors(["same"] * 3, 8)).all()  # a piece of every text still counts


def test_case_marks_and_the_form_of_characters_do_not_matter() -> None:
    vectors = ngram_vectors([*TEXTS, "ＲＥＤ nail polish"], 256)
    np.testing.assert_array_equal(vectors[0], vectors[6])
    np.testing.assert_array_equal(vectors[0], vectors[7])


def test_likeness_follows_shared_pieces() -> None:
    texts = ["red nail polish", "red nail lacquer", "nails polished", "charcoal mask", "polish nail red"]
    cosine = (lambda v: v @ v.T)(ngram_vectors(texts, 4096))
    assert cosine[0, 1] > 0.2  # two words
    assert cosine[0, 2] > 0.2  # letters alone
    assert abs(cosine[0, 3]) < 0.1
    assert 0.5 < cosine[0, 4] < 0.999  # the same words in another order


def test_rare_pieces_weigh_more() -> None:
    """Both share one word with the first text; the common one counts less."""
    common = [f"cream {word}" for word in ("alpha", "bravo", "delta", "gamma", "omega", "sigma")]
    cosine = (lambda v: v @ v[0])(ngram_vectors(["cream zinc", "cream ocean", "zinc paste", *common], 4096))
    assert cosine[2] > cosine[1] + 0.1


def test_inner_products_keep_within_one_over_the_root_of_the_width() -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 6)) for _ in range(300)]
    texts = [" ".join(rng.choice(words, 8)) for _ in range(100)]
    exact, hashed = (ngram_vectors(texts, width) for width in (1 << 16, 256))
    error = (hashed @ hashed.T - exact @ exact.T)[np.triu_indices(100, 1)]
    assert 0.5 / 16 < error.std() < 1.5 / 16
    assert abs(error.mean()) < 0.01


def test_texts_come_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ngram_vectors(TEXTS, 32)
    monkeypatch.setattr(text_module, "BLOCK", 2)
    np.testing.assert_array_equal(ngram_vectors(TEXTS, 32), whole)


def test_another_process_makes_the_same_vectors() -> None:
    code = (
        "from recgpt.data.text import ngram_vectors\n"
        "print(ngram_vectors(['red nail polish', 'charcoal mask'], 16).tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ngram_vectors(["red nail polish", "charcoal mask"], 16).tobytes().hex()


# -- the sentence encoder ----------------------------------------------------------------------------------------------


class FakeEncoder:
    """Stands for sentence_transformers.SentenceTransformer: the vector of a text is its length and its first letter."""

    asked: list[list[str]] = []
    made: list[dict] = []

    def __init__(self, name: str, **options: object) -> None:
        if name == "missing":
            raise OSError("missing is not a local folder\nand not a model of the hub")
        FakeEncoder.made.append({"name": name, **options})
        self.name = name

    def encode(self, texts: list[str], convert_to_numpy: bool, show_progress_bar: bool) -> np.ndarray:
        assert convert_to_numpy
        assert not show_progress_bar
        FakeEncoder.asked.append(texts)
        vectors = np.array([[len(text), ord(text.strip()[0])] for text in texts], np.float64)
        return vectors * (np.nan if self.name == "broken" else 1)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> type[FakeEncoder]:
    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = FakeEncoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    monkeypatch.setattr(FakeEncoder, "asked", [])
    monkeypatch.setattr(FakeEncoder, "made", [])
    return FakeEncoder


def test_an_encoder_runs_each_text_once(encoder: type[FakeEncoder]) -> None:
    vectors = encoder_vectors(["ab", None, "cde", "  ", "ab"], "some/model")
    np.testing.assert_array_equal(vectors, np.float32([[2, 97], [np.nan] * 2, [3, 99], [np.nan] * 2, [2, 97]]))
    assert encoder.asked == [["ab", "cde"]]
    [made] = encoder.made
    assert made["name"] == "some/model"
    assert made["trust_remote_code"] is False  # no code that comes with a model
    assert made["model_kwargs"] == {"use_safetensors": True}  # no pickle


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing", "data.items.encoder: 'missing' cannot be loaded (missing is not a local folder and not a model"),
        ("broken", "data.items.encoder: 'broken' gives NaN or infinity"),
    ],
)
def test_an_encoder_that_fails_is_told(encoder: type[FakeEncoder], name: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        encoder_vectors(["a"], name)
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


def test_without_the_extra_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as if it were not installed
    with pytest.raises(ConfigError) as error:
        encoder_vectors(["a"], "some/model")
    assert str(error.value) == (
        "data.items.encoder: 'some/model' needs sentence-transformers, which is not installed; run pip install"
        " 'recgpt[text]', or leave the encoder out for hashed n-grams"
    )
