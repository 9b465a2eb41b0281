"""Where a model computes: nothing in it makes tensors on the CPU of its own accord.

The meta device stands for a GPU: it has shapes and no values, and refuses a tensor of another device.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from recgpt.data.batch import EventBatch, collate, on_device
from recgpt.data.impression_batches import ImpressionBatch
from recgpt.data.targets import NextItem
from recgpt.errors import ConfigError
from recgpt.losses.next_item import next_item_loss
from recgpt.train.device import product_dtype, training_device
from tests.recgpt.builders import events, items, recgpt

META = torch.device("meta")


def batch() -> EventBatch:
    windows = [events(n, seed=n) for n in (5, 9, 12)]
    rule, rng = NextItem(every=True), None
    targets = [rule.choose(window, len(window) - 1, 0, rng) for window in windows]  # type: ignore[arg-type]
    return collate([window[:-1] for window in windows], items(), targets)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "learned", "bias": {"distance": True, "time": True}, "time": ["gap", "hour", "week", "absolute"]},
        {"block": "hstu", "bias": {"time": True}, "id": {"kind": "qr", "rows": 97}},
        {"block": "ligr", "numeric": "numerals", "id": {"kind": "robe", "rows": 97}},
        {"block": "sasrec", "numeric": "buckets", "id": {"kind": "kshift", "rows": 97}},
        {"attention": "matmul", "numeric": "log", "id": {"kind": "full"}},
        {"attention": "reference", "id": {"kind": "weighted_hash", "rows": 97}},
        {"id": {"kind": "factorized", "rows": 97, "width": 4}},
        {"id": {"kind": "unified", "rows": 97}, "score": "dot"},
    ],
)
def test_a_step_stays_on_the_device_of_its_batch(changes: dict[str, Any]) -> None:
    model = recgpt(**changes).model.to(META).train()
    here = on_device(batch(), META)
    encoded = model.encode_items(here)
    q = model.queries(model(here, encoded).flatten(0, 1).index_select(0, here.position))
    v = model.vectors(encoded)
    weights = torch.zeros(len(v), device=META)
    loss = next_item_loss(q, v, here.target, temperature=0.1, offset=weights, dtype=torch.bfloat16)
    loss.backward()
    assert loss.device == model.device == META
    assert all(weight.grad is None or weight.grad.device == META for weight in model.parameters())


def test_a_tensor_of_another_device_is_noticed() -> None:
    """What the tests above rest on."""
    model = recgpt().model.to(META)
    with pytest.raises(RuntimeError, match="device"):
        model(replace(on_device(batch(), META), content=batch().content))


def test_every_tensor_of_a_batch_moves() -> None:
    """Also those in dicts, lists and batches within batches; what is no tensor stays."""
    whole = batch()
    part = ImpressionBatch(whole, {"a": whole.gap}, whole.gap, whole.gap, {"click": whole.gap}, whole.length)
    moved = on_device([part, 3], META)
    assert moved[1] == 3
    assert isinstance(moved[0], ImpressionBatch)

    def tensors(value: object) -> list[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            return [value]
        inner = value.values() if isinstance(value, dict) else vars(value).values() if hasattr(value, "gap") else ()
        return [tensor for each in inner for tensor in tensors(each)]

    assert len(tensors(moved[0])) == len(tensors(part)) > 15
    assert {tensor.device for tensor in tensors(moved[0])} == {META}
    assert on_device(whole, torch.device("cpu")).gap is whole.gap


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU says")
def test_a_gpu_that_is_not_there() -> None:
    assert training_device("auto") == training_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="run.device: cuda, but torch finds no GPU here; set it to auto or cpu"):
        training_device("cuda")


def test_what_is_asked_for_is_taken() -> None:
    for device in (torch.device("cpu"), torch.device("cuda")):
        assert product_dtype("bf16", device) == torch.bfloat16
        assert product_dtype("fp32", device) == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU and none is here")
def test_a_gpu_gives_the_vectors_of_the_cpu() -> None:
    there, here = recgpt(), recgpt()
    there.model.to("cuda")
    histories = [events(n, seed=n) for n in (3, 20)]
    assert torch.allclose(there.embed_users(histories), here.embed_users(histories), atol=1e-4)
    assert torch.allclose(there.catalogue, here.catalogue, atol=1e-4)
