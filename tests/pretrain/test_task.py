"""The pretraining task: its loss against plain forms by hand, where gradients stop, what it remembers, validation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from recgpt.api import RecGPT
from recgpt.config import load_config
from recgpt.data.batch import EventBatch
from recgpt.data.prepare import prepare
from recgpt.errors import ConfigError
from recgpt.evaluation import evaluate, model_scorer, rank_users
from recgpt.losses.frequency import FrequencyEstimate
from recgpt.model import EventModel
from recgpt.stages import load_stage
from tests.recgpt.builders import N_ITEMS, write_log

pretrain = load_stage("pretrain")

from recgpt.pretrain.config import PretrainConfig  # noqa: E402 (a stage is found by `load_stage`)
from recgpt.pretrain.task import PretrainTask  # noqa: E402

LENGTHS = [3, 5, 9, 14, 18, 23, 30, 40, 7, 12]
TEMPERATURE = 0.5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A log with a clock, an outcome and content vectors; some items are met only in the evaluated parts."""
    folder = tmp_path_factory.mktemp("log")
    data = write_log(folder, LENGTHS)
    vectors = np.random.default_rng(1).normal(size=(N_ITEMS, 4)).tolist()
    pq.write_table(pa.table({"item": list(range(N_ITEMS)), "vector": vectors}), folder / "items.parquet")
    return data | {"items": {"path": str(folder / "items.parquet"), "id": "item", "embedding": "vector"}}


def task(data: dict[str, Any], tokens: int = 160, **loss: Any) -> PretrainTask:
    """A task in float32 without dropout: every number is a function of the weights."""
    values = {
        "data": data,
        "model": {
            "dim": 16,
            "heads": 2,
            "dropout": 0.0,
            "id_dropout": 0.0,
            "id": {"rows": 97},
            "window": {"length": 16, "stride": 8, "chunk": 4},
        },
        "loss": {"temperature": TEMPERATURE, "estimate_slots": 64} | loss,
        "optim": {"precision": "fp32", "batch_tokens": tokens},
        "run": {"steps": 4},
    }
    config = load_config(PretrainConfig, values)
    prepared = prepare(config.data, progress=False)
    torch.manual_seed(0)
    model = EventModel(config.model, prepared.schema)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    made = PretrainTask(config, prepared, model)
    made.model.train()
    return made


def batches(made: PretrainTask) -> Iterator[EventBatch]:
    return made.batches(0, 0)


def queries(made: PretrainTask, batch: EventBatch) -> Tensor:
    """[N, D], by the model's public parts; the plain forms go on in float64."""
    events = made.model.events
    return events.queries(events(batch)).flatten(0, 1)[batch.position].double()


def target_hashes(batch: EventBatch) -> Tensor:
    return batch.items[batch.target]


def target_vectors(made: PretrainTask, batch: EventBatch) -> Tensor:
    """[N, D], the vector of each row's target."""
    events = made.model.events
    return events.vectors(events.encode_items(batch))[batch.target].double()


def catalogue(made: PretrainTask) -> tuple[Tensor, Tensor]:
    """Hashes [I] and vectors [I, D] of the items that training saw, one by one."""
    items, events = made.prepared.items, made.model.events
    rows = np.flatnonzero(items.n_train_events > 0)
    hashes = torch.from_numpy(items.hash[rows])
    assert items.embedding is not None
    content = torch.from_numpy(items.embedding[rows])
    vectors = [events.vectors(events.items(hashes[i : i + 1], {}, content[i : i + 1])) for i in range(len(rows))]
    return hashes, torch.cat(vectors).double()


def gradients(made: PretrainTask, loss: Tensor) -> dict[str, Tensor]:
    made.model.zero_grad(set_to_none=True)
    loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in made.model.named_parameters()
    }


