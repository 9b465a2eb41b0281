"""Every kind of id embedding inside a model: files, states, ranking, going on from another run."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recgpt.api import RecGPT
from recgpt.errors import ConfigError
from recgpt.model import EventModel, ModelConfig
from recgpt.nn.ids import ID_EMBEDDINGS
from recgpt.nn.ids.unified import UnifiedFeature
from recgpt.ranker import Ranker, ScoreConfig
from recgpt.ranking.network import HeadsConfig, RankingNetwork
from recgpt.train.stage import load_weights
from tests.recgpt.builders import columns, cut, items, recgpt, schema

PROFILE = {"country": "NL", "age": 33.0}


@pytest.fixture(params=sorted(ID_EMBEDDINGS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def model_of(kind: str, untrained: int = 0, **values: Any) -> RecGPT:
    return recgpt(untrained=untrained, id={"kind": kind, "rows": 97} | values)


def test_a_saved_model_is_the_same_model(kind: str, tmp_path: Path) -> None:
    model = model_of(kind, untrained=4)
    model.save_pretrained(tmp_path)
    loaded = RecGPT.from_pretrained(tmp_path)
    assert loaded.fingerprint == model.fingerprint
    state = loaded.encode(columns(9), profile=PROFILE)
    assert torch.equal(state.embedding, model.encode(columns(9), profile=PROFILE).embedding)
    assert torch.equal(loaded.catalogue, model.catalogue)


def test_a_full_table_without_its_list_is_no_whole_model(tmp_path: Path) -> None:
    model_of("full").save_pretrained(tmp_path)
    model_of("hash").save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model.safetensors")
    with pytest.raises(
        ConfigError, match=r"model\.safetensors: the weights belong to another config\.json \(model\.id"
    ):
        RecGPT.from_pretrained(tmp_path)


def test_a_grown_state_is_the_encoded_one(kind: str) -> None:
    model, log = model_of(kind), columns(21)
    whole, grown = model.encode(log, profile=PROFILE), model.encode({}, profile=PROFILE)
    for at in range(21):
        grown = model.append(grown, cut(log, at, at + 1))
    assert torch.equal(whole.hidden, grown.hidden)
    torch.testing.assert_close(model.encode_many([log], [PROFILE])[0].embedding, whole.embedding, rtol=1e-5, atol=1e-5)


def test_an_item_without_training_event_has_no_id(kind: str) -> None:
    model = model_of(kind, untrained=4)
    trained = model_of(kind)
    load_weights(trained.model, model.model, "run")
    known = np.arange(40) < 36
    differ = (model.catalogue != trained.catalogue).any(-1).numpy()
    assert not differ[known].any()
    assert differ[~known].all()


def test_a_ranker_comes_back(kind: str, tmp_path: Path) -> None:
    events, heads = model_of(kind), HeadsConfig(attention=6, features=4, id_rows=53, hidden=[8])
    network = RankingNetwork(heads, events.schema, events.config.dim, ("click",))
    model = Ranker(events, network, heads, ScoreConfig())
    model.save_pretrained(tmp_path)
    state = events.encode(columns(9))
    assert Ranker.from_pretrained(tmp_path).rank(state, [1, 2, 39]) == model.rank(state, [1, 2, 39])


def test_going_on_with_another_list_of_items_keeps_each_item_s_row() -> None:
    old, hashes = model_of("full"), items(50).trained
    torch.manual_seed(7)
    config = old.config
    new = EventModel(config, schema(), hashes[5:])  # five of 50 are gone, ten of them new
    before = new.items.id(torch.from_numpy(hashes))
    load_weights(new, old.model, "run")
    after = new.items.id(torch.from_numpy(hashes))
    expected = old.model.items.id(torch.from_numpy(hashes))
    kept = np.isin(hashes, hashes[5:]) & np.isin(hashes, old.items.trained)
    fresh = np.isin(hashes, hashes[5:]) & ~kept
    assert (kept.sum(), fresh.sum()) == (kept.sum(), 45 - kept.sum())
    assert 30 <= kept.sum() <= 40
    assert torch.equal(after[kept], expected[kept])
    assert torch.equal(after[fresh], before[fresh])
    assert after[:5].abs().max() == 0
    assert torch.equal(new.query.weight, old.model.query.weight)


def test_going_on_with_another_way_to_find_rows_is_refused() -> None:
    old = model_of("hash")
    for values, told in (
        ({"seed": 3}, "model.id.seed is 0 there and 3 here"),
        ({"kind": "full"}, "items.id.known differs"),
        ({"rows": 98}, "items.id.table.weight differs"),
    ):
        config = ModelConfig.model_validate(old.config.model_dump() | {"id": {"rows": 97} | values})
        with pytest.raises(ConfigError, match=f"run.start_from: there: {told}"):
            load_weights(EventModel(config, schema(), old.items.trained), old.model, "there")
    qr = {kind: model_of("qr", combine=kind) for kind in ("add", "mult")}
    with pytest.raises(ConfigError, match="model.id.combine is mult there and add here"):
        load_weights(qr["add"].model, qr["mult"].model, "there")


def test_one_table_serves_ids_and_all_categorical_features() -> None:
    model: Any = model_of("unified").model
    shared = [m for m in model.modules() if isinstance(m, UnifiedFeature)]
    assert len(shared) == 5  # the item, its brand and its tags, the device, the country
    tables = {name: p.numel() for name, p in model.named_parameters() if name.endswith("table.table.weight")}
    assert tables == {"items.id.table.table.weight": 97 * 16}
    twin = copy.deepcopy(model)
    values = torch.tensor([5, -7])
    before = model.encoder.context["device"](values).clone()
    with torch.no_grad():
        twin.items.id.table.table.weight.zero_()
    assert twin.encoder.context["device"](values).abs().max() == 0
    assert torch.equal(model.encoder.context["device"](values), before)


def test_each_feature_of_the_shared_table_trains_it() -> None:
    model: Any = model_of("unified").model
    values = torch.tensor([5, -7])
    for module in (model.items.features["brand"], model.encoder.context["device"], model.encoder.profile["country"]):
        model.zero_grad()
        module(values).sum().backward()
        gradient = model.items.id.table.table.weight.grad
        assert gradient is not None
        assert gradient.abs().sum() > 0
