"""`recgpt quickstart`: a log becomes a model that recommends and ranks, in one command, with every file to look at."""

from __future__ import annotations

import importlib
import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recgpt.config import read_config
from recgpt.data.prepared import Prepared
from recgpt.errors import ConfigError
from recgpt.evaluation import evaluate
from recgpt.export import export
from recgpt.files import write_json
from recgpt.quickstart_logs import Size, Story, named, oracle_predictor, oracle_scorer, simulated
from recgpt.ranking_evaluation import evaluate_ranking
from recgpt.recommend import rank_user, recommend_user
from recgpt.report import report
from recgpt.runs import TrainedRun
from recgpt.stages import load_stage

RETRIEVAL = ("model", "popularity", "item_knn", "markov", "oracle")
OUTCOME = ("auc", "gauc", "logloss", "ne", "ece")


def quickstart(data: str | None, size: Size, out: str | Path) -> dict[str, Any]:
    """Simulate (or find) a log, pretrain, evaluate, export, recommend; fine-tune, rank, serve one request, report.

    Args:
        data: a named log under `$RECGPT_DATA`, or None for the built-in simulator.
        size: `tiny` (up to a minute) or `small` (up to six).
        out: the folder for everything; the same command again goes on with what is there.

    Returns:
        The summary that is also written to `OUT/summary.json`: metrics of the model, the baselines and, on the
        simulator, the oracle; `ranking` with the outcomes' metrics; seconds of each stage; recommendations for one
        user.
    """
    out, seconds = Path(out), _Seconds()
    with seconds("data"):
        story = simulated(size, out) if data is None else named(data, size, out)
    with seconds("pretrain"):
        fresh = _another_story(out, {"data": data, "size": size})
        trained = load_stage("pretrain")(story.pretrain, fresh=fresh)
    with seconds("evaluate"):
        scorers = {}
        if story.simulation is not None:
            scorers["oracle"] = oracle_scorer(story.simulation, TrainedRun.open(trained["run"]).prepared)
        metrics = evaluate(trained["run"], "test", (10, 50), scorers)
    with seconds("export"):
        export(trained["run"], out / "export")
    with seconds("recommend"):
        user = _first_user(out / "export")
        recommended = recommend_user(trained["run"], user, 10)
    summary: dict[str, Any] = {name: metrics[name] for name in RETRIEVAL if name in metrics}
    summary |= {"paired": metrics.get("paired", {}), "run": trained["run"]}
    summary["recommended"] = {"user": user, "items": recommended["items"]}
    if story.finetune is not None:
        summary |= _ranking(story, trained["run"], user, fresh, seconds)
    with seconds("report"):
        summary["report"] = str(out / "report.html")
        shutil.copyfile(report(trained["run"]), summary["report"])
        if "ranking_run" in summary:
            summary["ranking_report"] = str(report(summary["ranking_run"]))
    summary |= {"seconds": seconds.of, "targets_per_second": trained["targets"] / max(trained["seconds"], 1e-9)}
    write_json(out / "summary.json", summary)
    return summary


def _ranking(story: Story, run: str, user: str, fresh: bool, seconds: _Seconds) -> dict[str, Any]:
    """Fine-tune, evaluate beside the items' own rates, rank what was recommended, serve one request."""
    assert story.finetune is not None
    with seconds("finetune"):
        tuned = load_stage("finetune")(story.finetune, from_run=run, fresh=fresh)
    with seconds("evaluate ranking"):
        extra = {}
        if story.simulation is not None:
            extra["oracle"] = oracle_predictor(story.simulation, Prepared.open(story.finetune["data"]["prepared"]))
        metrics = evaluate_ranking(tuned["run"], "test", extra)
    with seconds("rank"):
        items = [each["item"] for each in recommend_user(tuned["run"], user, 10)["items"]]
        request: dict[str, Any] = {"user": user, "items": items, "context": story.request(user)}
        ranked = rank_user(tuned["run"], **request)
    with seconds("serve"):
        served = _served(tuned["run"], request)
    told = {
        name: {outcome: {key: values[key] for key in OUTCOME} for outcome, values in metrics[source].items()}
        for name, source in (("ranking", "outcomes"), ("item_popularity", "item_popularity"), ("oracle", "oracle"))
        if source in metrics
    }
    return {
        "ranking": told.pop("ranking"),
        "ranking_beside": told,
        "ranking_run": tuned["run"],
        "ranked": request | {"items": ranked["items"]},
        "served": served,
    }


def _served(run: str, request: dict[str, Any]) -> dict[str, Any]:
    """Start the service on a free port, ask it once, stop it; told where its packages are missing."""
    try:
        load_stage("serve")
        serving = importlib.import_module("recgpt.serve.main").serving
        with serving(run, ["serve.with_log=true"]) as url:
            body = json.dumps(request).encode()
            post = urllib.request.Request(f"{url}/v1/rank", body, {"content-type": "application/json"})
            started = time.perf_counter()
            with urllib.request.urlopen(post, timeout=60) as answer:
                ranked = json.load(answer)["items"]
            return {"milliseconds": round(1000 * (time.perf_counter() - started), 1), "items": ranked}
    except ConfigError as error:
        return {"skipped": str(error)}


def _first_user(folder: Path) -> str:
    import pyarrow.parquet as pq

    users = pq.read_table(folder / "users" / "part-00000.parquet", columns=["user"])
    return str(users["user"][0].as_py())


def _another_story(out: Path, story: dict[str, Any]) -> bool:
    """Whether `out` holds the quickstart of another log or size, whose runs and export then make way for this one."""
    marker = out / "quickstart.json"
    other = marker.is_file() and read_config(marker) != story
    if other and (out / "export").is_dir():
        shutil.rmtree(out / "export")
    write_json(marker, story)
    return other


class _Seconds:
    """Wall seconds of each stage."""

    def __init__(self) -> None:
        self.of: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.of[stage] = round(time.perf_counter() - started, 3)
