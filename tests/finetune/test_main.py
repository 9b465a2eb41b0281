"""Whole finetuning runs: frozen and tuned, from a run and from scratch, early ends, refits, the command line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from recgpt.api import RecGPT
from recgpt.cli import main
from recgpt.data.prepared import Prepared
from recgpt.errors import ConfigError
from recgpt.ranker import Ranker, is_ranker
from recgpt.ranking_run import RankingRun
from recgpt.stages import load_stage
from recgpt.train import finished_record, train
from tests.finetune.logs import FinetuneTask, make_task, merged, random_log, settings, write

finetune = load_stage("finetune")
MODEL = "model.safetensors"
Run = Callable[..., Path]


def tensors(run: Path, name: str = MODEL) -> dict[str, Tensor]:
    return load_file(run / "model" / name)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def records(run: Path, event: str) -> list[dict[str, Any]]:
    return [r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if r["event"] == event]


def no_shift(task: FinetuneTask, impressions: int) -> Tensor:
    """In place of the intercepts that are fitted at the end, where a test follows the weights."""
    return torch.zeros(2, dtype=torch.float64)


@pytest.fixture
def go(data: dict[str, Any], tmp_path: Path) -> Run:
    """Finetune into a folder of this name; the run's folder."""

    def run(name: str, from_run: Path | None = None, refit: Path | None = None, **sections: Any) -> Path:
        values = merged(settings(data, **sections), {"run": {"dir": str(tmp_path / name)}})
        told = finetune(values, from_run=from_run, refit=refit)
        assert told["run"] == str(tmp_path / name)
        return tmp_path / name

    return run


# -- the event model ---------------------------------------------------------------------------------------------------


def test_a_frozen_event_model_stays_bit_for_bit(go: Run, pretrained: Path) -> None:
    run = go("frozen", pretrained, tasks={"backbone_lr": 0})
    assert equal(tensors(run), tensors(pretrained))
    assert RecGPT.from_pretrained(run).fingerprint == RecGPT.from_pretrained(pretrained).fingerprint
    short = go("short", pretrained, tasks={"backbone_lr": 0}, run={"steps": 1})
    before, after = tensors(short, "ranker.safetensors"), tensors(run, "ranker.safetensors")
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same <= {"behaviour.weight.bias"}  # all of the network has learned; softmax cancels this one


def test_a_frozen_event_model_gets_no_gradient_and_no_dropout(
    data: dict[str, Any], prepared: Prepared, pretrained: Path, tmp_path: Path
) -> None:
    start = RecGPT.from_pretrained(pretrained)
    assert start.config.dropout == start.config.id_dropout == 0.5
    values = settings(data, tasks={"backbone_lr": 0}, heads={"dropout": 0.0}, run={"dir": str(tmp_path / "run")})
    del values["model"]
    task = make_task(values, prepared, start)
    assert task.config.model == start.config
    batch = next(task.batches(0, 0))
    assert task.model.training
    assert task.model.network.training
    assert not any(module.training for module in task.model.events.modules())
    assert torch.equal(task.model(batch[0]), task.model(batch[0]))
    task.step(batch).loss.backward()
    assert all(parameter.grad is None for parameter in task.model.events.parameters())
    assert all(parameter.grad is not None for parameter in task.model.network.parameters())
    kept = [each.clone() for each in (*task.model.events.parameters(), *task.model.events.buffers())]
    result = train(task, task.config.optim, task.config.run, task.config)
    assert result.step == 12
    now = (*task.model.events.parameters(), *task.model.events.buffers())
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert not any(module.training for module in task.model.events.modules())


