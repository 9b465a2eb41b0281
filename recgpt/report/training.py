"""How the training went: loss, learning rate, validation, from the run's `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recgpt.report.blocks import Block, Figure, Figures, Key, Section, Text, count, number
from recgpt.report.charts import LOOKS, Axes, Line, draw
from recgpt.report.material import Material

Record = Mapping[str, Any]


def training(material: Material) -> Section:
    """The section."""
    train = [record for record in material.records if record["event"] == "train"]
    valid = [record for record in material.records if record["event"] == "valid"]
    figures = [*_loss(train, material.ranker is not None), *_rate(train), *_validation(valid)]
    blocks: list[Block] = [Text(_summary(material, len(valid)))]
    if figures:
        blocks.append(Figures(tuple(figures)))
    if len(train) < 2:
        blocks.append(
            Text(
                f"Fewer than two lines were logged while training (one every {material.settings.get('run.log_every')} "
                "steps), so there is no curve; lower run.log_every to see one."
            )
        )
    return Section("training", "Training", blocks)


def _summary(material: Material, validations: int) -> str:
    settings, finished = material.settings, material.finished
    parts = [f"{count(finished.get('step', 0))} updates"]
    if "targets" in finished:
        unit = "impressions" if material.ranker is not None else "targets"
        parts.append(f"{count(finished['targets'])} {unit} seen")
    parts.append(f"peak learning rate {settings.get('optim.lr'):g}, schedule {settings.get('optim.schedule')}")
    text = "; ".join(parts) + "."
    exported = finished.get("exported_step")
    if exported is not None and exported != finished.get("step"):
        text += f" Exported are the weights of step {count(exported)}, the best on validation."
    last = finished.get("validation") or {}
    shown = {name: value for name, value in last.items() if name in ("ndcg@10", "recall@10", "mrr", "logloss")}
    if validations == 1 and shown:
        text += " On validation at the end: " + ", ".join(f"{_name(k)} {number(v)}" for k, v in shown.items()) + "."
    return text


def _name(metric: str) -> str:
    return {"ndcg@10": "NDCG@10", "mrr": "MRR", "logloss": "log loss"}.get(metric, metric)


def _points(records: Sequence[Record], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one number, where it is known."""
    known = [(r["step"], r[name]) for r in records if isinstance(r.get(name), (int, float))]
    return [step for step, _ in known], [value for _, value in known]


def _loss(train: Sequence[Record], ranking: bool) -> list[Figure]:
    steps, values = _points(train, "loss")
    if len(steps) < 2:
        return []
    reading = (
        "Summed log loss of the outcomes, the mean since the last line. Falls, then flattens."
        if ranking
        else "Cross entropy of the next item among those of the batch, the mean since the last line."
    )
    svg = draw("loss", f"Training loss by step. {reading}", Axes("step", y_zero=False), [Line("model", steps, values)])
    return [Figure("Training loss", svg, reading)]


def _rate(train: Sequence[Record]) -> list[Figure]:
    steps, values = _points(train, "lr")
    if len(steps) < 2:
        return []
    reading = "Rises while warming up, then falls as the schedule says."
    svg = draw("rate", f"Learning rate by step. {reading}", Axes("step"), [Line("second", steps, values)])
    return [Figure("Learning rate", svg, reading)]


def _validation(valid: Sequence[Record]) -> list[Figure]:
    """Curves of what was measured on the validation part, at least twice: one figure a kind of metric."""
    figures = []
    names = list(dict.fromkeys(name for record in valid for name in record))
    for kind, title, reading in (
        ("ndcg@10", "NDCG@10 on validation", "Higher is better; flat or falling at the end: more steps bring nothing."),
        (
            "logloss",
            "Log loss on validation",
            "Lower is better; rising again: the heads learn the training part by heart.",
        ),
        ("auc", "AUC on validation", "Share of pairs in the right order, .5 = chance. Higher is better."),
    ):
        chosen = [name for name in names if name.split(".", 1)[0] == kind]
        if kind == "logloss" and len(chosen) > 1:
            chosen = [name for name in chosen if name != "logloss"]  # the sum says nothing beside its parts
        chosen = chosen[: len(LOOKS) - 1]
        lines, keys = [], []
        for look, name in zip(LOOKS, chosen, strict=False):
            steps, values = _points(valid, name)
            if len(steps) > 1:
                lines.append(Line(look, steps, values, dots="both" if len(steps) < 30 else False))
                keys.append(Key(look, name.split(".", 1)[-1]))
        if lines:
            svg = draw(f"valid-{kind.split('@')[0]}", f"{title} by step. {reading}", Axes("step", y_zero=False), lines)
            figures.append(Figure(title, svg, reading, tuple(keys) if len(keys) > 1 else ()))
    return figures
