"""No impression sees its own outcome: through preparing, training and scoring, and with the rule taken away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recgpt.data import impressions
from recgpt.data.events import NO_TIME
from recgpt.data.hashing import hash_id
from recgpt.outcome_metrics import auc, measure
from recgpt.ranking_run import ImpressionScores, RankingRun
from recgpt.stages import load_stage
from tests.finetune.logs import N_ITEMS, Columns, flipped, merged, prepared_log, random_log, rows_of, settings, write

finetune = load_stage("finetune")
PARTS = ("train", "valid", "test")
TRACKS = ("online", "frozen")


STILL = {"model": {"dropout": 0.0, "id_dropout": 0.0}, "heads": {"dropout": 0.0}}


def trained(folder: Path, data: dict[str, Any], **sections: Any) -> RankingRun:
    """A run of few steps without dropout."""
    finetune(merged(settings(data, **STILL), merged(sections, {"run": {"dir": str(folder)}})))
    return RankingRun.open(folder)


def order_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """History = everything of smaller order: the rule without its second half."""
    real = impressions.online_lengths

    def lengths(starts: Any, counts: Any, order: Any, time: Any, places: Any) -> Any:
        return real(starts, counts, order, np.full_like(time, NO_TIME), places)

    monkeypatch.setattr(impressions, "online_lengths", lengths)


def probabilities(scores: ImpressionScores) -> np.ndarray:
    return np.stack(list(scores.p.values()), 1)


# -- swapped outcomes --------------------------------------------------------------------------------------------------


class Swaps:
    """A trained run on a log whose rows are numbered, and its scores on the log with other outcomes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, random_log()
        n = len(self.log["user"])
        self.log["volume"] = [row / 64 for row in range(n)]  # tells which row an event is
        self.run = trained(
            folder / "run", write(folder / "log", self.log), run={"dir": str(folder / "run"), "steps": 9}
        )
        self.rows = {row: (part, at) for part in PARTS for at, row in enumerate(self.rows_of(part))}
        self.count = 0

    def rows_of(self, part: str) -> list[int]:
        """The log's row of each impression of a part, in the order of the scores."""
        prepared = self.run.prepared
        found = prepared.impressions(0, prepared.n_events)
        place = found.place[found.part == PARTS.index(part)]
        volume = prepared.events(0, prepared.n_events).context["volume"]
        return np.rint(volume[place] * 64).astype(int).tolist()

    def allowed(self, row: int) -> set[int]:
        """Rows that an impression may know: of its user, smaller order, and time unknown or smaller."""
        log = self.log
        user, order, time = (log[name][row] for name in ("user", "order", "time"))
        mine = [other for other in range(len(log["user"])) if log["user"][other] == user]
        return {
            other
            for other in mine
            if log["order"][other] < order and (time is None or log["time"][other] is None or log["time"][other] < time)
        }

    def scores(self, log: Columns | None = None) -> dict[tuple[str, str], np.ndarray]:
        run = self.run
        if log is not None:
            self.count += 1
            prepared = prepared_log(self.folder / f"swapped {self.count}", log)
            assert prepared.content != run.prepared.content
            run = replace(run, prepared=prepared)
        return {(part, track): probabilities(run.scores(part, track)) for part in PARTS for track in TRACKS}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def swaps(tmp_path_factory: pytest.TempPathFactory) -> Swaps:
    return Swaps(tmp_path_factory.mktemp("swaps"))


def picked_rounds(swaps: Swaps, rounds: int) -> Iterator[list[int]]:
    """One random impression of each user, so that one swapped log serves them all."""
    rng = np.random.default_rng(5)
    users: dict[str, list[int]] = {}
    for row in swaps.rows:
        users.setdefault(swaps.log["user"][row], []).append(row)
    for _ in range(rounds):
        yield [mine[rng.integers(len(mine))] for mine in users.values()]