@pytest.mark.parametrize("rate", [0.25, 1.0, 0.0])
def test_the_event_model_has_a_rate_of_its_own(
    data: dict[str, Any],
    prepared: Prepared,
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
) -> None:
    """One Adam step moves a weight by rate x g / |g|."""
    monkeypatch.setattr(FinetuneTask, "_intercepts", no_shift)
    values = settings(
        data,
        model={"dropout": 0.0, "id_dropout": 0.0},
        heads={"dropout": 0.0},
        tasks={"backbone_lr": rate},
        optim={"lr": 0.01, "warmup_steps": 0, "weight_decay": 0.0, "clip_norm": 0.0},
        run={"steps": 1, "dir": str(tmp_path / "run")},
    )
    task = make_task(values, prepared, RecGPT.from_pretrained(pretrained))
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    other = copy.deepcopy(task)
    other.step(next(other.batches(0, 0))).loss.backward()
    gradients = {name: p.grad for name, p in other.model.named_parameters()}
    train(task, task.config.optim, task.config.run, task.config)
    moved = {name: p.detach() - before[name] for name, p in task.model.named_parameters()}
    for name, change in moved.items():
        gradient = gradients[name]
        factor = rate if name.startswith("events.") else 1.0
        expected = torch.zeros_like(change)
        if factor and gradient is not None:
            expected = -0.01 * factor * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert max(float(c.abs().max()) for n, c in moved.items() if n.startswith("events.")) == pytest.approx(
        0.01 * rate, rel=1e-3
    )


def test_a_run_starts_with_the_pretrained_weights_or_from_scratch(go: Run, pretrained: Path) -> None:
    still = {"optim": {"lr": 1e-12}, "run": {"steps": 1}}
    tuned, scratch = go("tuned", pretrained, **still), go("scratch", **still)
    first = tensors(pretrained)
    for name, tensor in tensors(tuned).items():
        torch.testing.assert_close(tensor, first[name], rtol=0, atol=1e-9)
    assert not equal(tensors(scratch), tensors(tuned))
    saved = {run: yaml.safe_load((run / "config.yaml").read_text()) for run in (tuned, scratch)}
    assert (saved[tuned]["run"]["start_from"], saved[scratch]["run"]["start_from"]) == (str(pretrained), None)
    assert (saved[tuned]["tasks"]["backbone_lr"], saved[scratch]["tasks"]["backbone_lr"]) == (0.1, 1.0)
    learned = go("learned", pretrained)
    assert not equal(tensors(learned), first)


def test_outputs_start_at_the_training_part_s_rates(
    go: Run, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FinetuneTask, "_intercepts", no_shift)
    run = go("run", optim={"lr": 1e-12}, run={"steps": 1})
    rates = prepared.summary["impressions"]["rates"]
    bias = tensors(run, "ranker.safetensors")["out.bias"]
    expected = [np.log(rates[name] / (1 - rates[name])) for name in ("click", "like")]
    assert bias.tolist() == pytest.approx(expected, abs=1e-6)


def test_from_another_shape_is_one_clear_line(go: Run, pretrained: Path, tmp_path: Path) -> None:
    for model, named in (
        ({"dim": 8}, "items.id.table.weight differs"),
        ({"layers": 2}, "transformer.blocks.1."),
        ({"id": {"rows": 9}}, "items.id"),
    ):
        with pytest.raises(ConfigError) as caught:
            go("run", pretrained, model=model)
        assert str(caught.value).startswith(f"run.start_from: {pretrained}: {named}")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


def test_from_other_columns_is_one_clear_line(pretrained: Path, tmp_path: Path) -> None:
    log = random_log([5, 8, 4])
    sections: list[tuple[dict[str, Any], str]] = [
        ({"context": {"device": {"kind": "categorical"}}}, "encoder.context.volume"),
        ({"users": None}, "encoder.profile."),
        ({"items": None}, "items.features.brand"),
        ({"outcomes": {name: {"kind": "binary"} for name in ("click", "like", "shown")}}, "encoder.outcomes.shown"),
    ]
    for number, (changes, named) in enumerate(sections):
        values = settings(write(tmp_path / str(number), log, **changes), run={"dir": str(tmp_path / "run")})
        with pytest.raises(ConfigError) as caught:
            finetune(values, from_run=pretrained)
        assert str(caught.value).startswith(f"run.start_from: {pretrained}: {named}")
        assert "use the same model section and data columns" in str(caught.value)


@pytest.mark.parametrize("from_run", ["nowhere", "frozen folder"])
def test_from_no_run_is_refused(go: Run, tmp_path: Path, from_run: str) -> None:
    (tmp_path / "frozen folder").mkdir()
    with pytest.raises(ConfigError) as caught:
        go("run", tmp_path / from_run)
    assert str(tmp_path / from_run) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_finetuned_run_can_be_started_from(go: Run, pretrained: Path) -> None:
    first = go("first", pretrained)
    second = go("second", first, tasks={"backbone_lr": 0, "outcomes": ["like"]})
    assert equal(tensors(second), tensors(first))
    assert Ranker.from_pretrained(second).outcomes == ("like",)


