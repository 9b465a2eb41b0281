"""RecGPT: a trained event model with its items and its schema. This is what callers hold."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from recgpt.config import Section, validate
from recgpt.data.batch import EventBatch, item_columns, on_device, tensor
from recgpt.data.events import Events
from recgpt.data.hashing import hash_ids
from recgpt.data.items import ItemTable
from recgpt.data.schema import DataSchema
from recgpt.data.table import read_events, read_features, read_profile, read_want
from recgpt.data.window import LikeWindows, like_windows
from recgpt.errors import ConfigError
from recgpt.files import atomic_write_bytes, write_json
from recgpt.model import EventModel, ModelConfig
from recgpt.nn.attention import runnable
from recgpt.nn.ids.table import store_tables, stored_state
from recgpt.parallel import on_each_core
from recgpt.state import StateBuilder, UserState

BLOCK = 4096
BLOCK_POSITIONS = 4800
"""Of one padded pass. Larger blocks leave the caches: 1.13 times the time at 12,800 (dim 64)."""
FORMAT = 2


class Recommendation(NamedTuple):
    """One recommended item.

    Attributes:
        item: the id as it stands in the log.
        score: cosine of the user's query and the item's vector, in [-1, 1]; with `model.score: dot` their dot product.
    """

    item: int | str
    score: float


class _Saved(Section):
    """The `config.json` of a model folder."""

    model_config = ConfigDict(populate_by_name=True)

    format: int
    fingerprint: str
    model: ModelConfig
    schema_: DataSchema = Field(alias="schema")


InferencePrecision = Literal["fp32", "bf16"]


def inference_dtype(precision: InferencePrecision) -> torch.dtype:
    """Of the matrix products that make many users' vectors.

    Raises:
        ConfigError: no such precision.
    """
    known: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if precision not in known:
        raise ConfigError(f"precision: {precision!r}; choose fp32 or bf16")
    return known[precision]


class RecGPT:
    """Encodes users into states and recommends from them.

    Args:
        model: the event model; it is put into eval mode (float32). On a GPU, `embed_users`, `item_vectors` and
            `catalogue` work; states are made by a model on the CPU, where `from_pretrained` puts it.
        items: the run's candidate list.
        told: the `model` and `schema` sections of the `config.json` that it was loaded from, as they stand there;
            default: every value of the model's own.
    """

    def __init__(self, model: EventModel, items: ItemTable, told: Mapping[str, Any] | None = None) -> None:
        self.model, self.items = model.eval(), items
        self._told = told

    @property
    def config(self) -> ModelConfig:
        """Sizes and parts of the model."""
        return self.model.config

    @property
    def schema(self) -> DataSchema:
        """The columns that events may have."""
        return self.model.schema

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the weights, the model's config and the schema; states carry it."""
        return self._digest()

    def _sections(self) -> Mapping[str, Any]:
        if self._told is not None:
            return self._told
        return {"model": self.config.model_dump(mode="json"), "schema": self.schema.model_dump(mode="json")}

    def _digest(self) -> str:
        # Of the sections as they were written: a later version's new settings and defaults leave a model what it is.
        digest = hashlib.sha256(json.dumps(self._sections(), sort_keys=True).encode())
        for name, value in sorted(stored_state(self.model).items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        digest.update(self.items.trained.tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def builder(self) -> StateBuilder:
        """The chunk path."""
        return StateBuilder(self.model, self.items, self.items.trained, self.fingerprint)

    # -- files ---------------------------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Write a model folder: `model.safetensors`, `items.parquet`, `config.json`.

        The folder is made if it is absent; whatever else stands in it stays.

        Raises:
            ConfigError: `path` is a file.
        """
        if Path(path).exists() and not Path(path).is_dir():
            raise ConfigError(f"{path}: is a file; name a folder")
        self.write(Path(path))

    def write(self, folder: Path) -> None:
        """Write the files of a model folder, `config.json` last, so that a half-written folder does not open."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in stored_state(self.model).items()}
        atomic_write_bytes(folder / "model.safetensors", safetensors.torch.save(tensors))
        items = io.BytesIO()
        self.items.write(items)
        atomic_write_bytes(folder / "items.parquet", items.getvalue())
        write_json(folder / "config.json", {"format": FORMAT, "fingerprint": self._digest(), **self._sections()})

    @classmethod
    def from_pretrained(cls, path: str | Path) -> RecGPT:
        """Load a run folder or its `model` folder; executes nothing that it reads.

        Raises:
            ConfigError: the folder is no whole model, or its files belong to several.
        """
        path = Path(path)
        folder = path / "model" if (path / "model").is_dir() else path
        for name in ("config.json", "model.safetensors", "items.parquet"):
            if not (folder / name).is_file():
                raise ConfigError(f"{folder / name}: not there, so {path} is no finished run; finish its training")
        try:
            saved, told = _read_saved(folder / "config.json")
            tensors = safetensors.torch.load_file(folder / "model.safetensors")
            items = ItemTable.read(folder / "items.parquet")
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
            detail = " ".join(str(error).split())
            raise ConfigError(f"{folder}: not a whole model ({detail}); copy or train it again") from error
        known = tensors.get("items.id.known")  # a table of its own row per item brings its list
        try:
            here = saved.model.model_copy(update={"attention": runnable(saved.model.attention)})
            model = EventModel(here, saved.schema_, None if known is None else known.numpy())
            model.config = saved.model  # as it was trained
            store_tables(model)
            model.load_state_dict(tensors)
        except (RuntimeError, ConfigError) as error:  # names or shapes, or no list of items for `full`
            detail = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"{folder / 'model.safetensors'}: the weights belong to another config.json ({detail}); copy or train "
                f"the model again"
            ) from error
        loaded = cls(model, items, told)
        if loaded.fingerprint != saved.fingerprint:
            raise ConfigError(
                f"{folder}: its files make model {loaded.fingerprint}, its config.json is of {saved.fingerprint}; they "
                f"belong to different models, so copy or train it again"
            )
        return loaded

    # -- users ---------------------------------------------------------------------------------------------------------

    def encode(self, events: Any, n_before: int = 0, profile: Mapping[str, Any] | None = None) -> UserState:
        """The state of one user.

        Args:
            events: the user's events, oldest first: a dict of columns, a pandas, polars or pyarrow table, a
                `datasets.Dataset`; columns as in the log. No events give the empty state.
            n_before: events of the user that came before these and are left out, 0 or more. Their items are not
                known, so the state counts as `seen_cut` and `recommend` may return them.
            profile: what is known of the user, by the columns of the users table; the rest is unknown.
        """
        return self.builder.build(self.events(events, profile), n_before)

    def encode_many(
        self, histories: Sequence[Any], profiles: Sequence[Mapping[str, Any] | None] | None = None
    ) -> list[UserState]:
        """The states of several users, in order, in padded passes: within 1e-5 of `encode`."""
        if profiles is not None and len(profiles) != len(histories):
            raise ConfigError(f"profiles: {len(profiles)} for {len(histories)} users; give one a user, or None")
        known = profiles or [None] * len(histories)
        read = [self.events(history, profile) for history, profile in zip(histories, known, strict=True)]
        states: dict[int, UserState] = {}
        for block in self._blocks(read):
            built = self.builder.build_many([read[row] for row in block.rows], block)
            states.update(zip(block.rows.tolist(), built, strict=True))
        return [states[row] for row in range(len(read))]

    def _blocks(self, histories: Sequence[Events]) -> list[LikeWindows]:
        lengths = np.array([len(events) for events in histories], np.int64)
        return list(like_windows(lengths, self.config.window, BLOCK_POSITIONS))

    def embed_users(
        self,
        histories: Sequence[Events],
        dtype: torch.dtype = torch.float32,
        want: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Query vectors of several users in padded passes, float32 [M, D].

        On the CPU it works in as many threads as torch has, and torch has one of its own meanwhile: not for two callers
        at once.

        Args:
            histories: each user's events, oldest first.
            dtype: of the matrix products. float32: the embeddings of `encode_many`; bfloat16: about 1e-2 from them.
            want: outcomes that the items should have; see `query`.
        """
        wanted = self.asked(want)
        queries = torch.zeros(len(histories), self.config.dim)

        def embed(block: LikeWindows) -> None:
            with torch.autocast(self.model.device.type, dtype, enabled=dtype != torch.float32):
                queries[block.rows] = self.builder.embed_many([histories[row] for row in block.rows], wanted, block)

        pieces = self._blocks(histories)
        alone = len(pieces) == 1 or self.model.device.type != "cpu"
        for _ in map(embed, pieces) if alone else on_each_core(embed, pieces):
            pass
        return queries

    def append(self, state: UserState, events: Any) -> UserState:
        """The state after further events: equals `encode` of all of them, bit for bit."""
        return self.builder.extend(state, self.events(events))

    def events(self, table: Any, profile: Mapping[str, Any] | None = None) -> Events:
        """A caller's table as `Events`; see `encode`."""
        events = read_events(table, self.schema)
        if profile is None and events.profile:
            return events
        return events.with_profile(read_profile(profile, self.schema)) if self.schema.profile or profile else events

    # -- items ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def item_vectors(self, ids: Sequence[int | str], features: Any = None) -> Tensor:
        """Vectors of items, float32 [C, D], of length 1 (unless `model.score: dot`).

        Items that training saw use their id; others are scored by their content and features alone (zeros where there
        is neither).

        Args:
            ids: item ids as they stand in the log.
            features: optional table with one row an item that overrides what the run knows: `embedding` (list<float>)
                and static feature columns.
        """
        hashes = hash_ids(list(ids))
        columns, content = item_columns(self.items, hashes)
        if features is not None:
            given, vectors = read_features(features, self.schema, len(hashes))
            columns = columns | {name: torch.from_numpy(values) for name, values in given.items()}
            content = content if vectors is None else torch.from_numpy(vectors)
        return self._vectors(hashes, columns, content)

    def _vectors(self, hashes: np.ndarray, columns: dict[str, Tensor], content: Tensor | None) -> Tensor:
        nothing = torch.zeros(1, 1, dtype=torch.int64)
        batch = EventBatch(tensor(hashes), nothing, nothing[0], nothing, features=columns, content=content)
        batch = on_device(self.builder.known(batch), self.model.device)
        return self.model.vectors(self.model.encode_items(batch)).cpu()

    @cached_property
    def catalogue(self) -> Tensor:
        """Vectors of every item of the run, float32 [I, D]."""
        parts = []
        with torch.no_grad():
            for first in range(0, len(self.items), BLOCK):
                hashes = self.items.hash[first : first + BLOCK]
                parts.append(self._vectors(hashes, *item_columns(self.items, hashes)))
        return torch.cat(parts) if parts else torch.zeros(0, self.config.dim)

    # -- retrieval -----------------------------------------------------------------------------------------------------

    def query(self, state: UserState, want: Mapping[str, Any] | None = None) -> Tensor:
        """The vector that items are compared with, float32 [D]: the state's embedding, or one towards outcomes.

        Args:
            state: of this model.
            want: outcomes that the item should have, by the log's names (`{"like": 1}`); the others may be any.

        Raises:
            RecGPTError: the state is another model's.
            ConfigError: the model was trained without `model.condition`, or `want` names no outcome of the log or a
                value that it cannot have.
        """
        self.builder.check(state)
        if not want:
            return state.embedding
        known = {name: torch.tensor([value]) for name, value in self.asked(want).items()}
        hidden = state.hidden[-1] if len(state.hidden) else state.first
        with torch.no_grad():
            return self.model.queries(hidden[None], wanted=known)[0]

    def asked(self, want: Mapping[str, Any] | None) -> dict[str, float]:
        """The known outcomes of `want`, by the log's names.

        Raises:
            ConfigError: as `query`.
        """
        if not want:
            return {}
        if not self.config.condition:
            raise ConfigError(
                "want: this model cannot be asked for outcomes; leave it out, or set model.condition: true and train"
            )
        read = read_want(want, self.schema)
        return {name: float(value) for name, value in read.items() if not math.isnan(value)}

    def recommend(
        self,
        state: UserState,
        k: int,
        exclude_seen: bool = True,
        candidates: Sequence[int | str] | None = None,
        want: Mapping[str, Any] | None = None,
    ) -> list[Recommendation]:
        """The k best items for a state, best first (fewer when there are not as many candidates).

        Args:
            state: of this model.
            k: how many.
            exclude_seen: leave out every item of the user's events, also beyond the window (unless `seen_cut`).
            candidates: the ids to choose from; default every item of the run. One given twice counts once; one of
                which nothing is known (no training event, no content, no feature) scores 0.
            want: outcomes that the items should have; see `query`.

        Raises:
            RecGPTError: the state is another model's.
            ConfigError: `k` below 1, or see `query`.
        """
        if k < 1:
            raise ConfigError(f"k: {k}; ask for at least 1 item")
        query = self.query(state, want)
        if candidates is None:
            vectors, hashes = self.catalogue, self.items.hash
        else:
            given = candidates.tolist() if isinstance(candidates, np.ndarray) else list(candidates)
            hashes = hash_ids(given)
            once = np.sort(np.unique(hashes, return_index=True)[1])
            hashes, chosen = hashes[once], [given[row] for row in once]
            vectors = self.item_vectors(chosen)
        scores = vectors @ query
        if exclude_seen:
            scores = scores.masked_fill(torch.from_numpy(np.isin(hashes, state.seen)), -torch.inf)
        best = torch.argsort(scores, descending=True, stable=True)[:k]
        kept = [int(row) for row in best if scores[row] > -torch.inf]
        items = [self.items.id(row) if candidates is None else chosen[row] for row in kept]
        return [Recommendation(item, float(scores[row])) for item, row in zip(items, kept, strict=True)]


def _read_saved(path: Path) -> tuple[_Saved, dict[str, Any]]:
    """A model folder's config, and its sections as they stand there."""
    values = json.loads(path.read_text("utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no object")
    if values.get("format") != FORMAT:
        raise ConfigError(
            f"{path}: format {values.get('format')!r}, this version reads {FORMAT}; load it with the version that "
            f"wrote it, or train it again"
        )
    saved = validate(_Saved, values, str(path))
    return saved, {name: values[name] for name in ("model", "schema")}