def test_no_score_depends_on_its_own_outcome_or_a_later_one(swaps: Swaps) -> None:
    base, n = swaps.scores(), len(swaps.log["user"])
    user_of = swaps.log["user"]
    for picked in picked_rounds(swaps, 5):
        spared = set().union(*(swaps.allowed(row) for row in picked))
        users = {user_of[row] for row in picked}
        rest = set(rows_of(swaps.log, "user", *users)) - spared
        assert rest > set(picked)
        assert len(rest) < n
        found = swaps.scores(flipped(swaps.log, rest))
        for row in picked:
            part, at = swaps.rows[row]
            for track in TRACKS:
                np.testing.assert_array_equal(found[part, track][at], base[part, track][at])
        # Those of a swapped impression's later ones change: the test could fail.
        assert np.mean(np.abs(found["test", "online"] - base["test", "online"]) > 1e-6) > 0.3


def test_scores_do_depend_on_earlier_outcomes(swaps: Swaps) -> None:
    base = swaps.scores()
    [picked] = picked_rounds(swaps, 1)
    spared = set().union(*(swaps.allowed(row) for row in picked))
    found = swaps.scores(flipped(swaps.log, spared))
    read = [row for row in picked if swaps.allowed(row)]
    places = [swaps.rows[row] for row in read]
    changed = [(base[part, "online"][at] != found[part, "online"][at]).any() for part, at in places]
    assert np.mean(changed) > 0.5
    assert len(read) > 5


def test_the_frozen_track_ignores_all_that_happens_in_the_part(swaps: Swaps) -> None:
    base = swaps.scores()
    found = swaps.scores(flipped(swaps.log, rows_of(swaps.log, "part", 2)))
    np.testing.assert_array_equal(found["test", "frozen"], base["test", "frozen"])
    np.testing.assert_array_equal(found["valid", "online"], base["valid", "online"])
    assert (found["test", "online"] != base["test", "online"]).any()


# -- copies ------------------------------------------------------------------------------------------------------------


