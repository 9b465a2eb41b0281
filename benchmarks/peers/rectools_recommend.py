"""Users a second of RecTools' `recommend()` (SASRec), for inference_speed.py, in RecTools' environment."""

import json
import sys
import time

import pytorch_lightning as pl
from rectools.models import SASRecModel
from rectools_log import read, set_up


def main() -> None:
    """Fit for some steps (how good it is does not matter here), then recommend to every user."""
    path, dim, threads, length = sys.argv[1:]
    set_up(int(threads))

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
    dataset = read(path, 1)
    model.fit(dataset)
    ids = dataset.user_id_map.external_ids
    started = time.perf_counter()
    model.recommend(ids, dataset, k=10, filter_viewed=True)
    print(json.dumps(len(ids) / (time.perf_counter() - started)))


if __name__ == "__main__":
    main()
