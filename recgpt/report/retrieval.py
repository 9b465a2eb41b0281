"""How well the next item is found: over k, beside the baselines, for whom, and what is shown to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from recgpt.inspection.sample import spread
from recgpt.metrics import MISS, Z_95, ndcg_gain, paired_interval, recall_gain
from recgpt.report.blocks import (
    MINUS,
    NOTHING,
    Block,
    Figure,
    Figures,
    Heading,
    Key,
    Section,
    Table,
    Text,
    count,
    mean_interval,
    number,
    percent,
    ranged,
    signed,
)
from recgpt.report.charts import Axes, Line, draw
from recgpt.report.groups import cut, group_figure, group_table, means
from recgpt.report.material import PARTS, Material, Ranks, look_of, name_of
from recgpt.report.validation import SHOWN, Lists

TITLE = "Finding the next item"
LARGEST_K = 100
MOST_USERS = 200_000
"""Users of the figures by group; more are sampled evenly."""

Gains = dict[str, NDArray[np.float64]]


def ranks_of(material: Material, lists: Lists | None) -> Ranks | None:
    """What `recgpt evaluate` saved; where it saved nothing, the validation part as it was ranked for the report."""
    if material.ranks is not None or lists is None:
        return material.ranks
    return Ranks("valid", {}, lists.rows, lists.history, lists.target, lists.ranks)


def retrieval(material: Material, ranks: Ranks | None, lists: Lists | None) -> Section:
    """The section, from `ranks_of` the run and its lists."""
    if ranks is None or len(ranks.rows) == 0:
        text = "Nothing is saved of this run's ranks, and its log has no validation part to rank."
        return Section("retrieval", TITLE, [Text(text)])
    blocks: list[Block] = []
    if ranks.saved:
        blocks.append(Text(_protocol(material, ranks)))
    elif lists is not None:
        blocks.append(Text(f"Computed for this report on {lists.who}; nothing of the test part was read."))
    blocks.append(Figures((curve(ranks, "recall"), curve(ranks, "ndcg"))))
    if ranks.saved:
        blocks.append(_metrics(ranks))
    blocks.append(leads(ranks, cutoff(ranks.saved)))
    blocks += _groups(material, ranks)
    if lists is not None:
        blocks += popularity_bias(material, lists)
    return Section("retrieval", TITLE, blocks)


def cutoff(saved: Mapping[str, object]) -> int:
    """The smallest k that was evaluated, 10 where nothing is saved."""
    model = saved.get("model")
    names = model if isinstance(model, Mapping) else {}
    return min((int(name[7:]) for name in names if name.startswith("recall@")), default=10)


def _protocol(material: Material, ranks: Ranks) -> str:
    saved = ranks.saved.get("protocol", {})
    text = (
        f"The {PARTS[ranks.split]}, as `recgpt evaluate` saved it: {count(len(ranks.rows))} users with one target "
        f"each, {count(saved.get('candidates', 0))} candidates, items that the user has met removed (a target met "
        f"before stays: {count(saved.get('repeated_targets', 0))}), ties count against the system. Trained on the "
        "training part alone."
    )
    asked = " and ".join(f"{name} = {value:g}" for name, value in saved.get("asked", {}).items())
    if asked:
        text += f" The model is asked for {asked}, as `recgpt recommend --want` does; the counting models cannot be."
    outside = saved.get("targets_outside_candidates", 0)
    if outside:
        text += f" {count(outside)} targets are no candidates and count as missed."
    reads = material.test_reads
    if ranks.split == "test":
        text += f" The test part has been evaluated {'once' if reads == 1 else f'{reads} times'} for this run."
    return text


def curve(ranks: Ranks, metric: str) -> Figure:
    """A metric over k, all systems."""
    ks = np.arange(1, LARGEST_K + 1)
    lines = []
    for system in ranks.systems:
        mean, low, high = over_k(ranks.ranks[system], metric, ks)
        bounds = (low, high) if system == "model" else (None, None)
        lines.append(Line(look_of(system), ks, mean, *bounds))
    if metric == "recall":
        title, reading = "Recall@k", "Share of users whose next item is among the first k. Higher is better"
    else:
        title, reading = "NDCG@k", "As recall, but a hit at rank r counts 1 / log2(1 + r): early hits count more"
    reading += "; the band is the model's 95 % interval over users."
    svg = draw(f"{metric}-k", f"{title} for k from 1 to {LARGEST_K}. {reading}", Axes("k", x_log=True), lines)
    return Figure(title, svg, reading, keys_of(ranks.systems))


def over_k(
    ranks: NDArray[np.int64], metric: str, ks: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean, low and high of recall@k or ndcg@k for every k, from one count of the ranks.

    A user's gain is w(rank) where rank <= k, else 0, so sums over users are running sums over ranks.
    """
    n = len(ranks)
    hits = np.bincount(ranks[(ranks != MISS) & (ranks <= ks[-1])], minlength=ks[-1] + 1)[1:]
    weight = np.ones(len(hits)) if metric == "recall" else 1 / np.log2(1.0 + np.arange(1, len(hits) + 1))
    mean = np.cumsum(hits * weight)[ks - 1] / n
    square = np.cumsum(hits * weight**2)[ks - 1] / n
    half = Z_95 * np.sqrt(np.maximum(square - mean**2, 0) / max(1, n - 1))
    return mean, np.maximum(mean - half, 0), mean + half