def assert_same_loss(made: PretrainTask, batch: EventBatch, plain: Tensor) -> None:
    """The step's loss, and its gradient of every weight, are those of a plain form."""
    result = made.step(batch)
    assert result.targets == len(batch.position)
    assert result.loss.item() == pytest.approx(plain.item(), abs=1e-6)
    expected, found = gradients(made, plain), gradients(made, made.step(batch).loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_the_catalogue_as_columns_is_plain_cross_entropy(data: dict[str, Any]) -> None:
    made = task(data, columns="catalogue")
    for batch in batches(made):
        hashes, vectors = catalogue(made)
        label = (target_hashes(batch)[:, None] == hashes).long().argmax(1)
        logits = queries(made, batch) @ vectors.t() / TEMPERATURE
        assert_same_loss(made, batch, F.cross_entropy(logits, label))
        assert made.step(batch).metrics == {"columns": float(len(hashes))}


def test_multiplicity_is_the_plain_in_batch_form(data: dict[str, Any]) -> None:
    made = task(data, multiplicity=True)
    batch = max(batches(made), key=lambda batch: len(batch.position))
    target = target_hashes(batch)
    n = len(target)
    logits = queries(made, batch) @ target_vectors(made, batch).t() / TEMPERATURE
    hit = (target[:, None] == target) & ~torch.eye(n, dtype=torch.bool)
    assert hit.any()
    assert_same_loss(made, batch, F.cross_entropy(logits.masked_fill(hit, -torch.inf), torch.arange(n)))


def distinct_logits(made: PretrainTask, batch: EventBatch) -> tuple[Tensor, Tensor]:
    """Logits [N, U] over the batch's distinct targets and each row's label, one column an item."""
    distinct, label = target_hashes(batch).unique(return_inverse=True)
    first = [int((target_hashes(batch) == each).long().argmax()) for each in distinct]
    return queries(made, batch) @ target_vectors(made, batch)[first].t() / TEMPERATURE, label


def test_without_correction_every_distinct_item_counts_once(data: dict[str, Any]) -> None:
    made = task(data, correction="none")
    batch = next(batches(made))
    logits, label = distinct_logits(made, batch)
    assert_same_loss(made, batch, F.cross_entropy(logits, label))


def test_the_correction_lifts_what_batches_rarely_hold(data: dict[str, Any]) -> None:
    """Negatives gain -log pi with pi = 1 / the mean steps between appearances; the positive stays."""
    made = task(data, tokens=16, estimate_rate=1e-9, estimate_slots=1 << 16)
    seen: dict[int, list[int]] = {}
    for step, batch in enumerate(batches(made), 1):
        distinct = target_hashes(batch).unique().tolist()
        for item in distinct:
            seen.setdefault(item, []).append(step)
        logits, label = distinct_logits(made, batch)
        # The first gap counts from step 0, so the mean gap is the last step over the number of appearances.
        gap = torch.tensor([seen[item][-1] / len(seen[item]) for item in distinct])
        lifted = logits + gap.log()
        rows = torch.arange(len(label))
        lifted[rows, label] = logits[rows, label]
        loss = made.step(batch).loss.item()
        assert loss == pytest.approx(F.cross_entropy(lifted, label).item(), abs=1e-5)
    assert step > 5
    assert max(max(np.diff([0, *steps])) for steps in seen.values()) > 1


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("columns", ["uniform", "popularity"])
def test_drawn_columns_are_the_sampled_softmax(data: dict[str, Any], columns: str, per_row: bool) -> None:
    """Each row's target beside the draws of other items, by the vectors of single items."""
    made = task(data, columns=columns, n_negatives=9, per_row=per_row, correction="none", mask_user="items")
    batch = max(batches(made), key=lambda batch: len(batch.position))
    assert batch.negative is not None
    hashes, vectors = catalogue(made)
    label = (target_hashes(batch)[:, None] == hashes).long().argmax(1)
    drawn = (batch.items[batch.negative][:, None] == hashes).long().argmax(1)
    assert len(drawn) == 9 * (len(label) if per_row else 1)
    scores = queries(made, batch) @ vectors.t() / TEMPERATURE
    sequence = batch.position // (batch.item.shape[1] + 1)
    losses = []
    for row, own in enumerate(label.tolist()):
        if per_row:
            negatives = drawn.view(-1, 9)[row].tolist()
            window = batch.items[batch.item[sequence[row], : batch.length[sequence[row]]]].tolist()
            assert not set(window) & set(hashes[negatives].tolist())
        else:
            negatives = drawn.tolist()
        removed = set(label[sequence == sequence[row]].tolist())
        logits = scores[row, [own, *(each for each in negatives if each not in removed)]]
        losses.append(logits.logsumexp(0) - logits[0])
    assert_same_loss(made, batch, torch.stack(losses).mean())


@pytest.mark.parametrize("estimate", ["exact", "count_min"])
@pytest.mark.parametrize("columns", ["batch", "mixed"])
def test_counts_of_targets_train(data: dict[str, Any], estimate: str, columns: str) -> None:
    """The exact estimate knows the log's counts before the first batch, the sketch has them after the whole log."""
    made = task(data, columns=columns, n_negatives=9, correction="renormalised", estimate=estimate)
    losses = [made.step(batch).loss for batch in batches(made)]
    assert all(loss.isfinite() for loss in losses)
    assert any(weight.abs().max() > 0 for weight in gradients(made, losses[0]).values())
    items = made.prepared.items
    trained = items.n_train_events > 0
    share = items.n_train_events[trained] / items.n_train_events.sum()
    frequency = made.model.frequency
    assert not isinstance(frequency, FrequencyEstimate)
    np.testing.assert_allclose(frequency.log_draw(made.contrast.catalogue).exp().numpy(), share, rtol=1e-5)
    assert any(name.startswith("frequency.") for name in made.model.state_dict()) == (estimate == "count_min")


@pytest.mark.parametrize("kind", ["bce", "gbce", "bpr", "hinge"])
def test_other_objectives_train_on_the_batch_s_columns(data: dict[str, Any], kind: str) -> None:
    made = task(data, kind=kind)
    batch = next(batches(made))
    before = made.step(batch)
    for parameter, gradient in zip(made.model.parameters(), gradients(made, before.loss).values(), strict=True):
        parameter.data -= 0.01 * gradient
    assert made.step(batch).loss.item() < before.loss.item()


@pytest.mark.parametrize("columns", ["batch", "catalogue"])
def test_mask_user_removes_the_other_targets_of_the_sequence(data: dict[str, Any], columns: str) -> None:
    made = task(data, correction="none", mask_user="items", columns=columns)
    batch = max(batches(made), key=lambda batch: len(batch.position))
    assert len(batch.length) > 1
    if columns == "batch":
        logits, label = distinct_logits(made, batch)
    else:
        hashes, vectors = catalogue(made)
        label = (target_hashes(batch)[:, None] == hashes).long().argmax(1)
        logits = queries(made, batch) @ vectors.t() / TEMPERATURE
    sequence = batch.position // (batch.item.shape[1] + 1)
    for row in range(len(label)):
        for other in range(len(label)):
            if sequence[other] == sequence[row] and label[other] != label[row]:
                logits[row, label[other]] = -torch.inf
    assert_same_loss(made, batch, F.cross_entropy(logits, label))


def test_the_loss_counts_every_training_target_once(data: dict[str, Any]) -> None:
    made = task(data)
    users = made.prepared.users
    assert sum(len(batch.position) for batch in batches(made)) == int(users.train_end.sum())
    assert len(list(batches(made))) == made.steps_in_epoch(0)


# -- where gradients stop ----------------------------------------------------------------------------------------------


def both_sides(made: PretrainTask, batch: EventBatch, items_from: PretrainTask) -> Tensor:
    """The plain loss with the item side taken from another task of equal weights."""
    distinct, label = batch.target.unique(return_inverse=True)
    events = items_from.model.events
    vectors = events.vectors(events.encode_items(batch)[distinct]).double()
    return F.cross_entropy(queries(made, batch) @ vectors.t() / TEMPERATURE, label)


@pytest.mark.parametrize("detach", ["none", "table", "all"])
def test_where_gradients_stop(data: dict[str, Any], detach: str) -> None:
    """A copy of the model on the item side tells apart what reaches a weight from there and from the inputs."""
    made = task(data, correction="none", detach=detach)
    batch = next(batches(made))
    copied = copy.deepcopy(made)
    plain = both_sides(made, batch, copied)
    inputs, items = gradients(made, plain), gradients(copied, both_sides(made, batch, copied))
    found = gradients(made, made.step(batch).loss)
    tower = {"events.item.weight"}
    tables = {name for name in found if name.startswith("events.items.")}
    assert tables >= {"events.items.id.table.weight", "events.items.content.linear.weight"}
    for name in found:
        from_items = items[name]
        if detach == "all" or (detach == "table" and name not in tower):
            from_items = torch.zeros_like(from_items)
        torch.testing.assert_close(
            found[name], inputs[name] + from_items, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    # The sides that are told apart are there: both reach the tables, only the item side reaches its tower.
    assert all(inputs[name].abs().max() > 1e-3 and items[name].abs().max() > 1e-3 for name in tables)
    assert inputs["events.item.weight"].abs().max() == 0
    assert (found["events.item.weight"].abs().max() > 0) == (detach != "all")


# -- what it remembers -------------------------------------------------------------------------------------------------


def test_the_frequency_estimate_is_part_of_the_model_s_state(data: dict[str, Any]) -> None:
    made = task(data)
    names = {name for name in made.model.state_dict() if name.startswith("frequency.")}
    assert names == {"frequency.step", "frequency.last", "frequency.gap", "frequency.seen"}
    first, second, *_ = batches(made)
    made.step(first)
    made.step(second)
    assert made.model.state_dict()["frequency.step"].item() == 2

    other = task(data)
    fresh = other.step(second).loss.item()
    other.model.load_state_dict(made.model.state_dict())
    # The gaps of the estimate, not only the weights, decide the loss.
    assert other.step(second).loss.item() == pytest.approx(made.step(second).loss.item(), abs=0)
    assert other.step(second).loss.item() != fresh


def test_without_correction_nothing_is_counted(data: dict[str, Any]) -> None:
    made = task(data, correction="none")
    made.step(next(batches(made)))
    assert made.model.state_dict()["frequency.step"].item() == 0


def test_a_dumped_batch_holds_every_tensor(data: dict[str, Any], tmp_path: Path) -> None:
    made = task(data)
    batch = next(batches(made))
    made.dump_batch(batch, tmp_path / "batch.safetensors")
    read = load_file(tmp_path / "batch.safetensors")
    inputs = {"items", "item", "length", "gap", "time", "outcomes.click", "content"}
    assert read.keys() == inputs | {"position", "target", "head", "skip", "wanted.click"}
    assert torch.equal(read["item"], batch.item)
    torch.testing.assert_close(read["outcomes.click"], batch.outcomes["click"], equal_nan=True)


# -- validation --------------------------------------------------------------------------------------------------------


def test_validation_is_that_of_the_exported_model(data: dict[str, Any], tmp_path: Path) -> None:
    made = task(data)
    optimizer = torch.optim.SGD(made.model.parameters(), lr=0.1)
    for batch in batches(made):
        optimizer.zero_grad()
        made.step(batch).loss.backward()
        optimizer.step()
    made.model.eval()
    with torch.no_grad():
        found = made.evaluate()
    made.export(tmp_path)
    rankings, _ = rank_users(made.prepared, "valid", {"it": model_scorer(RecGPT.from_pretrained(tmp_path))}, (10,))
    assert found == rankings["it"].metrics.result()
    assert 0 < found["ndcg@10"] <= found["recall@10"] <= 1


def test_the_run_s_validation_is_that_of_evaluate(data: dict[str, Any], tmp_path: Path) -> None:
    config = {
        "data": data,
        "model": {"dim": 16, "heads": 2, "id": {"rows": 97}, "window": {"length": 16, "stride": 8, "chunk": 4}},
        "run": {"steps": 3, "dir": str(tmp_path / "run"), "threads": 1},
    }
    told = pretrain(config)["valid"]
    model = evaluate(tmp_path / "run", "valid", (10,))["model"]
    assert told == {name: model[name] for name in told}
    assert "ndcg@10" in told


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_log_without_a_training_target_is_refused(tmp_path: Path) -> None:
    data = write_log(tmp_path, [3, 4, 5]) | {"target": {"outcome": "click", "min": 5}}
    with pytest.raises(ConfigError) as caught:
        task(data)
    message = str(caught.value)
    assert "\n" not in message
    assert "data.target" in message


def test_no_user_to_validate_on_gives_no_metric(tmp_path: Path) -> None:
    made = task(write_log(tmp_path, [2, 1, 2]))
    assert made.evaluate() == {}


def test_the_catalogue_is_what_training_saw(data: dict[str, Any]) -> None:
    items = task(data).prepared.items
    trained = items.hash[items.n_train_events > 0].tolist()
    assert task(data).contrast.catalogue.tolist() == trained
    assert 20 < len(trained) < len(items)
