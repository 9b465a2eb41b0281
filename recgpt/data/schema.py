"""The `data` section of a config, and the schema that a prepared log leaves to the model."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from recgpt.config import Section, config_digest
from recgpt.errors import ConfigError

TimeUnit = Literal["s", "ms", "us", "ns"]
OutcomeKind = Literal["binary", "regression", "watch_time"]
FeatureKind = Literal["categorical", "numeric"]
ItemFeatureKind = Literal["categorical", "categories", "numeric"]

UNITS_PER_SECOND: dict[str, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
DEFAULT_MEMORY_LIMIT = "2GB"


class FormatConfig(Section):
    """How a text log is laid out; Parquet needs none of it."""

    header: bool = True
    """Whether the first line names the columns."""
    delimiter: str | None = None
    """What stands between fields; by default `,` for .csv, a tab for .tsv, a space for .txt, `::` for .dat."""
    columns: list[str] | None = None
    """The column names, needed where there is no header (and replacing it where there is one)."""
    encoding: str = "utf-8"
    """How characters are written, such as latin-1; a codec of Python's."""
    quotes: bool | None = None
    """Whether a field may stand between double quotes, over several lines too. Default: in .csv it may (a log of which
    many lines, more than `max_reject_fraction`, lie inside quotes is refused), elsewhere a quote is a character."""

    @model_validator(mode="after")
    def _complete(self) -> "FormatConfig":
        if not self.header and not self.columns:
            raise ValueError("columns: missing; without a header line they must be listed")
        if self.columns is not None and len(set(self.columns)) != len(self.columns):
            raise ValueError(f"columns: a name stands twice in {self.columns}; rename one")
        if self.delimiter is not None and (not self.delimiter or set(self.delimiter) & set('"\r\n\0')):
            raise ValueError(f"delimiter: {self.delimiter!r} parts no fields; write for example ',' or '::'")
        if self.quotes and self.delimiter is not None and len(self.delimiter.encode()) > 1:
            raise ValueError(f"quotes: true needs a delimiter of one ASCII character, not {self.delimiter!r}")
        return self

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            "".encode(value)
        except LookupError as error:
            raise ValueError(f"{value!r} is no encoding; write for example utf-8 or latin-1") from error
        return value


class OutcomeConfig(Section):
    """One outcome of an event: what happened after the item was shown."""

    kind: OutcomeKind
    """binary (0 or 1), regression (any finite number), watch_time (zero or more)."""


class ContextConfig(Section):
    """One thing known when the item was shown."""

    kind: FeatureKind
    """categorical (integers or text, hashed) or numeric."""


class FeatureConfig(Section):
    """One static column of the user table."""

    kind: FeatureKind
    """categorical (integers or text, hashed) or numeric."""


class ItemFeatureConfig(Section):
    """One static column of the item table."""

    kind: ItemFeatureKind
    """categorical (integers or text, hashed), categories (several of them: genres, tags) or numeric."""
    separator: str | None = Field(default=None, min_length=1)
    """What stands between the `categories` of a text, such as `|`; null = the column is a list. Blanks around them are
    no part of them."""

    @model_validator(mode="after")
    def _parts_something(self) -> "ItemFeatureConfig":
        if self.separator is not None and self.kind != "categories":
            raise ValueError(f"separator: {self.separator!r} parts the values of kind: categories, not of {self.kind}")
        return self


class VectorsConfig(Section):
    """A file of content vectors, one row an item."""

    path: str
    """A Parquet file (or a glob); `$RECGPT_DATA` is expanded."""
    id: str
    """The column that equals the log's item id."""
    column: str
    """A list<float> column of one width; null = none."""