def log_of_copies(times: int, n_users: int, n_events: int, quality: float, seed: int = 0) -> Columns:
    """Every row `times` times; clicks follow the item and the user's mood, or chance alone where `quality` is 0."""
    rng = np.random.default_rng(seed)
    worth, rows = quality * rng.normal(size=N_ITEMS), []
    for user in range(n_users):
        mood = quality * rng.normal() / 1.5
        for k in range(n_events):
            item = int(rng.integers(N_ITEMS))
            row = {
                "user": f"user {user}",
                "item": item,
                "time": 1_600_000_000 + 1_000 * k,
                "click": int(rng.random() < 1 / (1 + np.exp(-worth[item] - mood))),
                "like": 0,
                "device": "tv",
                "volume": 0.0,
                "shown": True,
                "part": 0 if 3 * k < 2 * n_events else 2,
            }
            rows += [row | {"order": 10 * k + copy} for copy in range(times)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def learned(folder: Path, log: Columns, tokens: int) -> ImpressionScores:
    """Test scores of a run on a log of copies; a window holds a whole user."""
    changes: dict[str, Any] = {
        "model": {"window": {"length": 64, "stride": 16, "chunk": 4}},
        "tasks": {"outcomes": ["click"]},
        "optim": {"batch_tokens": tokens},
        "run": {"steps": 40},
    }
    return trained(folder / "run", write(folder, log, profiles=False), **changes).scores("test", "online")


def test_copies_with_outcomes_of_chance_cannot_be_predicted(tmp_path: Path) -> None:
    scores = learned(tmp_path, log_of_copies(2, 150, 12, 0.0), 800)
    assert len(scores.user) == 1_200  # 600 coins: a standard error of .024
    assert abs(auc(scores.y["click"], scores.p["click"]) - 0.5) < 0.08


def test_order_alone_would_show_the_second_copy_its_own_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_only(monkeypatch)
    scores = learned(tmp_path, log_of_copies(2, 150, 12, 0.0), 800)
    # Half of the rows known and the others not gives .875.
    assert auc(scores.y["click"], scores.p["click"]) > 0.8


@pytest.mark.parametrize("rule", ["both", "order only"])
def test_a_score_and_the_outcome_of_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    if rule == "order only":
        order_only(monkeypatch)
    log = log_of_copies(2, 12, 6, 1.0)
    run = trained(tmp_path / "run", write(tmp_path / "log", log, profiles=False), tasks={"outcomes": ["click"]})
    base = probabilities(run.scores("test", "online"))
    swapped = flipped(log, rows_of(log, "order", 50), ("click",))  # the first of each user's last pair
    other = replace(run, prepared=prepared_log(tmp_path / "other", swapped, profiles=False))
    found = probabilities(other.scores("test", "online")).reshape(12, 4, 1)
    changed = (found != base.reshape(12, 4, 1)).any((0, 2))
    assert changed.tolist() == [False, False, False, rule == "order only"]


def test_a_log_with_every_row_doubled_changes_no_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def metrics(name: str, times: int) -> tuple[dict[str, Any], ImpressionScores]:
        scores = learned(tmp_path / name, log_of_copies(times, 200, 18, 1.5, seed=3), 400 * times)
        return measure(scores.y["click"], scores.p["click"], scores.user).metrics, scores

    single, scores = metrics("single", 1)
    doubled, _ = metrics("doubled", 2)
    assert single["auc"] > 0.7
    # Noise: the bootstrap's intervals are about .025 to either side.
    for name, noise in (("auc", 0.04), ("logloss", 0.04), ("ece", 0.04)):
        assert doubled[name] == pytest.approx(single[name], abs=noise)
    # The metrics themselves: each row twice is each row once.
    y, p, user = (np.repeat(column, 2) for column in (scores.y["click"], scores.p["click"], scores.user))
    again = measure(y, p, user).metrics
    for name in ("auc", "gauc", "logloss", "ne"):
        assert again[name] == pytest.approx(single[name], abs=1e-9)
    assert again["ece"] == pytest.approx(single["ece"], abs=1e-3)
    order_only(monkeypatch)
    leaking, _ = metrics("order only", 2)
    assert leaking["auc"] > single["auc"] + 0.12
    assert leaking["logloss"] < single["logloss"] - 0.15


# -- what training may read --------------------------------------------------------------------------------------------


def weights(run: RankingRun) -> dict[str, bytes]:
    names = ("model.safetensors", "ranker.safetensors", "ranker.json", "items.parquet")
    return {name: (run.path / "model" / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RankingRun:
    folder = tmp_path_factory.mktemp("plain")
    return trained(folder / "run", write(folder / "log", random_log()))


@pytest.mark.parametrize("fit_on", ["train", "train_valid"])
def test_training_never_reads_the_outcomes_of_other_parts(plain: RankingRun, tmp_path: Path, fit_on: str) -> None:
    log, hidden = random_log(), {"train": (1, 2), "train_valid": (2,)}[fit_on]
    base = plain
    if fit_on == "train_valid":
        base = fitted(tmp_path / "base", log, fit_on)
        assert weights(base) != weights(plain)
    other = fitted(tmp_path / "other", flipped(log, rows_of(log, "part", *hidden)), fit_on)
    assert other.prepared.content != base.prepared.content
    assert weights(other) == weights(base)
    changed = fitted(tmp_path / "changed", flipped(log, rows_of(log, "part", 0)), fit_on)
    assert weights(changed)["ranker.safetensors"] != weights(base)["ranker.safetensors"]


def fitted(folder: Path, log: Columns, fit_on: str) -> RankingRun:
    return trained(folder / "run", write(folder / "log", log), tasks={"fit_on": fit_on})


def test_the_impressions_are_told_by_their_items(plain: RankingRun) -> None:
    """Scores come in the log's order, beside the labels, users and items that they belong to."""
    scores, prepared = plain.scores("test", "online"), plain.prepared
    found = prepared.impressions(0, prepared.n_events)
    place = found.place[found.part == 2]
    events = prepared.events(0, prepared.n_events)
    np.testing.assert_array_equal(prepared.items.hash[scores.item], events.item[place])
    np.testing.assert_array_equal(scores.history, found.online[found.part == 2])
    for name in ("click", "like"):
        np.testing.assert_array_equal(scores.y[name], events.outcomes[name][place])
        np.testing.assert_array_equal(plain.labels("test").y[name], scores.y[name])
    assert prepared.users.hash[scores.user[0]] == hash_id(prepared.user_ids([scores.user[0]])[0])
