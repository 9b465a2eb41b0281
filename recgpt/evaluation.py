"""Retrieval metrics of a run beside popularity, item-kNN and Markov in the same pass over the users.

Every candidate of the split is ranked; what the user has seen is removed (a target that was seen before stays).
Users are streamed in blocks, so memory does not grow with their number. A fine-tuned run predicts outcomes instead
of items: `evaluate` and `compare` hand it to `recgpt.ranking_evaluation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from recgpt.api import InferencePrecision, RecGPT, inference_dtype
from recgpt.data.events import Events
from recgpt.data.prepared import Prepared
from recgpt.errors import ConfigError
from recgpt.eval_files import (
    Split,
    impressions_file,
    require_split,
    save_evaluation,
    saved_result,
    saved_table,
    users_file,
)
from recgpt.metrics import MISS, RetrievalMetrics, ndcg_gain, paired_interval, recall_gain, target_ranks, top_k
from recgpt.nn.linear import few_sizes, linear
from recgpt.parallel import on_each_core
from recgpt.progress import progress_bar
from recgpt.ranker import is_ranker
from recgpt.ranking_evaluation import compare_rankings, evaluate_ranking
from recgpt.retrieval import RECOMMENDERS
from recgpt.retrieval.base import Recommender
from recgpt.runs import TrainedRun, user_blocks

KS = (10, 50)
SCORES_BYTES = 128 << 20  # of the score matrices that all cores hold
MAX_BLOCK = 2048
RANKED_BLOCK = 1024  # users that a core scores and ranks at a time


@dataclass(frozen=True)
class Block:
    """Some users of a split.

    Attributes:
        users: int64 [B] user rows.
        histories: their events before the target.
        item_rows: the same as rows of the item table.
        target: int64 [B] item row of each target.
    """

    users: NDArray[np.int64]
    histories: list[Events]
    item_rows: list[NDArray[np.int64]]
    target: NDArray[np.int64]


_Ranked = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Ranks and ties of the targets [B], the best columns [B, k]."""


class Scorer(Protocol):
    """Scores every item for a block of users; called in several threads at once."""

    def __call__(self, block: Block) -> NDArray[np.float32]:
        """[B, I], higher is better."""
        ...


@dataclass
class Ranking:
    """One system's ranks, users in the order of the blocks."""

    metrics: RetrievalMetrics
    ranks: list[NDArray[np.int64]] = field(default_factory=list)
    ties: int = 0

    def rank(self) -> NDArray[np.int64]:
        """int64 [users]; 0 = the target is no candidate."""
        return np.concatenate(self.ranks) if self.ranks else np.zeros(0, np.int64)