def keys_of(systems: Sequence[str]) -> tuple[Key, ...]:
    """The legend of some systems."""
    return tuple(Key(look_of(system), name_of(system)) for system in systems)


def _metrics(ranks: Ranks) -> Table:
    saved = {system: ranks.saved[system] for system in ranks.systems if system in ranks.saved}
    metrics = list(dict.fromkeys(metric for values in saved.values() for metric in values))
    places = {kind: place for place, kind in enumerate(("recall", "ndcg", "mrr", "coverage", "avg_popularity"))}
    metrics.sort(key=lambda metric: places.get(metric.split("@")[0], len(places)))
    rows = [
        (name_of(system), *(number(values.get(m), 1 if m.startswith("avg") else 4) for m in metrics))
        for system, values in saved.items()
    ]
    words = {"avg_popularity": "mean popularity", "mrr": "MRR", "ndcg": "NDCG"}
    heads = ("@".join([words.get(part, part) for part in metric.split("@")]) for metric in metrics)
    note = (
        "MRR: mean of 1 / rank. Coverage: share of the candidates that stand in anybody's first k. Mean popularity: "
        "training events of a recommended item, on average."
    )
    if "oracle" in saved:
        note += " Best possible: ranked by the true probabilities of the simulator."
    return Table(("", *heads), tuple(rows), note)


def leads(ranks: Ranks, k: int) -> Table:
    """The model's paired lead over each other system."""
    rows = []
    for system in [name for name in ranks.systems if name != "model"]:
        cells = [lead(gain(ranks.ranks["model"], k), gain(ranks.ranks[system], k)) for gain in (ndcg_gain, recall_gain)]
        rows.append((f"model {MINUS} {name_of(system)}", *cells))
    note = "Paired by user, with 95 % intervals; an interval that holds 0 says that no difference is shown."
    return Table(("", f"NDCG@{k}", f"recall@{k}"), tuple(rows), note)


def lead(first: NDArray[np.float64], second: NDArray[np.float64]) -> str:
    """Mean of first - second over users, with its paired interval."""
    if len(first) < 2:
        return signed(float((first - second).mean()))
    gap = paired_interval(first, second)
    return ranged(gap["difference"], gap["low"], gap["high"], signed)


def best_baseline(ranks: Ranks, k: int) -> str | None:
    """The baseline of the highest NDCG@k."""
    return max(ranks.baselines, key=lambda name: float(ndcg_gain(ranks.ranks[name], k).mean()), default=None)


def _groups(material: Material, ranks: Ranks) -> list[Block]:
    """By history length and by the target's popularity."""
    prepared = material.trained.prepared
    k = cutoff(ranks.saved)
    chosen = spread(len(ranks.rows), MOST_USERS, 32)
    item_rows = np.array([prepared.item_rows(p, p + 1)[0] for p in ranks.target[chosen].tolist()], np.int64)
    popularity = prepared.items.n_train_events[item_rows]
    gains: Gains = {system: ndcg_gain(ranks.ranks[system][chosen], k) for system in ranks.systems}
    best = best_baseline(ranks, k)
    shown = [system for system in ("model", best) if system is not None]
    names = {system: name_of(system) for system in gains}
    figures, tables = [], []
    for name, what, by, reading, groups in (
        (
            "history",
            "history length",
            "events before the target",
            "Users in groups of similar size (n users each), with 95 % intervals.",
            cut(ranks.history[chosen]),
        ),
        (
            "target",
            "popularity of the target",
            "training events of the target",
            "Targets in groups of similar size, from rare to popular, with 95 % intervals.",
            cut(popularity, most=4, zero_apart=True),
        ),
    ):
        title = f"NDCG@{k} by {what}"
        values = {Key(look_of(system), name_of(system)): means(groups, gains[system]) for system in shown}
        figures.append(group_figure(f"by-{name}", (title, reading, by), groups, values))
        tables.append(group_table(f"The numbers: {title}", by, groups, gains, names))
    blocks: list[Block] = [Heading("For whom"), Figures(tuple(figures)), *tables, Text(_unseen(popularity, gains, k))]
    if len(chosen) < len(ranks.rows):
        blocks.append(Text(f"By group: {count(len(chosen))} users, evenly spread over the log."))
    return blocks


def _unseen(popularity: NDArray[np.int64], gains: Gains, k: int) -> str:
    unseen = popularity == 0
    if not unseen.any():
        return "Every target was seen in training."
    parts = ", ".join(f"{name_of(system)} {number(float(gain[unseen].mean()))}" for system, gain in gains.items())
    return (
        f"{count(unseen.sum())} of {count(len(unseen))} targets ({percent(unseen.mean())}) were never seen in "
        f"training, so the model knows them by their content alone; NDCG@{k} on these: {parts}."
    )


