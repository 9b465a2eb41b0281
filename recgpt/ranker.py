"""Ranker: a fine-tuned event model with its ranking network. Scores candidates from a user state.

N impressions or candidates, K outcomes, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from recgpt.api import RecGPT
from recgpt.config import Section, validate
from recgpt.data.batch import EventBatch, gap_between, hours, item_columns, tensor
from recgpt.data.events import NO_TIME
from recgpt.data.hashing import hash_ids
from recgpt.data.impression_batches import ImpressionBatch
from recgpt.data.table import read_context
from recgpt.errors import ConfigError
from recgpt.files import atomic_write_bytes, write_json
from recgpt.model import EventModel
from recgpt.ranking.behaviour import Reading
from recgpt.ranking.network import HeadsConfig, RankingNetwork, Requests
from recgpt.state import UserState

FORMAT = 2
WEIGHTS, SAVED = "ranker.safetensors", "ranker.json"
BLOCK = 64
"""Candidates that are scored at once: the attention over a long state stays in the processor's cache."""


class ScoreConfig(Section):
    """How the outcomes' probabilities become one score."""

    kind: Literal["sum", "product"] = "sum"
    """`sum`: sum of weight x p (expected value); `product`: product of p ^ weight."""
    weights: dict[str, float] = {}
    """Outcome -> weight; outcomes that are not named have 0. Empty: 1 for all."""


class Ranked(NamedTuple):
    """One ranked candidate.

    Attributes:
        item: the id as it was given.
        known: whether training saw the id; otherwise the item is scored by its content and features.
        outcomes: name -> probability.
        score: by the score formula.
    """

    item: int | str
    known: bool
    outcomes: dict[str, float]
    score: float