class ItemsConfig(Section):
    """A side table with one row an item."""

    path: str
    """A Parquet or text file (or a glob); `$RECGPT_DATA` is expanded."""
    id: str
    """The column that equals the log's item id."""
    category: str | None = None
    """A column with one category an item."""
    title: str | None = None
    """A readable name, for people only."""
    features: dict[str, ItemFeatureConfig] = {}
    """Static columns that enter the item vector."""
    embedding: str | None = None
    """A list<float> column of one width: a content vector; null = none."""
    vectors: VectorsConfig | None = None
    """Content vectors from a file of their own instead."""
    text: list[str] = []
    """Text columns (one text is a list of one) whose words make the content vector instead, joined in this order."""
    text_width: int = Field(default=256, ge=8, le=65_536)
    """Entries of the hashed n-gram vectors that `text` becomes."""
    encoder: str | None = None
    """A sentence-transformers model (a folder or a name on its hub) that encodes `text` instead; needs the extra
    `text`. Its vectors are kept in the prepared log: prepare anew (another `prepared`) after changing the model."""
    format: FormatConfig = FormatConfig()
    """Layout, for a text file."""

    @field_validator("text", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_content(self) -> "ItemsConfig":
        given = {"embedding": self.embedding is not None, "vectors": self.vectors is not None, "text": bool(self.text)}
        names = [name for name, is_given in given.items() if is_given]
        if len(names) > 1:
            raise ValueError(
                f"{names[1]}: {names[0]} is given too, and an item has one content vector; keep one of them"
            )
        if self.encoder is not None and not self.text:
            raise ValueError("encoder: there is nothing to encode; name text columns in text")
        if len(set(self.text)) != len(self.text):
            raise ValueError(f"text: a column stands twice in {self.text}; remove one")
        return self


class UsersConfig(Section):
    """A side table with one row a user: what is known of a user beside the events."""

    path: str
    """A Parquet or text file (or a glob); `$RECGPT_DATA` is expanded."""
    id: str
    """The column that equals the log's user id."""
    features: dict[str, FeatureConfig] = {}
    """Static columns, a profile that enters once, before the first event; never the id."""
    format: FormatConfig = FormatConfig()
    """Layout, for a text file."""

    @model_validator(mode="after")
    def _no_id(self) -> "UsersConfig":
        if self.id in self.features:
            raise ValueError(f"features: {self.id!r} is the user id, which the model must not see; remove it")
        return self


class ImpressionsConfig(Section):
    """Events that ranking learns from and is measured on: an item was shown, and the outcomes tell what followed."""

    where: str | None = None
    """A SQL condition over a row of the log; null = every event is an impression."""
    history: Literal["online", "frozen"] = "online"
    """What an impression may read: the user's events up to it (online), or, in the validation and the
    test part, those before the user's first event of that part (frozen)."""


class TargetConfig(Section):
    """Events count as next-item targets when an outcome is known and high enough."""

    outcome: str
    """The name of a declared outcome."""
    min: float = 1
    """The least value of a target."""


class LeaveOneOutSplit(Section):
    """A user's last target is the test event, the one before it the validation event."""

    kind: Literal["leave_one_out"] = "leave_one_out"


class TimeSplit(Section):
    """Two moments: one target a user at or after each, history and candidates from before it."""

    kind: Literal["time"]
    valid: int | str
    """Start of validation: an ISO date or datetime (UTC unless it gives an offset), or an integer
    in `time_unit`."""
    test: int | str
    """Start of the test part, later than `valid`."""

    @field_validator("valid", "test")
    @classmethod
    def _iso(cls, value: int | str) -> int | str:
        if isinstance(value, str):
            try:
                datetime.fromisoformat(value)
            except ValueError:
                raise ValueError("not an ISO date such as 2022-04-28 or 2022-04-28T12:00:00+02:00") from None
        return value


class ColumnSplit(Section):
    """A column says which part an event belongs to; other values are training."""

    kind: Literal["column"]
    column: str
    """The column that names the part."""
    valid: list[int | str]
    """Values of the validation part."""
    test: list[int | str]
    """Values of the test part."""

    @model_validator(mode="after")
    def _apart(self) -> "ColumnSplit":
        both = sorted({str(v) for v in self.valid} & {str(v) for v in self.test})
        if both:
            raise ValueError(f"value {both[0]!r} is both in valid and in test; remove it from one")
        return self


class WhereSplit(Section):
    """Conditions say which part an event belongs to; rows that meet neither are training, both are test."""

    kind: Literal["where"]
    valid: str
    """A SQL condition over a row: the validation part."""
    test: str
    """A SQL condition over a row: the test part."""


SplitConfig = Annotated[LeaveOneOutSplit | TimeSplit | ColumnSplit | WhereSplit, Field(discriminator="kind")]


class DataConfig(Section):
    """Where the log lies, which column is what, and how it is split."""

    events: list[str]
    """Files or globs, Parquet or text (.csv, .tsv, .txt, .dat, also .gz); `$RECGPT_DATA` is expanded. One
    text is a list of one."""
    format: FormatConfig = FormatConfig()
    """Layout of a text log."""
    where: str | None = None
    """A SQL condition that rows must meet; the others are counted as filtered."""
    user: str
    """Column of the user id: integers or text, never floating point."""
    item: str
    """Column of the item id: integers or text, never floating point."""
    order: str | None = None
    """Column that sorts a user's events, or `row` = the file order of a single file. Absent:
    `time`."""
    time: str | None = None
    """Column of the clock: a number in `time_unit` or a timestamp. Null = unknown where `order` is
    given."""
    time_unit: TimeUnit = "s"
    """Unit of a numeric `time` column."""
    tie: list[str] = []
    """Columns that sort events of equal order; then the item hash does."""
    duplicates: Literal["keep", "drop", "fail"] = "keep"
    """What to do with copies: same user, same item, same time (same order where the time is
    unknown)."""
    outcomes: dict[str, OutcomeConfig] = {}
    """Columns known after the event; null = unknown, NaN = rejected."""
    context: dict[str, ContextConfig] = {}
    """Columns known when the item was shown; null = unknown, NaN = rejected."""
    items: ItemsConfig | None = None
    """A side table of the items."""
    users: UsersConfig | None = None
    """A side table of the users."""
    target: Literal["all"] | TargetConfig = "all"
    """Which events are next-item targets; all events are inputs."""
    split: SplitConfig = LeaveOneOutSplit()
    """Training, validation and test part."""
    impressions: ImpressionsConfig | None = None
    """Which events are impressions, for ranking; absent: none."""
    max_reject_fraction: float = Field(default=0.01, ge=0, le=1)
    """Stop when more than this part of the rows is rejected."""
    prepared: str | None = None
    """Folder of the prepared log; by default `prepared/DIGEST` of this section under the working
    directory."""
    memory_limit: str = DEFAULT_MEMORY_LIMIT
    """What the query engine may use while preparing; larger sorts go to the disk."""

    @field_validator("events", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("events")
    @classmethod
    def _some(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("no file is named; write a path or a glob")
        return value

    @field_validator("memory_limit")
    @classmethod
    def _size(cls, value: str) -> str:
        number = value.upper().rstrip("IB").rstrip("KMGT").strip()
        if not number.replace(".", "", 1).isdigit() or value.upper() == number:
            raise ValueError("write a size with its unit, such as 2GB or 512MB")
        return value

    @model_validator(mode="after")
    def _coherent(self) -> "DataConfig":
        if self.order is None and self.time is None:
            raise ValueError("order: missing; name the column that sorts events, or data.time, or row")
        if self.order == "row" and len(self.events) > 1:
            raise ValueError(f"order: row needs a single file, events names {len(self.events)}")
        if isinstance(self.split, TimeSplit):
            self._check_time_split(self.split)
        if isinstance(self.target, TargetConfig) and self.target.outcome not in self.outcomes:
            raise ValueError(
                f"target.outcome: {self.target.outcome!r} is not declared;"
                f" outcomes has {sorted(self.outcomes) or 'none'}"
            )
        self._check_roles()
        return self

    def _check_time_split(self, split: TimeSplit) -> None:
        if self.time is None:
            raise ValueError("split: kind time needs data.time, the column of the clock")
        valid, test = (time_point(value, self.time_unit) for value in (split.valid, split.test))
        if valid >= test:
            raise ValueError(f"split: valid {split.valid} must lie before test {split.test}")

    def _check_roles(self) -> None:
        if self.user == self.item:
            raise ValueError(f"item: {self.item!r} is the user column too; name another")
        for name in self.context:
            if name in self.outcomes:
                raise ValueError(
                    f"context: {name!r} is declared as an outcome too; what is known only after"
                    " the event would leak into its own prediction, so remove it from context"
                )
            if name == self.user:
                raise ValueError(f"context: {name!r} is the user id, which the model must not see")
        if self.users is not None and self.user in self.users.features:
            raise ValueError(f"users.features: {self.user!r} is the user id, which the model must not see; remove it")
        if self.impressions is not None and not self.outcomes:
            raise ValueError(
                "impressions: needs data.outcomes; declare the columns that tell what followed an impression"
            )

    def digest(self) -> str:
        """What the prepared log depends on.

        Neither where it is written, nor the memory used, nor which of the two histories is read later (both are there).
        """
        neutral: dict[str, object] = {"prepared": None, "memory_limit": DEFAULT_MEMORY_LIMIT}
        if self.impressions is not None:
            neutral["impressions"] = self.impressions.model_copy(update={"history": "online"})
        return config_digest(self.model_copy(update=neutral))


class DataSchema(Section):
    """What the model must know of a log: columns, kinds and widths; part of a model's fingerprint."""

    user: str = "user"
    """Column of the user id."""
    item: str = "item"
    """Column of the item id."""
    time: str | None = None
    """Column of the clock, if the log has one."""
    time_unit: TimeUnit = "s"
    """Unit of a numeric time column."""
    outcomes: dict[str, OutcomeKind] = {}
    """Outcome columns and their kinds."""
    context: dict[str, FeatureKind] = {}
    """Context columns and their kinds."""
    features: dict[str, ItemFeatureKind] = {}
    """Static item columns and their kinds."""
    profile: dict[str, FeatureKind] = {}
    """Static user columns and their kinds."""
    content_dim: int | None = None
    """Width of the content vectors, if there are any."""
    has_time: bool = False
    """Whether events carry a clock."""
    has_category: bool = False
    """Whether items have a category."""


def time_point(value: int | str, unit: str) -> int:
    """A moment in microseconds since 1970 UTC.

    Args:
        value: an integer in `unit`, or an ISO date or datetime (UTC unless it gives an offset).
        unit: s, ms, us or ns.

    Raises:
        ConfigError: the text is no date.
    """
    if isinstance(value, int):
        return value * 10**6 // UNITS_PER_SECOND[unit]
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise ConfigError(f"{value!r} is not an ISO date such as 2022-04-28") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 10**6 + since.microseconds