# -- the end -----------------------------------------------------------------------------------------------------------


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    left: Iterator[float] = iter(losses)
    monkeypatch.setattr(FinetuneTask, "evaluate", lambda self: {"logloss": next(left)})


BEST = {"select": "best", "evaluate_every": 2, "patience": 3, "epochs": 6}


def test_it_stops_without_a_better_log_loss_and_keeps_the_best(go: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.9, 0.7, 0.8, 0.7, 0.75, 0.1])
    run = go("run", run=BEST)
    record = finished_record(run)
    assert record is not None
    assert [r["step"] for r in records(run, "valid")] == [2, 4, 6, 8, 10]
    assert (record["step"], record["exported_step"]) == (10, 4)
    steps = FinetuneSteps(run)
    assert record["exported_at"] == pytest.approx(4 / (6 * steps.in_epoch))
    # A run that is told to end there gives those weights.
    monkeypatch.undo()
    again = go("again", run={"epochs": 6, "stop_at": record["exported_at"]})
    assert len(records(again, "finished")) == 1
    assert records(again, "finished")[0]["step"] == 4
    for name in (MODEL, "ranker.safetensors"):
        assert equal(tensors(again, name), tensors(run, name))


class FinetuneSteps:
    """How many steps an epoch of a run has."""

    def __init__(self, run: Path) -> None:
        saved = yaml.safe_load((run / "config.yaml").read_text())
        prepared = Prepared.open(saved["data"]["prepared"])
        task = make_task(merged(saved, {"run": {"start_from": None}, "tasks": {"backbone_lr": 1.0}}), prepared)
        self.in_epoch, self.impressions = task.steps_in_epoch(0), len(task.data)


def test_a_validation_every_part_of_an_epoch(go: Run) -> None:
    run = go("run", run={"epochs": 2, "evaluate_every": 0.4, "select": "best", "patience": None})
    per_epoch = FinetuneSteps(run).in_epoch
    every = round(0.4 * per_epoch)
    assert 1 < every < per_epoch / 2
    expected = sorted({*range(every, 2 * per_epoch + 1, every), 2 * per_epoch})
    assert [r["step"] for r in records(run, "valid")] == expected
    best = min(records(run, "valid"), key=lambda r: r["logloss"])
    assert records(run, "finished")[0]["exported_step"] == best["step"]
    # What was validated is what the exported run scores.
    scores, [validated] = RankingRun.open(run).scores("valid", "online"), [best]
    y, p = scores.y["click"], scores.p["click"].astype(float)
    known = ~np.isnan(y)
    loss = -np.log(np.where(y[known] == 1, p[known], 1 - p[known])).mean()
    assert validated["logloss.click"] == pytest.approx(loss, rel=1e-5)


# -- the refit ---------------------------------------------------------------------------------------------------------


def test_a_refit_learns_as_long_from_both_parts(go: Run, pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        scripted(patch, [0.9, 0.7, 0.8, 0.8, 0.8])
        chosen = go("chosen", pretrained, run=BEST)
    refit = go("refit", pretrained, refit=chosen, run=BEST)
    saved = yaml.safe_load((refit / "config.yaml").read_text())
    assert saved["tasks"]["fit_on"] == "train_valid"
    at = records(chosen, "finished")[0]["exported_at"]
    assert (saved["run"]["stop_at"], saved["run"]["select"], saved["run"]["patience"]) == (at, "last", None)
    one, both = FinetuneSteps(chosen), FinetuneSteps(refit)
    prepared = Prepared.open(saved["data"]["prepared"])
    counts = prepared.summary["impressions"]
    assert (one.impressions, both.impressions) == (counts["train"], counts["train"] + counts["valid"])
    [finished] = records(refit, "finished")
    assert at == pytest.approx(4 / (6 * one.in_epoch))
    assert finished["step"] == finished["exported_step"] == int(np.ceil(4 * both.in_epoch / one.in_epoch - 1e-9))
    [valid] = records(refit, "valid")  # at the end, of nothing
    assert "logloss" not in valid
    assert RankingRun.open(refit).fit_on == "train_valid"
    assert not equal(tensors(refit, "ranker.safetensors"), tensors(chosen, "ranker.safetensors"))
    # The same command again says so, and no other part's labels are asked for.
    again = finetune(merged(saved, {}), refit=chosen)
    assert again["finished_before"] is True


def test_a_refit_needs_a_finished_run_of_finetune(
    go: Run, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: FinetuneTask, batch: Any) -> Any:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTask, "step", fails)
        with pytest.raises(InterruptedError):
            go("unfinished")
    for chosen in (tmp_path / "unfinished", tmp_path / "nowhere", pretrained):
        with pytest.raises(ConfigError) as caught:
            go("refit", refit=chosen)
        assert str(caught.value) == (f"--refit: {chosen} holds no finished run; finish `recgpt finetune` there first")
    assert not (tmp_path / "refit").exists()
    run = go("run")
    with pytest.raises(
        ConfigError, match=f"--refit: {run} is the run that chose; give the refit a folder: run.dir={run}-"
    ):
        go("run", refit=run)
    with pytest.raises(ConfigError, match=f"--refit: {run} was trained with heads.dropout .*; give the same config"):
        go("refit", refit=run, heads={"dropout": 0.55})


