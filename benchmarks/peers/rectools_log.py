"""A log of integer pairs as RecTools reads it."""

import logging
import warnings

import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset


def set_up(threads: int) -> None:
    """Quiet, on so many threads."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(threads)


def read(path: str, left_out: int) -> Dataset:
    """All but each user's last `left_out` events; `path` has a line `user item` for each, in time order."""
    pairs = np.loadtxt(path, dtype=np.int64)
    frame = pd.DataFrame({Columns.User: pairs[:, 0], Columns.Item: pairs[:, 1], Columns.Weight: 1.0})
    users = frame.groupby(Columns.User)
    frame[Columns.Datetime] = pd.Timestamp("2000-01-01") + pd.to_timedelta(users.cumcount(), unit="s")
    return Dataset.construct(frame[users.cumcount(ascending=False) >= left_out])
