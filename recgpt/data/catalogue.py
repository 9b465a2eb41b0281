"""The simulated catalogue: categories, series, popularity, content vectors, titles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_GENRES = ("drama", "comedy", "mystery", "nature", "travel", "cooking", "science", "music")
_TONES = ("quiet", "bright", "dark", "classic", "family")
_PLACES = ("Harbour", "Garden", "Mountain", "River", "Orchard", "Station", "Island", "Lantern")
_QUALITIES = ("Silver", "Hidden", "Endless", "Northern", "Paper", "Golden", "Broken", "Second")


@dataclass(frozen=True)
class Catalogue:
    """I items; row i of every array is the same item.

    ids: int64 [I], distinct and in no order.
    category: names [I].
    titles: made-up titles [I].
    latent: float32 [I, K], unit length; what users have a taste for.
    content: float32 [I, C], a noisy linear image of ``latent`` and of the part's number, as a text
        encoder might make of a title and a summary: what a model may see.
    log_popularity: float32 [I].
    successor: int64 [I], the row of the next part of the series, -1 after the last.
    seconds: float32 [I], the running time.
    """

    ids: NDArray[np.int64]
    category: list[str]
    titles: list[str]
    latent: NDArray[np.float32]
    content: NDArray[np.float32]
    log_popularity: NDArray[np.float32]
    successor: NDArray[np.int64]
    seconds: NDArray[np.float32]


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def make_catalogue(
    rng: np.random.Generator,
    n_items: int,
    n_categories: int,
    series_length: int,
    latent_dim: int,
    content_dim: int,
    content_noise: float,
    popularity_scale: float,
) -> Catalogue:
    """Draw a catalogue; the parts of a series are alike and of about the same popularity."""
    category = np.sort(rng.integers(0, n_categories, n_items))
    first = np.searchsorted(category, category)
    place = np.arange(n_items) - first
    series = np.cumsum((place % series_length == 0).astype(np.int64)) - 1
    part = place % series_length
    last = np.append(series[1:] != series[:-1], True)
    n_series = int(series[-1]) + 1
    centre = _unit(rng.standard_normal((n_categories, latent_dim)))
    character = _unit(rng.standard_normal((n_series, latent_dim)))
    own = _unit(rng.standard_normal((n_items, latent_dim)))
    latent = _unit(centre[category] + 0.7 * character[series] + 0.4 * own)
    angle = 2 * np.pi * part[:, None] / np.array([5.0, 16.0])
    meaning = np.concatenate([latent, 0.6 * np.cos(angle), 0.6 * np.sin(angle)], axis=1)
    image = rng.standard_normal((meaning.shape[1], content_dim)) / latent_dim**0.5
    noise = rng.standard_normal((n_items, content_dim)) / latent_dim**0.5
    log_popularity = popularity_scale * (
        0.8 * rng.standard_normal(n_series)[series] + 0.6 * rng.standard_normal(n_items)
    )
    shuffled = rng.permutation(n_items)
    codes = rng.choice(9_000_000, size=n_items, replace=False) + 1_000_000
    n_names = len(_QUALITIES) * len(_PLACES)
    titles = [
        f"The {_QUALITIES[s % n_names // len(_PLACES)]} {_PLACES[s % len(_PLACES)]}"
        f"{'' if s < n_names else f' {s // n_names + 1}'}, part {p + 1}"
        for s, p in zip(series, part, strict=True)
    ]
    names = [
        f"{_TONES[c // len(_GENRES) % len(_TONES)]} {_GENRES[c % len(_GENRES)]}"
        f"{'' if c < len(_GENRES) * len(_TONES) else f' {c // (len(_GENRES) * len(_TONES)) + 1}'}"
        for c in category
    ]
    # Rows are shuffled, so that an item's row says nothing of its series.
    row_of = np.argsort(shuffled)
    successor = np.where(last, -1, row_of[np.minimum(np.arange(n_items) + 1, n_items - 1)])
    return Catalogue(
        ids=codes.astype(np.int64),
        category=[names[i] for i in shuffled],
        titles=[titles[i] for i in shuffled],
        latent=latent[shuffled].astype(np.float32),
        content=(meaning @ image + content_noise * noise)[shuffled].astype(np.float32),
        log_popularity=log_popularity[shuffled].astype(np.float32),
        successor=successor[shuffled],
        seconds=np.round(np.exp(rng.normal(5.0, 0.6, n_items))).astype(np.float32),
    )
