"""Users a second of RecTools' `recommend()` (SASRec), for inference_speed.py, in RecTools' environment."""

import json
import logging
import sys
import time
import warnings

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def main() -> None:
    """Fit for some steps (how good it is does not matter here), then recommend to every user."""
    path, dim, threads, length = sys.argv[1:]
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(int(threads))
    pairs = np.loadtxt(path, dtype=np.int64)
    frame = pd.DataFrame({Columns.User: pairs[:, 0], Columns.Item: pairs[:, 1], Columns.Weight: 1.0})
    users = frame.groupby(Columns.User)
    frame[Columns.Datetime] = pd.Timestamp("2000-01-01") + pd.to_timedelta(users.cumcount(), unit="s")

    def trainer() -> pl.Trainer:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        return pl.Trainer(max_steps=3, accelerator="cpu", devices=1, enable_model_summary=False, **quiet)

    model = SASRecModel(
        n_factors=int(dim),
        n_blocks=2,
        n_heads=2,
        session_max_len=int(length),
        batch_size=128,
        loss="softmax",
        get_trainer_func=trainer,
        recommend_torch_device="cpu",
    )
    dataset = Dataset.construct(frame[users.cumcount(ascending=False) >= 1])
    model.fit(dataset)
    ids = frame[Columns.User].unique()
    started = time.perf_counter()
    model.recommend(ids, dataset, k=10, filter_viewed=True)
    print(json.dumps({"recommend": len(ids) / (time.perf_counter() - started)}))


if __name__ == "__main__":
    main()
