"""User states: the window rule, the chunk path against the padded one, serialisation, refusal."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import torch

from recgpt.data.events import NO_TIME, Events
from recgpt.data.hashing import hash_ids
from recgpt.data.window import WindowConfig
from recgpt.errors import ConfigError, RecGPTError
from recgpt.nn import linear
from recgpt.nn.blocks import BLOCKS
from recgpt.state import UserState, chain_hash, newest_distinct
from tests.recgpt.builders import columns, cut, recgpt


def assert_same(a: UserState, b: UserState) -> None:
    """Equal bit for bit, cache included."""
    for field in dataclasses.fields(UserState):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, torch.Tensor):
            assert torch.equal(x, y), field.name
        elif isinstance(x, Events):
            for name, column in x.columns().items():
                np.testing.assert_array_equal(column, y.columns()[name], err_msg=name)
        elif field.name == "cache":
            for (k, v), (other_k, other_v) in zip(x or (), y or (), strict=True):
                assert torch.equal(k, other_k)
                assert torch.equal(v, other_v)
        else:
            np.testing.assert_array_equal(x, y, err_msg=field.name)


def test_window_start_by_hand() -> None:
    window = WindowConfig(length=16, stride=8, chunk=4)
    expected = {0: 0, 16: 0, 17: 8, 24: 8, 25: 16, 32: 16, 33: 24}
    for n, start in expected.items():
        assert window.start(n) == start
    np.testing.assert_array_equal(window.start(np.array(list(expected))), list(expected.values()))


@pytest.mark.parametrize(
    ("length", "stride", "chunk", "named"), [(200, None, 32, "length"), (64, 24, 16, "stride"), (40, 16, 16, "length")]
)
def test_window_multiples_are_checked(length: int, stride: int | None, chunk: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        WindowConfig(length=length, stride=stride, chunk=chunk)


def test_append_equals_encode_bit_for_bit() -> None:
    model, log = recgpt(), columns(48)
    state = model.encode({})
    assert state.n == 0
    assert_same(state, model.encode(cut(log, 0, 0)))
    for n in range(1, 49):
        state = model.append(state, cut(log, n - 1, n))
        assert_same(state, model.encode(cut(log, 0, n)))


@pytest.mark.parametrize("seed", range(5))
def test_append_in_pieces_equals_encode(seed: int) -> None:
    rng, model, log = np.random.default_rng(seed), recgpt(seed), columns(70, seed)
    state, n = model.encode({}), 0
    while n < 70:
        more = min(70, n + int(rng.integers(1, 40)))
        state = model.append(state, cut(log, n, more))
        n = more
        assert_same(state, model.encode(cut(log, 0, n)))


def test_append_after_bytes_equals_encode() -> None:
    model, log = recgpt(), columns(40)
    for n in (0, 3, 4, 15, 16, 17, 39):
        for kv in (False, True):
            state = UserState.from_bytes(model.encode(cut(log, 0, n)).to_bytes(kv=kv))
            assert (state.cache is not None) == kv
            assert_same(model.append(state, cut(log, n, 40)), model.encode(log))


def test_state_depends_on_its_window_alone() -> None:
    model, log = recgpt(), columns(41)
    start = model.config.window.start(41)
    whole, late = model.encode(log), model.encode(cut(log, start, 41), n_before=start)
    assert torch.equal(whole.hidden, late.hidden)
    assert whole.content_hash == late.content_hash
    assert len(late.seen) <= len(whole.seen)
    assert late.seen_cut
    assert not whole.seen_cut
    assert model.append(late, cut(log, 40, 41)).seen_cut
    with pytest.raises(RecGPTError, match=f"reads from event {start}"):
        model.encode(cut(log, start + 1, 41), n_before=start + 1)
    with pytest.raises(ConfigError, match="n_before: -1; give the number of events left out, 0 or more"):
        model.encode(log, n_before=-1)


BOTH = {"distance": True, "time": True}
FORMS = [
    {"block": "sasrec", "positions": "learned"},
    {"block": "ligr", "positions": "none", "bias": BOTH},
    {"block": "hstu", "positions": "learned", "bias": BOTH},
    {"bias": {"time": True}},
    {"positions": "reverse"},
    {"block": "hstu", "positions": "reverse", "bias": BOTH},
    {"block": "bert", "positions": "learned", "causal": False},
    {"positions": "rotary", "bias": BOTH, "causal": False},
]


def form_name(form: dict) -> str:
    return "-".join(f"{name}_{value}" for name, value in form.items() if name != "bias") + "-bias" * ("bias" in form)


@pytest.mark.parametrize("form", FORMS, ids=form_name)
def test_append_equals_encode_whatever_the_transformer(form: dict) -> None:
    """Over slides of the window; with the window encoded anew on each append where the model needs that."""
    model, log = recgpt(**form), columns(37)
    state = model.encode({})
    for start, stop in ((0, 1), (1, 2), (2, 9), (9, 15), (15, 16), (16, 17), (17, 18), (18, 33), (33, 37)):
        state = model.append(state, cut(log, start, stop))
        assert (state.cache is None) != model.config.incremental
        assert_same(state, model.encode(cut(log, 0, stop)))
        assert_same(UserState.from_bytes(state.to_bytes(kv=True)), state)


@pytest.mark.parametrize("form", FORMS, ids=form_name)
def test_padded_path_agrees_whatever_the_transformer(form: dict) -> None:
    model = recgpt(**form)
    logs = [columns(n, seed=n) for n in (0, 1, 5, 16, 17, 33)]
    for one, many in zip([model.encode(log) for log in logs], model.encode_many(logs), strict=True):
        torch.testing.assert_close(many.first, one.first, atol=1e-5, rtol=0)
        torch.testing.assert_close(many.hidden, one.hidden, atol=1e-5, rtol=0)
        torch.testing.assert_close(many.embedding, one.embedding, atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS, ids=form_name)
def test_what_an_append_changes(form: dict) -> None:
    """Old events' hidden vectors stay, or (reverse positions, both ways) move: `ModelConfig.incremental` tells."""
    model, log = recgpt(**form), columns(9)
    before, after = model.encode(cut(log, 0, 8)), model.encode(log)
    moved = (after.hidden[:8] - before.hidden).abs().amax(-1)
    assert bool((moved > 1e-4).all()) == (not model.config.incremental)
    if model.config.incremental:
        assert moved.max() < 1e-6


