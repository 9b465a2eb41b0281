"""Going on from another run's weights."""

import itertools
from typing import Any

import pytest
import torch

from recgpt.errors import ConfigError
from recgpt.model import ModelConfig
from recgpt.nn.ids.table import store_tables
from recgpt.train.stage import load_weights
from tests.recgpt.builders import columns, recgpt


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"heads": 4}, "model.heads is 2 there and 4 here"),
        ({"positions": "none"}, "model.positions is rotary there and none here"),
        ({"score": "dot"}, "model.score is cosine there and dot here"),
        ({"layers": 1}, r"transformer\.blocks\.1\..* differs .*; apart are model\.layers \(2 there, 1 here\)$"),
        ({"numeric": "log"}, r"differs .*; apart are model\.numeric \(knots there, log here\)$"),
    ],
)
def test_weights_that_would_be_read_in_another_way_are_refused(values: dict[str, Any], told: str) -> None:
    """Settings that decide on the arithmetic and on no shape, beside one that decides on shapes."""
    model = recgpt(1, **values).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=f"run.start_from: there: .*{told}"):
        load_weights(model, recgpt().model, "there")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("key", ["block", "numeric", "causal"])
def test_every_other_choice_of_arithmetic_has_weights_of_its_own(key: str) -> None:
    """Names or shapes tell these apart, so that they need no rule."""
    values = ModelConfig.model_fields[key].annotation
    choices = [True, False] if values is bool else list(values.__args__)
    shapes = [{n: tuple(p.shape) for n, p in recgpt(**{key: each}).model.named_parameters()} for each in choices]
    assert all(a != b for a, b in itertools.combinations(shapes, 2))


def test_what_only_training_reads_may_change() -> None:
    old, new = recgpt(), recgpt(1, dropout=0.7, id_dropout=0.3, attention="sdpa", item_start="random")
    load_weights(new.model, old.model, "there")
    new, log = type(new)(new.model, new.items), columns(9)
    torch.testing.assert_close(new.encode(log).embedding, old.encode(log).embedding, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["hash", "full"])
@pytest.mark.parametrize(("there", "here"), [(32, 8), (4, 32)])
def test_a_model_starts_from_one_of_other_bits(kind: str, there: int, here: int) -> None:
    """It reads the same rows: as they were stored, or rounded, by a 254th of a row's largest entry at most."""
    old, new = (recgpt(seed, id={"kind": kind, "rows": 97, "bits": bits}) for seed, bits in ((0, there), (1, here)))
    store_tables(old.model)  # as a finished run is read
    vectors = old.catalogue
    load_weights(new.model, old.model, "there")
    new = type(new)(new.model, new.items)
    assert (new.catalogue * vectors).sum(1).min() > (1 - 1e-6 if here == 32 else 0.999)


def test_hstu_keeps_its_window_because_its_scores_are_over_it() -> None:
    old, other = recgpt(block="hstu"), {"length": 8, "stride": 4, "chunk": 4}
    with pytest.raises(ConfigError, match=r"model\.window is .*length=16.* there and .*length=8.* here"):
        load_weights(recgpt(block="hstu", window=other).model, old.model, "there")
    load_weights(recgpt(window=other).model, recgpt().model, "there")  # a softmax sums to 1 over any window