class RankingModel(nn.Module):
    """Event model and ranking network together: what finetuning trains.

    Args:
        events: the event model.
        network: the ranking network.
        frozen: leave the event model as it is: no gradient, no dropout.

    Raises:
        ConfigError: the event model's hidden vectors change when events follow.
    """

    def __init__(self, events: EventModel, network: RankingNetwork, frozen: bool = False) -> None:
        super().__init__()
        if not events.config.incremental:
            raise ConfigError(
                "model.positions: reverse and model.causal: false change older hidden vectors with every event, and "
                "ranking reads prefixes of one pass; pretrain with other positions and causal: true"
            )
        self.events, self.network, self.frozen = events, network, frozen
        if frozen:
            events.requires_grad_(False)

    def train(self, mode: bool = True) -> RankingModel:
        """Training mode; a frozen event model stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.events.eval()
        return self

    def forward(self, batch: ImpressionBatch) -> Tensor:
        """Logits of all impressions, float32 [N, K]; one pass of the event model serves them all."""
        events, inputs = self.events, batch.events
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            items = events.encode_items(inputs)
            hidden = events(inputs, items)
            encoded = items.index_select(0, inputs.target)
            query = events.direction(events.queries(hidden.flatten(0, 1).index_select(0, inputs.position)))
            vector = events.direction(events.vectors(encoded))
        positions = hidden.shape[1]
        requests = Requests(
            state=inputs.position // positions,
            visible=inputs.position % positions + 1,
            query=query,
            encoded=encoded,
            vector=vector,
            item=inputs.items[inputs.target],
            hour=batch.hour,
            gap=batch.gap,
            features={name: column[inputs.target] for name, column in inputs.features.items()},
            context=batch.context,
        )
        return self.network(self.network.read(hidden), requests)


class _Saved(Section):
    """The `ranker.json` of a model folder."""

    format: int
    fingerprint: str
    events: str
    """Fingerprint of the event model beside it."""
    heads: HeadsConfig
    outcomes: list[str] = Field(min_length=1)
    score: ScoreConfig

    @model_validator(mode="after")
    def _known(self) -> _Saved:
        check_score(self.score, self.outcomes)
        return self


def check_score(score: ScoreConfig, outcomes: Sequence[str]) -> None:
    """Refuse a weight of an outcome that is not predicted (a ValueError, for a validator to raise)."""
    for name in score.weights:
        if name not in outcomes:
            raise ValueError(f"score.weights.{name}: no such outcome is predicted; outcomes: {', '.join(outcomes)}")


def is_ranker(path: str | Path) -> bool:
    """Whether a run folder (or its model folder) holds ranking heads."""
    return (_model_folder(Path(path)) / SAVED).is_file()


def _model_folder(path: Path) -> Path:
    return path / "model" if (path / "model").is_dir() else path


class Ranker:
    """Ranks candidates for a user state.

    Args:
        recgpt: the event model: it encodes, appends and recommends.
        network: the ranking network.
        heads: its sizes.
        score: the score formula.
        told: the `heads` and `score` sections of the `ranker.json` that it was loaded from, as they stand there;
            default: every value of both.
    """

    def __init__(
        self,
        recgpt: RecGPT,
        network: RankingNetwork,
        heads: HeadsConfig,
        score: ScoreConfig,
        told: Mapping[str, Any] | None = None,
    ) -> None:
        self.recgpt, self.network = recgpt, network.eval()
        self.heads, self.score = heads, score
        self.outcomes = network.outcomes
        self._told = told or {"heads": heads.model_dump(mode="json"), "score": score.model_dump(mode="json")}

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the event model, the ranking network, its sizes and the score formula."""
        digest = hashlib.sha256(self.recgpt.fingerprint.encode())
        digest.update(json.dumps(self._told, sort_keys=True).encode())
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    # -- files ---------------------------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Write a model folder: the event model's files, `ranker.safetensors` and `ranker.json`, the last one last.

        Raises:
            ConfigError: `path` is a file.
        """
        folder = Path(path)
        if folder.is_dir():
            (folder / SAVED).unlink(missing_ok=True)  # until the end the folder holds no ranker
        self.recgpt.save_pretrained(folder)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        atomic_write_bytes(folder / WEIGHTS, safetensors.torch.save(tensors))
        own = {"format": FORMAT, "fingerprint": self.fingerprint, "events": self.recgpt.fingerprint}
        write_json(folder / SAVED, {**own, "outcomes": list(self.outcomes), **self._told})

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Ranker:
        """Load a fine-tuned run folder or its `model` folder; executes nothing that it reads.

        Raises:
            ConfigError: the folder holds no ranking heads, or its files belong to several models.
        """
        recgpt, folder = RecGPT.from_pretrained(path), _model_folder(Path(path))
        if not is_ranker(path):
            raise ConfigError(f"{path}: holds no ranking heads; give a run of `recgpt finetune`")
        try:
            values = json.loads((folder / SAVED).read_text("utf-8"))
            if not isinstance(values, dict) or values.get("format") != FORMAT:
                raise ConfigError(f"{folder / SAVED}: no ranker of format {FORMAT}; train it again")
            saved = validate(_Saved, values, str(folder / SAVED))
            tensors = safetensors.torch.load_file(folder / WEIGHTS)
        except (safetensors.SafetensorError, OSError, json.JSONDecodeError) as error:
            detail = " ".join(str(error).split())
            raise ConfigError(f"{folder}: not a whole ranker ({detail}); copy or train it again") from error
        network = RankingNetwork(saved.heads, recgpt.schema, recgpt.config.dim, saved.outcomes)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:300]
            raise ConfigError(f"{folder / WEIGHTS}: the weights belong to another {SAVED} ({detail})") from error
        told = {name: values[name] for name in ("heads", "score")}
        ranker = cls(recgpt, network, saved.heads, saved.score, told)
        if (ranker.fingerprint, recgpt.fingerprint) != (saved.fingerprint, saved.events):
            raise ConfigError(f"{folder}: its files belong to different models; copy or train it again")
        return ranker

    # -- ranking -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rank(
        self, state: UserState, ids: Sequence[int | str], context: Mapping[str, Any] | None = None
    ) -> list[Ranked]:
        """Outcome probabilities and scores of candidates, in the order of `ids`.

        Args:
            state: of this ranker's event model; it is read, never encoded again.
            ids: candidates as they stand in the log; unknown ones are scored by what is known of them.
            context: what is known of the request, by the log's names: context columns, and the clock's column for its
                time (an integer in the log's unit, or ISO text). The rest is unknown; a value that training always knew
                shifts the probabilities when it is missing.

        Raises:
            RecGPTError: the state is another model's.
            ConfigError: a name or value in `context` that the model does not read, or `ids` that are one text.
        """
        if isinstance(ids, str):
            raise ConfigError(f"ids: {ids!r} is one text; give a list of ids")
        self.recgpt.builder.check(state)
        given = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        known_context, moment = read_context(context, self.recgpt.schema)
        hashes = hash_ids(given)
        reading = self.network.read(torch.cat((state.first[None], state.hidden))[None])
        parts = [
            self._probabilities(state, reading, hashes[first : first + BLOCK], known_context, moment)
            for first in range(0, len(hashes), BLOCK)
        ]
        p = np.concatenate([part for part, _ in parts]) if parts else np.zeros((0, len(self.outcomes)))
        known = np.concatenate([seen for _, seen in parts]) if parts else np.zeros(0, bool)
        scores = self.scores(p)
        return [
            Ranked(item, bool(seen), dict(zip(self.outcomes, row, strict=True)), score)
            for item, seen, row, score in zip(given, known, p.tolist(), scores.tolist(), strict=True)
        ]

    def scores(self, p: np.ndarray) -> np.ndarray:
        """Scores of probabilities float64 [N, K] by the formula, [N]."""
        weights = self.score.weights or dict.fromkeys(self.outcomes, 1.0)
        w = np.array([weights.get(name, 0.0) for name in self.outcomes])
        return p @ w if self.score.kind == "sum" else np.prod(p**w, 1)

    def _probabilities(
        self, state: UserState, reading: Reading, hashes: np.ndarray, context: Mapping[str, Any], moment: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities float64 [C, K] of one block of candidates, and which of them training saw, bool [C]."""
        count, nothing = len(hashes), torch.zeros(1, 1, dtype=torch.int64)
        features, content = item_columns(self.recgpt.items, hashes)
        batch = EventBatch(tensor(hashes), nothing, nothing[0], nothing, features=features, content=content)
        batch = self.recgpt.builder.known(batch)
        encoded = self.recgpt.model.encode_items(batch)
        last = state.events.time[-1:] if len(state.events) else np.full(1, NO_TIME)
        requests = Requests(
            state=torch.zeros(count, dtype=torch.int64),
            visible=torch.full((count,), len(state.hidden) + 1),
            query=self.recgpt.model.direction(state.embedding).expand(count, -1),
            encoded=encoded,
            vector=self.recgpt.model.direction(self.recgpt.model.vectors(encoded)),
            item=batch.items,
            hour=torch.from_numpy(hours(np.full(count, moment))),
            gap=torch.from_numpy(gap_between(last, np.full(1, moment))).expand(count),
            features=features,
            context={name: torch.tensor([value]).expand(count) for name, value in context.items()},
        )
        p = torch.sigmoid(self.network(reading, requests).double())
        return p.numpy(), (batch.items != 0).numpy()