@pytest.mark.parametrize("form", [{}, *FORMS], ids=form_name)
def test_the_query_depends_on_every_event_of_the_window(form: dict) -> None:
    """The [MASK] sees all events too; an older event than the window's has no say."""
    model, log = recgpt(**form), columns(20)
    embedding = model.encode(log).embedding
    start = model.config.window.start(20)
    for t in range(20):
        changed = {name: list(column) for name, column in log.items()}
        changed["item"][t] = (changed["item"][t] + 1) % 40
        moved = (model.encode(changed).embedding - embedding).abs().max()
        assert (moved > 1e-6) == (t >= start)


def test_padded_path_agrees_with_chunk_path() -> None:
    model = recgpt()
    logs = [columns(n, seed=n) for n in (0, 1, 5, 16, 17, 33, 48)]
    for one, many in zip([model.encode(log) for log in logs], model.encode_many(logs), strict=True):
        torch.testing.assert_close(many.hidden, one.hidden, atol=1e-5, rtol=0)
        torch.testing.assert_close(many.embedding, one.embedding, atol=1e-5, rtol=0)
        assert (many.n, many.start, many.last_time, many.content_hash) == (
            one.n,
            one.start,
            one.last_time,
            one.content_hash,
        )
        np.testing.assert_array_equal(many.seen, one.seen)


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_padded_path_of_many_users_agrees_with_chunk_path(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many positions in a pass that float32 products are oneDNN's, if torch has it."""
    model, types = recgpt(block=block), []
    chosen = linear._onednn
    monkeypatch.setattr("recgpt.api.BLOCK_POSITIONS", 1200)
    monkeypatch.setattr(linear, "_onednn", lambda x: types.append(chosen(x)) or types[-1])
    logs = [columns(8 + n % 9, seed=n) for n in range(90)]
    expected = torch.stack([model.encode(log).embedding for log in logs])
    many = model.embed_users([model.events(log) for log in logs])
    torch.testing.assert_close(many, expected, atol=1e-5, rtol=0)
    assert (torch.float32 in types) == bool(linear._types())


def test_encode_many_keeps_the_order_of_users() -> None:
    model = recgpt()
    logs = [columns(n, seed=n) for n in (30, 2, 16, 1)]
    assert [state.n for state in model.encode_many(logs)] == [30, 2, 16, 1]
    embeddings = torch.stack([state.embedding for state in model.encode_many(logs)])
    torch.testing.assert_close(model.embed_users([model.events(log) for log in logs]), embeddings)


@pytest.mark.parametrize("positions", ["rotary", "learned", "reverse"])
@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_embeddings_of_bfloat16_products_are_near(block: str, positions: str) -> None:
    model = recgpt(block=block, positions=positions)
    histories = [model.events(columns(n, seed=n)) for n in (0, 1, 7, 16, 30)]
    exact, near = model.embed_users(histories), model.embed_users(histories, torch.bfloat16)
    assert near.dtype == torch.float32
    assert 1e-5 < (exact - near).abs().max() < 5e-2
    assert (exact * near).sum(1).min() > 0.999


def test_many_users_may_be_asked_for_outcomes() -> None:
    model, want = recgpt(condition=True), {"click": 1, "seconds": 30}
    logs = [columns(n, seed=n) for n in (30, 2, 0, 1)]
    expected = torch.stack([model.query(model.encode(log), want) for log in logs])
    asked = model.embed_users([model.events(log) for log in logs], want=want)
    torch.testing.assert_close(asked, expected, atol=1e-5, rtol=0)
    plain = recgpt()
    with pytest.raises(ConfigError, match=r"want: .*set model.condition: true"):
        plain.embed_users([plain.events(logs[0])], want=want)


def test_later_events_change_no_earlier_hidden_vector() -> None:
    model, log = recgpt(), columns(16)
    before = model.encode(log).hidden
    for t in range(16):
        changed = {name: list(column) for name, column in log.items()}
        changed["item"][t] = (changed["item"][t] + 1) % 40
        changed["click"][t] = 0 if changed["click"][t] else 1
        changed["device"][t] = "watch"
        after = model.encode(changed).hidden
        assert torch.equal(before[:t], after[:t])
        assert not torch.allclose(before[t], after[t])


def test_state_of_another_model_is_refused() -> None:
    one, other = recgpt(0), recgpt(1)
    state = one.encode(columns(5))
    for act in (lambda: other.append(state, columns(1)), lambda: other.recommend(state, 3)):
        with pytest.raises(RecGPTError, match=f"{one.fingerprint}.*{other.fingerprint}.*encode the user again"):
            act()


def test_bytes_that_are_no_state_are_refused() -> None:
    data = recgpt().encode(columns(5)).to_bytes()
    for broken in (b"", b"nonsense", data[:-1], data[:100]):
        with pytest.raises(RecGPTError, match="no whole user state"):
            UserState.from_bytes(broken)


def test_tensors_that_are_no_state_are_refused() -> None:
    """Whole safetensors files with other keys, or with parts that do not fit."""
    state = recgpt().encode(columns(5))
    data = state.to_bytes()
    tensors = safetensors.torch.load(data)
    scalars = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["state"]
    strange = [
        ({"weight": torch.zeros(1)}, scalars),
        (tensors, "{}"),
        (tensors, json.dumps(json.loads(scalars) | {"surprise": 1})),
        (tensors, "[1]"),
        (tensors | {"hidden": torch.zeros(4, 16)}, scalars),
        (tensors | {"n.time": torch.zeros(2, dtype=torch.int64)}, scalars),
    ]
    for parts, metadata in strange:
        with pytest.raises(RecGPTError, match="no whole user state .*; encode the user again") as error:
            UserState.from_bytes(safetensors.torch.save(parts, {"state": metadata}))
        assert "\n" not in str(error.value)
    assert UserState.from_bytes(safetensors.torch.save(tensors, {"state": scalars})).n == 5


def test_states_compare_by_identity() -> None:
    state, other = recgpt().encode(columns(5)), recgpt().encode(columns(5))
    assert state == state
    assert state != other
    assert len({state, other}) == 2


def test_seen_reaches_beyond_the_window_and_is_cut_at_its_cap() -> None:
    log = columns(40)
    model = recgpt(state={"max_seen": 5})
    state = model.encode(log)
    distinct = list(dict.fromkeys(reversed(log["item"])))[:5]
    assert set(state.seen) == set(hash_ids(distinct))
    assert state.seen_cut
    assert not recgpt().encode(log).seen_cut


def test_newest_distinct_by_hand() -> None:
    kept, was_cut = newest_distinct(np.array([7, 5, 7, 9, 5]), 10)
    assert (kept.tolist(), was_cut) == ([7, 9, 5], False)
    kept, was_cut = newest_distinct(np.array([7, 5, 7, 9, 5]), 2)
    assert (kept.tolist(), was_cut) == ([9, 5], True)


def test_content_hash_chains_and_tells_histories_apart() -> None:
    model, log = recgpt(), columns(12)
    events = model.events(log)
    assert chain_hash(events[5:], chain_hash(events[:5])) == chain_hash(events)
    log["click"][3] = 1 if log["click"][3] == 0 else 0
    assert chain_hash(model.events(log)) != chain_hash(events)


def test_last_time_is_the_newest_known() -> None:
    model = recgpt()
    assert model.encode({"item": [1, 2], "time": [1_600_000_000, None]}).last_time == 1_600_000_000_000_000
    assert model.encode({"item": [1, 2]}).last_time == NO_TIME
