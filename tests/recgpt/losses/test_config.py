"""Which settings of the loss go together."""

from typing import Any

import pytest

from recgpt.config import dump_config, load_config, parse_yaml
from recgpt.errors import ConfigError
from recgpt.losses.config import LossConfig


@pytest.mark.parametrize(
    ("values", "correction"),
    [
        ({}, "inclusion"),
        ({"columns": "catalogue"}, "inclusion"),
        ({"columns": "uniform"}, "inclusion"),
        ({"columns": "uniform", "per_row": True}, "renormalised"),
        ({"kind": "gbce", "columns": "uniform"}, "none"),
        ({"multiplicity": True}, "none"),
        ({"columns": "mixed", "correction": "yi", "estimate": "exact"}, "yi"),
        ({"correction": "yi"}, "yi"),
    ],
)
def test_the_correction_that_goes_with_the_rest(values: dict[str, Any], correction: str) -> None:
    made = load_config(LossConfig, values)
    assert made.correction == correction
    assert load_config(LossConfig, parse_yaml(dump_config(made), "dump")) == made  # what a run keeps reads back


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"correction": True}, ["correction: true", "inclusion"]),
        ({"correction": False}, ["correction: false", "none"]),
        ({"correction": "logq"}, ["correction", "logq"]),
        ({"kind": "bce", "correction": "inclusion"}, ["correction: inclusion", "kind: bce", "none"]),
        ({"multiplicity": True, "columns": "mixed"}, ["multiplicity", "columns: batch"]),
        ({"multiplicity": True, "correction": "yi"}, ["multiplicity", "correction: none"]),
        ({"mask_id": False}, ["mask_id", "multiplicity: true"]),
        ({"mask_id": False, "multiplicity": True, "kind": "bce"}, ["mask_id: false", "kind: bce", "true"]),
        ({"mask_user": "sequence"}, ["mask_user: sequence", "multiplicity: true"]),
        ({"per_row": True}, ["per_row", "columns"]),
        ({"per_row": True, "columns": "uniform", "correction": "inclusion"}, ["inclusion", "renormalised"]),
        ({"columns": "catalogue", "correction": "tfrs"}, ["tfrs", "catalogue", "none"]),
        ({"correction": "renormalised"}, ["estimate: streaming", "renormalised", "exact"]),
        ({"columns": "mixed", "correction": "yi"}, ["estimate: streaming", "yi", "count_min"]),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(LossConfig, values)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