def popularity_bias(material: Material, lists: Lists) -> list[Block]:
    """Whether the lists show popular items more often than people meet them."""
    items = material.trained.prepared.items
    events, candidate = items.n_train_events, items.valid_candidate
    systems = [name for name in ("model", "markov", "item_knn", "popularity") if name in lists.shown]
    log = decile_shares(events, candidate, events)
    tenths = np.arange(1, 11)
    shares = {system: decile_shares(lists.shown[system], candidate, events) for system in systems}
    lines = [Line(look_of(system), tenths, share, dots="both") for system, share in shares.items()]
    lines.append(Line("reference", tenths, log, dots="both"))
    title, reading = (
        "Recommendations by popularity",
        "Share of what is shown by tenth of the candidates, 1 = the most popular. Above the dotted line of the "
        "training events: shown more often than met.",
    )
    ticks = [(int(tenth), str(tenth)) for tenth in tenths]
    svg = draw("deciles", f"{title}. {reading}", Axes("tenth of the candidates", ticks=ticks), lines)
    keys = (*keys_of(systems), Key("reference", "training events"))
    rows = [
        (
            name_of(system),
            percent((lists.shown[system] > 0).sum() / max(1, candidate.sum())),
            number(mean_popularity(lists.shown[system], events), 1),
            percent(shares[system][0]),
            percent(shares[system][5:].sum()),
        )
        for system in systems
    ]
    rows.append(
        (
            "training events",
            NOTHING,
            number(mean_popularity(events, events), 1),
            percent(log[0]),
            percent(log[5:].sum()),
        )
    )
    text = f"The first {SHOWN} items of {lists.who}."
    if lists.left_out:
        text += " The baselines are left out: counting them anew would take long on a log of this size."
    table = Table(
        ("", f"coverage@{SHOWN}", "mean popularity", "from the top tenth", "from the lower half"),
        tuple(rows),
        "Coverage: share of the candidates shown to anybody. Mean popularity: training events of a shown item; for the "
        "events themselves, of the item of a training event.",
    )
    return [Heading("What people are shown"), Text(text), Figures((Figure(title, svg, reading, keys),)), table]


def decile_shares(
    shown: NDArray[np.int64], candidate: NDArray[np.bool_], events: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Share of what is shown by tenth of the candidates, most popular first, float64 [10].

    Args:
        shown: int64 [I], how often each item is.
        candidate: bool [I].
        events: int64 [I], popularity; equal ones stay in row order.
    """
    order = np.argsort(-events[candidate], kind="stable")
    parts = np.array_split(shown[candidate][order], 10)
    sums = np.array([part.sum() for part in parts], float)
    return sums / max(1.0, sums.sum())


def mean_popularity(shown: NDArray[np.int64], events: NDArray[np.int64]) -> float:
    """Training events of a shown item, on average."""
    return float((shown * events.astype(float)).sum() / max(1, shown.sum()))


def headline(ranks: Ranks) -> tuple[str, Table]:
    """What came out, in one sentence, and the key figures beside the best baseline's."""
    k = cutoff(ranks.saved)
    best = best_baseline(ranks, k)
    columns = ["", "model", *([f"{name_of(best)} (best baseline)", "difference"] if best else [])]
    rows = []
    for name, gain in ((f"NDCG@{k}", ndcg_gain), (f"recall@{k}", recall_gain)):
        own = gain(ranks.ranks["model"], k)
        row = [name, ranged(*mean_interval(own))]
        if best is not None:
            other = gain(ranks.ranks[best], k)
            row += [ranged(*mean_interval(other)), lead(own, other)]
        rows.append(tuple(row))
    note = (
        f"{count(len(ranks.rows))} users of the {PARTS[ranks.split]}; 95 % intervals over users, the difference paired."
    )
    return _sentence(ranks, k, best), Table(tuple(columns), tuple(rows), note)


def _sentence(ranks: Ranks, k: int, best: str | None) -> str:
    own = recall_gain(ranks.ranks["model"], k)
    text = (
        f"On {count(len(own))} users of the {PARTS[ranks.split]} the model has the next item among its first {k} for "
        f"{percent(own.mean())}"
    )
    if best is None:
        return text + "."
    other = recall_gain(ranks.ranks[best], k)
    text += f", the best baseline ({name_of(best)}) for {percent(other.mean())}"
    if len(own) < 2:
        return text + "."
    gap = paired_interval(ndcg_gain(ranks.ranks["model"], k), ndcg_gain(ranks.ranks[best], k))
    if gap["low"] > 0:
        return text + f"; its ranking (NDCG@{k}) is better."
    if gap["high"] < 0:
        return text + f"; its ranking (NDCG@{k}) is worse."
    return text + f"; in ranking (NDCG@{k}) no difference between the two is shown."
