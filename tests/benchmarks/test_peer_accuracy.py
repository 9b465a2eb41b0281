"""What a peer is given of a log, and how its lists become ranks; the peer itself is not installed here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peer_accuracy
from recgpt.data.prepare import prepare
from recgpt.errors import ConfigError
from recgpt.evaluation import evaluate
from recgpt.stages import load_stage
from tests.recgpt.builders import write_log

LENGTHS = [5, 1, 9, 4]
ANSWERS = """
import json, sys, numpy as np
from pathlib import Path
folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
told = np.load(folder / "events.npz")
lists = np.full((len(told["test_user"]), 10), -1)
lists[:, 1] = told["test_target"]
np.save(folder / "lists.npy", lists)
print("a line before")
print(json.dumps({"epochs": options["epochs"]}))
"""


def test_the_peer_is_given_every_event_and_who_is_asked_for_what(tmp_path: Path) -> None:
    prepared = prepare({"data": write_log(tmp_path, LENGTHS)}, progress=False)
    told = peer_accuracy.events(prepared, declared=False)
    users = prepared.users
    assert np.bincount(told["user"]).tolist() == users.n_events.tolist()
    for row in range(len(users)):
        mine = told["user"] == row
        assert told["place"][mine].tolist() == list(range(users.n_events[row]))
        assert told["train"][mine].sum() == users.train_end[row]
    assert told["test_user"].tolist() == np.flatnonzero(users.test_target >= 0).tolist()
    for row, target, history in zip(told["test_user"], told["test_target"], told["test_history"], strict=True):
        mine = told["item"][told["user"] == row]
        assert (target, history) == (mine[-1], len(mine) - 1)  # leave-one-out: the last event


def test_the_share_of_the_events_that_a_window_reads() -> None:
    """Users of 4, 1 and 2 training events: a window of 2 predicts from 3, none and 2 of the 7."""
    user = np.repeat([0, 1, 2], [4, 1, 2])
    told = {"user": user, "train": np.ones(7, bool), "read": np.ones(7, bool)}
    assert peer_accuracy.share_read(told, 2) == pytest.approx(5 / 7)


def test_runs_beside_a_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    model = {"dim": 16, "layers": 1, "heads": 2, "window": {"length": 8, "stride": 4, "chunk": 2}}
    load_stage("pretrain")(
        {"data": write_log(tmp_path / "log", LENGTHS * 5), "model": model, "run": {"steps": 2, "dir": str(run)}}
    )
    words = ["peer_accuracy", str(run), str(run), "--peer", sys.executable, "--length", "6", "--epochs", "3"]
    monkeypatch.setattr(sys, "argv", words)
    assert peer_accuracy.main() == 2
    assert "recgpt evaluate" in capsys.readouterr().err
    own = evaluate(run)["model"]["ndcg@10"]
    (tmp_path / "peer.py").write_text(ANSWERS)
    monkeypatch.setattr(peer_accuracy, "PEER", tmp_path / "peer.py")
    assert peer_accuracy.main() == 0
    found = json.loads(capsys.readouterr().out)
    peer = found["rectools"]
    assert peer["ndcg@10"] == pytest.approx(1 / np.log2(3))  # every target is in second place
    assert (peer["recall@10"], peer["epochs"], peer["options"]["length"], peer["options"]["dim"]) == (1.0, 3, 6, 16)
    assert found[str(run)]["minus_rectools"]["ndcg@10"]["difference"] == pytest.approx(own - 1 / np.log2(3))
    assert found["mean"] == found[str(run)]  # of one run twice

    monkeypatch.setattr(sys, "argv", [*words, "--keep", str(tmp_path / "kept")])
    assert peer_accuracy.main() == 0
    assert json.loads(capsys.readouterr().out) == found
    monkeypatch.setattr(peer_accuracy, "PEER", tmp_path / "gone.py")
    assert peer_accuracy.main() == 0  # from what is kept
    assert json.loads(capsys.readouterr().out) == found
    monkeypatch.setattr(sys, "argv", [*words, "--keep", str(tmp_path / "kept"), "--seed", "1"])
    assert peer_accuracy.main() == 2
    assert "--keep: " in capsys.readouterr().err
    assert sorted(file.name for file in (tmp_path / "kept").iterdir()) == ["lists.npy", "peer.json"]
    monkeypatch.setattr(sys, "argv", [*words, "--keep", str(tmp_path / "gone.py" / "x")])
    (tmp_path / "gone.py").write_text("raise SystemExit('trained')")
    assert peer_accuracy.main() == 2  # before any training
    assert "is a file" in capsys.readouterr().err


def test_runs_of_two_splits_are_refused(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        model = {"dim": 16, "layers": 1, "heads": 2, "window": {"length": 8, "stride": 4, "chunk": 2}}
        data = write_log(tmp_path / f"log {name}", [n + seed for n in LENGTHS] * 5, seed)
        load_stage("pretrain")({"data": data, "model": model, "run": {"steps": 2, "dir": str(tmp_path / name)}})
        evaluate(tmp_path / name)
    with pytest.raises(ConfigError, match="its test users or targets are not those of"):
        peer_accuracy.evaluated([tmp_path / "a", tmp_path / "b"])
