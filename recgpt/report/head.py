"""The top of the page: what the run is, and what came out."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import recgpt
from recgpt.report.blocks import Head, Notice, Table, count, number
from recgpt.report.material import Material, Ranks
from recgpt.report.outcomes import Impressions
from recgpt.report.outcomes import headline as ranking_headline
from recgpt.report.retrieval import headline as retrieval_headline


def head(material: Material, impressions: Impressions | None, ranks: Ranks | None) -> Head:
    """The head of a run's report, from what is known of its impressions or its ranks."""
    verdict, figures = _headline(material, impressions, ranks)
    return Head(
        name=_called(material.path.resolve()),
        kind="pretrained" if material.ranker is None else "fine-tuned",
        verdict=verdict,
        figures=figures,
        facts=tuple(_facts(material)),
        notices=tuple(_notices(material, figures is not None)),
    )


def _called(run: Path) -> str:
    """The name of a run's folder, with the one above where quickstart named it: that says more."""
    return f"{run.parent.name}/{run.name}" if run.name in ("run", "ranking") else run.name


def _headline(material: Material, impressions: Impressions | None, ranks: Ranks | None) -> tuple[str, Table | None]:
    if material.ranker is not None:
        return ("", None) if impressions is None else ranking_headline(impressions)
    return ("", None) if ranks is None or len(ranks.rows) == 0 else retrieval_headline(ranks)


def _notices(material: Material, shown: bool) -> list[Notice]:
    notices = []
    if material.evaluation("test") is None:
        text = "The test part of this run has not been evaluated, and this page does not read it."
        if shown:
            text += " Shown is the validation part."
        notices.append(Notice(text, f"recgpt evaluate {material.path}"))
    if material.learned_validation:
        text = "This run was fitted on the validation part too (a refit): what is measured there flatters it."
        notices.append(Notice(text))
    if material.trained.settings.get("tasks.backbone_lr"):
        text = (
            "Here the event model was tuned for the outcomes, which costs it some of the next items: recommend from "
            "the run that it starts from, or freeze it (tasks.backbone_lr=0)."
        )
        notices.append(Notice(text))
    return notices


def _facts(material: Material) -> list[tuple[str, str]]:
    model, prepared = material.trained.model, material.trained.prepared
    settings, finished = material.settings, material.finished
    parameters = sum(p.numel() for p in model.model.parameters())
    if material.ranker is not None:
        heads = sum(p.numel() for p in material.ranker.network.parameters())
        size = f"{count(parameters)} parameters and {count(heads)} in the heads"
    else:
        size = f"{count(parameters)} parameters"
    c = model.config
    facts = [
        ("Log", f"{count(prepared.n_users)} users, {count(prepared.n_items)} items, {count(prepared.n_events)} events"),
        ("From, to", _span(prepared.summary.get("time_range"))),
        ("Model", f"{size} ({_megabytes(material.path / 'model')})"),
        ("", f"width {c.dim}, {c.layers} layers, {c.heads} heads, window {c.window.length} events"),
        *_heads(material),
        ("Training", _training(finished, "events" if material.ranker is None else "impressions")),
        ("Trained", _trained(material.path)),
        ("Seed", str(settings.get("run.seed"))),
    ]
    if settings.get("run.start_from"):
        facts.append(("Starts from", _called(Path(str(settings["run.start_from"])).absolute())))
    facts.append(("Fingerprint", model.fingerprint if material.ranker is None else material.ranker.fingerprint))
    facts.append(("Report by", f"recgpt {recgpt.__version__}"))
    return [(name, value) for name, value in facts if value]


def _heads(material: Material) -> list[tuple[str, str]]:
    if material.ranker is None:
        return []
    rate = material.settings.get("tasks.backbone_lr")
    tuned = "event model frozen" if rate == 0 else f"event model tuned at {rate:g} times the rate"
    if not material.settings.get("run.start_from"):
        tuned = "event model from scratch"
    return [("Heads", f"{material.settings.get('heads.behaviour')}, {', '.join(material.ranker.outcomes)}; {tuned}")]


def _span(span: Any) -> str:
    """First and last day of the log; empty without a clock."""
    if not span or not all(span):
        return ""
    return f"{str(span[0])[:10]} to {str(span[1])[:10]}"


def _training(finished: dict[str, Any], unit: str) -> str:
    if not finished:
        return ""
    seconds, targets = float(finished.get("seconds", 0)), finished.get("targets", 0)
    return f"{_duration(seconds)}, {count(targets / max(seconds, 1e-9))} {unit}/s"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{number(seconds, 1)} s"
    return f"{number(seconds / 60, 1)} min" if seconds < 5400 else f"{number(seconds / 3600, 1)} h"


def _trained(run: Path) -> str:
    """When the model was written."""
    written = (run / "model" / "config.json").stat().st_mtime
    return datetime.fromtimestamp(written, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _megabytes(folder: Path) -> str:
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return f"{size / 2**20:,.1f} MiB"
