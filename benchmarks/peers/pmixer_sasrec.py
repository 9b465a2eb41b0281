"""Training events a second of SASRec.pytorch (one negative, its samplers' processes), for training_speed.py.

Its folder `python` (github.com/pmixer/SASRec.pytorch) is on PYTHONPATH.
"""

import json
import resource
import sys
import time
from argparse import Namespace

import numpy as np
import torch
from model import SASRec
from utils import WarpSampler

IMPORTED = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
"""MiB after the imports."""
BATCH, SAMPLERS = 128, 3


def histories(path: str) -> tuple[dict[int, list[int]], int]:
    """All but each user's last two events, users and items from 1; number of items.

    `path` has a line `user item` for each event, in time order.
    """
    user, item = (np.unique(column, return_inverse=True)[1] + 1 for column in np.loadtxt(path, dtype=np.int64).T)
    order = np.argsort(user, kind="stable")
    runs = np.split(item[order], np.flatnonzero(np.diff(user[order])) + 1)
    return {row: run[:-2].tolist() for row, run in enumerate(runs, 1)}, int(item.max())


def main() -> None:
    """Train for some seconds after the warm-up, by the authors' loss."""
    path, seconds, threads, length, warm_up = sys.argv[1:]
    torch.set_num_threads(int(threads))
    users, n_items = histories(path)
    sampler = WarpSampler(users, len(users), n_items, batch_size=BATCH, maxlen=int(length), n_workers=SAMPLERS)
    sizes = Namespace(hidden_units=64, num_blocks=2, num_heads=2, maxlen=int(length), dropout_rate=0.2)
    sasrec = SASRec(len(users), n_items, Namespace(**vars(sizes), device="cpu", norm_first=False)).train()
    for weight in sasrec.parameters():
        if weight.dim() > 1:
            torch.nn.init.xavier_normal_(weight.data)
    loss = torch.nn.BCEWithLogitsLoss()
    optimiser = torch.optim.Adam(sasrec.parameters(), lr=1e-3, betas=(0.9, 0.98))
    steps = events = 0
    started = used = 0.0
    while True:
        user, read, target, negative = (np.array(column) for column in sampler.next_batch())
        liked, other = sasrec(user, read, target, negative)
        real = np.where(target != 0)
        optimiser.zero_grad()
        (loss(liked[real], torch.ones(len(real[0]))) + loss(other[real], torch.zeros(len(real[0])))).backward()
        optimiser.step()
        steps += 1
        if steps == int(warm_up):
            started, used = time.perf_counter(), time.process_time()
        elif steps > int(warm_up):
            events += len(real[0])
            if time.perf_counter() - started > float(seconds):
                spent, cpu = time.perf_counter() - started, time.process_time() - used
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - IMPORTED
                sampler.close()
                told = {"events_per_second": events / spent, "events_per_cpu_second": events / cpu}
                print(json.dumps(told | {"peak_mib": peak}))
                return


if __name__ == "__main__":
    main()