def split_users(prepared: Prepared, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """User rows that have a target in a split, their history lengths, and the targets' positions in the user."""
    users = prepared.users
    history = users.valid_history if split == "valid" else users.test_history
    target = users.valid_target if split == "valid" else users.test_target
    rows = np.flatnonzero(target >= 0)
    return rows, history[rows], target[rows]


def blocks(prepared: Prepared, split: Split) -> Iterator[Block]:
    """All users of a split in blocks that keep one score matrix small."""
    rows, history, target = split_users(prepared, split)
    threads = torch.get_num_threads()
    most = min(RANKED_BLOCK, -(-len(rows) // threads))
    size = int(np.clip(SCORES_BYTES // (4 * max(1, prepared.n_items) * threads), 1, max(1, most)))
    place = prepared.users.offset[rows] + target
    done = 0
    for users, histories, item_rows in user_blocks(prepared, rows, history, size):
        places = place[done : done + len(users)]
        begin = int(places[0])
        wanted = prepared.item_rows(begin, int(places[-1]) + 1)[places - begin]
        done += len(users)
        yield Block(users, histories, item_rows, wanted)


def rank_users(
    prepared: Prepared,
    split: Split,
    scorers: Mapping[str, Scorer],
    ks: Sequence[int],
    told: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Ranking], dict[str, Any]]:
    """Rank every user's target under each scorer.

    Args:
        prepared: the log.
        split: whose targets.
        scorers: by name.
        ks: cut-offs.
        told: called with the number of users done.

    Returns:
        The rankings by name, and what the protocol was.
    """
    items = prepared.items
    candidate = items.valid_candidate if split == "valid" else items.test_candidate
    results = {name: Ranking(RetrievalMetrics(ks, items.n_train_events, int(candidate.sum()))) for name in scorers}
    unreachable = repeats = n_users = 0

    @torch.no_grad()
    def rank(block: Block) -> tuple[NDArray[np.int64], int, list[_Ranked]]:
        row, column = _events(block)
        own = column == block.target[row]
        target = np.where(candidate[block.target], block.target, -1)
        ranked = []
        for scorer in scorers.values():
            scores = scorer(block)
            scores[:, ~candidate] = -np.inf
            scores[row[~own], column[~own]] = -np.inf
            ranked.append((*target_ranks(scores, target), top_k(scores, max(ks))))
            del scores  # before the next one is made
        return target, len(np.unique(row[own])), ranked

    for target, repeated, ranked in on_each_core(rank, blocks(prepared, split)):
        unreachable += int((target < 0).sum())
        repeats += repeated
        n_users += len(target)
        told(n_users)
        for result, (ranks, ties, best) in zip(results.values(), ranked, strict=True):
            result.metrics.update(ranks, best)
            result.ranks.append(ranks)
            result.ties += int((ties > 0).sum())
    protocol = {
        "candidates": int(candidate.sum()),
        "seen_removed": True,
        "repeated_targets": repeats,
        "targets_outside_candidates": unreachable,
        "ties": {name: ranking.ties for name, ranking in results.items()},
        "trained_on": "train",
        "users": n_users,
    }
    return results, protocol


def _events(block: Block) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The block's users (places in it) and item rows, int64 [N] each, one of every event."""
    column, lengths = _lay_out(block.item_rows)
    return np.repeat(np.arange(len(lengths)), lengths), column


def model_scorer(model: RecGPT, dtype: torch.dtype = torch.float32, want: Mapping[str, float] | None = None) -> Scorer:
    """Scores of a model: query . item vector.

    Args:
        model: the model.
        dtype: of the products that make queries.
        want: outcomes that the items are asked for; see `recgpt.runs.asked`.
    """
    catalogue = model.catalogue

    def score(block: Block) -> NDArray[np.float32]:
        queries = model.embed_users(block.histories, dtype, want)
        with few_sizes():  # all blocks but the last are of one
            return linear(queries, catalogue).numpy()

    return score


def baseline_scorers(prepared: Prepared) -> dict[str, Scorer]:
    """Every registered counting model, fitted on the training part."""
    scorers: dict[str, Scorer] = {}
    rows = np.flatnonzero(prepared.users.train_end > 0)
    for name, cls in RECOMMENDERS.items():
        recommender = cls().fit(_training_blocks(prepared, rows), prepared.n_items)
        scorers[name] = partial(_score, recommender)
    return scorers


def _score(recommender: Recommender, block: Block) -> NDArray[np.float32]:
    return recommender.score(_lay_out(block.item_rows))


def _lay_out(item_rows: list[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.concatenate(item_rows), np.array([len(rows) for rows in item_rows], np.int64)


def _training_blocks(
    prepared: Prepared, rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    offset, length = prepared.users.offset, prepared.users.train_end
    for first in range(0, len(rows), MAX_BLOCK):
        block = rows[first : first + MAX_BLOCK]
        begin = int(offset[block[0]])
        events = prepared.item_rows(begin, int(offset[block[-1]] + length[block[-1]]))
        spans = [slice(int(o) - begin, int(o + n) - begin) for o, n in zip(offset[block], length[block], strict=True)]
        yield _lay_out([events[span] for span in spans])


def evaluate(
    run: str | Path,
    split: Split = "test",
    ks: Sequence[int] | None = None,
    extra: Mapping[str, Scorer] | None = None,
    precision: InferencePrecision = "fp32",
) -> dict[str, Any]:
    """Evaluate a run beside the baselines; writes `eval/SPLIT.json` and a table of each user's ranks.

    A fine-tuned run is evaluated on impressions instead: see `recgpt.ranking_evaluation.evaluate_ranking`. Where a
    yes/no outcome makes the targets (`data.target`), a model with `model.condition` is asked for it (`protocol.asked`),
    as `recommend --want` does; exported vectors ask for nothing.

    Args:
        run: a run folder.
        split: `valid` or `test`; a reading of the test part is added to `test_reads.jsonl`.
        ks: cut-offs, by default 10 and 50; a fine-tuned run has none.
        extra: further scorers by name, such as a simulator's oracle, called in several threads at once; a fine-tuned
            run takes none here.
        precision: of the products that make the users' vectors; a fine-tuned run takes `fp32` alone.

    Returns:
        The metrics, with the paired 95 % intervals of the model over each baseline.
    """
    require_split(split)
    if is_ranker(run):
        for name, given in (("k", ks is not None), ("extra", bool(extra)), ("precision", precision != "fp32")):
            if given:
                raise ConfigError(
                    f"{name}: {run} is a fine-tuned run, which is evaluated on impressions; leave it out, or evaluate "
                    f"the pretrained run"
                )
        return evaluate_ranking(run, split)
    dtype, ks = inference_dtype(precision), KS if ks is None else ks
    if not ks or min(ks) < 1:
        raise ConfigError(f"k: {list(ks)}; give cut-offs of at least 1, for example 10,50")
    trained = TrainedRun.open(run)
    n_users = len(split_users(trained.prepared, split)[0])
    if n_users == 0:
        raise ConfigError(f"split: no user has a {split} target; check data.split and data.target")
    with progress_bar() as told:
        told("counting for the baselines", 0, 0)
        scorers = {
            "model": model_scorer(trained.model, dtype, trained.want),
            **baseline_scorers(trained.prepared),
            **(extra or {}),
        }
        rankings, protocol = rank_users(
            trained.prepared, split, scorers, ks, lambda done: told("ranking users", done, n_users)
        )
    protocol |= {"precision": precision, "asked": trained.want}
    result: dict[str, Any] = {"split": split, "users": protocol.pop("users"), "protocol": protocol}
    result |= {name: ranking.metrics.result() for name, ranking in rankings.items()}
    model = rankings["model"].rank()
    if len(model) > 1:
        result["paired"] = {
            name: paired(model, ranking.rank(), min(ks)) for name, ranking in rankings.items() if name != "model"
        }
    _record(trained, split, rankings, result)
    return result


def paired(a: NDArray[np.int64], b: NDArray[np.int64], k: int) -> dict[str, dict[str, float]]:
    """95 % intervals of the difference a - b over users of NDCG@k and recall@k."""
    return {
        f"ndcg@{k}": paired_interval(ndcg_gain(a, k), ndcg_gain(b, k)),
        f"recall@{k}": paired_interval(recall_gain(a, k), recall_gain(b, k)),
    }


def _record(trained: TrainedRun, split: Split, rankings: Mapping[str, Ranking], result: dict[str, Any]) -> None:
    rows, _, target = split_users(trained.prepared, split)
    columns: dict[str, Any] = {"user": trained.prepared.users.hash[rows], "position": target}
    columns |= {name: ranking.rank() for name, ranking in rankings.items()}
    reading = {"fingerprint": trained.model.fingerprint, "ndcg@10": result["model"].get("ndcg@10")}
    save_evaluation(trained.path, users_file(trained.path, split), columns, result, reading)


def compare(run_a: str | Path, run_b: str | Path, split: Split = "test", k: int = 10) -> dict[str, Any]:
    """Paired 95 % intervals of run B over run A on the same users and targets, from their saved ranks.

    Two fine-tuned runs are compared on impressions: see `recgpt.ranking_evaluation.compare_rankings`.

    Raises:
        ConfigError: a run is not evaluated, their users or targets differ, or one of them alone is fine-tuned.
    """
    runs = (Path(run_a), Path(run_b))
    ranking = [impressions_file(run, split).is_file() for run in runs]
    if all(ranking):
        return compare_rankings(run_a, run_b, split)
    tables = [saved_table(run, users_file(run, split), split) for run, no in zip(runs, ranking, strict=True) if not no]
    if any(ranking):
        raise ConfigError(
            f"{run_a} and {run_b}: {runs[ranking.index(True)]} was evaluated on impressions and the other on next "
            "items, so they cannot be paired; compare two runs of one kind"
        )
    protocols = [saved_result(run, split)["protocol"] for run in runs]
    how = [protocol.get("precision", "fp32") for protocol in protocols]
    if how[0] != how[1]:
        raise ConfigError(
            f"{run_a} and {run_b}: evaluated in {how[0]} and {how[1]}; evaluate both again with one --precision"
        )
    a, b = ({name: table[name].to_numpy() for name in ("user", "position", "model")} for table in tables)
    order_a, order_b = np.argsort(a["user"]), np.argsort(b["user"])
    for name, what in (("user", "users"), ("position", "targets")):
        if not np.array_equal(a[name][order_a], b[name][order_b]):
            raise ConfigError(
                f"{run_a} and {run_b}: their {what} differ, so they cannot be paired; evaluate both on one "
                f"log and split"
            )
    rank_a, rank_b = a["model"][order_a], b["model"][order_b]
    means = {
        str(run): {f"ndcg@{k}": float(ndcg_gain(rank, k).mean()), f"recall@{k}": float(recall_gain(rank, k).mean())}
        for run, rank in ((run_a, rank_a), (run_b, rank_b))
    }
    return {
        "split": split,
        "users": len(rank_a),
        "unreachable": int((rank_a == MISS).sum()),
        "asked": {str(run): protocol.get("asked", {}) for run, protocol in zip(runs, protocols, strict=True)},
        "runs": means,
        "second_minus_first": paired(rank_b, rank_a, k),
    }
