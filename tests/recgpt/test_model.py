"""The event model's own rules."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from recgpt.api import RecGPT
from recgpt.data.batch import EventBatch, collate
from recgpt.data.events import NO_TIME, Events
from recgpt.data.hashing import hash_ids
from recgpt.data.targets import Chosen
from recgpt.errors import ConfigError
from recgpt.model import masked_slots
from tests.recgpt.builders import columns, cut, recgpt, schema


def test_id_dropout_hides_only_items_of_which_something_else_is_known() -> None:
    encoder = recgpt(id_dropout=0.9).model.items.train()
    count = 400
    items = torch.full((4 * count,), 7)
    content, brand = torch.full((4 * count, 6), torch.nan), torch.zeros(4 * count, dtype=torch.int64)
    content[:count] = 1.0  # content alone
    brand[count : 2 * count] = 5  # a feature alone
    content[2 * count : 3 * count] = 0.0  # a vector that says nothing
    torch.manual_seed(0)
    trained = encoder(items, {"brand": brand}, content)
    whole = encoder.eval()(items, {"brand": brand}, content)
    hidden = (trained != whole).any(-1).view(4, count)
    share = hidden.float().mean(-1)
    assert share[2:].tolist() == [0, 0]
    assert (share[:2] - 0.9).abs().max() < 0.06  # four standard deviations
    without_id = encoder(torch.zeros_like(items), {"brand": brand}, content)
    assert torch.equal(trained[hidden.view(-1)], without_id[hidden.view(-1)])


def batch_of(model: RecGPT, logs: list[dict], chosen: list[Chosen]) -> EventBatch:
    return collate([model.events(log) for log in logs], model.items, chosen)


def hide(item: NDArray, positions: list[int], length: int) -> Chosen:
    masked = np.zeros(length, bool)
    masked[[p for p in positions if p < length]] = True
    return Chosen(np.array(positions), item[positions], masked=masked)


MASKED_FORMS = [
    {"block": "bert", "positions": "learned"},
    {"block": "standard", "positions": "rotary", "bias": {"distance": True, "time": True}},
    {"block": "hstu", "positions": "reverse"},
]


@pytest.mark.parametrize("form", MASKED_FORMS)
def test_what_is_masked_changes_no_query_of_the_loss(form: dict) -> None:
    """Item, content, features, outcomes, context of masked events; the others' do."""
    model = recgpt(causal=False, **form)
    log = columns(9, seed=3)
    log["click"], log["device"] = [1] * 9, ["phone"] * 9
    positions = [2, 5, 6, 8]
    hidden_at = [2, 5, 6]  # events of the window; position 8 is what comes after it
    logs = [cut(log, 0, 8), columns(12, seed=4)]
    other = hide(hash_ids(logs[1]["item"]), [0, 11], 12)

    def queries(changed: dict) -> torch.Tensor:
        chosen = hide(hash_ids(changed["item"]), positions, 8)
        batch = batch_of(model, [cut(changed, 0, 8), logs[1]], [chosen, other])
        hidden = model.model(batch).flatten(0, 1)
        return model.model.queries(hidden[batch.position])

    with torch.no_grad():
        expected = queries(log)
        for t in range(9):
            changed = {name: list(column) for name, column in log.items()}
            changed["item"][t] = (changed["item"][t] + 1) % 40
            changed["click"][t], changed["device"][t] = 0, "watch"
            moved = (queries(changed) - expected)[:4].abs().amax(-1)
            if t in (*hidden_at, 8):
                assert moved.max() < 1e-6
            else:
                assert moved.min() > 1e-6
            assert (queries(changed) - expected)[4:].abs().max() < 1e-6  # another sequence's


def test_masked_slots_by_hand() -> None:
    """Slot 0 is the first token; a [MASK] follows the newest event where that is asked for, and in a state."""
    model = recgpt(causal=False)
    logs = [columns(3), columns(1)]
    chosen = [hide(np.arange(4), [1, 3], 3), hide(np.arange(2), [0], 1)]
    assert masked_slots(batch_of(model, logs, chosen)).int().tolist() == [[0, 0, 1, 0, 1], [0, 1, 0, 0, 0]]
    assert masked_slots(batch_of(model, logs, [])).int().tolist() == [[0, 0, 0, 0, 1], [0, 0, 1, 0, 0]]


@pytest.mark.parametrize("form", MASKED_FORMS)
def test_the_mask_sees_every_event_and_padding_has_no_say(form: dict) -> None:
    """Gradient test: at inference all events are visible to the [MASK], and nothing behind it is."""
    model = recgpt(causal=False, **form)
    logs = [columns(5), columns(9, seed=1)]
    batch = batch_of(model, logs, [])
    x, real, time = model.model._tokens(batch)
    assert real.int().tolist() == [[1] * 7 + [0] * 4, [1] * 11]
    x = x.detach().requires_grad_()
    hidden, _ = model.model.transformer(x, real=real, time=time)
    (gradient,) = torch.autograd.grad(hidden[0, 6, :5].sum(), x)
    sizes = gradient[0].abs().sum(-1)
    assert (sizes[:7] > 0).all()
    assert sizes[7:].sum() == 0
    assert gradient[1].abs().sum() == 0


