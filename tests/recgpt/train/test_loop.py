"""The loop: limits, schedule, resume, validation, the non-finite guard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recgpt.errors import ConfigError, RecGPTError
from recgpt.train import OptimConfig, StepResult, TrainResult, train
from tests.recgpt.train.toy import ToyConfig, ToyTask, config


def go(task: ToyTask, toy: ToyConfig) -> TrainResult:
    return train(task, toy.optim, toy.run, toy)


def records(run_dir: Path, event: str) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["event"] == event]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_it_learns_the_rule(tmp_path: Path) -> None:
    result = go(ToyTask(), config(tmp_path, epochs=30))
    assert result.validation["ndcg@10"] == 1.0  # chance is .2
    losses = [r["loss"] for r in records(tmp_path, "train")]
    assert losses[0] > 0.5 > 0.2 > losses[-1]


@pytest.mark.parametrize(
    ("limits", "step", "epoch"),
    [
        ({"epochs": 2}, 14, 2),
        ({"steps": 9}, 9, 1),
        ({"epochs": 3, "steps": 9}, 9, 1),
        ({"epochs": 1, "steps": 9}, 7, 1),
    ],
)
def test_the_first_limit_ends_it(tmp_path: Path, limits: dict[str, int], step: int, epoch: int) -> None:
    task = ToyTask()
    result = go(task, config(tmp_path, **limits))
    assert (result.step, result.epoch, result.targets) == (step, epoch, 12 * step)
    assert task.seen == [divmod(n, 7) for n in range(step)]


def test_minutes_end_it_and_drive_the_rate(tmp_path: Path) -> None:
    result = go(ToyTask(), config(tmp_path, minutes=0.005, log_every=1))
    assert result.seconds >= 0.3
    found = records(tmp_path, "train")
    assert [r["progress"] for r in found[:-1]] == [r["seconds"] / 0.3 for r in found[:-1]]
    assert found[-1]["progress"] == 1.0
    assert found[-1]["lr"] < 0.15 * 0.01  # the cosine is near its end, .1 of lr


def test_rate_with_two_limits_follows_the_nearer(tmp_path: Path) -> None:
    toy = ToyConfig(
        optim=OptimConfig(lr=1.0, warmup_steps=0, schedule="linear", final_lr_fraction=0.0),
        run=config(tmp_path, epochs=10, steps=8, log_every=1).run,
    )
    go(ToyTask(), toy)
    # Step n is taken with n - 1 of 8 done; 10 epochs are 70 steps, further away.
    expected = [1 - n / 8 for n in range(8)]
    assert [r["lr"] for r in records(tmp_path, "train")] == pytest.approx(expected)


def test_logged_means_are_over_targets(tmp_path: Path) -> None:
    class Uneven(ToyTask):
        def step(self, batch: Any) -> StepResult:
            loss = super().step(batch).loss
            number = len(self.seen)
            return StepResult(0 * loss + number, number, {"twice": 2.0 * number})

    go(Uneven(), config(tmp_path, steps=4, log_every=2))
    # Losses 1, 2 | 3, 4 with as many targets: (1 + 4) / 3 and (9 + 16) / 7.
    found = records(tmp_path, "train")
    assert [r["loss"] for r in found] == pytest.approx([5 / 3, 25 / 7])
    assert [r["twice"] for r in found] == pytest.approx([10 / 3, 50 / 7])
    assert [r["targets"] for r in found] == [3, 10]


@pytest.mark.parametrize("at", [1, 8, 15])
def test_interrupted_and_resumed_equals_whole(tmp_path: Path, at: int) -> None:
    class Fails(ToyTask):
        def hook(self, epoch: int, number: int) -> None:
            if epoch * 7 + number + 1 == at:
                raise InterruptedError

    settings: dict[str, Any] = {"checkpoint_every": 7, "evaluate_every": 3, "select": "best"}
    with pytest.raises(InterruptedError):
        go(Fails(), config(tmp_path / "run", **settings))
    resumed = ToyTask(seed=3)  # whatever the new process began with is replaced
    if at == 1:
        resumed = ToyTask()
    go(resumed, config(tmp_path / "run", **settings))
    go(ToyTask(), config(tmp_path / "whole", **settings))
    first, second = weights(tmp_path / "run" / "model"), weights(tmp_path / "whole" / "model")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert resumed.seen[0] == divmod(at - 1, 7)


def test_seed_matters(tmp_path: Path) -> None:
    for seed in (0, 0, 1):
        run_dir = tmp_path / str(len(list(tmp_path.iterdir())))
        go(ToyTask(), config(run_dir, seed=seed))
    a, b, c = (weights(tmp_path / n / "model")["out.weight"] for n in "012")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_validation_when_due_and_at_the_end(tmp_path: Path) -> None:
    result = go(ToyTask(), config(tmp_path, steps=10, evaluate_every=4))
    assert [r["step"] for r in records(tmp_path, "valid")] == [4, 8, 10]
    assert records(tmp_path, "valid")[-1]["ndcg@10"] == result.validation["ndcg@10"]
    assert records(tmp_path, "finished")[0]["validation"] == result.validation


def test_best_weights_are_exported(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 8, "evaluate_every": 2, "checkpoint_every": 2, "keep": 9}
    task = ToyTask()
    task.scores = [0.1, 0.4, 0.3, 0.2]
    result = go(task, config(tmp_path, select="best", **settings))
    assert (result.exported_step, result.step) == (4, 8)
    exported = weights(tmp_path / "model")
    fourth = weights(tmp_path / "checkpoints" / "step_00000004")
    last = weights(tmp_path / "checkpoints" / "step_00000008")
    assert all(torch.equal(exported[name], fourth[name]) for name in fourth)
    assert not torch.equal(exported["out.weight"], last["out.weight"])


class Falling(ToyTask):
    """Chosen by the smallest of given losses."""

    selection = "-loss"

    def __init__(self, *losses: float) -> None:
        super().__init__()
        self.losses = list(losses)

    def evaluate(self) -> dict[str, float]:
        return {"loss": self.losses.pop(0)}


def test_with_a_minus_the_smallest_is_the_best(tmp_path: Path) -> None:
    result = go(Falling(0.9, 0.3, 0.3, 0.5), config(tmp_path, steps=8, evaluate_every=2, select="best"))
    assert (result.exported_step, result.step) == (4, 8)  # of equals the first


def test_patience_counts_validations_without_a_better_one(tmp_path: Path) -> None:
    task = Falling(0.9, 0.8, 0.85, 0.7, 0.7, 0.71, 0.1)
    result = go(task, config(tmp_path, steps=20, evaluate_every=2, select="best", patience=2))
    assert [r["step"] for r in records(tmp_path, "valid")] == [2, 4, 6, 8, 10, 12]
    assert (result.step, result.exported_step, task.losses) == (12, 8, [0.1])
    assert result.validation == {"loss": 0.7}  # of the exported weights
    saved = json.loads((tmp_path / "checkpoints" / "step_00000012" / "state.json").read_text())["progress"]
    assert (saved["stale"], saved["best_step"], saved["best_value"]) == (2, 8, 0.7)


def test_patience_survives_a_resume(tmp_path: Path) -> None:
    class Stops(Falling):
        def hook(self, epoch: int, number: int) -> None:
            if epoch * 7 + number == 7:
                raise InterruptedError

    settings: dict[str, Any] = {"evaluate_every": 2, "select": "best", "patience": 2, "checkpoint_every": 7}
    with pytest.raises(InterruptedError):
        go(Stops(0.5, 0.9, 0.4, 0.4), config(tmp_path, **settings))
    result = go(Falling(0.6, 0.6), config(tmp_path, **settings))  # of steps 8 and 10: two after that of step 6
    assert (result.step, result.exported_step) == (10, 6)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (0.25, [2, 4, 6, 8, 10, 12, 14]),  # of 7 batches 1.75
        (0.5, [4, 8, 12, 14]),  # 3.5
        (0.01, list(range(1, 15))),  # at least a step
        (0.9, [6, 12, 14]),  # 6.3
        (1.0, [7, 14]),
        (1, list(range(1, 15))),  # a whole number: steps
        (3.0, [3, 6, 9, 12, 14]),
        (0, [14]),
    ],
)
def test_a_validation_every_part_of_an_epoch(tmp_path: Path, part: float, expected: list[int]) -> None:
    go(ToyTask(), config(tmp_path, epochs=2, evaluate_every=part))
    assert [r["step"] for r in records(tmp_path, "valid")] == expected


def test_a_part_of_an_epoch_after_a_resume(tmp_path: Path) -> None:
    class Fails(ToyTask):
        def hook(self, epoch: int, number: int) -> None:
            if (epoch, number) == (1, 2):
                raise InterruptedError

    with pytest.raises(InterruptedError):
        go(Fails(), config(tmp_path, epochs=2, evaluate_every=0.5, checkpoint_every=7))
    go(ToyTask(), config(tmp_path, epochs=2, evaluate_every=0.5, checkpoint_every=7))
    assert [r["step"] for r in records(tmp_path, "valid")] == [4, 8, 12, 14]


@pytest.mark.parametrize("limits", [{"epochs": 3}, {"epochs": 3, "steps": 20}])
def test_stop_at_repeats_a_run_up_to_its_best_weights(tmp_path: Path, limits: dict[str, int]) -> None:
    """The part is a rounded number: of some of these steps it lies above what is done there."""
    for at in (1, 6, 7, 8, 10):
        run_dir = tmp_path / str(at)
        task = Falling(*(1 / n for n in range(1, at + 1)), 2.0, 2.0)
        best = go(task, config(run_dir, evaluate_every=1, select="best", patience=2, **limits))
        assert (best.step, best.exported_step) == (at + 2, at)
        part = records(run_dir, "finished")[0]["exported_at"]
        nearer = min(7 * limits.get("epochs", 99), limits.get("steps", 999))
        assert part == pytest.approx(at / nearer)
        again = go(ToyTask(), config(tmp_path / f"{at} again", stop_at=part, **limits))
        assert again.step == again.exported_step == at
        one, two = weights(run_dir / "model"), weights(tmp_path / f"{at} again" / "model")
        assert all(torch.equal(one[name], two[name]) for name in one)  # the rate was what it had been, too


def test_stop_at_ends_in_the_same_part_of_longer_epochs(tmp_path: Path) -> None:
    # Half of two epochs of 9 batches; a quarter of them is 4.5 batches: the fifth is needed.
    assert go(ToyTask(n_batches=9), config(tmp_path / "half", epochs=2, stop_at=0.5)).step == 9
    assert go(ToyTask(n_batches=9), config(tmp_path / "quarter", epochs=2, stop_at=0.25)).step == 5


def test_the_finished_record_tells_the_part_that_is_exported(tmp_path: Path) -> None:
    go(ToyTask(), config(tmp_path / "last", epochs=2))
    assert records(tmp_path / "last", "finished")[0]["exported_at"] == 1.0
    task = ToyTask()
    task.scores = [0.4, 0.1, 0.2]
    go(task, config(tmp_path / "best", epochs=2, evaluate_every=5, select="best"))
    [record] = records(tmp_path / "best", "finished")
    assert (record["exported_step"], record["exported_at"]) == (5, pytest.approx(5 / 14))


def test_parts_of_a_model_have_their_own_rates(tmp_path: Path) -> None:
    class Slow(ToyTask):
        lr_factors = {"table": 0.1, "hidden": 0.0}

    task, before = Slow(), {name: p.detach().clone() for name, p in ToyTask().model.named_parameters()}
    toy = ToyConfig(
        optim=OptimConfig(lr=0.01, warmup_steps=0, weight_decay=0.0, clip_norm=0.0),
        run=config(tmp_path, steps=1, log_every=1).run,
    )
    go(task, toy)
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in task.model.named_parameters()}
    # Adam's first step is as long as the rate, whatever the gradient.
    assert moved["out.weight"] == pytest.approx(0.01, rel=1e-3)
    assert moved["table.weight"] == pytest.approx(0.001, rel=1e-2)
    assert moved["hidden.weight"] == 0.0
    assert records(tmp_path, "train")[0]["lr"] == 0.01


def test_best_needs_the_metric(tmp_path: Path) -> None:
    class Other(ToyTask):
        def evaluate(self) -> dict[str, float]:
            return {"auc": 0.5}

    with pytest.raises(ConfigError, match=r"no ndcg@10 \(it gives auc\)"):
        go(Other(), config(tmp_path, evaluate_every=2, select="best"))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_non_finite_stops_before_the_update(tmp_path: Path, where: str) -> None:
    class Bad(ToyTask):
        def step(self, batch: Any) -> StepResult:
            result = super().step(batch)
            if len(self.seen) == 7:
                # sqrt has an infinite slope at 0: a finite loss with a gradient that is not.
                zero = self.model.out.bias[0] - self.model.out.bias[0].detach()
                extra = zero / 0 if where == "loss" else zero.sqrt()
                return StepResult(result.loss + extra, 12)
            return result

    task = Bad()
    with pytest.raises(RecGPTError) as caught:
        go(task, config(tmp_path, checkpoint_every=6))
    message, file = str(caught.value), tmp_path / "nonfinite" / "step_00000007.safetensors"
    assert message.startswith("step 7: loss ")
    assert "nan" in message if where == "loss" else "inf" in message or "nan" in message
    assert str(file) in message
    assert "\n" not in message
    assert caught.value.exit_code == 1
    assert torch.equal(load_file(file)["item"], list(ToyTask().batches(0, 6))[0][2])
    assert (tmp_path / "latest").read_text() == "step_00000006\n"
    saved = weights(tmp_path / "checkpoints" / "step_00000006")
    assert torch.equal(saved["out.weight"], task.model.out.weight)


def test_an_epoch_without_batches(tmp_path: Path) -> None:
    with pytest.raises(RecGPTError, match="epoch 0: the training part gave no batch"):
        go(ToyTask(n_batches=0), config(tmp_path))


def test_batches_are_closed_and_threads_put_back(tmp_path: Path) -> None:
    closed = []

    class Reads(ToyTask):
        def batches(self, epoch: int, skip: int) -> Any:
            try:
                yield from super().batches(epoch, skip)
            finally:
                closed.append(epoch)

        def hook(self, epoch: int, number: int) -> None:
            assert torch.get_num_threads() == 1

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        go(Reads(), config(tmp_path, steps=9))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert closed == [0, 1]
