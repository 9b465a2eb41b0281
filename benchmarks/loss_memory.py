"""Peak memory and seconds of one loss step (loss and gradients), beyond its inputs and their gradients' own size.

Each case runs in a process of its own: its peak resident memory, less what was resident when the inputs were there.
The plain form (a whole matrix of scores under autograd) stands beside at a size that it can hold.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

KINDS = ("softmax", "khrylchenko", "bce", "gbce", "bpr", "hinge", "softmax, 100 hardest", "softmax, user masks")


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def one(case: str, n: int, dim: int, threads: int, bf16: bool) -> dict[str, float]:
    """Peak bytes beyond the inputs and seconds of n targets against n columns."""
    import torch
    from torch.nn import functional as F

    from recgpt.losses.next_item import next_item_loss
    from recgpt.losses.objectives import Objective

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    q, v = (F.normalize(torch.randn(n, dim, generator=generator), dim=-1).requires_grad_() for _ in range(2))
    positive = torch.randperm(n, generator=generator)
    kind, _, extra = case.partition(", ")
    mask = None
    if extra == "user masks":
        mask = (torch.rand(100, n, generator=generator) < 0.002, torch.arange(n) % 100)
    (q[:64] @ v[:64].t()).sum().backward()  # what the first product allocates is no part of the loss
    q.grad = v.grad = None
    before, started = resident(), time.perf_counter()
    if kind == "plain":
        loss = F.cross_entropy(q @ v.t() / 0.05, positive)
    else:
        hard = 100 if extra == "100 hardest" else 0
        objective = Objective(kind, catalogue=n, hard=hard)  # type: ignore[arg-type]
        dtype = torch.bfloat16 if bf16 else torch.float32
        loss = next_item_loss(q, v, positive, temperature=0.05, mask=mask, objective=objective, dtype=dtype)
    loss.backward()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"mib": round((peak - before) / 2**20, 1), "seconds": round(seconds, 2), "loss": round(loss.item(), 4)}


def main() -> None:
    """Measure every case in turn; a table on stderr, one JSON object on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=50_000, help="targets, and columns")
    parser.add_argument("--plain", type=int, default=10_000, help="targets and columns of the plain form; 0 = none")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16")
    parser.add_argument("--cases", nargs="+", choices=[*KINDS, "plain"], default=list(KINDS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.n, arguments.dim, arguments.threads, arguments.bf16)))
        return
    small = [("plain", arguments.plain), (arguments.cases[0], arguments.plain)] if arguments.plain else []
    found = []
    for case, n in [*((case, arguments.n) for case in arguments.cases), *small]:
        words = [sys.executable, __file__, "--one", case, "--n", str(n), "--dim", str(arguments.dim)]
        words += ["--threads", str(arguments.threads), *(["--bf16"] if arguments.bf16 else [])]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        found.append({"case": case, "n": n, **told})
        print(f"{case:24} {n:7,} x {n:<7,} {told['mib']:9,.1f} MiB {told['seconds']:8.2f} s", file=sys.stderr)
    print(json.dumps({"dim": arguments.dim, "threads": arguments.threads, "bf16": arguments.bf16, "cases": found}))


if __name__ == "__main__":
    main()