def test_a_masked_loss_learns() -> None:
    """What stands in the middle shows in its neighbours on both sides: 1 _ 3 hides 2, and 1 _ 9 hides 8."""
    model = recgpt(causal=False, block="bert", positions="learned", dropout=0.0)
    events, rng = model.model, np.random.default_rng(0)
    hashes = hash_ids(range(40))
    patterns = np.array([[1, 2, 3], [1, 8, 9], [7, 5, 3], [7, 6, 9]])

    def loss() -> tuple[torch.Tensor, float]:
        items = rng.integers(10, 40, (16, 7))
        items[:, 2:5] = patterns[rng.integers(0, 4, 16)]
        windows = [Events(hashes[row], np.full(7, NO_TIME)) for row in items]
        batch = collate(windows, model.items, [hide(hashes[row], [3], 7) for row in items])
        q = events.queries(events(batch).flatten(0, 1)[batch.position])
        scores = q @ events.vectors(events.encode_items(batch)).T / 0.1
        right = (scores.argmax(-1) == batch.target).float().mean()
        return F.cross_entropy(scores, batch.target), float(right)

    optimiser = torch.optim.Adam(events.parameters(), 0.01)
    before = loss()[1]
    for _ in range(40):
        optimiser.zero_grad()
        loss()[0].backward()
        optimiser.step()
    assert before < 0.6
    assert np.mean([loss()[1] for _ in range(4)]) > 0.9


def test_attention_weights_of_a_batch() -> None:
    for form, wide in (({"bias": {"time": True}}, 8), ({"causal": False}, 9), ({"block": "hstu"}, 8)):
        model = recgpt(**form)
        batch = batch_of(model, [columns(7), columns(3)], [])
        found = model.model.attention_weights(batch)
        assert [tuple(w.shape) for w in found] == [(2, 2, wide, wide)] * 2


def test_a_time_bias_needs_a_clock() -> None:
    with pytest.raises(ConfigError, match=r"model\.bias\.time: true, but the log has no clock; name data\.time"):
        recgpt(log=schema(time=None, has_time=False), bias={"time": True})


@pytest.mark.parametrize(("key", "value"), [("bins", [4, 8]), ("norm_bins", 4)])
def test_bins_of_content_need_content(key: str, value: object) -> None:
    recgpt(content={key: value})
    with pytest.raises(ConfigError, match=rf"model\.content\.{key}: .*, but the items have no content vectors; name"):
        recgpt(log=schema(content_dim=None), content={key: value})


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU says")
def test_a_backend_that_cannot_run_is_told_when_the_model_is_built() -> None:
    with pytest.raises(ConfigError, match="model.attention: xformers needs a CUDA GPU"):
        recgpt(attention="xformers")


def test_scores_are_cosines_or_dot_products() -> None:
    for score in ("cosine", "dot"):
        model = recgpt(score=score).model
        x = torch.randn(5, 16)
        q, v = model.queries(x), model.vectors(x)
        expected = model.query(x), model.item(x)
        if score == "cosine":
            expected = tuple(part / part.norm(dim=-1, keepdim=True) for part in expected)
        torch.testing.assert_close((q, v), expected)


def test_a_model_of_another_machines_backend_loads(tmp_path: Path) -> None:
    """The weights are the same model: where its backend cannot run, `auto` stands in and the fingerprint stays."""
    model = recgpt()
    model.model.config = model.config.model_copy(update={"attention": "xformers"})
    model.save_pretrained(tmp_path)
    loaded = RecGPT.from_pretrained(tmp_path)
    assert loaded.config.attention == "xformers"
    assert loaded.fingerprint == RecGPT(model.model, model.items).fingerprint != recgpt().fingerprint
    state = recgpt().encode(columns(9))
    assert torch.equal(loaded.encode(columns(9)).embedding, state.embedding)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "form",
    [
        {"block": "standard"},
        {"block": "standard", "layers": 1, "bias": {"distance": True, "time": True}, "attention": "matmul"},
        {"block": "standard", "positions": "reverse", "attention": "reference"},
        {"block": "sasrec", "positions": "learned"},
        {"block": "bert", "bias": {"time": True}, "attention": "sdpa"},
        {"block": "ligr"},
        {"block": "hstu", "bias": {"distance": True}},
    ],
)
def test_the_newest_position_alone_is_what_it_is_among_all(form: dict, causal: bool) -> None:
    """The last block computes one position of each sequence; histories of several lengths, an empty one too."""
    model = recgpt(causal=causal, **form)
    batch = collate(
        [model.events(columns(n, seed=n)) for n in (5, 16, 1, 11)] + [model.events({"item": []})], model.items
    )
    with torch.no_grad():
        first, every, newest = model.model.read(batch)
        alone = model.model.newest(batch)
    torch.testing.assert_close(alone, newest, atol=1e-5, rtol=1e-5)
    assert (newest[:4] - newest[4]).abs().max() > 0.1
    if causal:
        torch.testing.assert_close(alone[4], first[4], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone[0], every[0, 4], atol=1e-5, rtol=1e-5)
