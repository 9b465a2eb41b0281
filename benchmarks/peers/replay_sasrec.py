"""Training events a second of RePlay's SASRec (cross entropy, all items), for training_speed.py, in its environment."""

import json
import resource
import sys
import time

import numpy as np
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.sequential import SasRec

IMPORTED = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
"""MiB after the imports."""
BATCH = 128


def windows(path: str, length: int) -> tuple[torch.Tensor, int]:
    """The newest events of all users but their last two, int64 [U, length + 1], padded on the left; number of items.

    `path` has a line `user item` for each event, in time order; the number of items stands for the padding.
    """
    user, item = np.loadtxt(path, dtype=np.int64).T
    item = np.unique(item, return_inverse=True)[1]
    padding = int(item.max()) + 1
    order = np.argsort(user, kind="stable")
    runs = np.split(item[order], np.flatnonzero(np.diff(user[order])) + 1)
    rows = np.full((len(runs), length + 1), padding)
    for row, run in zip(rows, runs, strict=True):
        kept = run[:-2][-length - 1 :]
        row[length + 1 - len(kept) :] = kept
    return torch.from_numpy(rows), padding


def model(n_items: int, length: int) -> SasRec:
    """The sizes that recgpt is measured with; its loss is the cross entropy over all items."""
    source = TensorFeatureSource(FeatureSource.INTERACTIONS, "item")
    info = TensorFeatureInfo(
        "item",
        FeatureType.CATEGORICAL,
        is_seq=True,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[source],
        cardinality=n_items,
        padding_value=n_items,
        embedding_dim=64,
    )
    sizes = {"embedding_dim": 64, "hidden_dim": 64, "num_heads": 2, "num_blocks": 2}
    return SasRec.from_params(TensorSchema([info]), **sizes, max_sequence_length=length, dropout=0.2).train()


def main() -> None:
    """Train for some seconds after the warm-up."""
    path, seconds, threads, length, warm_up = sys.argv[1:]
    torch.set_num_threads(int(threads))
    rows, padding = windows(path, int(length))
    sasrec = model(padding, int(length))
    optimiser = torch.optim.Adam(sasrec.parameters(), lr=1e-3)
    steps = events = 0
    started = used = 0.0
    while True:
        for chosen in torch.randperm(len(rows)).split(BATCH):
            read, target = rows[chosen, :-1], rows[chosen, 1:]
            real = read != padding
            optimiser.zero_grad()
            found = sasrec(
                feature_tensors={"item": read},
                padding_mask=real,
                positive_labels=target[..., None],
                negative_labels=None,
                target_padding_mask=real[..., None],
            )
            found["loss"].backward()
            optimiser.step()
            steps += 1
            if steps == int(warm_up):
                started, used = time.perf_counter(), time.process_time()
            elif steps > int(warm_up):
                events += int(real.sum())
                if time.perf_counter() - started > float(seconds):
                    spent, cpu = time.perf_counter() - started, time.process_time() - used
                    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - IMPORTED
                    told = {"events_per_second": events / spent, "events_per_cpu_second": events / cpu}
                    print(json.dumps(told | {"peak_mib": peak}))
                    return


if __name__ == "__main__":
    main()