def test_an_outcome_that_training_never_knows_is_refused(data: dict[str, Any], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(data["events"])
    column = table.column_names.index("like")
    table = table.set_column(column, "like", pa.nulls(len(table), table.schema.field("like").type))
    pq.write_table(table, tmp_path / "events.parquet")
    told = data | {"events": str(tmp_path / "events.parquet"), "prepared": str(tmp_path / "prepared")}
    with pytest.raises(ConfigError, match="tasks.outcomes: no training impression knows 'like'; leave it out"):
        finetune(settings(told, run={"dir": str(tmp_path / "run")}))


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def config(data: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    values = settings(data, run={"dir": str(tmp_path / "run"), "evaluate_every": 0.5, "select": "best", "patience": 2})
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_finetune_and_evaluate_on_the_command_line(
    config: Path, pretrained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    run = config.parent / "run"
    assert main(["finetune", str(config), "--from", str(pretrained), "tasks.backbone_lr=0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["run"] == str(run)
    assert told["finished_before"] is False
    assert told["valid"].keys() == {"logloss", *(f"{m}.{o}" for m in ("logloss", "auc") for o in ("click", "like"))}
    assert is_ranker(run)
    assert equal(tensors(run), tensors(pretrained))
    again = ["finetune", str(config), "--from", str(pretrained), "tasks.backbone_lr=0", "--json"]
    assert main(again) == 0
    assert json.loads(capsys.readouterr().out)["finished_before"] is True

    assert main(["evaluate", str(run), "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    saved = json.loads((run / "eval" / "test.json").read_text())
    assert saved["outcomes"].keys() == {"click", "like"}
    assert evaluated["outcomes"] == saved["outcomes"]
    scores = RankingRun.open(run).scores("test", "online")
    assert saved["rows"] == len(scores.user)

    refit = ["--from", str(pretrained), "--refit", str(run), "run.dir=again", "tasks.backbone_lr=0"]
    assert main(["finetune", str(config), *refit]) == 0
    assert is_ranker(config.parent / "again")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--from", "nowhere"], 2, "nowhere"),
        (["tasks.outcomes=[buy]"], 2, "tasks.outcomes: 'buy' is not declared"),
        (["tasks.backbone_lr=0"], 2, "tasks.backbone_lr: 0 freezes"),
        (["--refit", "nowhere"], 2, "--refit: nowhere holds no finished run"),
        (["taks.outcomes=[click]"], 2, "taks"),
    ],
)
def test_errors_on_the_command_line_are_one_line(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, told: str
) -> None:
    assert main(["finetune", str(config), *words]) == code
    err = capsys.readouterr().err
    assert told in err
    assert err.startswith("recgpt: ")
    assert err.count("\n") == 1
    assert not (config.parent / "run").exists()


def test_another_config_in_the_same_folder_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", str(config)]) == 0
    assert main(["finetune", str(config), "heads.attention=7", "tasks.weights.like=2.0"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "heads.attention: 6 there, 7 here" in line
    assert "tasks.weights" in line
    assert main(["finetune", str(config), "heads.attention=7", "--fresh"]) == 0
