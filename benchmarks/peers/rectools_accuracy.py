"""RecTools' SASRec on the events that peer_accuracy.py hands over, in RecTools' environment; writes what it recommends.

It is fitted some epochs at a time until the validation part no longer improves; the lists of the best moment are kept.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools_log import set_up


def dataset(user: np.ndarray, item: np.ndarray, place: np.ndarray) -> Dataset:
    """Events of users, ordered by their place."""
    time = pd.Timestamp("2000-01-01") + pd.to_timedelta(place, unit="s")
    return Dataset.construct(
        pd.DataFrame({Columns.User: user, Columns.Item: item, Columns.Weight: 1.0, Columns.Datetime: time})
    )


class Part:
    """One evaluated part: whose histories are read, and what is asked for."""

    def __init__(self, events: dict, name: str) -> None:
        self.users, self.target = events[f"{name}_user"], events[f"{name}_target"]
        self.candidates = events[f"{name}_candidates"]
        length = np.zeros(events["user"].max() + 1, np.int64)
        length[self.users] = events[f"{name}_history"]
        before = events["place"] < length[events["user"]]
        read = before & events["read"]
        self.history = dataset(events["user"][read], events["item"][read], events["place"][read])
        self.known = np.intersect1d(self.users, events["user"][read])
        self.seen = pd.Series(events["item"][before]).groupby(events["user"][before]).agg(set).to_dict()

    def lists(self, model: SASRecModel, k: int) -> np.ndarray:
        """Each user's k best items, -1 where there are fewer: candidates that the user has not seen, or the target."""
        enough = k + np.array([len(self.seen.get(user, ())) for user in self.known.tolist()])
        depth = 1 << np.ceil(np.log2(enough)).astype(np.int64)  # users who saw little are not ranked as far as others
        ranked: dict[int, list[int]] = {}
        for more in np.unique(depth).tolist():
            found = model.recommend(
                self.known[depth == more],
                self.history,
                k=more,
                filter_viewed=False,
                items_to_recommend=self.candidates,
                on_unsupported_targets="ignore",
            )
            ranked |= found.sort_values(Columns.Rank).groupby(Columns.User)[Columns.Item].agg(list).to_dict()
        best = np.full((len(self.users), k), -1)
        for row, (user, target) in enumerate(zip(self.users.tolist(), self.target.tolist(), strict=True)):
            seen = self.seen.get(user, set()) - {target}
            kept = [item for item in ranked.get(user, []) if item not in seen][:k]
            best[row, : len(kept)] = kept
        return best

    def ndcg(self, best: np.ndarray) -> float:
        """Mean NDCG of the lists."""
        row, rank = np.nonzero(best == self.target[:, None])
        return float((1 / np.log2(rank + 2)).sum() / len(best))


def main() -> None:
    """Fit, choose by validation, write the test lists."""
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    set_up(options["threads"])
    events = dict(np.load(folder / "events.npz"))
    valid, test = Part(events, "valid"), Part(events, "test")
    train = events["train"] & events["read"]

    def trainer() -> pl.Trainer:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        return pl.Trainer(max_epochs=1, accelerator="cpu", devices=1, enable_model_summary=False, **quiet)

    pl.seed_everything(options["seed"])
    model = SASRecModel(
        n_factors=options["dim"],
        n_blocks=options["layers"],
        n_heads=options["heads"],
        session_max_len=options["length"],
        batch_size=128,
        dropout_rate=options["dropout"],
        loss="softmax",
        get_trainer_func=trainer,
        recommend_torch_device="cpu",
    )
    fitted = dataset(events["user"][train], events["item"][train], events["place"][train])
    found: dict = {"valid": -1.0, "epochs": 0}
    curve, seconds = [], 0.0
    for epoch in range(1, options["epochs"] + 1):
        started = time.perf_counter()
        model.fit_partial(fitted, min_epochs=1, max_epochs=1)
        seconds += time.perf_counter() - started
        ndcg = valid.ndcg(valid.lists(model, 10))
        curve.append(round(ndcg, 4))
        told = f"RecTools: epoch {epoch}, {seconds / 60:.0f} min of training, validation NDCG@10 {ndcg:.4f}"
        print(told, file=sys.stderr, flush=True)
        if ndcg > found["valid"]:
            found = {"valid": ndcg, "epochs": epoch}
            np.save(folder / "lists.npy", test.lists(model, 10))
        elif epoch - found["epochs"] >= options["patience"]:
            break
        if seconds > 60 * options["minutes"]:
            break
    print(json.dumps(found | {"curve": curve, "minutes": round(seconds / 60, 1)}))


if __name__ == "__main__":
    main()
