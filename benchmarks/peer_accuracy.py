"""NDCG@10 and recall@10 of runs beside RecTools' SASRec on the same log, paired by user.

The peer has the runs' sizes (width, layers, heads, window, dropout) and RecTools' own rate and batches. It reads ids
alone, of each user's training events the newest that fit its window. It is asked for the same users' targets among the
same candidates, leaves out what the user has seen, and chooses its epoch by the same validation part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.process import printed
from recgpt.data.prepared import Prepared
from recgpt.errors import ConfigError, RecGPTError
from recgpt.eval_files import Split, saved_table, users_file
from recgpt.evaluation import paired, split_users
from recgpt.files import atomic_dir, write_json
from recgpt.metrics import MISS, ndcg_gain, paired_interval, recall_gain
from recgpt.runs import TrainedRun

PEER = Path(__file__).parent / "peers" / "rectools_accuracy.py"
K = 10
GAINS = {f"ndcg@{K}": ndcg_gain, f"recall@{K}": recall_gain}
PARTS: tuple[Split, ...] = ("valid", "test")


def events(prepared: Prepared, declared: bool) -> dict[str, NDArray[Any]]:
    """Every event by user row, item row and place in the user; who is asked for what.

    Args:
        prepared: the log.
        declared: the peer reads the log's targets alone (`data.target`), not all events.
    """
    users, items, n = prepared.users, prepared.items, prepared.n_events
    user = np.repeat(np.arange(len(users)), users.n_events)
    place = np.arange(n) - users.offset[user]
    told: dict[str, NDArray[Any]] = {"user": user, "item": prepared.item_rows(0, n), "place": place}
    told |= {"train": place < users.train_end[user], "read": np.ones(n, bool)}
    if declared:
        told["read"] = prepared.events(0, n).target.copy()
    for part in PARTS:
        rows, history, target = split_users(prepared, part)
        candidate = items.valid_candidate if part == "valid" else items.test_candidate
        told |= {f"{part}_user": rows, f"{part}_history": history, f"{part}_candidates": np.flatnonzero(candidate)}
        told[f"{part}_target"] = told["item"][users.offset[rows] + target]
    return told


def share_read(told: dict[str, NDArray[Any]], length: int) -> float:
    """The share of the training events that the peer learns from: of each user with two or more, the newest."""
    count = np.bincount(told["user"][told["train"] & told["read"]])
    return float(np.minimum(np.where(count > 1, count, 0), length + 1).sum() / told["train"].sum())


def peer_lists(
    python: str, told: dict[str, NDArray[Any]], options: dict[str, Any], keep: Path | None
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """The peer's first K items of each test user, int64 [users, K], and what it tells of its training.

    Args:
        python: its interpreter.
        told: `events`.
        options: its sizes and limits.
        keep: a folder where both are kept, and taken from without training anew; null = none.

    Raises:
        ConfigError: the folder holds lists of other events or options.
    """
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(told[name]).tobytes() for name in sorted(told))).hexdigest()
    asked = {"options": options, "events": digest}
    if keep is None:
        with tempfile.TemporaryDirectory() as folder:
            return asked_peer(python, told, options, Path(folder))
    if not (keep / "peer.json").is_file():
        with atomic_dir(keep) as folder:  # told before the training if it cannot be written
            _, training = asked_peer(python, told, options, folder)
            (folder / "events.npz").unlink()
            write_json(folder / "peer.json", asked | {"training": training})
    kept = json.loads((keep / "peer.json").read_text("utf-8"))
    if {name: kept.get(name) for name in asked} != asked:
        there = f"lists of another log or of other options ({kept.get('options')})"
        raise ConfigError(f"--keep: {keep} holds {there}; choose another folder")
    return np.load(keep / "lists.npy"), kept["training"]


def asked_peer(
    python: str, told: dict[str, NDArray[Any]], options: dict[str, Any], folder: Path
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Train the peer; `folder` then holds what it was given and its lists."""
    np.savez(folder / "events.npz", **told)
    training = printed([python, PEER, folder, json.dumps(options)])
    return np.load(folder / "lists.npy"), training


def evaluated(runs: list[Path]) -> list[pa.Table]:
    """The runs' saved test ranks.

    Raises:
        ConfigError: a run is not evaluated, or their users or targets differ.
    """
    tables = [saved_table(run, users_file(run, "test"), "test") for run in runs]
    for run, table in zip(runs, tables, strict=True):
        if not all(table[name].equals(tables[0][name]) for name in ("user", "position")):
            raise ConfigError(f"{run}: its test users or targets are not those of {runs[0]}; name runs of one split")
    return tables


def peer_options(trained: TrainedRun, arguments: argparse.Namespace) -> dict[str, Any]:
    """The peer's sizes are the run's; it pads every user to its window, so a narrower one may be told."""
    config = trained.model.config
    length = config.window.length if arguments.length is None else arguments.length
    sizes = {"dim": config.dim, "layers": config.layers, "heads": config.heads, "length": length}
    given = {name: getattr(arguments, name) for name in ("epochs", "minutes", "patience", "seed", "threads")}
    return sizes | {"dropout": config.dropout} | given


def compared(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both systems' metrics and the intervals of the differences, for each run and for the runs' mean."""
    tables, trained = evaluated(arguments.runs), TrainedRun.open(arguments.runs[0])
    told, options = events(trained.prepared, arguments.targets_only), peer_options(trained, arguments)
    lists, training = peer_lists(arguments.peer, told, options, arguments.keep)
    hit = lists == told["test_target"][:, None]
    rank = np.where(hit.any(1), hit.argmax(1) + 1, MISS)
    peer = {name: float(gain(rank, K).mean()) for name, gain in GAINS.items()}
    peer |= {"options": options, "share_of_training_events": share_read(told, options["length"]), **training}
    found: dict[str, Any] = {"rectools": peer}
    ranks = [table["model"].to_numpy() for table in tables]
    for run, own in zip(arguments.runs, ranks, strict=True):
        metrics = {name: float(gain(own, K).mean()) for name, gain in GAINS.items()}
        found[str(run)] = metrics | {"minus_rectools": paired(own, rank, K)}
    means = {name: np.mean([gain(own, K) for own in ranks], axis=0) for name, gain in GAINS.items()}  # of each user
    found["mean"] = {name: float(mean.mean()) for name, mean in means.items()}
    found["mean"]["minus_rectools"] = {n: paired_interval(mean, GAINS[n](rank, K)) for n, mean in means.items()}
    return found


def main() -> int:
    """Print one JSON object; one line on stderr when it fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_accuracy", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="evaluated runs of one split, such as seeds")
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="interpreter with rectools[torch]")
    parser.add_argument("--targets-only", action="store_true", help="the peer reads the events of data.target alone")
    parser.add_argument("--length", type=int, help="the peer's window, which it pads to; default the runs'")
    parser.add_argument("--epochs", type=int, default=50, help="of the peer, at most")
    parser.add_argument("--minutes", type=float, default=600, help="of its training, at most; its epoch is ended")
    parser.add_argument("--patience", type=int, default=5, help="its epochs without a better validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keeps what the peer recommends, for later runs")
    try:
        print(json.dumps(compared(parser.parse_args())))
    except RecGPTError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
